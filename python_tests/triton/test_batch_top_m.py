"""The Triton kernels of the selection over a batch against the reference, bit for bit."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk
from python_tests.ops.test_batch_top_m import check as check_result
from python_tests.ops.test_batch_top_m import expect
from python_tests.oracle import STYLES, hostile, same_bits

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check(u: torch.Tensor, m: int, positive: bool, device: str) -> None:
    _, at, starts = dk.reference.batch_top_m(u, m, positive)
    rows = torch.arange(len(starts) - 1).repeat_interleave(starts.diff())
    want = expect(u, rows * u.shape[-1] + at, positive)
    values, indices, offsets = torch.ops.deepl0.batch_top_m(u.to(device), m, positive)
    check_result((offsets.cpu(), values.cpu(), indices.cpu()), want)
    assert same_bits(values.cpu(), want[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes(engine, device, dtype):
    """Several rows a tile, a row a tile, several tiles a row; ragged."""
    shapes = {(1, 1): 1, (37, 7): 2, (70, 64): 3, (9, 513): 30}
    if not engine.startswith("sm"):
        shapes |= {(33, 17): 17, (6, 512): 0, (3, 2048): 9, (2, 4100): 2000, (1, 2049): 2048}
    for i, (shape, m) in enumerate(shapes.items()):
        style = STYLES[(i + DTYPES.index(dtype)) % len(STYLES)]
        check(hostile(shape, dtype, m, style), m, i % 2 == 1, device)


@pytest.mark.parametrize("style", STYLES)
def test_every_style(engine, device, style):
    for dtype in DTYPES if not engine.startswith("sm") else DTYPES[:1]:
        for positive in (False, True):
            check(hostile((11, 60), dtype, 3, style), 20, positive, device)


def test_equal_leading_bits(engine, device):
    """Keys that differ in the last bits only, and in the first only: every digit has to decide."""
    steps = torch.arange(210, dtype=torch.int32).view(3, 70)
    for image in (0x3F800000 + steps * 7 % 31, steps * 37 % 255 << 23):
        for m in (1, 35, 68):
            check(image.view(torch.float32), m, False, device)


def test_ties_begin_in_one_tile_and_end_in_another(engine, device):
    u = torch.zeros(40, 60)
    u[1, 50:], u[35, :30], u[39, 5] = -1.5, 1.5, 2.0
    for m in (1, 2, 50):
        for positive in (False, True):
            check(u, m, positive, device)


def test_strides_and_empty_batches(engine, device):
    memory = hostile((6, 113), torch.float16, 2, "ties")
    for u in (memory[:, 3:50], memory[::2, :100:2], memory[:1].expand(3, -1)[:, :50]):
        check(u, 17, False, device)
    for shape, m in (((0, 5), 2), ((2, 0, 5), 2), ((3, 0), 0), ((3, 4), 0)):
        check(torch.randn(shape), m, True, device)


def test_gradient_through_the_public_operator(engine, device):
    u = hostile((3, 5, 50), torch.float32, 3, "normal").to(device)
    outs = []
    for backend in (None, "reference"):
        with dk.use_backend(backend):
            leaf = u.clone().requires_grad_()
            got = dk.batch_top_m(leaf, 7, positive=True)
            outs.append((*got, torch.autograd.grad(got[1].square().sum(), leaf)[0]))
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))
