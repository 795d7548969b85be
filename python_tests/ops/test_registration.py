"""Every operator of torch.ops.deepl0 under opcheck, torch.compile, autocast, vmap and export."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch.library import opcheck

import deepl0_kernels as dk

OPS = torch.ops.deepl0
B, N, P, M, K = 6, 5, 9, 4, 3


def samples(dtype: torch.dtype, grad: bool, batch: int = B):
    """Operator -> argument tuples."""
    g = torch.Generator().manual_seed(1)

    def randn(*shape, requires_grad=grad, dtype=dtype):
        return torch.randn(shape, generator=g).to(dtype).requires_grad_(requires_grad)

    low = torch.float64 if dtype == torch.float64 else torch.float32
    theta = (torch.rand(P, generator=g) + 0.2).to(low)

    def thetas(*shape):
        t = theta.expand(*shape, P).clone() if shape else theta.clone()
        return t.requires_grad_(grad)

    x, W, S, bias = randn(batch, N), randn(P, N), randn(P, P), randn(P)
    # Short atoms: factored stages of others grow, and cancel more than the tolerances below allow.
    D = (randn(N, P, requires_grad=False) / 4).requires_grad_(grad)
    step = torch.tensor([1.0, 0.5, 0.75], dtype=low).requires_grad_(grad)
    z = randn(batch, P)
    indices = torch.rand(batch, P, generator=g).argsort(-1)[:, :M].sort(-1).values
    mask = dk.reference.keep_top_m(z.detach(), M)[1]
    saved_u = randn(K, batch, P, requires_grad=False, dtype=low)
    saved_values = randn(K - 1, batch, M, requires_grad=False, dtype=low)
    saved_indices = indices.expand(K - 1, batch, M).contiguous()
    no = dict(requires_grad=False)
    yield "threshold", (z, thetas(), 0.3, "helu")
    for kind in dk.reference.thresholds.KINDS:
        yield "threshold", (z, thetas(), 0.3, kind)
    yield "threshold", (z, torch.tensor(0.5, dtype=low).requires_grad_(grad), 0.0, "helu")
    for kind, bits in (("helu", 1), ("helu", 2), ("helu", 3), ("positive_helu", 3)):
        yield "threshold_backward", (randn(batch, P), z, thetas(), 0.3, kind, bits)
    for positive in (False, True):
        yield "top_m", (z, M, positive)
        yield "top_m", (randn(2, 3, P), M, positive)
        yield "keep_top_m", (z, M, positive)
        yield "batch_top_m", (z, M, positive)
        yield "batch_top_m", (randn(2, 3, P), M, positive)
    yield "unpool", (randn(batch, M), indices, P)
    yield "apply_mask", (z, mask)
    for name in ("threshold_stage", "threshold_stage_saving"):
        yield name, (x, W, z, S, None, thetas(), 0.3, "helu")
        yield name, (x, W, z, S, bias, thetas(), 0.3, "positive_helu")
    yield "top_m_stage", (x, W, z, S, None, M, False)
    yield "top_m_stage", (x, W, z, S, bias, M, True)
    for name in ("encode_l0", "encode_l0_saving"):
        yield name, (x, W, S, None, thetas(), K, 0.3, "helu")
        yield name, (x, W, randn(K - 1, P, P), bias, thetas(K), K, 0.3, "positive_ste")
        yield name, (x, W, None, bias, thetas(), 1, 0.0, "helu")
    for name in ("encode_l0_factored", "encode_l0_factored_saving"):
        yield name, (x, W, D, None, None, thetas(), K, 0.3, "helu")
        yield name, (x, W, D, bias, step, thetas(K), K, 0.3, "positive_helu")
    for name in ("encode_top_m", "encode_top_m_saving"):
        yield name, (x, W, S, None, M, K, False)
        yield name, (x, W, randn(K - 1, P, P), bias, M, K, True)
        yield name, (x, W, None, bias, M, 1, True)
    for name in ("encode_top_m_factored", "encode_top_m_factored_saving"):
        yield name, (x, W, D, None, None, [M, M, M], False)
        yield name, (x, W, D, bias, step, [2, P, M], True)
        yield name, (x, W, D, bias, step[:1], [M], False)
    yield "decode", (randn(batch, M), indices, randn(N, P))
    yield "refit", (x, randn(N, P), indices)
    yield "refit", (x, randn(N, P), indices.masked_fill(indices < 2, -1))
    if dtype in (torch.float32, torch.float64):
        for positive in ((), (True,)):
            unit = torch.nn.functional.normalize(randn(N, P), dim=0)
            yield "omp", (x, unit, M, 1e-6, *positive)
        # A step that is safe whatever the sample; the start is on the indices above.
        start, fixed = randn(batch, M), (0.02, 1e-6, 4)
        yield "iht_top_m", (x, randn(N, P), None, None, M, *fixed, False)
        yield "iht_top_m", (x, randn(N, P), start, indices, M, *fixed, False)
        yield "iht_top_m", (x, randn(N, P), start, indices, M, *fixed, True)
        yield "iht_top_m", (x, randn(N, P), start.abs(), indices, M, *fixed, True, True)
        yield "iht_l0", (x, randn(N, P), None, 0.1, *fixed, False)
        yield "iht_l0", (x, randn(N, P), z, 0.1, *fixed, True)
        yield "iht_l0", (x, randn(N, P), z.abs(), 0.1, *fixed, True, True)
        yield "fista", (x, randn(N, P), None, 0.1, *fixed, False)
        yield "fista", (x, randn(N, P), z, 0.1, *fixed, True)
        yield "fista", (x, randn(N, P), z.abs(), 0.1, *fixed, True, True)
        # float64 whatever the solver's dtype.
        unit = torch.nn.functional.normalize(randn(N, P, dtype=torch.float64, **no), dim=0)
        gram, right = unit.T @ unit, randn(batch, M, dtype=torch.float64)
        yield "least_squares", (gram, right, indices, 1e-5)
        yield "least_squares", (gram, right, indices.masked_fill(indices < 2, -1), 1e-5)
    if dtype == torch.float32:
        for positive in (False, True):
            yield "shard_top_m", (x, W, None, randn(batch, M), indices, M, positive)
            yield "shard_top_m", (x, W, bias, randn(batch, 0), indices[:, :0], P, positive)
    if not grad and low == dtype:
        for unit_norm in (False, True):
            rows = randn(batch, N) * (torch.arange(batch) % 2)[:, None]
            averages = randn(batch, N), randn(batch, N).abs()
            options = (0.01, 0.9, 0.999, 1e-8, 3, unit_norm)
            yield "sparse_adam_", (randn(batch, N), rows, *averages, *options)
    if not grad:
        for bits in (*range(1, 16), 16, 31):
            yield "encode_l0_backward", (z, saved_u, x, W, S, thetas(), 0.3, "helu", bits)
        for bits in (1, 2, 4, 8, 16, 32, 63):
            args = (z, saved_u, x, W, D, step, thetas(), 0.3, "positive_helu", bits)
            yield "encode_l0_factored_backward", args
        values = randn(batch, M).relu()
        codes = (indices, saved_values, saved_indices)
        for bits in range(1, 16):
            yield "encode_top_m_backward", (randn(batch, M), None, *codes, x, W, S, bits)
        yield "encode_top_m_backward", (randn(batch, M), values, *codes, x, W, S, 15)
        codes = (indices, saved_values.flatten(), saved_indices.flatten())
        for bits in (1, 2, 4, 8, 16, 31):
            args = (randn(batch, M), values, *codes, x, W, D, step, [M, M, M], bits)
            yield "encode_top_m_factored_backward", args
        for bits in (1, 2, 3):
            yield "decode_backward", (x, randn(batch, M, **no), indices, randn(N, P, **no), bits)
            yield "refit_backward", (randn(batch, M), x, randn(N, P), indices, bits)


def cases(grad: bool) -> list:
    found = []
    dtypes = (
        (torch.float32, torch.float64)
        if grad
        else (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    )
    for dtype in dtypes:
        for batch in (B, 0):
            for i, (name, args) in enumerate(samples(dtype, grad, batch)):
                found.append(pytest.param(name, args, id=f"{name}-{i}-{dtype}-batch{batch}"))
    return found


def test_every_operator_has_a_sample():
    defined = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("deepl0::")
    }
    assert defined == {name for name, _ in samples(torch.float32, False)}


def told(grad: bool) -> list:
    """What opcheck sees does not depend on the dtype: all cases of float32, and of every other one
    a call of each operator."""
    seen, found = set(), []
    for case in cases(grad):
        name, args = case.values
        dtype = args[0].dtype
        if dtype == torch.float32 or (name, dtype) not in seen:
            found.append(case)
        seen.add((name, dtype))
    return found


def checked(name, args) -> None:
    """What is traced and compiled is the same of every dtype, and takes nearly all of the time."""
    utils = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if args[0].dtype == torch.float32:
        utils.append("test_aot_dispatch_dynamic")
    opcheck(getattr(OPS, name).default, args, test_utils=utils)


@pytest.mark.parametrize(("name", "args"), told(grad=True))
def test_opcheck_with_gradients(name, args):
    checked(name, args)


@pytest.mark.parametrize(("name", "args"), told(grad=False))
def test_opcheck_without_gradients(name, args):
    checked(name, args)


@pytest.mark.parametrize(("name", "args"), cases(grad=False))
def test_native_equals_reference(name, args):
    """On the same float64 rounding error model as docs/numerics.md; supports exactly."""
    base = name.removesuffix("_saving")
    if not hasattr(dk.reference, base):
        return  # the encoders' backwards: test_encode and test_decode
    if name.endswith("_"):  # in place
        got, want = ([a.clone() if isinstance(a, torch.Tensor) else a for a in args] for _ in "12")
        getattr(OPS, name)(*got)
        getattr(dk.reference, name)(*want)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)
        return
    got = getattr(OPS, name)(*args)
    if base != name:
        args = (*args, True)
    want = getattr(dk.reference, base)(*args)
    if isinstance(got, torch.Tensor) and isinstance(want, tuple):
        want = want[0]  # the reference returns what may be saved, too
    elif isinstance(want, tuple):
        want = want[: len(got)]
    got, want = ((t,) if isinstance(t, torch.Tensor) else t for t in (got, want))
    tolerance = {
        torch.float64: 1e-12,
        torch.float32: 1e-5,
        torch.bfloat16: 2e-2,
        torch.float16: 2e-3,
    }
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=tolerance[a.dtype], atol=tolerance[a.dtype])
        else:
            assert torch.equal(a, b)


FUNCTIONS = {
    "helu": lambda x, W, S, D, t: dk.helu(x, t[:N], 0.2),
    "top_m": lambda x, W, S, D, t: dk.top_m(x, 3)[0],
    "keep_top_m": lambda x, W, S, D, t: dk.keep_top_m(x, 3),
    "batch_top_m": lambda x, W, S, D, t: dk.batch_top_m(x, 3)[1],
    "stages": lambda x, W, S, D, t: dk.top_m_stage(
        x, W, dk.threshold_stage(x, W, x @ W.t(), S, t, 0.1), S, M
    ),
    "encode_l0": lambda x, W, S, D, t: dk.encode_l0(x, W, S, t, num_stages=3, sigma=0.2),
    "encode_top_m": lambda x, W, S, D, t: dk.encode_top_m(x, W, S, M, num_stages=3).values,
    "refit": lambda x, W, S, D, t: dk.refit(x, D, dk.encode_top_m(x, W, S, 3)).values,
    "autoencoder": lambda x, W, S, D, t: dk.decode(dk.encode_top_m(x, W, S, M), D),
    "to_dense": lambda x, W, S, D, t: dk.encode_top_m(x, W, S, M).to_dense(),
}


def operands(batch: int, dtype=torch.float32):
    g = torch.Generator().manual_seed(batch)
    shapes = ((batch, N), (P, N), (P, P), (N, P))
    tensors = [torch.randn(s, generator=g, dtype=dtype).requires_grad_() for s in shapes]
    return [*tensors, (torch.rand(P, generator=g, dtype=dtype) + 0.1).requires_grad_()]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compile_fullgraph_with_dynamic_batch_and_no_recompilation(name):
    torch._dynamo.reset()
    function = FUNCTIONS[name]
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for batch in (7, 12, 33):
        args, again = operands(batch), operands(batch)
        out, want = compiled(*args), function(*again)
        torch.testing.assert_close(out, want)
        grads = torch.autograd.grad(out.square().sum(), args, allow_unused=True)
        want_grads = torch.autograd.grad(want.square().sum(), again, allow_unused=True)
        for a, b in zip(grads, want_grads, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["encode_l0", "encode_top_m", "autoencoder"])
def test_inductor_serves_them_too(name):
    torch._dynamo.reset()
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, dynamic=True)
    args = operands(10)
    torch.testing.assert_close(compiled(*args), FUNCTIONS[name](*args))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_selects_and_thresholds_in_float32(name, backend):
    args = operands(8)
    with dk.use_backend(backend):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if name == "stages":
                x, W, S, _, t = args
                z = torch.zeros(8, P)
                out = dk.top_m_stage(x, W, dk.threshold_stage(x, W, z, S, t), S, M)
            else:
                out = FUNCTIONS[name](*args)
        elementwise = name in ("helu", "top_m", "keep_top_m", "batch_top_m", "refit")
        assert out.dtype == (torch.float32 if elementwise else torch.bfloat16)
        out.float().sum().backward()
    if elementwise:
        torch.testing.assert_close(out, FUNCTIONS[name](*args))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = FUNCTIONS[name](args[0].bfloat16(), *args[1:])
        assert low.dtype == torch.float32


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_vmap_over_rows(backend):
    x, W, S, D, t = (a.detach() for a in operands(12))
    u = torch.randn(3, 4, P)
    with dk.use_backend(backend):
        for function in (
            lambda r: dk.helu(r, t, 0.2),
            lambda r: dk.top_m(r, 3),
            lambda r: dk.keep_top_m(r, 3),
            lambda r: dk.unpool(*dk.top_m(r, 3), P),
        ):
            torch.testing.assert_close(torch.func.vmap(function)(u), function(u))
        xs = x.reshape(3, 4, N)
        for function in (
            lambda r: dk.encode_l0(r, W, S, t, sigma=0.1),
            lambda r: dk.encode_top_m(r, W, S, M),
            lambda r: dk.decode(dk.encode_top_m(r, W, S, M), D),
        ):
            for got, want in (
                (torch.func.vmap(function)(xs), function(xs)),
                (torch.func.vmap(function, in_dims=1)(xs), function(xs.transpose(0, 1))),
            ):
                if isinstance(got, dk.SparseCode):
                    assert torch.equal(got.indices, want.indices)
                    got, want = got.values, want.values
                torch.testing.assert_close(got, want)


def test_vmap_over_weights_is_refused_by_the_kernel_and_served_by_the_reference():
    x, W, S, _, t = (a.detach() for a in operands(4))
    Ws = torch.stack([W, W + 1])

    def function(W):
        return dk.encode_l0(x, W, S, t)

    with pytest.raises(NotImplementedError, match=r"encode_l0.*use_backend\('reference'\)"):
        torch.func.vmap(function)(Ws)
    with dk.use_backend("reference"):
        got = torch.func.vmap(function)(Ws)
    torch.testing.assert_close(got, torch.stack([function(W), function(W + 1)]))


@pytest.mark.parametrize("backend", ["reference", None])
def test_functional_gradients(backend):
    u, t = torch.randn(4, P, dtype=torch.float64), torch.rand(P, dtype=torch.float64) + 0.1
    with dk.use_backend(backend):
        per_row = torch.func.vmap(
            torch.func.grad(lambda u, t: dk.helu(u, t, 0.5).sum(), (0, 1)), (0, None)
        )
        grad_u, grad_t = per_row(u, t)
    assert grad_u.shape == (4, P)
    assert grad_t.shape == (4, P)
    a = u.requires_grad_(), t.requires_grad_()
    want = torch.autograd.grad(dk.helu(*a, 0.5).sum(), a)
    torch.testing.assert_close(grad_u, want[0])
    torch.testing.assert_close(grad_t.sum(0), want[1])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_forward_mode_is_the_references(name):
    args = [a.detach() for a in operands(4, torch.float64)]
    function = FUNCTIONS[name]
    tangents = [torch.randn_like(a) for a in args]
    want = torch.func.jvp(function, tuple(args), tuple(tangents))[1]
    with torch.autograd.forward_ad.dual_level():
        duals = [
            torch.autograd.forward_ad.make_dual(*pair) for pair in zip(args, tangents, strict=True)
        ]
        got = torch.autograd.forward_ad.unpack_dual(function(*duals)).tangent
        torch.testing.assert_close(got, want)
        with (
            dk.use_backend("cpu"),
            pytest.raises(NotImplementedError, match="no derivative in forward mode"),
        ):
            function(*duals)


@pytest.mark.parametrize("grad", ["helu", "ste", "ste_theta", "hard"])
def test_forward_and_reverse_mode_agree(grad):
    u, theta = torch.randn(4, P, dtype=torch.float64), torch.rand(P, dtype=torch.float64) + 0.1
    du, dtheta, w = torch.randn_like(u), torch.randn_like(theta), torch.randn_like(u)

    def function(u, theta):
        return dk.helu(u, theta, 0.5, grad=grad)

    out = torch.func.jvp(function, (u, theta), (du, dtheta))[1]
    leaves = u.requires_grad_(), theta.requires_grad_()
    gu, gtheta = torch.autograd.grad((function(*leaves) * w).sum(), leaves)
    torch.testing.assert_close((out * w).sum(), (gu * du).sum() + (gtheta * dtheta).sum())


def test_double_backward_of_the_encoders_says_what_to_do():
    x, W, S, _, t = operands(4)
    for out in (dk.encode_l0(x, W, S, t), dk.encode_top_m(x, W, S, M).values):
        (grad,) = torch.autograd.grad(out.square().sum(), W, create_graph=True)
        with pytest.raises(RuntimeError, match=r"double backward is not implemented.*reference"):
            grad.sum().backward()
    with dk.use_backend("reference"):
        args = [a.detach().double().requires_grad_() for a in (x, W, S)]
        assert torch.autograd.gradgradcheck(lambda *a: dk.encode_top_m(*a, M).values, args)


def test_what_a_solver_returns_is_a_constant():
    for name, args in samples(torch.float32, True):
        if name in ("fista", "omp", "iht_l0", "iht_top_m", "least_squares"):
            found = getattr(OPS, name)(*args)
            found = (found,) if isinstance(found, torch.Tensor) else found
            assert not any(t.requires_grad for t in found), name


def test_inference_mode_and_no_grad():
    args = operands(4)
    for context in (torch.inference_mode, torch.no_grad):
        with context():
            for function in FUNCTIONS.values():
                assert not function(*args).requires_grad


def test_deterministic_algorithms_are_all_there_is():
    torch.use_deterministic_algorithms(True)
    try:
        args = operands(6)
        dk.decode(dk.encode_top_m(*args[:3], M), args[3]).sum().backward()
        dk.encode_l0(*args[:3], args[4], sigma=0.1).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
