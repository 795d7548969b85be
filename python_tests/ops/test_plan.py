"""dk.prepare: the same bits sooner, and never of weights that have changed."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import deepl0_kernels as dk
from deepl0_kernels.ops.plan import Plan
from deepl0_kernels.sae import SparseAutoencoder
from python_tests.ops.test_encode import problem
from python_tests.oracle import same_bits

KEPT = "kept ready by a plan"


def served_by_plan() -> bool:
    return dk.last_call().reason == KEPT


def equal(a, b) -> bool:
    if isinstance(a, dk.SparseCode):
        return same_bits(a.values, b.values) and torch.equal(a.indices, b.indices)
    return same_bits(a, b)


def by_columns(t):
    return t.mT.contiguous().mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["rows", "columns", "one per step"])
@pytest.mark.parametrize("p", [48, 700])  # S' in L2, and beyond
@torch.no_grad()
def test_the_bits_do_not_depend_on_the_plan(p, layout, dtype):
    n, K = 33, 3
    _, W, S, theta = problem(1, n, p, 1, dtype, K - 1 if layout == "one per step" else None)
    S = by_columns(S) if layout == "columns" else S
    D, bias, step = W.t() * 0.5, torch.randn(p).to(dtype) / 9, torch.tensor([0.5, 1.0, 0.7])
    plan, factored = dk.prepare(W, S), dk.prepare(W, D=D)
    for batch in (1, 5, 64, 150):
        x = torch.randn(batch, n).to(dtype)
        for m in (8, p // 2):
            for positive in (False, True):
                options = {"num_stages": K, "positive": positive, "bias": bias if m > 8 else None}
                want = dk.encode_top_m(x, W, S, m, **options)
                assert equal(dk.encode_top_m(x, W, S, m, plan=plan, **options), want)
                assert served_by_plan()
            options = {"num_stages": K, "D": D, "step": step, "bias": bias}
            want = dk.encode_top_m(x, W, None, [m, 1, m], **options)
            assert equal(dk.encode_top_m(x, W, None, [m, 1, m], plan=factored, **options), want)
            assert served_by_plan()
        for high in (1.0, 4.0):
            t = theta.float() * high
            for given, S_, D_ in ((plan, S, None), (factored, None, D)):
                options = {"num_stages": K, "D": D_, "bias": bias}
                want = dk.encode_l0(x, W, S_, t, **options)
                assert equal(dk.encode_l0(x, W, S_, t, plan=given, **options), want)
                assert served_by_plan()
    assert plan.nbytes < 6 * (p * p * K + p * n) * 4 + 2**16


@torch.no_grad()
def test_a_large_dictionary_is_screened_from_kept_weights():
    """At any number of rows, with what the rows say of int8 in mind."""
    p, n, m = 4096, 24, 20
    W, bias = torch.randn(p, n), torch.randn(p) / 9
    plan = dk.prepare(W)
    for batch in (1, 7, 40, 100):
        for outlier in (0.0, 1e4):
            x = torch.randn(batch, n)
            x[:, 0] += outlier
            want = dk.encode_top_m(x, W, None, m, num_stages=1, bias=bias)
            code = dk.encode_top_m(x, W, None, m, num_stages=1, bias=bias, plan=plan)
            assert equal(code, want)
            assert served_by_plan()


@pytest.mark.parametrize("batch", [1, 4])
def test_few_rows_of_a_factored_encoder_are_screened_from_kept_weights(batch):
    """Also where a row is so uneven that low precision tells nothing of it."""
    p, n, m = 2048, 128, (20, 12, 12)
    W, D, bias = torch.randn(p, n) / 11, torch.randn(n, p) / 11, torch.randn(p) / 9
    plan = dk.prepare(W, D=D)
    for outlier in (0.0, 1e4, 0.0, torch.nan):
        x = torch.randn(batch, n)
        x[-1, 0] += outlier
        for options in ({}, {"bias": bias, "positive": True}):
            want = dk.encode_top_m(x, W, None, m, num_stages=3, D=D, **options)
            code = dk.encode_top_m(x, W, None, m, num_stages=3, D=D, plan=plan, **options)
            assert served_by_plan()
            assert equal(code, want)


WRITES = {
    "in place": lambda W: W.mul_(0.5),
    "one entry": lambda W: W[3, 1:2].fill_(9.0),
    "in inference mode": lambda W: torch.inference_mode()(lambda: W.mul_(0.5))(),
    "another tensor in .data": lambda W: setattr(W, "data", W.data * 0.5),
    "other strides in .data": lambda W: setattr(W, "data", W.data.t()),
    # Not counted by PyTorch: seen by the entries that are compared.
    "through .data": lambda W: W.data.mul_(0.5),
    "through NumPy": lambda W: W.detach().numpy().__imul__(0.5),
}


@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("which", [0, 1, 2, 3])
@pytest.mark.parametrize("write", WRITES)
def test_a_weight_that_changed_is_prepared_anew(write, which, batch):
    x, W, S, _ = problem(batch, 20, 20)
    weights = [W, S, W.t().contiguous(), torch.randn(1, 20)]
    plan = Plan(at_once=True)
    with torch.no_grad():
        for changed in (False, True):
            if changed:
                if which == 3 and write in ("one entry", "other strides in .data"):
                    return  # a vector
                WRITES[write](weights[which])
            W, S, D, bias = weights
            for S_, D_ in ((S, None), (None, D)):
                options = {"bias": bias[0], "D": D_}
                want = dk.encode_top_m(x, W, S_, 5, **options)
                assert equal(dk.encode_top_m(x, W, S_, 5, plan=plan, **options), want)
                if W.is_contiguous():
                    assert served_by_plan()


def trained(layer, x):
    optimiser = torch.optim.SGD(layer.parameters(), 0.1)
    layer(x).square().sum().backward()
    optimiser.step()


def loaded(layer, x):
    layer.load_state_dict({name: t * 0.5 for name, t in layer.state_dict().items()})


def assigned(layer, x):
    layer.load_state_dict({k: t * 0.5 for k, t in layer.state_dict().items()}, assign=True)


def replaced(layer, x):
    layer.W = torch.nn.Parameter(layer.W * 0.5)


def codes(layer, x):
    return layer.encode(x) if hasattr(layer, "encode") else layer(x)


LAYERS = {
    "m-sparse": lambda: dk.nn.DeepMSparseEncoder(20, 60, 6, bias=True),
    "factored": lambda: dk.nn.DeepMSparseEncoder(20, 60, 6, factored=True, steps=1.0),
    "l0": lambda: dk.nn.DeepL0Encoder(20, 60, positive=True),
}


@pytest.mark.parametrize("change", [trained, loaded, assigned, replaced], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_in_evaluation_mode_keeps_its_weights(kind, change):
    layer, x = LAYERS[kind](), torch.randn(9, 20)
    plain = copy.deepcopy(layer).train() if kind != "l0" else None
    names = list(layer.state_dict())
    with torch.no_grad():
        layer.eval()
        first = codes(layer, x)
        assert not served_by_plan()  # they may be other weights in every call
        assert equal(codes(layer, x), first)
        assert served_by_plan()
        if plain is not None:
            assert equal(codes(plain, x), first)
            assert not served_by_plan()
    assert list(layer.state_dict()) == names
    change(layer, x)
    with torch.no_grad():
        fresh = copy.deepcopy(layer)
        want = codes(fresh, x)
        assert not served_by_plan()
        assert not equal(want, first)
        for _ in range(3):
            assert equal(codes(layer, x), want)
        assert served_by_plan()
        layer.train()
        codes(layer.eval(), x)
        assert not served_by_plan()


def test_copies_and_pickles_have_no_plan():
    layer, x = LAYERS["m-sparse"]().eval(), torch.randn(3, 20)
    with torch.no_grad():
        size = len(pickle.dumps(layer))
        for _ in range(3):
            want = codes(layer, x)
        assert len(pickle.dumps(layer)) == size
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
            other.W.mul_(2.0)
            first = codes(other, x)
            assert not served_by_plan()
            assert not equal(first, want)
            assert equal(codes(layer, x), want)
    plan = dk.prepare(layer.W, layer.S)
    again = copy.deepcopy(plan)
    assert again._weights[0] is not plan._weights[0]
    assert pickle.loads(pickle.dumps(plan)).nbytes == again.nbytes


def test_autoencoders_have_a_plan_too():
    sae, x = SparseAutoencoder(20, 60, 4).eval(), torch.randn(5, 20)
    with torch.no_grad():
        want = sae.encode(x)
        assert equal(sae.encode(x), want)
        assert dk.last_call() == ("encode_top_m", "cpu", dk.build_info()["isa_active"], KEPT)
        sae.W.mul_(2.0)
        assert not equal(sae.encode(x), want)


def test_what_needs_more_than_a_kernel_goes_its_usual_way():
    x, W, S, theta = problem(6, 20, 40)
    plan = dk.prepare(W, S)

    def call(x, W=W, S=S):
        return dk.encode_top_m(x, W, S, 5, plan=plan).values

    want = call(x)
    assert served_by_plan()  # gradients are on, but nothing asks for one
    for leaf in (x, W):
        leaf.requires_grad_()
        assert call(x).requires_grad
        leaf.requires_grad_(False)
    torch.testing.assert_close(torch.vmap(call)(x[:, None])[:, 0], want)
    assert torch.func.jvp(call, (x,), (x,))[1].abs().sum() > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert call(x).dtype == torch.bfloat16
    with dk.use_backend("reference"):
        call(x)
        assert dk.last_call().backend == "reference"
    with FlopCounterMode(display=False) as counter:
        call(x)
    assert counter.get_total_flops() > 0
    with torch._subclasses.FakeTensorMode() as mode:
        assert type(call(mode.from_tensor(x), mode.from_tensor(W), mode.from_tensor(S))) is not (
            torch.Tensor
        )
    layer = LAYERS["l0"]().eval()
    for _ in range(2):
        layer(x.detach()[:, :20])
    assert "_kept" not in str(torch.export.export(layer, (x,)).graph)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))
    for bad in (x.double(), x[:, 1:], x.to_sparse()):
        with pytest.raises(ValueError, match=r"x must|W must"):
            call(bad)
    with pytest.raises(ValueError, match="m must be"):
        dk.encode_top_m(x, W, S, 41, plan=plan)
    with pytest.raises(ValueError, match="num_stages"):
        dk.encode_top_m(x, W, S, 4, num_stages=0, plan=plan)
    with pytest.raises(RuntimeError, match="theta must be > 0"):
        dk.encode_l0(x, W, S, -theta, plan=plan)


def test_what_can_not_be_kept_is_served_without_it():
    x, W, S, _ = problem(3, 20, 40)
    with torch.inference_mode():
        V = W * 1.0
        plan = dk.prepare(V, S)
        assert plan.nbytes == 0
        V.mul_(0.5)
        assert equal(dk.encode_top_m(x, V, S, 3, plan=plan), dk.encode_top_m(x, V, S, 3))
    plan = dk.prepare(W.double())
    code = dk.encode_top_m(x.double(), W.double(), None, 3, num_stages=1, plan=plan)
    assert code.values.dtype == torch.float64
    for bad, message in (((W, S[1:]), "S must"), ((W, None, W), "D must"), ((W[0],), "W must")):
        with pytest.raises(ValueError, match=message):
            dk.prepare(*bad)
    with pytest.raises(TypeError, match="W must be a tensor"):
        dk.prepare([1.0])


def test_threads_share_a_plan():
    x, W, S, _ = problem(40, 32, 128)
    plan, want, found = dk.prepare(W, S), dk.encode_top_m(x, W, S, 9), []
    threads = [
        threading.Thread(
            target=lambda: found.extend(dk.encode_top_m(x, W, S, 9, plan=plan) for _ in range(5))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert all(equal(code, want) for code in found)


def test_what_is_no_plan_is_refused():
    x, W, theta = torch.randn(3, 4), torch.randn(6, 4), torch.full((6,), 0.1)
    for call in (
        lambda: dk.encode_top_m(x, W, None, 2, num_stages=1, plan=W),
        lambda: dk.encode_l0(x, W, None, theta, num_stages=1, plan=W),
    ):
        with pytest.raises(TypeError, match=r"plan must be what dk\.prepare returns, got Tensor"):
            call()
