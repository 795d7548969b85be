"""Dictionary learning: it learns, keeps its bound, repeats, and refuses nonsense."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from deepl0_kernels.solvers import learn_dictionary

from .problems import planted


@pytest.mark.parametrize("kind", [dict(m=4), dict(lam=0.01)])
def test_learning(kind):
    x, _, _ = planted(n=20, p=30, rows=1000, dtype=torch.float32)
    r = learn_dictionary(x, 30, **kind, epochs=8, batch_size=50, seed=3)
    assert r.D.shape == (20, 30)
    assert r.D.dtype == torch.float32
    assert not r.D.requires_grad
    assert r.loss[-1] < 0.7 * r.loss[0]
    assert torch.linalg.matrix_norm(r.D.double(), 2) <= 1 + 1e-5
    assert 0 < r.coherence <= 1 + 1e-6
    assert r.dead_atoms == 0
    assert 0 < r.atom_norms[0] <= r.atom_norms[1] <= 1
    again = learn_dictionary(x, 30, **kind, epochs=8, batch_size=50, seed=3)
    assert torch.equal(again.D, r.D)
    other = learn_dictionary(x, 30, **kind, epochs=1, batch_size=50, seed=4)
    assert not torch.equal(other.D, r.D)


def test_it_leaves_the_global_generator_alone():
    x, _, _ = planted(n=20, p=30, rows=100, dtype=torch.float32)
    before = torch.get_rng_state()
    learn_dictionary(x, 10, m=2, epochs=1, batch_size=50)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "context",
    [
        torch.no_grad,
        torch.inference_mode,
        partial(torch.autocast, "cpu", dtype=torch.bfloat16),
    ],
)
def test_the_callers_modes_change_nothing(context):
    x, _, _ = planted(n=20, p=30, rows=100, dtype=torch.float32)
    want = learn_dictionary(x, 10, m=2, epochs=1, batch_size=50).D
    with context():
        got = learn_dictionary(x, 10, m=2, epochs=1, batch_size=50).D
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(m=None), "exactly one of m and lam"),
        (dict(lam=0.1), "exactly one of m and lam"),
        (dict(p=101), "p must be >= 1 and <= N = 100, got 101"),
        (dict(m=11), "m must be >= 1 and <= p = 10, got 11"),
        (dict(batch_size=101), "batch_size must be .* got 101"),
        (dict(lr=0.0), "lr must be a finite number > 0, got 0.0"),
        (dict(x=torch.full((100, 20), torch.nan)), "x must be finite"),
        (dict(x=torch.zeros(100, 20)), "x must not be all 0"),
        (dict(x=torch.ones(100, 20, dtype=torch.int64)), "x must be float32"),
    ],
)
def test_bad_arguments(change, message):
    x, _, _ = planted(n=20, p=30, rows=100, dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        learn_dictionary(**(dict(x=x, p=10, m=2, batch_size=50) | change))
