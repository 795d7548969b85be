"""Terms of the loss against the projects' formulas, dead units, unit atoms."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import deepl0_kernels as dk
from deepl0_kernels.sae import DeadUnits, SparseAutoencoder, fvu, l0
from python_tests.sae.samples import K, N, P, numbers
from python_tests.sae.test_model import autoencoder, dense

X = numbers(50, N, seed=9).double()
DEAD = torch.tensor([1, 4, 7, 8, 20, 21, 33, 39])


def saelens_auxiliary_loss(model, x, dead, k_aux, positive):
    """TopKTrainingSAE.calculate_topk_aux_loss and its AbsTopK form, at coefficient 1; OpenAI's and
    sparsify's pre-activations are behind a ReLU there, as ours are."""
    sae_out = model(x)
    residual = (x - sae_out).detach()
    u = functional.linear(x - model.b_dec, model.W, model.bias)
    atoms = model.D.t()
    if model.scale_by_norms:
        u, atoms = u * atoms.norm(dim=1), atoms / atoms.norm(dim=1, keepdim=True)
    mask = torch.zeros(P, dtype=torch.bool)
    mask[dead] = True
    key = u if positive else u.abs()
    indices = torch.where(mask[None], key, -torch.inf).topk(min(k_aux, len(dead))).indices
    values = u.gather(-1, indices)
    z = torch.zeros_like(u).scatter(-1, indices, values.relu() if positive else values)
    scale = min(len(dead) / k_aux, 1.0)
    return scale * (z @ atoms - residual).pow(2).sum(-1).mean()


@pytest.mark.parametrize("k_aux", [1, 3, 8, 100])
@pytest.mark.parametrize(
    "options", [{}, dict(positive=False), dict(scale_by_norms=True), dict(selection="relu")]
)
def test_the_auxiliary_term(options, k_aux):
    model = autoencoder(**options)
    out = model.loss(X, dead=DEAD, k_aux=k_aux)
    expected = saelens_auxiliary_loss(model, X, DEAD, k_aux, model.positive)
    torch.testing.assert_close(out.aux, expected)
    ours = torch.autograd.grad(out.aux, [model.W, model.D, model.bias], retain_graph=True)
    theirs = torch.autograd.grad(expected, [model.W, model.D, model.bias])
    for grad, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(grad, other)
    living = torch.ones(P, dtype=torch.bool)
    living[DEAD] = False
    assert not ours[0][living].any()
    assert not ours[1][:, living].any()


def test_the_auxiliary_term_of_several_stages_and_of_normalised_inputs():
    """The residual is what all stages leave, as the encoder sees x."""
    for options in (dict(num_stages=2), dict(normalize="layer_norm")):
        model = autoencoder(**options)
        out = model.loss(X, dead=DEAD, k_aux=4)
        inner = X
        if options.get("normalize"):
            inner = (X - X.mean(-1, keepdim=True)) / (X.std(-1, keepdim=True) + 1e-5)
        residual = inner - dense(model.encode(X)) @ model.D.t() - model.b_dec
        u = functional.linear(inner - model.b_dec, model.W[DEAD], model.bias[DEAD])
        values, indices = u.topk(4)
        z = torch.zeros_like(u).scatter(-1, indices, values.relu())
        expected = (z @ model.D.t()[DEAD] - residual).square().sum(-1).mean()
        torch.testing.assert_close(out.aux, expected)
        torch.testing.assert_close(out.mse, (model(X) - X).square().sum(-1).mean())


def test_terms_and_their_sum():
    model = autoencoder()
    out = model.loss(X, dead=DEAD, aux_coefficient=0.5)
    x_hat = model(X)
    torch.testing.assert_close(out.mse, (x_hat - X).square().sum(-1).mean())
    torch.testing.assert_close(out.loss, out.mse + 0.5 * out.aux)
    torch.testing.assert_close(out.reconstruction, x_hat)
    variance = (X - X.mean(0)).square().sum()
    torch.testing.assert_close(out.fvu, (x_hat - X).square().sum() / variance)
    assert not out.fvu.requires_grad
    assert out.l0 == (dense(out.code) != 0).sum(-1).double().mean()
    for dead in (None, DEAD[:0]):
        out = model.loss(X, dead=dead)
        assert out.aux == 0
        assert torch.equal(out.loss, out.mse)
    # Any leading dimensions.
    wide = model.loss(X.view(5, 10, N), dead=DEAD)
    torch.testing.assert_close(wide.loss, model.loss(X, dead=DEAD).loss)
    assert wide.reconstruction.shape == (5, 10, N)


