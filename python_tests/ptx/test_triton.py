"""Triton kernels, compiled for sm_80 and sm_90 and executed as PTX, against PyTorch."""

from __future__ import annotations

import pytest
import torch

from .engine import compile_triton, intercept, launch
from .errors import OutOfBoundsError
from .support import require_triton

require_triton()
from . import triton_kernels as kernels  # noqa: E402 - it imports triton

both = pytest.mark.parametrize("target", [80, 90])


def blocks(n: int, size: int) -> int:
    return -(-n // size)


@both
@pytest.mark.parametrize("n", [1, 255, 1024, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_add(target, n, dtype):
    x, y = (torch.randint(-100, 100, (n,)).to(dtype) for _ in range(2))
    out = torch.empty_like(x)
    launch(kernels.add, (blocks(n, 256),), (x, y, out, n), {"BLOCK": 256}, target=target)
    assert torch.equal(out, x + y)


def test_a_missing_mask_is_caught():
    x = torch.randn(1000)
    with pytest.raises(OutOfBoundsError, match=r"x has 4000 bytes.*block \(3, 0, 0\)"):
        launch(kernels.add_without_mask, (4,), (x, x.clone(), x.clone(), 1000), {"BLOCK": 256})


def test_specialisation_is_that_of_the_jit():
    """Pointers and sizes divisible by 16 vectorise, others do not; 1 becomes a constant."""
    x = torch.randn(1025)
    aligned, _, _ = compile_triton(kernels.add, (x, x, x, 1024), {"BLOCK": 1024}, 80)
    shifted, _, _ = compile_triton(kernels.add, (x[1:], x, x, 1024), {"BLOCK": 1024}, 80)
    single, values, names = compile_triton(kernels.add, (x, x, x, 1), {"BLOCK": 1024}, 80)
    assert aligned.asm["ptx"].count("ld.global.v4") > shifted.asm["ptx"].count("ld.global.v4")
    assert names == ["x", "y", "out"]
    assert len(values) == 3
    assert single is not aligned
    out = torch.zeros(1024)
    launch(kernels.add, (1,), (x[1:], x, out, 1024), {"BLOCK": 1024})
    assert torch.equal(out, x[1:] + x[:-1])


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions(target, dtype):
    x, y = torch.randn(1000, dtype=dtype), torch.rand(1000, dtype=dtype) + 0.1
    out = torch.empty_like(x)
    launch(kernels.functions, (4,), (x, y, out, 1000), {"BLOCK": 256}, target=target)
    a, b = x.double(), y.double()
    want = torch.where(a.abs() > b, a * b + 1, torch.exp(-a * a)) + b.sqrt() - torch.log(b + 1)
    want += a.sin() * b.cos() + (b + 1).rsqrt() + a.floor() + torch.maximum(a, b)
    want += a.sigmoid() + b.erf()
    torch.testing.assert_close(out, want.to(dtype))


@both
def test_integers(target):
    x = torch.randint(-(10**6), 10**6, (250,), dtype=torch.int32)
    y = torch.randint(1, 1000, (250,), dtype=torch.int32)
    out = torch.empty(250, dtype=torch.int64)
    launch(kernels.integers, (1,), (x, y, out, 250), {"BLOCK": 256}, target=target)
    quotient = torch.div(x, y, rounding_mode="trunc")
    value = (
        quotient + (x - quotient * y) * 3 + (x << 2) + (x >> 3) + (x & y) * 2 + (x | y) - (x ^ y)
    )
    wide = torch.div(x.long() * y.long(), 7, rounding_mode="trunc")
    assert torch.equal(out, value.long() + wide)


@both
@pytest.mark.parametrize("columns", [1, 300, 512])
def test_softmax(target, columns):
    x = torch.randn(5, columns)
    out = torch.empty_like(x)
    launch(kernels.softmax, (5,), (x, out, columns, columns), {"BLOCK": 512}, target=target)
    torch.testing.assert_close(out, x.softmax(1))


@both
@pytest.mark.parametrize(("num_warps", "dtype"), [(1, torch.float32), (4, torch.bfloat16)])
def test_row_reductions(target, num_warps, dtype):
    x = torch.randn(37, 100).to(dtype)
    sums, largest = torch.zeros(37), torch.zeros(37, dtype=dtype)
    where = torch.zeros(37, dtype=torch.int32)
    launch(
        kernels.row_sums,
        (5,),
        (x, sums, largest, where, 37, 100),
        {"R": 8, "C": 128},
        num_warps=num_warps,
        target=target,
    )
    torch.testing.assert_close(sums, x.float().sum(1))
    assert torch.equal(largest, x.max(1)[0])
    assert torch.equal(x.gather(1, where.long()[:, None])[:, 0], largest)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_cumsum(target, dtype):
    x = torch.randint(-9, 9, (3, 300)).to(dtype)
    out = torch.empty_like(x)
    launch(kernels.cumsum, (3,), (x, out, 300), {"BLOCK": 512}, target=target)
    assert torch.equal(out, x.cumsum(1).to(dtype))


def test_associative_scan():
    a, b = torch.rand(200), torch.randn(200)
    out, state, want = torch.empty(200), 0.0, []
    launch(kernels.recurrence, (1,), (a, b, out, 200), {"BLOCK": 256})
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        state = state * x + y
        want.append(state)
    torch.testing.assert_close(out, torch.tensor(want))


@both
def test_sort_histogram_atomics(target):
    x = torch.rand(256)
    out, bins = torch.empty(256), torch.zeros(32, dtype=torch.int32)
    launch(kernels.sort_and_count, (1,), (x, out, bins), {"BLOCK": 256, "BINS": 16}, target=target)
    assert torch.equal(out, x.sort()[0])
    want = torch.bincount((x * 16).int(), minlength=16)
    assert torch.equal(bins.long(), torch.cat([want, want]))


def test_gather_and_transpose():
    x, index, out = torch.randn(256), torch.randint(0, 256, (128,)).int(), torch.empty(128)
    launch(kernels.gather, (1,), (x, index, out), {"N": 256, "M": 128})
    assert torch.equal(out, x[index.long()])
    x = torch.randint(-100, 100, (70, 90), dtype=torch.int8)
    out = torch.empty(90, 70, dtype=torch.int8)
    launch(kernels.transpose, (3, 3), (x, out, 70, 90), {"B": 32})
    assert torch.equal(out, x.T)


@pytest.mark.parametrize("num_warps", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_selection(num_warps, dtype):
    x = torch.randn(3, 300).to(dtype)
    values, indices = torch.empty(3, 20), torch.empty(3, 20, dtype=torch.int64)
    launch(
        kernels.select, (3,), (x, values, indices, 300), {"M": 20, "N": 512}, num_warps=num_warps
    )
    want = x.float().abs().sort(dim=1, descending=True, stable=True)[1][:, :20].sort(1)[0]
    assert torch.equal(indices, want)
    assert torch.equal(values, x.float().gather(1, want))


def padded(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """A random matrix in rows of 16 more elements that are NaN: reading them would show."""
    whole = torch.full((rows, columns + 16), float("nan"), dtype=dtype)
    whole[:, :columns] = torch.randn(rows, columns).to(dtype)
    return whole[:, :columns]


TOLERANCE = {"ieee": 2e-5, "tf32": 5e-2, "tf32x3": 5e-5}


@both
@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        (torch.float32, "ieee"),
        (torch.float32, "tf32"),
        (torch.bfloat16, "ieee"),
        (torch.float16, "ieee"),
    ],
)
def test_matmul(target, num_stages, dtype, precision):
    exact = dtype == torch.float32 and precision == "ieee"
    constants = {"BM": 64, "BN": 32 if exact else 64, "BK": 16 if exact else 32}
    constants["PRECISION"] = precision
    for M, N, K in [(70, 80, 112), (64, 64, 32), (5, 16, 48)]:
        a, b, out = padded(M, K, dtype), padded(K, N, dtype), padded(M, N, torch.float32)
        before = out.storage_offset(), out._base[:, N:].clone()
        compiled = launch(
            kernels.matmul,
            (blocks(M, 64), blocks(N, constants["BN"])),
            (a, b, out, M, N, K, a.stride(0), b.stride(0), out.stride(0)),
            constants,
            num_stages=num_stages,
            target=target,
        )
        torch.testing.assert_close(
            out.double(), a.double() @ b.double(), atol=TOLERANCE[precision] * 2, rtol=1e-3
        )
        assert out._base[:, N:].isnan().all()
        assert before[1].isnan().all()
    text = compiled.asm["ptx"]
    assert ("cp.async" in text) == (num_stages == 3)
    unit = "fma.rn.f32" if exact else "wgmma.mma_async" if target == 90 else "mma.sync"
    assert unit in text


def test_matmul_of_ragged_strides():
    """Nothing divisible by 16: scalar loads, no pipelining."""
    M, N, K = 37, 41, 53
    a, b, out = torch.randn(M, K).bfloat16(), torch.randn(K, N).bfloat16(), torch.empty(M, N)
    for target in (80, 90):
        launch(
            kernels.matmul,
            (1, 1),
            (a, b, out.zero_(), M, N, K, K, N, N),
            {"BM": 64, "BN": 64, "BK": 32, "PRECISION": "ieee"},
            target=target,
        )
        torch.testing.assert_close(out.double(), a.double() @ b.double(), atol=1e-4, rtol=1e-4)


@both
@pytest.mark.parametrize(
    ("dtype", "precision", "num_warps"),
    [
        (torch.float32, "tf32x3", 8),
        (torch.bfloat16, "ieee", 4),
        (torch.float16, "ieee", 8),
    ],
)
def test_two_stages_in_one_kernel(target, dtype, precision, num_warps):
    B, n, p = 50, 72, 48
    x, W, S = torch.randn(B, n), torch.randn(p, n) / 8, torch.randn(p, p) / 20
    x, W, S = x.to(dtype), W.to(dtype), S.to(dtype)
    theta, z = torch.rand(p), torch.empty(B, p)
    launch(
        kernels.stages,
        (1,),
        (x, W, S, theta, z, B, n, p),
        {"BB": 64, "P": 64, "BK": 32, "PRECISION": precision},
        num_warps=num_warps,
        target=target,
    )
    first = x.double() @ W.double().T
    code = torch.where(first.abs() >= theta, first, 0).to(dtype).double()
    again = first + code @ S.double().T
    want = torch.where(again.abs() >= theta, again, 0)
    # Entries at their threshold may fall on either side.
    near = ((first.abs() - theta).abs() < 1e-4).any(1)[:, None] | (
        (again.abs() - theta).abs() < 1e-3
    )
    assert near.float().mean() < 0.2
    torch.testing.assert_close(z.double()[~near], want[~near], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "transpose_a", "transpose_b"),
    [
        (torch.bfloat16, False, True),
        (torch.bfloat16, True, False),
        (torch.float32, False, True),
    ],
)
@pytest.mark.parametrize("shape", [(64, 16, 16), (64, 32, 32), (128, 128, 64)])
def test_wgmma_layouts(dtype, transpose_a, transpose_b, shape):
    """Rows of 32, 64 and 128 bytes, either operand contiguous in either dimension."""
    M, N, K = shape
    a, b = torch.randint(-4, 5, (M, K)).to(dtype), torch.randint(-4, 5, (K, N)).to(dtype)
    out = torch.empty(M, N)
    compiled = launch(
        kernels.dot_of_transposed,
        (1,),
        (a.T.contiguous() if transpose_a else a, b.T.contiguous() if transpose_b else b, out),
        {"M": M, "N": N, "K": K, "TA": transpose_a, "TB": transpose_b},
        target=90,
    )
    assert "wgmma.mma_async" in compiled.asm["ptx"]
    assert torch.equal(out, a.float() @ b.float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8])
def test_other_matrix_types(dtype):
    a = torch.randint(-9, 9, (32, 64)).to(dtype)
    b = torch.randint(-9, 9, (64, 32)).to(dtype)
    out = torch.empty(32, 32, dtype=torch.int32 if dtype == torch.int8 else dtype)
    launch(kernels.small_dot, (1,), (a, b, out), {"B": 32, "K": 64})
    assert torch.equal(out.double(), a.double() @ b.double())


@both
def test_ordinary_launches_can_be_intercepted(target):
    x = torch.randn(1000)
    y, out = torch.randn(1000), torch.empty(1000)
    with intercept(target):
        kernels.add[lambda meta: (blocks(1000, meta["BLOCK"]),)](x, y, out, 1000, BLOCK=256)
    assert torch.equal(out, x + y)
    with intercept(target) as launches:
        kernels.softmax[(4,)](x, out, n := 250, n, BLOCK=256, num_warps=2)
    torch.testing.assert_close(out.view(4, 250), x.view(4, 250).softmax(1))
    assert [compiled.metadata.num_warps for compiled in launches] == [2]


def test_blocks_in_any_order():
    x, out = torch.randn(7, 300), torch.empty(7, 300)
    args = (x, out, 300, 300)
    launch(kernels.softmax, (7,), args, {"BLOCK": 512}, block_order=lambda n: range(n - 1, -1, -1))
    torch.testing.assert_close(out, x.softmax(1))
