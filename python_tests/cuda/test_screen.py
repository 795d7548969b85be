"""An encoder stage by screening. Values are those of one float32 dot product of fixed order, and
what is selected is decided by them alone: bit for bit, whatever tensor cores make of the rest."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import deepl0_kernels as dk
from deepl0_kernels import reference
from python_tests.oracle import STYLES, as_bits, hostile, same_bits, same_values, selectable
from python_tests.ptx import matrix

from . import build
from .emulator import serving, stages_screened
from .recording import recording

KERNELS = ["screen_units_kernel", "screen_rows_kernel", "screen_product_kernel",
           "screen_select_kernel", "screen_throughout_kernel"]  # fmt: skip


def dot_products(x: Tensor, W: Tensor, bias: Tensor | None = None) -> Tensor:
    """[B, p]: lane l adds the terms 128 i + 4 l + v by fused multiply-adds, then halves meet."""
    n = x.shape[1]
    a, b = (np.zeros((len(t), -(-n // 128) * 128), np.float64) for t in (x, W))
    a[:, :n], b[:, :n] = x.double().numpy(), W.double().numpy()
    lanes = np.zeros((len(x), len(W), 32), np.float32)
    with np.errstate(all="ignore"):
        for i in range(0, a.shape[1], 128):
            for v in range(4):
                left, right = (t[:, i + v : i + 128 : 4] for t in (a, b))
                if i + v < n:  # lanes beyond add 0 times 0
                    lanes = (left[:, None] * right + lanes).astype(np.float32)
        for half in (16, 8, 4, 2, 1):
            lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    u = torch.from_numpy(np.ascontiguousarray(lanes[..., 0]))
    return u if bias is None else u + bias


Code = tuple[Tensor, Tensor]


def right(
    ops, x: Tensor, W: Tensor, bias: Tensor | None, m: int, positive: bool, z: Code | tuple = ()
) -> bool:
    values, indices = ops.screened_top_m(x, W, bias, m, positive, *z)
    u = dot_products(x, W, bias)
    if z:
        u.scatter_add_(1, z[1], z[0])
    at = reference.top_m(u, m, positive)[1]
    chosen = selectable(u, positive).gather(1, at).view(torch.float32)
    return torch.equal(indices, at) and same_values(values, chosen)


def check(ops, x: Tensor, W: Tensor, m: int, bias: Tensor | None = None) -> None:
    for positive in (False, True):
        assert right(ops, x, W, bias, m, positive), (m, positive)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def throughout(emulator, call: Callable[[], object]) -> int:
    """How many rows a call computes throughout: the count that the last kernel is given."""
    found, execute = [], emulator._execute

    def watch(job) -> None:
        if "screen_throughout" in job.kernel.decode():
            address = ctypes.c_uint64.from_address(job.arguments[0]).value
            found.append(ctypes.c_int32.from_address(address).value)
        execute(job)

    emulator._execute = watch
    try:
        call()
    finally:
        del emulator._execute
    return sum(found)


@pytest.mark.parametrize(
    ("batch", "n", "p", "m"),
    [(1, 1, 1, 1), (1, 5, 40, 3), (3, 33, 300, 7), (2, 300, 129, 4), (2, 128, 640, 20),
     (129, 7, 40, 3), (4, 64, 100, 100)],
)  # fmt: skip
def test_sizes(ops, batch, n, p, m):
    x, W = normal(batch, n), normal(p, n, seed=1)
    check(ops, x, W, m)
    check(ops, x, W, m, normal(p, seed=2))


@pytest.mark.parametrize("style", STYLES)
def test_hostile_operands(ops, style):
    """NaN, inf, what bfloat16 cannot hold, subnormals, ties: in x, in W, in the bias, in all."""
    x, W, b = (
        hostile(s, torch.float32, i, style) for i, s in enumerate(((3, 37), (210, 37), (210,)))
    )
    calm = normal(3, 37), normal(210, 37, seed=1), None
    for operands in ((x, calm[1], None), (calm[0], W, None), (*calm[:2], b), (x, W, b)):
        for m in (1, 9):
            check(ops, operands[0], operands[1], m, operands[2])


def test_one_bad_entry(ops, emulator):
    """A row that is not finite is computed throughout, and no other; of a unit that is not, or too
    large, its 16 are computed for every row."""
    for bad in (float("nan"), float("inf"), -float("inf"), 3e38, 1e25, 1e-42, -0.0):
        x, W, b = normal(4, 24), normal(200, 24, seed=1), normal(200, seed=2)
        wrong_x, wrong_w, wrong_b = x.clone(), W.clone(), b.clone()
        wrong_x[2, 5], wrong_w[77, 3], wrong_b[131] = bad, bad, bad
        for operands in ((wrong_x, W, b), (x, wrong_w, b), (x, W, wrong_b)):
            check(ops, *operands[:2], 6, operands[2])
            rows = throughout(emulator, lambda o=operands: ops.screened_top_m(*o, 6, False))
            large = abs(bad) > 1e20 or bad != bad
            assert rows == (operands[0] is wrong_x and large)


def test_what_bfloat16_cannot_tell_apart(ops):
    """Units that differ in the last bits of float32: of the approximations all are equal."""
    g = torch.Generator().manual_seed(3)
    W = normal(1, 48).repeat(400, 1)
    W = (as_bits(W) + torch.randint(0, 5, W.shape, generator=g, dtype=torch.int32)).view(
        torch.float32
    )
    check(ops, normal(2, 48, seed=4), W, 12)
    # The best are the first of a group, the second, or the last; all of a group.
    for places in (range(0, 400, 16), range(1, 400, 16), range(15, 400, 16), range(64, 89)):
        some = 0.3 * normal(400, 48, seed=5)
        some[list(places)] = W[list(places)]
        check(ops, W[:2] + 1e-3 * normal(2, 48), some, 12)


def test_rows_without_room(ops, emulator):
    """Equal units, and rows of zeros: all are candidates, and the first m the code."""
    p = 700
    W = normal(1, 20).expand(p, -1)
    x = normal(3, 20, seed=1)
    x[1] = 0
    assert throughout(emulator, lambda: ops.screened_top_m(x, W, None, 9, False)) == 3
    check(ops, x, W, 9)
    other = normal(p, 20, seed=3)
    assert throughout(emulator, lambda: ops.screened_top_m(x, other, None, 9, False)) == 1
    check(ops, x, other, 9)


def test_few_positive_entries(ops, emulator):
    """Where fewer than m are positive the code has zeros at the first of all other units, and what
    is proven not to be positive is not computed."""
    x, W = normal(3, 30), normal(260, 30, seed=1)
    for most in (0, 1, 5, 40):
        u = dot_products(x, W)
        bias = -u.sort(1, descending=True).values[:, most].max().expand(260).contiguous()
        assert right(ops, x, W, bias, 20, True)
        assert throughout(emulator, lambda b=bias: ops.screened_top_m(x, W, b, 20, True)) == 0
    # All but the first, the last, some of them: zeros before, between and after.
    for good in ([0], [259], [0, 1, 2, 19, 20, 21], list(range(25)), [5, 100]):
        bias = torch.full((260,), -1e3)
        bias[good] = 1e3
        check(ops, x, W, 20, bias)


def test_the_code_of_the_stage_before(ops, emulator):
    """u = W x + b + z: z's units are computed, and its groups count without them. Of large and
    small z, of z that doubles or takes back what W x has; of more entries than m; of a row without
    room."""
    x, W, b = normal(3, 30), normal(260, 30, seed=1), normal(260, seed=2)
    u = dot_products(x, W, b)
    best = [u.abs().topk(k).indices.sort(1).values for k in (12, 40)]
    other = torch.stack([torch.randperm(260)[:12].sort().values for _ in range(3)])
    near = torch.arange(12).repeat(3, 1) + torch.tensor([[0], [128], [248]])
    for at in (*best, other, near):
        for values in (u.gather(1, at), -u.gather(1, at), normal(*at.shape), 0 * at.float()):
            for positive in (False, True):
                assert right(ops, x, W, b, 12, positive, (values, at))
    wrong = normal(3, 12)
    wrong[0, 3], wrong[1, 4], wrong[2, 5] = float("nan"), -float("inf"), 3e38
    equal = normal(1, 30).expand(260, -1)
    for positive in (False, True):
        assert right(ops, x, W, b, 12, positive, (wrong, other))
        assert right(ops, x, equal, None, 12, positive, (normal(3, 12), other))
        assert right(ops, x / 0, W, None, 12, positive, (normal(3, 12), other))
        assert right(ops, x, W, b - 30, 12, positive, (normal(3, 12), other))


@pytest.mark.parametrize("positive", [False, True])
def test_factored_stages(ops, emulator, positive):
    """Each stage is that of the residual, whose code is the next one's z."""
    x, W, b = normal(2, 24), normal(2048, 24, seed=1) / 5, normal(2048, seed=2) / 9
    D, step = W.t().contiguous() / 4, torch.tensor([0.5, 0.25])
    plain = [ops.encode_top_m_factored(x, W, D, b, t, [8, 5], positive) for t in (None, step)]
    emulator.launches.clear()
    with stages_screened():
        for t, (values, indices) in zip((None, step), plain, strict=True):
            code = ops.encode_top_m_factored(x, W, D, b, t, [8, 5], positive)
            saved = ops.encode_top_m_factored_saving(x, W, D, b, t, [8, 5], positive)
            assert torch.equal(code[1], indices)
            torch.testing.assert_close(code[0], values, rtol=1e-5, atol=1e-5)
            assert all(map(torch.equal, saved[:2], code))
        kernels = [launch.kernel for launch in emulator.launches]
        assert kernels.count("screen_units_kernel") == 4
        assert kernels.count("screen_select_kernel") == 8
        assert "top_m_block_kernel" not in kernels
        emulator.launches.clear()
        ops.encode_top_m_factored(x, W, D, b, None, [8, 17], positive)
        assert not {launch.kernel for launch in emulator.launches} & set(KERNELS)


