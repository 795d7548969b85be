"""Encoders with soft thresholds in all stages but the last: against the stages as they are written,
and through everything users do to a module."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.distributed import shard_units
from deepl0_kernels.nn import LISTA, DeepL0Encoder, DeepMSparseEncoder
from deepl0_kernels.training import calibrate, fit_to_codes
from python_tests.nn import transforms
from python_tests.oracle import top_m_by_sorting

N, P, M, K = 11, 19, 4, 3
STEPS = (1, 0.8, 0.5)
OPTIONS = {
    "tied": {},
    "untied, nonnegative": dict(tied=False, bias=True, positive=True),
    "factored": dict(factored=True, bias=True, steps=STEPS),
    "factored, nonnegative": dict(factored=True, positive=True),
}
KINDS = [f"{kind} {options}" for kind in ("l0", "m_sparse") for options in OPTIONS]
every = pytest.mark.parametrize("kind", KINDS)
traced = pytest.mark.parametrize("kind", [k for k in KINDS if k.endswith(("tied", "factored"))])
either = pytest.mark.parametrize("kind", ["l0 tied", "m_sparse tied"])


def new(kind, num_stages=K, **options):
    """Of random weights."""
    name, _, form = kind.partition(" ")
    options = {"inside": "soft"} | OPTIONS[form] | options
    if num_stages == 1:
        options.pop("steps", None)
    cls, sizes = (DeepL0Encoder, ()) if name == "l0" else (DeepMSparseEncoder, (M,))
    return cls(N, P, *sizes, num_stages, **options)


def made(kind, dtype=torch.float64, **options):
    """Away from where it starts: no parameter is 0 or equal to another."""
    torch.manual_seed(3)
    encoder = new(kind, **options).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if kind.startswith("l0"):
            encoder.log_theta.sub_(1.0)
    return encoder.to(dtype)


def signals(rows=40, dtype=torch.float64):
    g = torch.Generator().manual_seed(5)
    return torch.randn(rows, N, generator=g, dtype=torch.float64).to(dtype)


def written_out(encoder, x):
    """By plain PyTorch, in float64, of the numbers that the parameters hold."""
    weights = {name: p.detach().double() for name, p in encoder.named_parameters()}
    W, S, b = weights["W"], weights.get("S"), weights.get("bias", 0.0)
    stages, atoms = encoder.num_stages, weights.get("atoms")
    theta = weights["log_theta"].exp()
    steps = weights["log_step"].exp() if "log_step" in weights else torch.ones(stages).double()
    x = x.double()
    z = torch.zeros(len(x), encoder.code_size, dtype=torch.float64)
    for k in range(stages):
        if atoms is None:
            u = x @ W.T + b
            u = u + z @ (S if S.dim() == 2 else S[k - 1]).T if k else u
        else:
            u = z + steps[k] * (x - z @ atoms) @ W.T + b
        part = u.clamp(min=0) if encoder.positive else u
        if k < stages - 1:
            z = part.sign() * (part.abs() - theta[k]).clamp(min=0)
    if isinstance(encoder, DeepL0Encoder):
        return torch.where(part.abs() >= theta[-1], part, 0.0)
    z = torch.zeros_like(u)
    for row, values in enumerate(part.tolist()):
        kept = top_m_by_sorting(values, encoder.m)
        z[row, kept] = part[row, kept]
    return z


def gradients(encoder, x):
    z = encoder(x)
    return z, torch.autograd.grad(z.float().square().sum() + z.sum(), list(encoder.parameters()))


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_stages_are_the_equation(kind, dtype):
    encoder, x = made(kind, dtype).eval(), signals(200, dtype)
    want, z = written_out(encoder, x), encoder(x)
    assert z.dtype == dtype
    assert torch.equal(z != 0, want != 0)
    assert 0 < (want != 0).double().mean() < 1
    # Sums of at most N + P products of three stages.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(z.double(), want, rtol=200 * eps, atol=200 * eps)


@every
def test_it_is_not_the_hard_one(kind):
    soft, x = made(kind).eval(), signals()
    hard = new(kind, inside="hard").double().eval()
    names = set(hard.state_dict()) & set(soft.state_dict()) - {"log_theta"}
    hard.load_state_dict({n: soft.state_dict()[n] for n in names}, strict=False)
    assert not torch.allclose(hard(x), soft(x))


@every
def test_equals_the_reference(kind):
    encoder, x = made(kind), signals()
    got = gradients(encoder, x)
    with dk.use_backend("reference"):
        want = gradients(encoder, x)
    torch.testing.assert_close(got, want)
    assert all(g.abs().sum() > 0 for g in got[1])


@every
def test_gradients_by_differences(kind):
    encoder, x = made(kind), signals(3).requires_grad_()
    names = [name for name, _ in encoder.named_parameters()]

    def call(x, *values):
        return torch.func.functional_call(encoder, dict(zip(names, values, strict=True)), (x,))

    values = [p.detach().requires_grad_() for p in encoder.parameters()]
    assert torch.autograd.gradcheck(call, (x, *values), eps=1e-7, atol=1e-5)
    options = dict(eps=1e-7, atol=1e-5, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, *values), **options)


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_it_starts_as_ista_and_one_hard_step(factored, tied):
    D = torch.randn(N, P, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, mu = signals(), 0.5 / torch.linalg.matrix_norm(D, 2).square().item()
    options = dict(step=mu, inside="soft", factored=factored)
    l0 = DeepL0Encoder.from_dictionary(D, 0.3, K, tied, l1_lam=0.2, **options).eval()
    m_sparse = DeepMSparseEncoder.from_dictionary(D, M, K, tied or factored, l1_lam=0.2, **options)
    z = torch.zeros(len(x), P, dtype=x.dtype)
    for k in range(K):
        u = z + mu * (x - z @ D.T) @ D
        if k < K - 1:
            z = torch.nn.functional.softshrink(u, 0.2 * mu)
    torch.testing.assert_close(l0(x), dk.hard_threshold(u, math.sqrt(2 * 0.3 * mu)))
    torch.testing.assert_close(m_sparse(x), dk.keep_top_m(u, M))
    paper = DeepL0Encoder.from_dictionary(D, 0.3, K, tied, convention="paper", **options)
    torch.testing.assert_close(paper.theta[-1], l0.theta[-1] / math.sqrt(2))
    torch.testing.assert_close(paper.theta[:-1], l0.theta[:-1] * 1.5)  # lam by default
    by_default = DeepMSparseEncoder.from_dictionary(D, M, K, **options)
    torch.testing.assert_close(by_default.theta, m_sparse.theta * 0.5)


@every
def test_one_stage_has_nothing_inside(kind):
    torch.manual_seed(0)
    soft = new(kind, num_stages=1)
    torch.manual_seed(0)
    hard = new(kind, num_stages=1, inside="hard")
    assert soft.state_dict().keys() == hard.state_dict().keys()
    x = signals(dtype=torch.float32)
    assert torch.equal(soft(x), hard(x))
    D = torch.randn(N, P)
    cls, last = (DeepL0Encoder, 0.1) if kind.startswith("l0") else (DeepMSparseEncoder, M)
    soft = cls.from_dictionary(D, last, 1, inside="soft", l1_lam=0.3)
    assert torch.equal(soft(x), cls.from_dictionary(D, last, 1)(x))


@every
@pytest.mark.parametrize("num_stages", [2, 4])
def test_parameters(kind, num_stages):
    steps = {"steps": 0.9} if kind.endswith("factored") else {}
    encoder = new(kind, num_stages=num_stages, **steps)
    rows = num_stages if kind.startswith("l0") else num_stages - 1
    assert encoder.log_theta.shape == encoder.theta.shape == (rows, P)
    if encoder.S is not None:
        assert encoder.S.shape == ((P, P) if encoder.tied else (num_stages - 1, P, P))
    names = list(new(kind, num_stages=num_stages, inside="hard", **steps).state_dict())
    assert list(encoder.state_dict()) == [n for n in names if n != "log_theta"] + ["log_theta"]
    x = torch.randn(2, 3, N)
    z = encoder(x)
    assert z.shape == (2, 3, P)
    torch.testing.assert_close(encoder(x[1, 2]), z[1, 2])
    assert encoder(x[:0]).shape == (0, 3, P)


@pytest.mark.parametrize("form", OPTIONS)
def test_codes_of_the_m_sparse_encoder(form):
    encoder, x = made(f"m_sparse {form}"), signals(6).reshape(2, 3, N)
    code = encoder.encode(x)
    assert code.values.shape == code.indices.shape == (2, 3, M)
    assert code.size == P
    assert torch.equal(code.to_dense(), encoder(x))


def test_the_ramp_of_the_last_stage():
    encoder, x = made("l0 tied", grad="ste_theta"), signals(500)
    encoder.sigma = 0.5
    assert torch.equal(encoder.eval()(x), encoder.train()(x))  # of a straight-through mode
    gradient = torch.autograd.grad(encoder(x).sum(), encoder.log_theta)[0]
    assert (gradient[-1] != 0).all()
    encoder.sigma = 0.0
    gradient = torch.autograd.grad(encoder(x).sum(), encoder.log_theta)[0]
    assert not gradient[-1].any()
    assert (gradient[0] != 0).any()
    encoder.grad, encoder.sigma = "helu", 0.5
    assert not torch.equal(encoder.eval()(x), encoder.train()(x))


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_sum_in_float32_and_round_every_stage(kind, dtype):
    encoder, x = made(kind, dtype).eval(), signals(100, dtype)
    z = encoder(x)
    assert z.dtype == dtype
    wide, rounded = copy.deepcopy(encoder).float(), x.float()
    wide.log_theta.data.copy_(encoder.log_theta.float())

    # The same in float32, each code rounded where the next stage takes it.
    def round_codes(u, theta, *, positive):
        return dk.soft_threshold(u, theta, positive=positive).to(dtype).float()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deepl0_kernels.nn.soft.soft_threshold", round_codes)
        assert torch.equal(z, wide(rounded).to(dtype))
        got, want = (gradients(e.train(), s)[1] for e, s in ((encoder, x), (wide, rounded)))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        assert (a.float() - b).norm() < 2e-2 * b.norm()


@every
def test_autocast_is_the_half_module(kind):
    encoder, x = made(kind, torch.float32), signals(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        z = encoder(x)
        z.float().square().sum().backward()
    assert z.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all()
               for p in encoder.parameters())  # fmt: skip
    half = copy.deepcopy(encoder).bfloat16()
    half.log_theta.data = encoder.log_theta.data  # theta is float32 there
    if half.log_step is not None:
        half.log_step.data = encoder.log_step.data
    assert torch.equal(half(x.bfloat16()), z)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lista_of_half_types_sums_in_float32(dtype):
    encoder, x = LISTA(N, P, K).to(dtype), signals(100, dtype)
    W, S, theta = encoder.W.float(), encoder.S.float(), encoder.theta
    c = x.float() @ W.T
    z = dk.soft_threshold(c, theta).to(dtype)
    for _ in range(K - 1):
        z = dk.soft_threshold(c + z.float() @ S.T, theta).to(dtype)
    assert encoder(x).dtype == dtype
    torch.testing.assert_close(encoder(x), z, atol=1e-2, rtol=1e-2)
    assert (encoder(x) == z).double().mean() > 0.99


@traced
def test_compile_without_recompilation_over_batch_sizes(kind):
    transforms.compiles_once(made(kind, torch.float32), signals, gradients)


@traced
def test_export(kind):
    transforms.exports(made(kind, torch.float32).eval(), signals)


@traced
def test_gradients_of_every_sample_and_ensembles(kind):
    transforms.maps(made(kind), signals(6))


@every
def test_state_dict_deepcopy_and_pickle(kind):
    encoder, x = made(kind, torch.float32).eval(), signals(dtype=torch.float32)
    z = encoder(x)
    assert torch.equal(encoder(x), z)
    assert "_kept" not in encoder.__dict__  # there is nothing to prepare
    assert torch.equal(copy.deepcopy(encoder)(x), z)
    assert torch.equal(pickle.loads(pickle.dumps(encoder))(x), z)
    buffer = io.BytesIO()
    torch.save(encoder.state_dict(), buffer)
    buffer.seek(0)
    fresh = new(kind).eval()
    assert not torch.equal(fresh(x), z)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(fresh(x), z)


def test_modules_that_were_pickled_by_the_former_place_of_lista():
    encoder = LISTA(N, P)
    text = pickle.dumps(encoder, protocol=0).replace(
        b"deepl0_kernels.nn.soft", b"deepl0_kernels.nn.encoders"
    )
    assert b"nn.encoders" in text
    x = signals(dtype=torch.float32)
    assert torch.equal(pickle.loads(text)(x), encoder(x))


@either
def test_it_trains(kind):
    """On signals of a known dictionary, both better than they start, thresholds included."""
    g = torch.Generator().manual_seed(0)
    D = torch.nn.functional.normalize(torch.randn(N, P, generator=g), dim=0)
    codes = dk.keep_top_m(torch.randn(1000, P, generator=g), 2)
    cls, last = (DeepL0Encoder, 0.05) if kind.startswith("l0") else (DeepMSparseEncoder, 2)
    encoder = cls.from_dictionary(D, last, inside="soft")
    before = encoder.theta.detach().clone()
    options = dict(epochs=15, batch_size=50, lr=1e-2, clip=1.0, seed=0)
    losses = fit_to_codes(encoder, codes @ D.T, codes, **options)
    assert losses[-1] < 0.6 * losses[0]
    assert (encoder.theta != before).any(1).all()
    if kind.startswith("m_sparse"):
        assert ((encoder(codes @ D.T) != 0).sum(1) <= 2).all()


@pytest.mark.parametrize("kind", ["l0 factored", "m_sparse factored"])
def test_calibration(kind):
    g = torch.Generator().manual_seed(3)
    D = torch.nn.functional.normalize(torch.randn(N, P, generator=g), dim=0)
    codes = dk.keep_top_m(torch.randn(300, P, generator=g), 3)
    cls, last = (DeepL0Encoder, 0.05) if kind.startswith("l0") else (DeepMSparseEncoder, 3)
    encoder = cls.from_dictionary(
        D, last, K, inside="soft", factored=True, steps=1.0, l1_lam=1.0
    ).eval()
    x, total = codes @ D.T, codes.square().sum()
    with torch.no_grad():
        before = (encoder(x) - codes).square().sum() / total
        errors = calibrate(encoder, x, codes)
        after = ((encoder(x) - codes).square().sum() / total).item()
    assert errors[-1] == pytest.approx(after, rel=1e-4)
    assert after < before
    assert errors[-1] < errors[0]


def test_representation():
    assert repr(new("l0 tied")) == (
        "DeepL0Encoder(in_features=11, code_size=19, num_stages=3, tied=True, inside=soft)"
    )
    assert repr(new("m_sparse factored")) == (
        "DeepMSparseEncoder(in_features=11, code_size=19, num_stages=3, tied=True, bias=True, "
        "factored=True, steps=(1.0, 0.8, 0.5), inside=soft, m=4)"
    )


D = torch.ones(N, P)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DeepL0Encoder(N, P, inside="firm"),
         r"inside must be one of \('hard', 'soft'\), got 'firm'"),
        (lambda: DeepMSparseEncoder(N, P, M, inside=None), "inside must be one of .* got None"),
        (lambda: DeepL0Encoder.from_dictionary(D, 1.0, l1_lam=0.1),
         "l1_lam must be None unless inside='soft', got 0.1"),
        (lambda: DeepMSparseEncoder.from_dictionary(D, M, l1_lam=0.1),
         "l1_lam must be None unless inside='soft', got 0.1"),
        (lambda: DeepL0Encoder.from_dictionary(D, 1.0, inside="soft", l1_lam=0.0),
         "l1_lam must be a finite number > 0, got 0.0"),
        (lambda: DeepMSparseEncoder.from_dictionary(D, M, inside="soft", l1_lam=math.nan),
         "l1_lam must be a finite number > 0, got nan"),
        (lambda: DeepMSparseEncoder(N, P, (6, 5), factored=True, inside="soft"),
         r"m must be one number where inside='soft', got \(6, 5\)"),
        (lambda: shard_units(new("m_sparse factored"), None),
         "DeepMSparseEncoder must have inside='hard' where its units are sharded, got 'soft' of 3"),
    ],
)  # fmt: skip
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@every
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(3, N + 1), ValueError, r"x must have shape .* \[\.\.\., 11\], got \(3, 12\)"),
        (torch.ones(3, N).double(), ValueError, r"x must have the dtype of the weights .*float64"),
        (None, TypeError, r"x must be a tensor, got NoneType"),
    ],
)
def test_bad_signals(kind, x, error, message):
    with pytest.raises(error, match=message):
        new(kind)(x)
