"""A step of training of a TopK sparse autoencoder, and its parts, against what is used today.

SAELens's own class runs where sae-lens is installed; its formulas in eager PyTorch run everywhere.
"""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from torch.nn import functional

import deepl0_kernels as dk
from deepl0_kernels import sae

from .conftest import EAGER, FLOOR, OURS
from .rivals import eager_sae_loss, eager_sparse_autoencoder

# n, p, m, batch.
SIZES = [(384, 8192, 32, 1024), (768, 16384, 64, 1024)]
SAELENS = "SAELens"
FUSED = "torch.optim.Adam, fused"


def shape(size: tuple[int, int, int, int]) -> str:
    n, p, m, batch = size
    return f"n={n} p={p} m={m} B={batch}"


def activations(n: int, batch: int) -> torch.Tensor:
    """Vectors whose variance falls along their axes, about a mean, as those of language models."""
    scale = torch.linspace(0, 5, n).neg().exp()
    return torch.randn(batch, n) * scale @ torch.linalg.qr(torch.randn(n, n))[0] + 0.1


def autoencoder(size: tuple[int, int, int, int], x: torch.Tensor) -> sae.SparseAutoencoder:
    """One to begin with, about the mean of x."""
    n, p, m, _ = size
    model = sae.SparseAutoencoder(n, p, m)
    with torch.no_grad():
        model.b_dec.copy_(x.mean(0))
    return model


def saelens_class(model: sae.SparseAutoencoder):
    """SAELens's training class with the same weights, and a function that gives its loss."""
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    config = TopKTrainingSAEConfig(
        d_in=model.in_features,
        d_sae=model.code_size,
        k=model.m[0],
        apply_b_dec_to_input=True,
        rescale_acts_by_decoder_norm=False,
    )
    theirs = TopKTrainingSAE(config)
    with torch.no_grad():
        theirs.W_enc.copy_(model.W.t())
        theirs.W_dec.copy_(model.D.t())
        theirs.b_enc.copy_(model.bias)
        theirs.b_dec.copy_(model.b_dec)

    def loss(x):
        given = TrainStepInput(
            sae_in=x,
            coefficients={},
            dead_neuron_mask=None,
            n_training_steps=0,
            is_logging_step=False,
        )
        return theirs.training_forward_pass(given).loss

    return theirs, loss


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_training_step(race, size, threads):
    """Forward, loss, backward, Adam. Checked: the losses of three steps."""
    n, _, m, batch = size
    x = activations(n, batch)
    model = autoencoder(size, x)
    eager = copy.deepcopy(model)

    def step(loss, optimizer):
        def run():
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            return value.detach()

        return run

    def loss_of_eager():
        return eager_sae_loss(x, eager.W, eager.bias, eager.D, eager.b_dec, m)

    providers = {EAGER: step(loss_of_eager, torch.optim.Adam(eager.parameters(), lr=1e-4))}
    if importlib.util.find_spec("sae_lens"):
        theirs, loss = saelens_class(model)
        adam = torch.optim.Adam(theirs.parameters(), lr=1e-4)
        providers[SAELENS] = step(lambda: loss(x), adam)
    optimizer = sae.SparseAdam(model.parameters(), lr=1e-4)
    providers[OURS] = step(lambda: model.loss(x).loss, optimizer)
    losses = {}

    def check(name, first):
        losses[name] = torch.stack([first, providers[name](), providers[name]()])
        torch.testing.assert_close(losses[name], losses[EAGER], rtol=1e-3, atol=0)

    race("sae training step", shape(size), providers, check)


@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.no_grad()
def test_encode(race, size, threads):
    n, _, m, batch = size
    x = activations(n, batch)
    model = autoencoder(size, x)
    want = eager_sparse_autoencoder(x - model.b_dec, model.W, model.bias, m)[1].sort(-1).values

    def check(name, indices):
        same = (indices.sort(-1).values == want).all(-1).float().mean()
        assert same > 0.97, (name, same)

    def eager():
        return eager_sparse_autoencoder(x - model.b_dec, model.W, model.bias, m)[1]

    race(
        "sae encode",
        shape(size),
        {
            EAGER: eager,
            FLOOR: lambda: x @ model.W.t(),
            OURS: lambda: model.encode(x).indices,
        },
        check,
    )


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_decode(race, size, backward, threads):
    n, p, _, batch = size
    x = activations(n, batch)
    model = autoencoder(size, x)
    with torch.no_grad():
        code = model.encode(x)
    grad = torch.randn(batch, n)
    atoms = model.D.detach().t().clone().requires_grad_(backward)
    values = code.values.clone().requires_grad_(backward)

    def pass_of(decode):
        def run():
            with torch.set_grad_enabled(backward):
                x_hat = decode()
            if not backward:
                return (x_hat,)
            return torch.autograd.grad(x_hat, [atoms, values], grad)

        return run

    def dense():
        return torch.zeros(batch, p).scatter(-1, code.indices, values) @ atoms

    def bag():
        return functional.embedding_bag(code.indices, atoms, per_sample_weights=values, mode="sum")

    want = pass_of(dense)()
    race(
        "sae decode" + (" forward + backward" if backward else ""),
        shape(size),
        {
            EAGER: pass_of(dense),
            "embedding_bag": pass_of(bag),
            OURS: pass_of(lambda: dk.decode(dk.SparseCode(values, code.indices, p), atoms.t())),
        },
        lambda name, got: torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4),
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_optimizer_step(race, size, threads):
    """The step alone, on the gradients of one batch."""
    n, _, _, batch = size
    x = activations(n, batch)
    models = {name: autoencoder(size, x) for name in (EAGER, FUSED, OURS)}
    models[EAGER].loss(x).loss.backward()
    for model in models.values():
        model.load_state_dict(models[EAGER].state_dict())
        for p, q in zip(model.parameters(), models[EAGER].parameters(), strict=True):
            p.grad = q.grad
    optimizers = {
        EAGER: torch.optim.Adam(models[EAGER].parameters(), lr=1e-4),
        FUSED: torch.optim.Adam(models[FUSED].parameters(), lr=1e-4, fused=True),
        OURS: sae.SparseAdam(models[OURS].parameters(), lr=1e-4),
    }

    def check(name, _):
        want = models[EAGER].W.detach()
        torch.testing.assert_close(models[name].W.detach(), want, rtol=1e-3, atol=1e-5)

    race("sae optimiser step", shape(size), {k: o.step for k, o in optimizers.items()}, check)
