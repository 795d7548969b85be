"""Selection over a batch by the CUDA kernels against the reference, bit for bit."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk
from python_tests.ops.test_batch_top_m import check as check_result
from python_tests.ops.test_batch_top_m import expect
from python_tests.oracle import STYLES, hostile, same_bits

from .recording import recording

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check(ops, u: torch.Tensor, m: int, positive: bool = False) -> None:
    values, indices, offsets = ops.batch_top_m(u, m, positive)
    _, at, starts = dk.reference.batch_top_m(u, m, positive)
    rows = torch.arange(len(starts) - 1).repeat_interleave(starts.diff())
    want = expect(u, rows * u.shape[-1] + at, positive)
    check_result((offsets, values, indices), want)
    assert same_bits(values, want[1])


@pytest.mark.parametrize(
    "shape", [(1, 1), (5, 3), (9, 31), (40, 129), (3, 2049), (2, 4100)], ids=str
)
def test_shapes(ops, shape):
    """A warp for 2048 entries of a row: ragged, full, and several of them."""
    p = shape[1]
    for m in {0, 1, p // 3, p}:
        check(ops, hostile(shape, torch.float32, m, "few_special"), m, m % 2 == 1)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hostile_batches(ops, dtype, style):
    for shape, m, positive in (((13, 77), 20, False), ((13, 77), 40, True), ((2, 2500), 9, True)):
        check(ops, hostile(shape, dtype, 5, style), m, positive)


def test_equal_leading_bits(ops):
    """Keys that differ in the last bits only, and in the first only: every digit has to decide."""
    low = (
        torch.full((3, 70), 0x3F800000, dtype=torch.int32) + torch.arange(210).view(3, 70) * 7 % 31
    )
    high = (torch.arange(210) * 37 % 255).int().view(3, 70) << 23
    for image in (low.int(), high.int()):
        for m in (1, 35, 68):
            check(ops, image.view(torch.float32), m)


def test_ties_begin_in_one_piece_and_end_in_another(ops):
    u = torch.zeros(4, 2100)
    u[1, 2050:], u[2, :30], u[3, 5] = -1.5, 1.5, 2.0
    for m in (1, 10, 15, 19, 20, 21, 1000):
        check(ops, u, m)
        check(ops, u, m, positive=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_and_alignment(ops, dtype):
    memory = hostile((6, 113), dtype, 2, "ties")
    for u in (memory[:, 3:103], memory[::2, :100], memory[:1].expand(3, -1)[:, :100],
              memory[:, ::2], memory.reshape(3, 2, -1)[..., 1:100], memory.t()):  # fmt: skip
        check(ops, u, min(17, u.shape[-1] - 1))


def test_the_order_of_blocks_cannot_be_seen(ops, emulator):
    u = hostile((50, 90), torch.float32, 1, "ties")
    want = ops.batch_top_m(u, 7, True)
    emulator.block_order = lambda n: range(n - 1, -1, -1)
    got = ops.batch_top_m(u, 7, True)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_more_pieces_than_blocks_count_them(ops, emulator):
    emulator.set_device(1, 232448)  # 8 blocks
    check(ops, hostile((30, 40), torch.float32, 3, "few_special"), 3)


def test_refusals_and_empty_batches(ops):
    u = torch.randn(2, 5)
    with pytest.raises(RuntimeError, match="m must be >= 0 and <= p = 5, got 6"):
        ops.batch_top_m(u, 6, False)
    with pytest.raises(RuntimeError, match="u must be float32, float16 or bfloat16"):
        ops.batch_top_m(u.double(), 2, False)
    for shape, m in (((0, 5), 2), ((2, 0, 5), 2), ((3, 0), 0), ((3, 4), 0)):
        values, indices, offsets = ops.batch_top_m(torch.empty(shape), m, True)
        assert values.shape == indices.shape == (0,)
        assert offsets.tolist() == [0] * (torch.Size(shape[:-1]).numel() + 1)


def test_the_public_operator_and_its_gradient(device):
    u = hostile((3, 5, 60), torch.float32, 3, "normal").to(device)
    for positive in (False, True):
        outs = []
        for backend in ("cuda", "reference"):
            with dk.use_backend(backend):
                leaf = u.clone().requires_grad_()
                got = dk.batch_top_m(leaf, 7, positive=positive)
                (grad,) = torch.autograd.grad((got[1] * 3).square().sum(), leaf)
                outs.append((*got, grad))
                assert dk.last_call().backend == backend
        for ours, want in zip(*outs, strict=True):
            assert torch.equal(ours, want)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 3), (torch.bfloat16, 2)], ids=str)
def test_launches_at_any_size(emulator, dtype, digits):
    """More than 2^31 entries; nothing is read back."""
    with recording(emulator) as launches:
        u = torch.empty(1 << 20, 16384, dtype=dtype, device="meta")
        _, values, _ = dk.batch_top_m(u, 32, positive=True)
    assert values.shape == (1 << 25,)
    kernels = [launch.kernel.removesuffix("_kernel") for launch in launches]
    radix = ["batch_histogram", "batch_digit"] * digits
    assert kernels == ["memset", *radix, "batch_count", "batch_place", "batch_write"]
