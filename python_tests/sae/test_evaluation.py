"""Sums over batches against the formulas on everything at once, and pursuits against their own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.sae import Activations, SparseAutoencoder, evaluate, fvu, l0
from deepl0_kernels.sae.evaluation import normalised_iht, orthogonal_pursuit, pursuit
from python_tests.sae.samples import K, N, P, numbers

X = 5.0 + numbers(300, N, seed=9)  # far from 0: squares less the squared mean would cancel


def autoencoder(**options):
    if options.get("selection", "top_m") == "top_m":
        options.setdefault("m", K)
    theta = numbers(P, seed=5).abs() if options.get("selection") == "threshold" else None
    return SparseAutoencoder.from_weights(
        numbers(P, N, seed=1),
        numbers(P, N, seed=2).t(),
        0.3 * numbers(P, seed=3),
        0.3 * numbers(N, seed=4),
        theta,
        **options,
    )


def dense(code):
    return code.to_dense() if isinstance(code, dk.SparseCode) else code


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(positive=False, num_stages=2),
        dict(selection="threshold"),
        dict(selection="relu"),
        dict(normalize="layer_norm"),
        dict(normalize="constant_norm_rescale"),
        dict(scale_by_norms=True),
    ],
)
@pytest.mark.parametrize("batch", [1, 7, 300])
def test_batches_add_up(options, batch):
    model = autoencoder(**options)
    found = evaluate(model, Activations(X), batch=batch)
    with torch.no_grad():
        code, x_hat = model.eval().encode(X), model(X)
    assert found.vectors == 300
    assert found.fvu == pytest.approx(fvu(X.double(), x_hat.double()).item(), rel=1e-4)
    assert found.mse == pytest.approx((X - x_hat).double().square().sum(1).mean().item(), rel=1e-4)
    assert found.l0 == pytest.approx(l0(code).item())
    assert torch.equal(found.fired, (dense(code) != 0).sum(0))
    assert found.dead == int((dense(code) == 0).all(0).sum())
    json.dumps(found.summary(), allow_nan=False)


def test_heads_are_flattened():
    model = autoencoder(flatten_heads=True)
    flat = autoencoder()
    assert evaluate(model, Activations(X)).fvu == evaluate(flat, Activations(X)).fvu


def test_the_model_is_left_as_it_is():
    model = autoencoder().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    evaluate(model, Activations(X))
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_half_types_are_widened():
    """float16 would overflow: the largest of these is 1e5."""
    model = autoencoder().half()
    x = 2e4 * X
    wide = evaluate(autoencoder().half().float(), Activations(x))
    assert evaluate(model, Activations(x)).fvu == wide.fvu
    assert model.W.dtype == torch.float16


def test_the_histogram_counts_every_unit_once():
    fired = torch.tensor([0, 0, 1, 9, 10, 99, 100, 1000])
    found = evaluate(autoencoder(), Activations(X))
    found = type(found)(found.fvu, found.mse, found.l0, 1000, fired)
    assert found.histogram() == {
        "never": 2, "1e-7": 0, "1e-6": 0, "1e-5": 0, "1e-4": 0, "1e-3": 2, "1e-2": 2, "1e-1": 2,
    }  # fmt: skip
    rare = type(found)(0.0, 0.0, 0.0, 10**9, torch.tensor([1]))
    assert rare.histogram()["1e-7"] == 1


@pytest.mark.parametrize("x", [X[:1], X[:1].expand(20, N)])
def test_vectors_without_variance(x):
    with pytest.raises(ValueError, match="activations must hold vectors that differ"):
        evaluate(autoencoder(), Activations(x), batch=3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_number_that_is_not_finite_is_named(value):
    x = X.clone()
    x[7, 3] = value
    with pytest.raises(ValueError, match=rf"entry \[7, 3\] must be finite, got {value}"):
        evaluate(SparseAutoencoder(N, 20, 3), Activations(x), batch=5)


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="n = 12, as the autoencoder does, got 13"):
        evaluate(autoencoder(), Activations(np.ones((3, 13), np.float32)))
    with pytest.raises(ValueError, match="batch must be >= 1, got 0"):
        evaluate(autoencoder(), Activations(X), batch=0)


def unit_atoms(positive):
    model = autoencoder(positive=positive)
    model.normalize_atoms()
    return model


def matching_pursuit(x, atoms, steps, positive):
    """Of one vector, as SAELens's module does it."""
    residual, z = x.clone(), torch.zeros(len(atoms))
    for _ in range(steps):
        u = atoms @ residual
        best = int((u.relu() if positive else u.abs()).argmax())
        value = atoms[best] @ residual
        value = value.relu() if positive else value
        support = z != 0
        z[best] += value
        residual = residual - value * atoms[best]
        if torch.equal(support, z != 0):
            break
    return z


