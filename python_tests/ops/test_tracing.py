"""While tracing as eagerly: transforms of torch.func, tangents, saving, scalars, ambient modes."""

from __future__ import annotations

import io

import pytest
import torch
import torch._dynamo.testing
from torch._dynamo.utils import counters
from torch.autograd import forward_ad

import deepl0_kernels as dk

B, N, P, M = 4, 6, 24, 3


def operands() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(5)

    def randn(*shape, scale=1.0):
        return torch.randn(shape, generator=g, dtype=torch.float64) * scale

    theta = torch.rand(P, generator=g, dtype=torch.float64) + 0.1
    return dict(x=randn(B, N), W=randn(P, N), S=randn(P, P, scale=0.1), D=randn(N, P),
                z=randn(B, P), theta=theta, b=randn(P, scale=0.1),
                step=torch.tensor([0.5, 0.8], dtype=torch.float64))  # fmt: skip


O = operands()  # noqa: E741
INDICES = torch.rand(B, P, generator=torch.Generator().manual_seed(6)).argsort(-1)[:, :M]
CODE = INDICES.sort(-1).values


def lista():
    torch.manual_seed(1)
    return dk.nn.LISTA(N, P, num_stages=3).double()


def encoder():
    torch.manual_seed(1)
    return dk.nn.DeepL0Encoder(N, P).double()


def m_sparse():
    torch.manual_seed(1)
    return dk.nn.DeepMSparseEncoder(N, P, M).double()


def decoded(values):
    return dk.decode(dk.SparseCode(values, CODE, P), O["D"])


# Name -> (function of one tensor, the tensor).
FUNCTIONS = {
    "hard": (lambda u: dk.hard_threshold(u, O["theta"]), O["z"]),
    "soft": (lambda u: dk.soft_threshold(u, O["theta"]), O["z"]),
    **{
        grad: (lambda u, g=grad: dk.helu(u, O["theta"], 0.3, grad=g), O["z"])
        for grad in ("helu", "ste", "ste_theta")
    },
    "theta": (lambda t: dk.helu(O["z"], t, 0.3), O["theta"]),
    "top_m": (lambda u: dk.top_m(u, M)[0], O["z"]),
    "keep_top_m": (lambda u: dk.keep_top_m(u, M), O["z"]),
    "batch_top_m": (lambda u: dk.batch_top_m(u, M)[1], O["z"]),
    "unpool": (lambda v: dk.unpool(v, CODE, P), O["z"][:, :M]),
    "threshold_stage": (
        lambda W: dk.threshold_stage(O["x"], W, O["z"], O["S"], O["theta"], 0.3), O["W"],
    ),
    "top_m_stage": (lambda S: dk.top_m_stage(O["x"], O["W"], O["z"], S, M), O["S"]),
    "encode_l0": (lambda x: dk.encode_l0(x, O["W"], O["S"], O["theta"], sigma=0.3), O["x"]),
    "encode_top_m": (lambda x: dk.encode_top_m(x, O["W"], O["S"], M).values, O["x"]),
    "positive helu": (
        lambda u: dk.helu(u, O["theta"], 0.3, positive=True), O["z"],
    ),
    "positive keep_top_m": (lambda u: dk.keep_top_m(u, M, positive=True), O["z"]),
    "encode_top_m with bias": (
        lambda b: dk.encode_top_m(O["x"], O["W"], O["S"], M, bias=b, positive=True).values, O["b"],
    ),
    "factored encode_l0": (
        lambda D: dk.encode_l0(O["x"], O["W"], None, O["theta"], sigma=0.3, D=D, bias=O["b"]),
        O["D"],
    ),
    "factored encode_top_m": (
        lambda D: dk.encode_top_m(
            O["x"], O["W"], None, (M, M - 1), D=D, bias=O["b"], step=0.8, positive=True).values,
        O["D"],
    ),
    "decode": (decoded, O["z"][:, :M]),
    "refit": (lambda D: dk.refit(O["x"], D, CODE).values, O["D"]),
    "LISTA": (lista(), O["x"]),
    "DeepL0Encoder": (encoder(), O["x"]),
    "DeepMSparseEncoder": (m_sparse(), O["x"]),
}  # fmt: skip


