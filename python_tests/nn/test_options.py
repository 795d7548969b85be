"""Bias, nonnegative codes, factored stages: against the reference, eq. 10 and autoencoders written
out, and through everything that traces a layer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels._matrices import by_columns
from deepl0_kernels.nn import LISTA, DeepL0Encoder, DeepMSparseEncoder, TAGNet
from python_tests.nn import transforms

N, P, M, K = 11, 19, 4, 3
FACTORED = dict(bias=True, factored=True, steps=(1, 0.8, 0.5))
MAKE = {
    "l0": lambda: DeepL0Encoder(N, P, K, tied=False, bias=True, positive=True),
    "l0 factored": lambda: DeepL0Encoder(N, P, K, tied=False, **FACTORED),
    "m_sparse": lambda: DeepMSparseEncoder(N, P, M, K, tied=False, bias=True, positive=True),
    "m_sparse factored": lambda: DeepMSparseEncoder(N, P, (6, 5, M), K, **FACTORED),
    "m_sparse factored, nonnegative": lambda: DeepMSparseEncoder(
        N, P, M, K, positive=True, **FACTORED
    ),
    "lista": lambda: LISTA(N, P, K, bias=True, positive=True),
}
every = pytest.mark.parametrize("kind", MAKE)


def make(kind, dtype=torch.float64):
    """Away from where it starts: no parameter is 0 or equal to another."""
    torch.manual_seed(3)
    encoder = MAKE[kind]().to(dtype)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if isinstance(encoder, (DeepL0Encoder, LISTA)):
            encoder.log_theta.sub_(1.0)
    return encoder


def signals(rows=40, dtype=torch.float64):
    g = torch.Generator().manual_seed(5)
    return torch.randn(rows, N, generator=g, dtype=dtype)


def gradients(encoder, x):
    z = encoder(x)
    return z, torch.autograd.grad(z.square().sum() + z.sum(), list(encoder.parameters()))


@every
def test_equals_the_reference(kind):
    encoder, x = make(kind), signals()
    got = gradients(encoder, x)
    with dk.use_backend("reference"):
        want = gradients(encoder, x)
    torch.testing.assert_close(got, want)
    assert (got[0] != 0).any()
    if encoder.positive:
        assert (got[0] >= 0).all()
    assert all(g.abs().sum() > 0 for g in got[1])


@pytest.mark.parametrize("positive", [False, True])
def test_the_factored_stage_is_the_equation(positive):
    encoder, x = make("m_sparse factored"), signals()
    encoder.positive = positive
    W, D, z = encoder.W, encoder.D, torch.zeros(len(x), P, dtype=x.dtype)
    for m, step in zip(encoder.m, encoder.step, strict=True):
        z = dk.keep_top_m(z + step * (x - z @ D.T) @ W.T + encoder.bias, m, positive=positive)
    torch.testing.assert_close(encoder(x), z)
    l0 = make("l0 factored").eval()
    l0.positive, z = positive, torch.zeros_like(z)
    for theta, step in zip(l0.theta, l0.step, strict=True):
        u = z + step * (x - z @ l0.D.T) @ l0.W.T + l0.bias
        z = dk.hard_threshold(u, theta, positive=positive)
    torch.testing.assert_close(l0(x), z)


@every
def test_gradients_by_differences(kind):
    encoder, x = make(kind), signals(5).requires_grad_()
    names = [name for name, _ in encoder.named_parameters()]

    def call(x, *values):
        return torch.func.functional_call(encoder, dict(zip(names, values, strict=True)), (x,))

    values = [p.detach().requires_grad_() for p in encoder.parameters()]
    assert torch.autograd.gradcheck(call, (x, *values), eps=1e-7, atol=1e-5)


@every
def test_a_layer_without_options_has_the_parameters_of_old(kind):
    cls = type(MAKE[kind]())
    sizes = (N, P, M) if cls is DeepMSparseEncoder else (N, P)
    keys = ["W", "S"] if cls is DeepMSparseEncoder else ["W", "S", "log_theta"]
    assert list(cls(*sizes).state_dict()) == keys
    assert list(cls(*sizes, num_stages=1).state_dict()) == [k for k in keys if k != "S"]


@pytest.mark.parametrize(
    "make", [lambda: DeepL0Encoder(N, P), lambda: DeepMSparseEncoder(N, P, M), lambda: LISTA(N, P)]
)
def test_a_module_pickled_before_there_were_options(make):
    encoder, x = make(), signals(dtype=torch.float32)
    state = pickle.loads(pickle.dumps(encoder.__dict__))
    for name in ("positive", "factored", "_first_steps", "inside"):
        del state[name]
    for name in ("atoms", "bias", "log_step", *(["log_theta"] if make().theta is None else [])):
        del state["_parameters"][name]
    old = type(encoder).__new__(type(encoder))
    old.__setstate__(state)
    assert torch.equal(old(x), encoder(x))
    old.reset_parameters()
    assert repr(old) == repr(encoder)


@pytest.mark.parametrize("kind", ["l0 factored", "m_sparse factored"])
def test_the_dictionary_stays_by_columns(kind):
    encoder, x = make(kind, torch.float32), signals(dtype=torch.float32)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        encoder(x).square().sum().backward()
        optimizer.step()
    other = MAKE[kind]()
    other.load_state_dict(encoder.state_dict())
    assigned = MAKE[kind]()
    assigned.load_state_dict(encoder.state_dict(), assign=True)
    for same in (encoder, other, assigned, copy.deepcopy(encoder)):
        assert by_columns(same.D)
        assert same.atoms.is_contiguous()
        assert torch.equal(same(x), encoder(x))
    wide = copy.deepcopy(encoder).double()
    assert by_columns(wide.D)
    torch.testing.assert_close(wide(x.double()).float(), encoder(x), rtol=1e-4, atol=1e-5)
    assert by_columns(encoder.to(torch.bfloat16).D)


@pytest.mark.parametrize("kind", ["l0 factored", "m_sparse factored"])
@pytest.mark.parametrize(
    "optimizer", [lambda p: torch.optim.SGD(p, lr=1e3), lambda p: torch.optim.Adam(p, lr=1.0)]
)
def test_steps_are_learned_and_stay_positive(kind, optimizer):
    encoder, x = make(kind), signals(200)
    before, step = encoder.step.detach().clone(), optimizer([encoder.log_step])
    target = encoder(0.5 * x).detach()
    for _ in range(20):
        step.zero_grad()
        (encoder(x) - target).square().mean().backward()
        step.step()
        assert (encoder.step > 0).all()
        assert torch.isfinite(encoder.step).all()
    assert (encoder.step != before).all()
    encoder.reset_parameters()
    torch.testing.assert_close(encoder.step, encoder.step.new_tensor([1, 0.8, 0.5]))


def test_one_number_is_every_step():
    encoder = DeepMSparseEncoder(N, P, M, factored=True, steps=0.5)
    torch.testing.assert_close(encoder.step.tolist(), [0.5, 0.5])
    assert DeepMSparseEncoder(N, P, M, factored=True).step is None
    assert DeepMSparseEncoder(N, P, [M], num_stages=1, factored=True).m == M


@pytest.mark.parametrize("make", [DeepL0Encoder, LISTA, TAGNet])
@pytest.mark.parametrize("option", ["bias", "positive"])
def test_a_choice_that_is_none(make, option):
    with pytest.raises(TypeError, match=f"{option} must be True or False, got 'yes'"):
        make(N, P, **{option: "yes"})


@every
def test_compile_without_recompilation_over_batch_sizes(kind):
    transforms.compiles_once(make(kind, torch.float32), signals, gradients)


@every
def test_export(kind):
    transforms.exports(make(kind, torch.float32).eval(), signals)


@every
def test_gradients_of_every_sample_and_ensembles(kind):
    transforms.maps(make(kind), signals(6))


@every
def test_autocast(kind):
    encoder, x = make(kind, torch.float32), signals(dtype=torch.float32)
    plain = encoder(x)
    with torch.autocast("cpu", torch.bfloat16):
        z = encoder(x)
        z.float().square().sum().backward()
    # Most entries: supports differ where bf16 turns the order of two.
    assert ((z.float() - plain).abs() < 0.1).double().mean() > 0.8
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())
    assert all(p.grad.dtype == torch.float32 for p in encoder.parameters())


# Sparse autoencoders as they are written. u = (x - b_dec) W_enc + b_enc, x_hat = z W_dec + b_dec.


def autoencoder():
    g = torch.Generator().manual_seed(2)
    shapes = dict(W_enc=(N, P), b_enc=(P,), W_dec=(P, N), b_dec=(N,))
    return {k: torch.randn(s, generator=g, dtype=torch.float64) for k, s in shapes.items()}


def trained(encode, parameters, x):
    """Codes, and the gradients of the reconstruction error in all parameters."""
    given = {k: p.clone().requires_grad_() for k, p in parameters.items()}
    z, x_hat = encode(x, **given)
    loss = (x_hat - x).square().sum(1).mean()
    return z, dict(zip(given, torch.autograd.grad(loss, list(given.values())), strict=True))


@pytest.mark.parametrize("k", [1, M, P])
@pytest.mark.parametrize("signed", [False, True])
def test_one_stage_is_the_encoder_of_a_topk_autoencoder(k, signed):
    """With k = 19 of 19 units about half of what topk takes is negative, and relu makes it 0."""

    def written_out(x, W_enc, b_enc, W_dec, b_dec):
        u = (x - b_dec) @ W_enc + b_enc
        if signed:
            top = u.abs().topk(k)
            kept = u.gather(-1, top.indices)
        else:
            top = u.topk(k)
            kept = top.values.relu()
        z = torch.zeros_like(u).scatter(-1, top.indices, kept)
        return z, z @ W_dec + b_dec

    def operators(x, W_enc, b_enc, W_dec, b_dec):
        code = dk.encode_top_m(
            x - b_dec, W_enc.T, None, k, num_stages=1, bias=b_enc, positive=not signed
        )
        return code.to_dense(), dk.decode(code, W_dec.T) + b_dec

    def layer(x, W_enc, b_enc, W_dec, b_dec):
        encoder = DeepMSparseEncoder(N, P, k, num_stages=1, bias=True, positive=not signed)
        z = torch.func.functional_call(encoder, {"W": W_enc.T, "bias": b_enc}, (x - b_dec,))
        return z, z @ W_dec + b_dec

    parameters, x = autoencoder(), signals(100)
    want = trained(written_out, parameters, x)
    for ours in (operators, layer):
        torch.testing.assert_close(trained(ours, parameters, x), want)


def test_zeros_of_a_topk_autoencoder_have_no_sign():
    """Where fewer than k are positive: as relu gives them."""
    encoder = DeepMSparseEncoder(N, P, P, num_stages=1, bias=True, positive=True)
    z = encoder(signals(dtype=torch.float32))
    assert (z == 0).any()
    assert not z.signbit().any()


class _JumpReLU(torch.autograd.Function):
    """u where u >= theta; a window below theta, of bandwidth epsilon theta, moves theta."""

    @staticmethod
    def forward(ctx, u, theta, epsilon):
        ctx.save_for_backward(u, theta)
        ctx.epsilon = epsilon
        return u * (u >= theta)

    @staticmethod
    def backward(ctx, grad):
        u, theta = ctx.saved_tensors
        window = ((1 - ctx.epsilon) * theta < u) & (u < theta)
        slope = -(1 - ctx.epsilon) / ctx.epsilon * window
        return grad * (u >= theta), (grad * slope).sum(0), None


def test_one_stage_is_the_encoder_of_a_jumprelu_autoencoder():
    epsilon = 0.3

    def written_out(x, W_enc, b_enc, W_dec, b_dec, log_theta):
        u = (x - b_dec) @ W_enc + b_enc
        z = _JumpReLU.apply(u, log_theta.exp(), epsilon)
        return z, z @ W_dec + b_dec

    def operators(x, W_enc, b_enc, W_dec, b_dec, log_theta):
        u = (x - b_dec) @ W_enc + b_enc
        z = dk.helu(u, log_theta.exp(), epsilon, "ste_theta", positive=True)
        return z, z @ W_dec + b_dec

    def in_one(x, W_enc, b_enc, W_dec, b_dec, log_theta):
        z = dk.encode_l0(
            x - b_dec, W_enc.T, None, log_theta.exp(), num_stages=1, sigma=epsilon,
            grad="ste_theta", bias=b_enc, positive=True,
        )  # fmt: skip
        return z, z @ W_dec + b_dec

    def layer(x, W_enc, b_enc, W_dec, b_dec, log_theta):
        encoder = DeepL0Encoder(N, P, 1, grad="ste_theta", bias=True, positive=True)
        encoder.sigma = epsilon
        weights = {"W": W_enc.T, "bias": b_enc, "log_theta": log_theta}
        z = torch.func.functional_call(encoder, weights, (x - b_dec,))
        return z, z @ W_dec + b_dec

    parameters, x = autoencoder(), signals(2000)
    parameters["log_theta"] = torch.linspace(-0.5, 1, P, dtype=torch.float64)
    want = trained(written_out, parameters, x)
    assert (want[1]["log_theta"] != 0).sum() > P // 2
    for ours in (operators, in_one, layer):
        torch.testing.assert_close(trained(ours, parameters, x), want)
