"""OMP against scikit-learn's and the reference."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.solvers import omp

from .problems import planted


@pytest.mark.parametrize("m", [1, 5, 12])
def test_supports_and_values_are_scikit_learns(m):
    linear_model = pytest.importorskip("sklearn.linear_model")
    g = torch.Generator().manual_seed(1)
    x = torch.randn(100, 30, generator=g, dtype=torch.float64)
    _, D, _ = planted(n=30, p=50)
    theirs = (
        torch.from_numpy(linear_model.orthogonal_mp(D.numpy(), x.numpy().T, n_nonzero_coefs=m))
        .reshape(50, 100)
        .T
    )
    r = omp(x, D, m)
    assert torch.equal(r.dense != 0, theirs != 0)
    torch.testing.assert_close(r.dense, theirs)
    assert (r.iterations == m).all()
    torch.testing.assert_close(r.objective[-1], 0.5 * (x - theirs @ D.T).square().sum(1))


def test_the_norm_of_the_atoms_does_not_matter():
    x, D, _ = planted()
    scale = torch.linspace(0.1, 10, 50, dtype=torch.float64)
    plain, scaled = omp(x, D, 6), omp(x, D * scale, 6)
    assert torch.equal(plain.code.indices, scaled.code.indices)
    torch.testing.assert_close(plain.dense, scaled.dense * scale)


def test_the_residual_is_orthogonal_and_indices_ascend():
    x, D, _ = planted(dtype=torch.float32)
    r = omp(x, D, 8)
    residual = x - dk.decode(r.code, D)
    chosen = (residual @ D).gather(1, r.code.indices)
    assert chosen.abs().max() < 1e-4
    assert (r.code.indices.diff(dim=1) > 0).all()


def test_an_exact_code_ends_early_with_zeros_to_fill():
    _, D, _ = planted()
    code = torch.zeros(3, 50, dtype=torch.float64)
    code[0, 7], code[1, 3], code[1, 49] = 2.0, -1.0, 1.5
    r = omp(code @ D.T, D, 5)
    assert r.iterations.tolist() == [1, 2, 0]
    assert r.converged.all()
    torch.testing.assert_close(r.dense, code)
    assert (r.code.indices.diff(dim=1) > 0).all()
    assert r.objective.shape == (6, 3)


def test_duplicate_and_dead_atoms():
    x, D, _ = planted()
    D[:, 1], D[:, 2] = D[:, 0], 0
    r = omp(x, D, 10)
    assert torch.isfinite(r.dense).all()
    assert not r.dense[:, 2].any()


def test_shapes_and_errors():
    x, D, _ = planted(rows=6)
    assert omp(x.reshape(2, 3, 30), D, 4).code.values.shape == (2, 3, 4)
    assert omp(x[0], D, 4).code.values.shape == (4,)
    assert omp(x[:0], D, 4).code.values.shape == (0, 4)
    with pytest.raises(ValueError, match=r"m must be >= 1 and <= min\(n, p\) = 30, got 31"):
        omp(x, D, 31)


def assert_same(got, want, rtol, atol):
    """Same supports; a code's values by their size."""
    assert torch.equal(got.code.indices, want.code.indices)
    assert torch.equal(got.iterations, want.iterations)
    torch.testing.assert_close(got.dense, want.dense, rtol=rtol, atol=atol)
    torch.testing.assert_close(got.objective, want.objective, rtol=rtol, atol=atol)


# Few rows take the residual form, many the Gram form; p beyond and beside multiples of the vectors.
@pytest.mark.parametrize("rows", [1, 3, 37, 200])
@pytest.mark.parametrize(
    ("n", "p", "m"), [(1, 1, 1), (7, 5, 5), (30, 50, 12), (31, 257, 20), (64, 611, 40)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_chooses_as_the_reference(dtype, n, p, m, rows):
    g = torch.Generator().manual_seed(n + rows)
    x = torch.randn(rows, n, generator=g, dtype=torch.float64)
    D = torch.randn(n, p, generator=g, dtype=torch.float64)
    with dk.use_backend("reference"):
        want = omp(x, D, m)
    if dtype == torch.float64:
        got = omp(x, D, m)
        assert dk.last_call().backend == "cpu"
        return assert_same(got, want, 1e-8, 1e-9)
    # Near-ties, and square systems near the limit of dependence, may go another way in float32.
    got = omp(x.float(), D.float(), m)
    same = (got.code.indices == want.code.indices).all(1)
    if m < n / 2:
        assert same.double().mean() >= 0.95
        torch.testing.assert_close(got.dense[same].double(), want.dense[same], rtol=1e-3, atol=1e-4)
    assert torch.isfinite(got.dense).all()


@pytest.mark.parametrize("rows", [2, 60])
@pytest.mark.parametrize("transposed", [False, True])
def test_layouts_do_not_matter(transposed, rows):
    x, D, _ = planted(rows=rows)
    plain = omp(x, D, 6)
    wide = torch.zeros(rows, 61, dtype=x.dtype)[:, 1::2]
    wide.copy_(x)
    assert_same(omp(wide, D.T.contiguous().T if transposed else D, 6), plain, 1e-12, 1e-12)


@pytest.mark.parametrize("rows", [2, 60])
def test_degenerate_dictionaries_end_as_in_the_reference(rows):
    x, D, _ = planted(n=12, p=20, rows=rows)
    D[:, 3:9] = D[:, :1] * torch.tensor([1.0, -1, 2, 0.5, 3, 1], dtype=D.dtype)
    D[:, 9] = 0
    D[6:] = 0  # rank 6
    x[0] = 0
    with dk.use_backend("reference"):
        want = omp(x, D, 10)
    got = omp(x, D, 10)
    assert (want.iterations <= 6).all()
    assert want.iterations[0] == 0
    assert torch.equal(got.iterations, want.iterations)
    # Rounding may decide which of several equal atoms is taken: it is the same signal.
    torch.testing.assert_close(got.dense @ D.T, want.dense @ D.T, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.objective, want.objective, rtol=1e-9, atol=1e-9)
    assert (got.code.indices.diff(dim=1) > 0).all()
    assert ((got.dense[:, [0, *range(3, 9)]] != 0).sum(1) <= 1).all()
    assert not got.dense[:, 9].any()


def test_equal_correlations_go_to_the_lowest_index():
    D = torch.eye(40, dtype=torch.float32)
    x = torch.ones(50, 40)
    for rows in (1, 50):
        r = omp(x[:rows], D, 5)
        assert torch.equal(r.code.indices, torch.arange(5).expand(rows, 5))


@pytest.mark.parametrize("rows", [3, 300])
def test_the_number_of_threads_does_not_matter(rows):
    g = torch.Generator().manual_seed(5)
    D, x = torch.randn(40, 200, generator=g), torch.randn(rows, 40, generator=g)
    one = omp(x, D, 12)
    try:
        torch.set_num_threads(3)
        three = omp(x, D, 12)
    finally:
        torch.set_num_threads(1)
    assert one.code == three.code
    assert torch.equal(one.objective, three.objective)