@pytest.mark.parametrize("positive", [True, False])
def test_matching_pursuit(positive):
    model = unit_atoms(positive)
    with torch.no_grad():
        code = pursuit(model, 9)(X[:60])
        want = [
            matching_pursuit(x, model.D.t(), 9, positive) for x in (X[:60] - model.b_dec).detach()
        ]
    torch.testing.assert_close(code.to_dense(), torch.stack(want))
    assert (code.indices.diff(dim=1) > 0).all()
    assert (torch.stack(want) != 0).sum(1).min() < 9  # some stopped


@pytest.mark.parametrize("positive", [True, False])
def test_full_matching_pursuit(positive):
    """All m nonzeros, since a step that chooses an atom again does not end it."""
    model = unit_atoms(positive)
    with torch.no_grad():
        code = pursuit(model, 9, full=True)(X[:60])
        x = X[:60] - model.b_dec
        for row, z in zip(x, code.to_dense(), strict=True):
            residual, want, atoms = row.clone(), torch.zeros(P), model.D.t()
            for _ in range(36):
                u = atoms @ residual
                best = int((u if positive else u.abs()).argmax())
                value = u[best].clamp_min(0) if positive else u[best]
                if value == 0 or (want[best] == 0 and (want != 0).sum() == 9):
                    break
                want[best] += value
                residual -= value * atoms[best]
            torch.testing.assert_close(z, want)
    assert (code.values != 0).sum(1).min() == 9
    full, stopped = (
        evaluate(model, Activations(X), coder=pursuit(model, 9, full=full))
        for full in (True, False)
    )
    assert full.fvu < stopped.fvu
    assert full.l0 > stopped.l0


@pytest.mark.parametrize("positive", [True, False])
def test_orthogonal_pursuit_leaves_less_than_matching_pursuit(positive):
    model = unit_atoms(positive)
    errors = [
        evaluate(model, Activations(X), coder=coder(model, 4)).fvu
        for coder in (orthogonal_pursuit, pursuit)
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("positive", [True, False])
def test_normalised_iht_is_the_solver_over_the_atoms(positive):
    model, x = unit_atoms(positive), X[:20]
    code = normalised_iht(model, 4, max_iter=7)(x)
    want = dk.solvers.iht_m(
        x - model.b_dec, model.D, 4, step="normalized", max_iter=7, positive=positive
    )
    assert torch.equal(code.to_dense(), want.code.to_dense())
    errors = [
        evaluate(model, Activations(X), coder=normalised_iht(model, 4, max_iter=n)).fvu
        for n in (1, 50)
    ]
    assert errors[1] < errors[0]


def test_pursuits_that_would_be_of_something_else():
    with pytest.raises(ValueError, match="the atoms must be of norm 1, got"):
        pursuit(autoencoder(), 3)
    for coder in (pursuit, orthogonal_pursuit, normalised_iht):
        with pytest.raises(ValueError, match="normalize='layer_norm'"):
            coder(autoencoder(normalize="layer_norm"), 3)
        with pytest.raises(ValueError, match="m must be >= 1"):
            coder(unit_atoms(True), 0)