def test_every_public_function_is_here():
    public = {
        name for name in dk.__all__
        if hasattr(dk.ops, name)
    } - {"SparseCode", "Plan", "prepare", "hard_threshold", "soft_threshold"}  # fmt: skip
    assert public <= set(FUNCTIONS)


def square(function):
    return lambda t: function(t).square().sum()


TRANSFORMS = {
    "grad": torch.func.grad,
    "vjp": lambda f: lambda t: torch.func.vjp(f, t)[1](torch.ones((), dtype=t.dtype))[0],
    "jvp": lambda f: lambda t: torch.func.jvp(f, (t,), (torch.ones_like(t),))[1],
    "jacrev": torch.func.jacrev,
    "jacfwd": lambda f: lambda t: torch.func.jacfwd(f)(t),
    "hessian": lambda f: lambda t: torch.func.hessian(lambda a: f(t + a * t))(t.new_zeros(())),
    "vmap of grad": lambda f: lambda t: torch.func.vmap(
        torch.func.grad(lambda a: f(t * a)))(torch.ones(3, dtype=t.dtype)),
}  # fmt: skip


def plain(name):
    """The same by PyTorch's operators alone."""
    function, at = FUNCTIONS[name]

    def by_reference(t):
        with dk.use_backend("reference"):
            return square(function)(t)

    return by_reference, at


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms_of_torch_func(name, transform):
    function, at = FUNCTIONS[name]
    reference, _ = plain(name)
    apply = TRANSFORMS[transform]
    want = apply(reference)(at)
    assert want.abs().max() > 0
    torch.testing.assert_close(apply(square(function))(at), want)
    assert dk.last_call().backend == "reference"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_transforms_of_torch_func(name):
    """Three in one graph: most of the time is the compiler's, once a graph."""
    torch._dynamo.reset()
    function, at = FUNCTIONS[name]

    def several(of, t):
        return {name: TRANSFORMS[name](of)(t) for name in ("grad", "jvp", "hessian")}

    compiled = torch.compile(
        lambda t: several(square(function), t), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(at), several(plain(name)[0], at))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_forced_backend_refuses_what_it_does_not_differentiate(name):
    function, at = FUNCTIONS[name]
    torch._dynamo.reset()
    with dk.use_backend("cpu"):
        for transform in ("grad", "jvp"):
            call = TRANSFORMS[transform](square(function))
            with pytest.raises(NotImplementedError, match="no derivative in"):
                call(at)
            compiled = torch.compile(call, fullgraph=True, backend="eager")
            with pytest.raises(Exception, match="no derivative in"):
                compiled(at)


# From 2.14 on torch.compile takes no input that carries a tangent, whatever the function.
REFUSES_TANGENTS = torch.__version__ >= torch.torch_version.TorchVersion("2.14")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_tangents(name, compiled):
    torch._dynamo.reset()
    function, at = FUNCTIONS[name]
    call = torch.compile(square(function), fullgraph=True, backend="eager") if compiled else (
        square(function)
    )  # fmt: skip
    want = TRANSFORMS["jvp"](plain(name)[0])(at)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(at, torch.ones_like(at))
        if compiled and REFUSES_TANGENTS:
            with pytest.raises(torch._dynamo.exc.Unsupported, match="dual tensor"):
                call(dual)
            return
        got = forward_ad.unpack_dual(call(dual)).tangent
    torch.testing.assert_close(got, want)


# Saving.


def nodes(program) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if "deepl0" in str(node.target)}


def test_an_export_saves_nothing_and_can_be_trained():
    module = encoder()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            program = torch.export.export(module, (O["x"],))
        assert nodes(program) <= {"deepl0.encode_l0.default", "deepl0.encode_l0.Tensor"}
        assert nodes(program.run_decompositions()) == nodes(program)
        trained = program.module()
        module.zero_grad()
        trained.zero_grad()
        trained(O["x"]).sum().backward()
        grads = {name: p.grad for name, p in trained.named_parameters()}
        module.zero_grad()
        module(O["x"]).sum().backward()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(grads[name], parameter.grad)