def test_strides_and_alignment(ops):
    x = normal(6, 50)
    rows = x[:, :37], x[::2, 3:40], x.t()[:6], x[:1].expand(3, -1), x[:, :36]
    for first, a in enumerate(rows):
        n = a.shape[1]
        W = normal(220, n + 5, seed=n)
        check(ops, a, W[::2, first : first + n], 8)
    check(ops, normal(3, 20), normal(20, 220, seed=2).t(), 8)


def test_many_entries(ops):
    check(ops, normal(2, 16), normal(1400, 16, seed=1), 512)
    with pytest.raises(RuntimeError, match="screened_top_m"):
        ops.screened_top_m(normal(2, 16), normal(1400, 16), None, 513, False)


def test_a_row_has_one_code(ops, emulator):
    """Alone, in a batch, in blocks of a batch, in whatever order blocks run, aligned or not."""
    x, W, b = normal(5, 36), normal(330, 36, seed=1), normal(330, seed=2)
    x[3] = float("inf")
    values, indices = ops.screened_top_m(x, W, b, 11, False)
    alone = [ops.screened_top_m(x[r : r + 1], W, b, 11, False) for r in range(5)]
    ops.force_rules("rules", 2 * 330)  # two rows at a time
    blocks = ops.screened_top_m(x, W, b, 11, False)
    ops.force_rules("rules", 0)
    wide = [torch.cat([torch.zeros(len(t), 1), t], 1)[:, 1:] for t in (x, W)]
    emulator.block_order = lambda n: range(n - 1, -1, -1)
    others = [blocks, ops.screened_top_m(*wide, b, 11, False)]
    others.append((torch.cat([v for v, _ in alone]), torch.cat([i for _, i in alone])))
    for v, i in others:
        assert torch.equal(i, indices)
        assert same_bits(v, values)


