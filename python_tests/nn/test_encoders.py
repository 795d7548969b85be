"""Encoders: initialisation, thresholds in training, and everything users do to a module."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.nn import (
    LISTA,
    BaselineEncoder,
    ClusterHead,
    DeepL0Encoder,
    DeepMSparseEncoder,
    JointSparseClustering,
    TAGNet,
)

N, P, M = 12, 20, 5


def dictionary(dtype=torch.float32, scale=3.0):
    g = torch.Generator().manual_seed(1)
    return scale * torch.randn(N, P, generator=g, dtype=dtype)


CLASSES = {"l0": (DeepL0Encoder, 0.01), "m_sparse": (DeepMSparseEncoder, M), "lista": (LISTA, 0.05)}
OPTIONS = {
    "l0": {},
    "l0 nonnegative": dict(bias=True, positive=True),
    "l0 factored": dict(bias=True, factored=True),
    "m_sparse": {},
    "m_sparse nonnegative": dict(bias=True, positive=True),
    "m_sparse factored": dict(bias=True, positive=True, factored=True),
    "lista": {},
    "lista nonnegative": dict(bias=True, positive=True),
}


def maker(kind):
    cls, last = CLASSES[kind.split()[0]]
    return lambda **k: cls.from_dictionary(dictionary(), last, **(OPTIONS[kind] | k))


def new(kind, **k):
    """Without a dictionary."""
    sizes = (N, P, M) if kind.startswith("m_sparse") else (N, P)
    return CLASSES[kind.split()[0]][0](*sizes, **(OPTIONS[kind] | k))


MAKE = {kind: maker(kind) for kind in OPTIONS}
every = pytest.mark.parametrize("kind", MAKE)
# A factored M-sparse encoder has nothing to untie.
every_tying = pytest.mark.parametrize(
    ("kind", "tied"),
    [(k, tied) for k in MAKE for tied in (True, False) if tied or k != "m_sparse factored"],
)


@every_tying
@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_shapes_dtypes_and_leading_dimensions(kind, tied, num_stages):
    encoder = MAKE[kind](num_stages=num_stages, tied=tied)
    assert encoder.W.shape == (P, N)
    factored = kind.endswith("factored")
    if num_stages == 1 or factored:
        assert encoder.S is None
    else:
        assert encoder.S.shape == ((P, P) if tied else (num_stages - 1, P, P))
    if num_stages > 1 and factored:
        assert encoder.atoms.shape == (P, N)
        assert torch.equal(encoder.D, encoder.atoms.T)
    else:
        assert encoder.atoms is None
        assert encoder.D is None
    if not kind.startswith("m_sparse"):
        assert encoder.theta.shape == ((P,) if tied else (num_stages, P))
    x = torch.randn(2, 3, N)
    z = encoder(x)
    assert z.shape == (2, 3, P)
    torch.testing.assert_close(encoder(x[1, 2]), z[1, 2])
    assert encoder(x[:0]).shape == (0, 3, P)
    z.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.is_contiguous()
    wide = encoder.double().eval()
    assert wide(x.double()).dtype == torch.float64


@every
def test_untied_starts_as_tied_does(kind):
    x = torch.randn(30, N)
    if kind != "m_sparse factored":
        torch.testing.assert_close(
            MAKE[kind](num_stages=3, tied=True).eval()(x),
            MAKE[kind](num_stages=3, tied=False).eval()(x),
        )


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("num_stages", [1, 2, 5])
def test_factored_starts_at_the_same_function(num_stages, positive):
    x, D = torch.randn(200, N, dtype=torch.float64), dictionary(torch.float64)
    options = dict(num_stages=num_stages, positive=positive)
    for factored in (False, True):
        again = [
            DeepL0Encoder.from_dictionary(D, 0.01, factored=factored, **options).eval()(x),
            DeepMSparseEncoder.from_dictionary(D, M, factored=factored, **options)(x),
        ]
        if not factored:
            codes = again
    assert all((code != 0).any() for code in codes)
    torch.testing.assert_close(codes, again)
    iterated = dk.solvers.iht_m(x, D, M, tol=1e-300, max_iter=num_stages, positive=positive).dense
    torch.testing.assert_close(codes[1], iterated)


def test_weights_from_a_dictionary():
    D = dictionary(torch.float64)
    mu = 0.99 / torch.linalg.matrix_norm(D, 2).item() ** 2
    encoder = DeepL0Encoder.from_dictionary(D, 0.3)
    assert encoder.W.dtype == torch.float64
    torch.testing.assert_close(encoder.W.data, mu * D.T)
    torch.testing.assert_close(encoder.S.data, torch.eye(P).double() - mu * D.T @ D)
    theta = torch.full((P,), math.sqrt(2 * 0.3 * mu), dtype=torch.float64)
    torch.testing.assert_close(encoder.theta.data, theta)
    paper = DeepL0Encoder.from_dictionary(D, 0.3, convention="paper")
    torch.testing.assert_close(paper.theta.data, theta / math.sqrt(2))
    short = DeepL0Encoder.from_dictionary(D, 0.3, step=mu / 4)
    torch.testing.assert_close(short.theta.data, theta / 2)
    soft = LISTA.from_dictionary(D, 0.3)
    torch.testing.assert_close(soft.theta.data, torch.full_like(theta, 0.3 * mu))


@pytest.mark.parametrize("make", [DeepL0Encoder, LISTA])
def test_the_step_ends_at_the_bound(make):
    D = dictionary(torch.float64)
    bound = 1 / torch.linalg.matrix_norm(D, 2).item() ** 2
    torch.testing.assert_close(make.from_dictionary(D, 0.3, step=bound).W.data, bound * D.T)
    for step in (1.001 * bound, 1.9 * bound):
        with pytest.raises(ValueError, match=r"step must be at most 1 / \|\|D\|\|_2\^2"):
            make.from_dictionary(D, 0.3, step=step)


def test_zeros_that_are_selected_are_no_nonzeros():
    encoder = MAKE["m_sparse"]()
    code = encoder.encode(torch.zeros(2, N))
    assert code.values.shape == (2, M)
    assert not encoder(torch.zeros(2, N)).any()


def test_a_random_start_is_usable():
    torch.manual_seed(0)
    first = DeepL0Encoder(64, 100)
    torch.manual_seed(0)
    assert torch.equal(first.W, DeepL0Encoder(64, 100).W)
    # mu = 0.99 of a dictionary of norm 1.
    assert torch.linalg.matrix_norm(first.W.detach(), 2).item() == pytest.approx(0.99, rel=1e-4)
    x = torch.randn(500, 64)
    used = (first.eval()(x) != 0).sum(1).float().mean()
    assert 0 < used < 50
    assert (DeepMSparseEncoder(64, 100, 7)(x) != 0).sum(1).eq(7).all()
    assert torch.isfinite(LISTA(64, 100)(x)).all()


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan"), "wide", None])
def test_a_bad_sigma_is_refused_when_it_is_set(wrong):
    encoder = MAKE["l0"]()
    with pytest.raises((TypeError, ValueError), match="sigma must be"):
        encoder.sigma = wrong
    assert encoder.sigma == 0.2
    encoder(torch.randn(3, N))


def test_training_mode_uses_the_ramp_and_evaluation_does_not():
    encoder = MAKE["l0"]()
    encoder.sigma = 0.5
    x = torch.randn(200, N)
    expected = dk.encode_l0(x, encoder.W, encoder.S, encoder.theta, sigma=0.5)
    torch.testing.assert_close(encoder.train()(x), expected)
    hard = dk.encode_l0(x, encoder.W, encoder.S, encoder.theta)
    torch.testing.assert_close(encoder.eval()(x), hard)
    assert not torch.equal(hard, expected)


@pytest.mark.parametrize("kind", ["l0", "lista"])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=1e3),
        lambda p: torch.optim.Adam(p, lr=1e-2),
        lambda p: torch.optim.Adam(p, lr=1.0),
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=10.0),
        lambda p: torch.optim.RMSprop(p, lr=0.1),
    ],
)
def test_theta_moves_and_stays_positive(kind, optimizer):
    encoder = MAKE[kind]()
    before = encoder.theta.detach().clone()
    # Thresholds alone: with the weights in it, the wildest of these steps ends in overflow.
    step = optimizer([encoder.log_theta])
    x, target = torch.randn(256, N), torch.randn(256, P)
    for _ in range(50):
        step.zero_grad()
        (encoder(x) - target).square().mean().backward()
        assert torch.isfinite(encoder.log_theta.grad).all()
        step.step()
        theta = encoder.theta.detach()
        assert (theta > 0).all()
        assert torch.isfinite(theta).all()
    assert ((theta - before).abs() > 1e-6 * before).double().mean() > 0.9


def test_theta_is_positive_wherever_its_parameter_is_and_finds_back():
    encoder = MAKE["l0"]()
    for far in (-1e4, 1e4):
        torch.nn.init.constant_(encoder.log_theta, far)
        theta = encoder.theta
        assert ((theta > 0) & torch.isfinite(theta)).all()
        theta.sum().backward()
        assert (encoder.log_theta.grad > 0).all()
        encoder.log_theta.grad = None


def test_training_lowers_the_error_of_every_encoder():
    g = torch.Generator().manual_seed(0)
    D = dictionary()
    code = dk.keep_top_m(torch.randn(2000, P, generator=g), 3)
    x = code @ D.T
    for kind in MAKE:
        encoder = MAKE[kind]()
        step = torch.optim.Adam(encoder.parameters(), lr=3e-3)
        losses = []
        for i in range(100):
            rows = slice(i % 10 * 200, (i % 10 + 1) * 200)
            loss = (encoder(x[rows]) - code[rows]).square().sum(1).mean()
            step.zero_grad()
            loss.backward()
            step.step()
            losses.append(loss.item())
        assert sum(losses[-10:]) < 0.9 * sum(losses[:10]), kind


@every_tying
def test_state_dict_deepcopy_pickle_and_safetensors(kind, tied, tmp_path):
    encoder = MAKE[kind](num_stages=3, tied=tied).eval()
    x = torch.randn(9, N)
    z = encoder(x)
    buffer = io.BytesIO()
    torch.save(encoder.state_dict(), buffer)
    buffer.seek(0)
    fresh = new(kind, num_stages=3, tied=tied).eval()
    assert not torch.equal(fresh(x), z)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(fresh(x), z)
    assert torch.equal(copy.deepcopy(encoder)(x), z)
    assert torch.equal(pickle.loads(pickle.dumps(encoder))(x), z)
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_model(encoder, str(tmp_path / "e.safetensors"))
    fresh = new(kind, num_stages=3, tied=tied).eval()
    safetensors.load_model(fresh, str(tmp_path / "e.safetensors"))
    assert torch.equal(fresh(x), z)
    # The state dict alone will do: no two entries share memory, and all are contiguous.
    fresh.reset_parameters()
    fresh.load_state_dict(safetensors.load(safetensors.save(encoder.state_dict())))
    assert torch.equal(fresh(x), z)


@every
def test_export(kind):
    encoder = MAKE[kind]().eval()
    batch = torch.export.Dim("batch", min=0, max=1000)
    program = torch.export.export(encoder, (torch.randn(4, N),), dynamic_shapes={"x": {0: batch}})
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    for module in (program.module(), torch.export.load(buffer).module()):
        for rows in (0, 1, 2, 33):
            x = torch.randn(rows, N)
            torch.testing.assert_close(module(x), encoder(x))


@every
def test_functional_calls_and_gradients_of_every_sample(kind):
    encoder, x = MAKE[kind](), torch.randn(6, N)
    weights = {name: p.detach() for name, p in encoder.named_parameters()}

    def loss(weights, x):
        return torch.func.functional_call(encoder, weights, (x,)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    encoder(x).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert per_sample[name].shape == (6, *parameter.shape)
        torch.testing.assert_close(per_sample[name].sum(0), parameter.grad)
    stacked = {name: torch.stack([w, 2 * w]) for name, w in weights.items()}
    with dk.use_backend("reference"):
        ensemble = torch.func.vmap(lambda w: torch.func.functional_call(encoder, w, (x,)))(stacked)
    torch.testing.assert_close(ensemble[0], encoder(x))


@every
def test_frozen_weights_and_inference(kind):
    encoder, x = MAKE[kind](), torch.randn(6, N)
    with torch.inference_mode():
        z = encoder(x)
    assert not z.requires_grad
    encoder.W.requires_grad_(False)
    x.requires_grad_()
    encoder(x).sum().backward()
    assert encoder.W.grad is None
    between = encoder.atoms if kind.endswith("factored") else encoder.S
    assert between.grad is not None
    encoder.requires_grad_(False)
    want, x.grad = x.grad, None
    encoder(x).sum().backward()
    torch.testing.assert_close(x.grad, want)


@every
def test_meta_tensors(kind):
    with torch.device("meta"):
        encoder = new(kind)
    assert encoder(torch.randn(3, N, device="meta")).shape == (3, P)
    encoder.to_empty(device="cpu")
    encoder.reset_parameters()
    assert encoder(torch.randn(3, N)).isfinite().all()


@every
def test_compile_without_recompilation_over_batch_sizes(kind):
    torch._dynamo.reset()
    encoder = MAKE[kind]()
    compiled = torch.compile(encoder, fullgraph=True, dynamic=True, backend="aot_eager")
    parameters = list(encoder.parameters())
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (4, 9, 33, 128):
            x = torch.randn(rows, N)
            expected = torch.autograd.grad(encoder(x).square().sum(), parameters)
            z = compiled(x)
            torch.testing.assert_close(z, encoder(x))
            for a, b in zip(
                torch.autograd.grad(z.square().sum(), parameters), expected, strict=True
            ):
                torch.testing.assert_close(a, b)


def test_codes_of_the_m_sparse_encoder():
    encoder = MAKE["m_sparse"]()
    x = torch.randn(2, 6, N)
    code = encoder.encode(x)
    assert isinstance(code, dk.SparseCode)
    assert code.values.shape == (2, 6, M)
    torch.testing.assert_close(code.to_dense(), encoder(x))


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_modules(kind, dtype):
    encoder = MAKE[kind]().to(dtype)
    x = torch.randn(5, N).to(dtype)
    if kind.startswith("lista"):
        assert encoder(x).shape == (5, P)
        return
    z = encoder(x)
    assert z.dtype == dtype
    z.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_representation():
    assert repr(MAKE["m_sparse"]()) == (
        "DeepMSparseEncoder(in_features=12, code_size=20, num_stages=2, tied=True, m=5)"
    )
    encoder = DeepMSparseEncoder(
        N, P, (7, M), bias=True, positive=True, factored=True, steps=(1, 0.5)
    )
    assert repr(encoder) == (
        "DeepMSparseEncoder(in_features=12, code_size=20, num_stages=2, tied=True, bias=True, "
        "positive=True, factored=True, steps=(1.0, 0.5), m=(7, 5))"
    )


D = dictionary()


def factored(m, **k):
    return DeepMSparseEncoder(5, 5, m, factored=True, **k)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DeepL0Encoder(0, 5), "in_features must be >= 1, got 0"),
        (lambda: DeepL0Encoder(5, 5, 0), "num_stages must be >= 1, got 0"),
        (lambda: DeepL0Encoder(5, 5, grad="fast"), "grad must be one of .* got 'fast'"),
        (lambda: DeepMSparseEncoder(5, 5, 6), "m must be >= 1 and <= code_size = 5, got 6"),
        (lambda: DeepMSparseEncoder(5, 5, (2, 3)), r"m must be one number .*, got \(2, 3\)"),
        (lambda: factored((2, 3, 4)), r"m must have num_stages = 2 entries, got 3: \(2, 3, 4\)"),
        (lambda: factored((2, 6)), "m must be >= 1 and <= code_size = 5, got 6"),
        (lambda: factored((0, 2)), "m must be >= 1 and <= code_size = 5, got 0"),
        (lambda: factored(2, tied=False), "tied must be True where factored, .* got False"),
        (lambda: factored(2, steps=(1, 2, 3)), "steps must have num_stages = 2 entries, got 3"),
        (lambda: factored(2, steps=(1, 0)), "steps must be a finite number > 0, got 0"),
        (lambda: factored(2, steps=-1), "steps must be a finite number > 0, got -1"),
        (lambda: factored(2, num_stages=1, steps=1.0), "steps must be None but for .* got 1.0"),
        (lambda: DeepL0Encoder(5, 5, steps=2.0), "steps must be None but for .*, got 2.0"),
        (lambda: DeepL0Encoder.from_dictionary(D, 1, steps=2.0), "steps must be None but for"),
        (lambda: DeepMSparseEncoder.from_dictionary(D, 21), "m must be .* got 21"),
        (lambda: DeepL0Encoder.from_dictionary(D, 0.0), "lam must be .* got 0.0"),
        (lambda: DeepL0Encoder.from_dictionary(D, -1), "lam must be .* got -1.0"),
        (lambda: LISTA.from_dictionary(D, math.inf), "lam must be .* got inf"),
        (
            lambda: DeepL0Encoder.from_dictionary(D, 1, convention="eq6"),
            "convention must be one of",
        ),
        (lambda: DeepL0Encoder.from_dictionary(D, 1, step=1.0), "step must be at most 1 / "),
        (lambda: DeepL0Encoder.from_dictionary(D, 1, step=0.0), "step must be a finite number"),
        (lambda: DeepL0Encoder.from_dictionary(D * torch.nan, 1), "D must be finite, got 240"),
        (lambda: DeepL0Encoder.from_dictionary(D[0], 1), r"D must be a matrix .*\(20,\)"),
        (lambda: DeepL0Encoder.from_dictionary(0 * D, 1), "D must not be all 0"),
        (lambda: DeepL0Encoder.from_dictionary(D.to("meta"), 1), "D must hold values, got .* meta"),
        (lambda: DeepL0Encoder.from_dictionary(1e-42 * D, 1), "cannot hold the weights; scale it"),
        (lambda: DeepMSparseEncoder.from_dictionary(D.int(), 1), "D must be float32.* torch.int32"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("make", "counts", "given"),
    [
        (DeepL0Encoder, ("in_features", "code_size", "num_stages"), {}),
        (DeepMSparseEncoder, ("in_features", "code_size", "m", "num_stages"), {}),
        (LISTA, ("in_features", "code_size", "num_stages"), {}),
        (TAGNet, ("in_features", "code_size", "num_stages"), {}),
        (BaselineEncoder, ("in_features", "code_size"), {}),
        (ClusterHead, ("code_size", "clusters"), {}),
        (JointSparseClustering, ("max_iter",),
         dict(D=dictionary(), head=ClusterHead(P, 2), lam=0.1, alpha=0.1)),
    ],
)  # fmt: skip
def test_a_count_of_1_is_taken_and_one_of_0_is_named(make, counts, given):
    least = dict.fromkeys(counts, 1)
    make(**given, **least)
    for name in counts:
        with pytest.raises(ValueError, match=rf"^{name} must be >= 1\b.*, got 0$"):
            make(**given, **least | {name: 0})


@every
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(3, N + 1), ValueError, r"x must have shape .* \[\.\.\., 12\], got \(3, 13\)"),
        (torch.ones(3, N).double(), ValueError, r"x must have the dtype of the weights .*float64"),
        (torch.ones(3, N, device="meta"), ValueError, r"x must be on the device of .* got meta"),
        (torch.ones(3, N).long(), ValueError, r"x must be float32.* got torch.int64"),
        (torch.tensor(1.0), ValueError, r"x must have at least 1 dimension"),
        (torch.ones(3, N).to_sparse(), ValueError, r"x must be dense .* torch.sparse_coo"),
        (None, TypeError, r"x must be a tensor, got NoneType"),
    ],
)
def test_bad_signals(kind, x, error, message):
    with pytest.raises(error, match=message):
        MAKE[kind]()(x)