@pytest.mark.parametrize("make", [encoder, m_sparse])
def test_jit_trace_passes_its_check(make, recwarn):
    module = make()
    traced = torch.jit.trace(module, (O["x"],), check_trace=True)
    torch.testing.assert_close(traced(O["x"]), module(O["x"]))
    assert not [w for w in recwarn if "Trace had nondeterministic" in str(w.message)]


def test_inference_saves_nothing(monkeypatch):
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    for grad, saving in ((False, False), (True, True)):
        seen.clear()
        with torch.set_grad_enabled(grad), Watch():
            W = O["W"].clone().requires_grad_()
            dk.encode_l0(O["x"], W, O["S"], O["theta"])
            dk.encode_top_m(O["x"], W, O["S"], M)
            dk.threshold_stage(O["x"], W, O["z"], O["S"], O["theta"])
        assert any("saving" in name for name in seen) == saving
        assert len([name for name in seen if "deepl0" in name]) == 3


def test_s_of_a_single_stage_is_not_touched():
    W, S = (O[k].clone().requires_grad_() for k in ("W", "S"))
    for call in (
        lambda S: dk.encode_top_m(O["x"], W, S, M, num_stages=1).values,
        lambda S: dk.encode_l0(O["x"], W, S, O["theta"], num_stages=1),
        lambda S: torch.ops.deepl0.encode_top_m(O["x"], W, S, None, M, 1, False)[0],
        lambda S: torch.ops.deepl0.encode_l0(O["x"], W, S, None, O["theta"], 1, 0.0, "helu"),
    ):
        out = call(S)
        S.data.fill_(torch.nan)  # a change that autograd would notice in what it has saved
        out.sum().backward()
        assert S.grad is None
        assert torch.equal(call(S), call(None))


@pytest.mark.parametrize("wanted", ["x", "W", "S", "D", "theta", "b", "step"])
def test_what_nobody_asks_for_is_not_computed(wanted):
    """The mask that reaches the backward, and None for the others."""
    masks = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if "backward" in str(func):
                masks.append([t.numel() > 0 for t in out])
            return out

    leaves = {k: v.clone() for k, v in O.items()}
    leaves[wanted].requires_grad_()
    x, W, S, D, theta, b, step = (leaves[k] for k in ("x", "W", "S", "D", "theta", "b", "step"))
    calls = {
        ("x", "W", "S", "theta", "b"): lambda: dk.encode_l0(x, W, S, theta, sigma=0.3, bias=b),
        ("x", "W", "S", "b"): lambda: dk.encode_top_m(x, W, S, M, bias=b).values,
        ("x", "W", "D", "theta", "b", "step"): lambda: dk.encode_l0(
            x, W, None, theta, D=D, bias=b, step=step),
        ("x", "W", "D", "b", "step"): lambda: dk.encode_top_m(
            x, W, None, M, D=D, bias=b, step=step).values,
    }  # fmt: skip
    for names, call in calls.items():
        if wanted not in names:
            continue
        out = call()
        masks.clear()
        with Watch():
            out.square().sum().backward()
        assert masks == [[k == wanted for k in names]]


# Scalars.