@pytest.mark.parametrize("sign", [-1, 1])
def test_tensor_cores_may_round_as_badly_as_the_bound_says(ops, monkeypatch, sign):
    """Six cuts by 2^-23 of |x| |W| for every four terms, up and down for neighbours."""
    x, W = normal(2, 64, seed=2), normal(1, 64) * (1 + 2.0**-20 * normal(320, 1, seed=1))
    size = float(x.norm(dim=1).min() * W.norm(dim=1).min())

    def cut(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return exact(a, b) + sign * size * 4 * 6 * 2.0**-23 * (1 - 2 * (np.arange(8) % 2))

    exact = matrix.products
    monkeypatch.setattr(matrix, "products", cut)
    check(ops, x, W, 10)
    check(ops, x, normal(320, 64, seed=3), 10)


def test_a_smaller_bound_is_noticed(ops, emulator):
    """The tests above can fail: without what rounding took, codes are wrong."""
    x, W = normal(2, 48, seed=4), normal(1, 48) + 2.0**-10 * normal(400, 48, seed=6)
    assert right(ops, x, W, None, 12, False)
    emulator.mutate = lambda name, text: text.replace("0f3F800347", "0f00000000")  # 1.0001
    assert not right(ops, x, W, None, 12, False)


def test_the_switch(emulator):
    """Off by default; on, it serves float32 encoders of one stage, p >= 2,048, m <= p / 128."""
    x, W, b = normal(2, 24), normal(2048, 24, seed=1), normal(2048, seed=2)
    S = 0.01 * normal(2048, 2048, seed=3)

    def kernels(*args, stages=1) -> list[str]:
        emulator.launches.clear()
        bias = b[: len(args[1])].to(args[1].dtype)
        dk.encode_top_m(*args, num_stages=stages, bias=bias)
        return [launch.kernel for launch in emulator.launches]

    with serving("cpu"):
        plain = dk.encode_top_m(x, W, None, 10, num_stages=1, bias=b)
        assert not set(kernels(x, W, None, 10)) & set(KERNELS)
        with stages_screened():
            assert kernels(x, W, None, 10) == KERNELS
            code = dk.encode_top_m(x, W, None, 10, num_stages=1, bias=b)
            leaf = W.clone().requires_grad_()
            dk.encode_top_m(x, leaf, None, 10, num_stages=1, bias=b).values.sum().backward()
            for other in ((x, W, None, 17), (x, W[:2000], None, 10), (x.half(), W.half(), None, 10),
                          (x[:0], W, None, 10), (x, W, None, 0)):  # fmt: skip
                assert not set(kernels(*other)) & set(KERNELS)
            assert not set(kernels(x, W, S, 10, stages=2)) & set(KERNELS)
    assert torch.equal(code.indices, plain.indices)
    torch.testing.assert_close(code.values, plain.values, rtol=1e-5, atol=1e-5)
    used = torch.zeros(2048).index_fill(0, plain.indices.flatten(), 1.0)
    assert torch.equal((leaf.grad != 0).any(1).float(), used)


def test_launches_of_any_size(ops, emulator):
    """W is rounded once; blocks of rows have 2^28 entries of u, all offsets 64 bits."""
    for batch, p, grids in (
        (200_000, 131_072, [8192, 256, 16 * 1024, 2048, 132, 256]),
        (1, (1 << 31) - (1 << 17), [(1 << 27) - (1 << 13), 16, (1 << 24) - (1 << 10), 1, 1]),
    ):
        x, W = (torch.empty(rows, 256, device="meta") for rows in (batch, p))
        with recording(emulator) as launches:
            values, _ = ops.screened_top_m(x, W, None, 32, False)
        assert values.shape == (batch, 32)
        kernels = [n for n in launches if n.kernel != "memset"]
        assert [n.grid for n in kernels][: len(grids)] == grids
        assert [n.kernel for n in kernels[:5]] == KERNELS
        assert sum(n.kernel == "screen_units_kernel" for n in kernels) == 1


def test_the_environment_asks_for_it():
    code = (
        "import torch, sys; torch.ops.load_library(sys.argv[1]);"
        "print(torch.ops.deepl0_emulated.screen_stages(False))"
    )
    for word, on in (("1", "True"), ("0", "False"), ("", "False")):
        done = subprocess.run(
            [sys.executable, "-c", code, str(build.build().library)],
            env=os.environ | {"DEEPL0_SCREEN": word}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == on