def test_heads_come_back_in_the_reconstruction():
    model = autoencoder(flatten_heads=True)
    x = X.view(50, 3, 4)
    assert model.loss(x).reconstruction.shape == x.shape
    torch.testing.assert_close(model.loss(x).loss, autoencoder().loss(X).loss)


def test_l0_counts_and_moves_theta_alone():
    """1 / theta times helu's own derivative in theta, in the window below it."""
    model = autoencoder(selection="threshold", sigma=0.4)
    out = model.loss(X, l0_coefficient=2.0)
    torch.testing.assert_close(out.loss, out.mse + 2 * out.l0)
    assert out.l0 == (out.code != 0).sum(-1).double().mean()
    grads = torch.autograd.grad(out.l0, list(model.parameters()), allow_unused=True)
    u = functional.linear(X - model.b_dec, model.W, model.bias)
    window = (u > 0.6 * model.theta) & (u <= model.theta)
    expected = -1.5 * window.sum(0) / len(X) / model.theta
    for (name, _), grad in zip(model.named_parameters(), grads, strict=True):
        if name == "theta":
            torch.testing.assert_close(grad, expected.detach())
        else:
            assert grad is None or not grad.any(), name
    assert (
        not model.eval().loss(X).l0.requires_grad
        or not torch.autograd.grad(model.loss(X).l0, model.theta)[0].any()
    )


def test_l0_of_many_nonzeros_in_bfloat16():
    """A sum in bfloat16 would stop at 256."""
    model = SparseAutoencoder(4, 1000, selection="threshold", theta=1e-3).bfloat16()
    with torch.no_grad():
        model.bias.fill_(100)
    out = model.loss(torch.zeros(3, 4, dtype=torch.bfloat16))
    assert out.l0 == l0(out.code) == 1000


def test_l0_pushes_thresholds_up():
    torch.manual_seed(0)
    model = SparseAutoencoder(N, P, selection="threshold", theta=0.3, sigma=0.5)
    x = X.float()
    before = model.loss(x).l0.item()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        model.loss(x, l0_coefficient=1.0).loss.backward()
        optimizer.step()
    assert model.loss(x).l0.item() < 0.8 * before
    assert (model.theta > 0.3).float().mean() > 0.5


def test_metrics_of_their_own():
    code = dk.SparseCode(torch.tensor([[1.0, 0.0], [2.0, -3.0]]), torch.tensor([[0, 1], [2, 5]]), 6)
    assert l0(code) == l0(code.to_dense()) == 1.5
    x = numbers(40, 3)
    assert fvu(x, x) == 0
    torch.testing.assert_close(fvu(x, x.mean(0).expand(40, 3)), torch.tensor(1.0))
    assert fvu(x.bfloat16(), x.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="x_hat must have shape of x"):
        fvu(x, x[:3])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(dead=[1]), TypeError, "dead must be a tensor, got list"),
        (dict(dead=torch.ones(P, dtype=torch.bool)), ValueError, r"dead must be int64 \[d\]"),
        (dict(dead=DEAD[None]), ValueError, r"dead must be int64 \[d\]"),
        (dict(dead=torch.tensor([P])), ValueError, rf"dead must be in \[0, p\) with p = {P}, got"),
        (dict(dead=torch.tensor([-1])), ValueError, "dead must be in"),
        (dict(dead=DEAD, k_aux=0), ValueError, "k_aux must be >= 1, got 0"),
        (dict(aux_coefficient=-1.0), ValueError, "aux_coefficient must be a finite number >= 0"),
        (dict(l0_coefficient=1.0), ValueError, "l0_coefficient must be 0 with selection='top_m'"),
    ],
)
def test_arguments_that_do_not_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        autoencoder().loss(X, **arguments)