@pytest.mark.parametrize(
    ("function", "values"),
    [
        (lambda u, s: dk.helu(u, O["theta"], s), [0.05 * k for k in range(1, 13)]),
        (lambda u, t: dk.helu(u, t, 0.2), [0.1 * k for k in range(1, 13)]),
        (lambda u, t: dk.soft_threshold(u, t), [0.1 * k for k in range(1, 13)]),
        (
            lambda u, k: dk.encode_l0(u[:, :N], O["W"], O["S"], 0.5, num_stages=k),
            list(range(2, 12)),
        ),
        (
            lambda u, k: dk.encode_top_m(u[:, :N], O["W"], O["S"], k, num_stages=k).values,
            list(range(2, 12)),
        ),
    ],
    ids=["sigma", "theta", "soft theta", "num_stages", "m"],
)
def test_numbers_do_not_recompile(function, values):
    """The first value is taken for a constant, then there is one graph."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for value in values:
        torch.testing.assert_close(compiled(O["z"], value), function(O["z"], value))
    assert counter.frame_count == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda u, s: dk.helu(u, O["theta"], s),
        lambda u, t: dk.helu(u, t, 0.2),
        lambda u, s: dk.encode_l0(u[:, :N], O["W"], O["S"], O["theta"], sigma=s),
    ],
    ids=["sigma", "theta", "sigma of an encoder"],
)
def test_numbers_given_as_tensors_compile_once(function):
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for value in (0.1 * k for k in range(1, 11)):
        tensor = torch.tensor(value, dtype=torch.float64)
        torch.testing.assert_close(compiled(O["z"], tensor), function(O["z"], value))
    assert counters["stats"]["unique_graphs"] == 1


def test_a_sigma_of_0_among_others_has_a_graph_of_its_own():
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(lambda u, s: dk.helu(u, 0.5, s), fullgraph=True, backend="eager")
    for value in (0.1, 0.2, 0.0, 0.3, 0.0, 0.4):
        assert torch.equal(compiled(O["z"], value), dk.helu(O["z"], 0.5, value))
    assert counters["stats"]["unique_graphs"] == 3


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_one_graph_serves_a_schedule(backend):
    """20 epochs of training are one compilation, which traces once."""
    torch._dynamo.reset()
    counters.clear()
    module, twin = encoder(), encoder()
    schedules = [dk.nn.SigmaSchedule(m, factor=0.9, floor=0.001) for m in (module, twin)]
    optimizers = [torch.optim.SGD(m.parameters(), 1e-2) for m in (module, twin)]
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    sigmas = set()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(20):
            sigmas.add(module.sigma)
            for call, optimizer in zip((compiled, twin), optimizers, strict=True):
                optimizer.zero_grad()
                call(O["x"]).square().sum().backward()
                optimizer.step()
            for (name, got), want in zip(module.named_parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(got, want, msg=name)
            for schedule in schedules:
                schedule.step()
    assert len(sigmas) == 20
    assert counter.frame_count == 1
    assert counters["stats"]["unique_graphs"] == 1


def test_a_wrong_sigma_is_refused_in_a_graph_too():
    torch._dynamo.reset()
    compiled = torch.compile(lambda u, s: dk.helu(u, 0.5, s), backend="eager")
    for wrong in (-0.1, 1.5, torch.tensor(1.5)):
        with pytest.raises(Exception, match="sigma must be in"):
            compiled(O["z"], wrong)


# Ambient modes.


LOW = {k: v.float() for k, v in O.items()}
PRODUCTS = {
    "threshold_stage": lambda W: dk.threshold_stage(
        LOW["x"], W, LOW["z"], LOW["S"], LOW["theta"], 0.3
    ),
    "top_m_stage": lambda W: dk.top_m_stage(LOW["x"], W, LOW["z"], LOW["S"], M, bias=LOW["b"]),
    "encode_l0_factored": lambda W: dk.encode_l0(
        LOW["x"], W, None, LOW["theta"], D=LOW["D"], step=LOW["step"], bias=LOW["b"]
    ),
    "encode_top_m_factored": lambda W: (
        dk.encode_top_m(LOW["x"], W, None, M, D=LOW["D"], step=LOW["step"], bias=LOW["b"]).values
    ),
    "encode_l0": lambda W: dk.encode_l0(LOW["x"], W, LOW["S"], LOW["theta"], sigma=0.3),
    "encode_top_m": lambda W: dk.encode_top_m(LOW["x"], W, LOW["S"], M).values,
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_backward_under_autocast(name):
    """Autocast around the backward alone changes nothing."""
    W = LOW["W"].clone().requires_grad_()
    out = PRODUCTS[name](W)
    g = torch.randn_like(out)
    (want,) = torch.autograd.grad(out, W, g, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        (got,) = torch.autograd.grad(out, W, g)
    assert torch.equal(got, want)


# SparseCode.


class Coder(torch.nn.Module):
    def forward(self, x):
        return dk.encode_top_m(x, O["W"], O["S"], M)


def test_a_code_is_exported_and_loaded():
    program = torch.export.export(Coder(), (O["x"],), strict=False)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    got = torch.export.load(buffer).module()(O["x"])
    assert isinstance(got, dk.SparseCode)
    assert got == Coder()(O["x"])
