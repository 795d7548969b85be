"""OMP against scikit-learn's."""

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