def test_dead_units_against_a_count_of_every_unit():
    """tokens since a unit fired, as the projects keep them, in every step."""
    generator = torch.Generator().manual_seed(0)
    tracker, since = DeadUnits(P, after=30), torch.zeros(P, dtype=torch.int64)
    for step in range(12):
        rows = 7 + step
        u = torch.randn(rows, P, generator=generator) - 2.5
        u[:, step:] -= 1
        values, indices = dk.top_m(u, 3, positive=True)
        code = dk.SparseCode(values, indices, P)
        fired = (code.to_dense() != 0).any(0)
        tracker.update(code if step % 2 else code.to_dense())
        since = torch.where(fired, 0, since + rows)
        assert torch.equal(tracker.seen - tracker.last_fired, since)
        assert torch.equal(tracker.units(), (since >= 30).nonzero()[:, 0])
    assert 0 < len(tracker.units()) < P
    back = DeadUnits(P, after=30)
    back.load_state_dict(tracker.state_dict())
    assert torch.equal(back.units(), tracker.units())


def test_an_entry_of_value_0_has_not_fired():
    tracker = DeadUnits(4, after=1)
    tracker.update(dk.SparseCode(torch.tensor([[0.0, 2.0]]), torch.tensor([[0, 3]]), 4))
    assert tracker.units().tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="code must have size p = 4, got 5"):
        tracker.update(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="after must be >= 1, got 0"):
        DeadUnits(4, after=0)


def test_dead_units_come_back_by_their_loss():
    torch.manual_seed(0)
    model = SparseAutoencoder(N, P, m=K)
    with torch.no_grad():
        model.bias[DEAD] = -10  # never chosen

    def chosen(steps, dead):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            model.loss(X.float(), dead=dead, aux_coefficient=1.0).loss.backward()
            optimizer.step()
        return (dense(model.encode(X.float()))[:, DEAD] != 0).any(0).sum()

    assert chosen(20, None) == 0
    with torch.no_grad():
        model.bias[DEAD] = -0.5
    assert chosen(100, DEAD) > 0


def test_atoms_stay_of_norm_1_and_gradients_turn_them():
    model = SparseAutoencoder(N, P, m=K)
    model.loss(X.float()).loss.backward()
    grad, atoms = model.D.grad.clone(), model.D.detach().clone()
    where = model.D.grad.data_ptr(), model.D.data_ptr()
    model.remove_parallel_gradient()
    unit = atoms / atoms.norm(dim=0)
    torch.testing.assert_close(model.D.grad, grad - (grad * unit).sum(0) * unit)
    assert (model.D.grad * unit).sum(0).abs().max() < 1e-5 * grad.abs().max()
    assert not torch.equal(model.D.grad, grad)
    with torch.no_grad():
        model.D.mul_(3)
        model.D[:, 2] = 0
    # Atoms of any norm: the component along them is the same.
    model.D.grad.copy_(grad)
    model.remove_parallel_gradient()
    rest = torch.arange(P) != 2
    expected = (grad - (grad * unit).sum(0) * unit)[:, rest]
    torch.testing.assert_close(model.D.grad[:, rest], expected)
    assert torch.equal(model.D.grad[:, 2], grad[:, 2])
    model.normalize_atoms()
    norms = model.D.norm(dim=0)
    torch.testing.assert_close(norms[rest], torch.ones(P - 1))
    assert norms[2] == 0
    assert (model.D.grad.data_ptr(), model.D.data_ptr()) == where
    assert model.D.t().is_contiguous()
    assert model.D.grad.t().is_contiguous()
    model.D.grad = None
    with pytest.raises(ValueError, match=r"D\.grad must be there, got None"):
        model.remove_parallel_gradient()


def test_a_training_resumes_to_the_same_bits():
    def run(steps, model, optimizer, dead):
        for i in range(*steps):
            rows = torch.arange(10 * i, 10 * i + 10) % len(X)
            optimizer.zero_grad()
            out = model.loss(X.float()[rows], dead=dead.units())
            out.loss.backward()
            model.remove_parallel_gradient()
            optimizer.step()
            model.normalize_atoms()
            dead.update(out.code)

    def fresh():
        torch.manual_seed(0)
        model = SparseAutoencoder(N, P, m=2, num_stages=2)
        return model, torch.optim.Adam(model.parameters(), lr=0.01), DeadUnits(P, after=20)

    whole = fresh()
    run((0, 12), *whole)
    half = fresh()
    run((0, 6), *half)
    states = [part.state_dict() for part in half]
    rest = fresh()
    for part, state in zip(rest, states, strict=True):
        part.load_state_dict(state)
    run((6, 12), *rest)
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(tensor, rest[0].state_dict()[name]), name
    assert len(whole[2].units())
