"""The public operators on the CUDA floor, forward and backward, against the reference."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels import reference
from deepl0_kernels.backends import GPU
from python_tests.oracle import hostile, same_values

# The package shows the function of this name.
backends = importlib.import_module("deepl0_kernels.backends")

OPS = torch.ops.deepl0
SIZES = [(4, 12, 5, 6), (6, 40, 9, 4), (2, 300, 4, 2)]  # batch, p, n, m


def exact(*shape: int) -> torch.Tensor:
    """Small integers: every sum is exact, so both floors select alike."""
    return torch.randint(-3, 4, shape).float()


def gradients(out, inputs):
    weights = torch.arange(1.0, out.numel() + 1, device=out.device).view_as(out) / 8
    return torch.autograd.grad((out * weights).sum(), inputs)


def test_selection_and_its_gradients(device):
    u = hostile((3, 5, 60), torch.float32, 3, "normal").to(device)
    outs = []
    for backend in ("cuda", "reference"):
        with dk.use_backend(backend):
            a = u.clone().requires_grad_()
            found = []
            for positive, m in ((False, 7), (True, 40)):
                values, indices = dk.top_m(a, m, positive=positive)
                kept = dk.keep_top_m(a, m + 2, positive=positive)
                spread = dk.unpool(values, indices, 60)
                grad = torch.autograd.grad((kept * 3 + spread * 5 + 1).square().sum(), a)
                found += [values, indices, kept, spread, *grad]
            outs.append(found)
            assert dk.last_call().backend == backend
    for ours, want in zip(*outs, strict=True):
        assert torch.equal(ours, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["plain", "transposed", "steps"])
@pytest.mark.parametrize(("batch", "p", "n", "m"), SIZES)
@pytest.mark.parametrize("stages", [1, 3])
def test_encoder(device, batch, p, n, m, stages, layout, dtype):
    x, W = exact(batch, n).to(dtype), exact(p, n).to(dtype)
    shape = (stages - 1, p, p) if layout == "steps" else (p, p)
    # Few and small entries keep the sums exact over the stages, in bfloat16 as well.
    S = (exact(*shape) * (torch.rand(shape) < 0.05)).sign().to(dtype)
    if layout == "transposed":
        S = S.t().contiguous().t()
    bias = exact(p).to(dtype)
    for positive in (False, True):
        outs = []
        for backend in ("cuda", "reference"):
            with dk.use_backend(backend):
                leaves = [t.clone().to(device).requires_grad_() for t in (x, W, S, bias)]
                assert leaves[2].stride() == S.stride()
                b = leaves[3] - 20 * positive  # most are not positive
                more = dict(num_stages=stages, bias=b, positive=positive)
                code = dk.encode_top_m(*leaves[:3], m, **more)
                assert dk.last_call().backend == backend
                if stages == 1:
                    del leaves[2]
                outs.append((code, gradients(code.values.float(), leaves)))
        same_codes(*outs, dtype)


def same_codes(ours, want, dtype):
    (ours, our_grads), (want, want_grads) = ours, want
    assert torch.equal(ours.indices, want.indices)
    assert torch.equal(ours.values, want.values)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for ours, want in zip(our_grads, want_grads, strict=True):
        torch.testing.assert_close(
            ours, want, rtol=tolerance, atol=tolerance * want.abs().max().item()
        )


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_both_ways_of_every_product(device, force, gather, transposed):
    """The dense and the sparse way of the encoder and of its backward, at one size."""
    force("gathers" if gather else "products")
    batch, p, n, m = 5, (170 if gather else 30), 7, (20 if gather else 6)
    x, W, S = exact(batch, n), exact(p, n), exact(p, p) * (torch.rand(p, p) < 0.1)
    if transposed:
        S = S.t().contiguous().t()
    outs = []
    for backend in ("cuda", "reference"):
        with dk.use_backend(backend):
            leaves = [t.clone().to(device).requires_grad_() for t in (x, W, S)]
            for positive in (False, True):
                bias = torch.full((p,), 1.0 - 9 * positive, device=device).requires_grad_()
                code = dk.encode_top_m(*leaves, m, num_stages=3, bias=bias, positive=positive)
                grads = gradients(code.values, (*leaves, bias))
                outs.append((code.values, code.indices, *grads))
    for side in (0, 1):
        for ours, want in zip(outs[side], outs[2 + side], strict=True):
            torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-4)


def thetas(p: int, stages: int, shape: str) -> torch.Tensor:
    return {
        "one": torch.tensor(0.75),
        "each": torch.rand(p) + 0.25,
        "stages": torch.rand(stages, p) + 0.25,
    }[shape]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", reference.thresholds.KINDS)
def test_thresholds(device, kind, dtype):
    for rows, p, sigma, shape in ((3, 5, 0.5, "one"), (70, 130, 0.25, "each"), (2, 9, 0.0, "each")):
        u = (hostile((rows, p), torch.float32, 3, "normal") * 2).to(dtype)
        u[0, :4] = torch.tensor([torch.nan, 0.75, -0.0, -torch.inf])
        theta = thetas(p, 1, shape)
        args = u.to(device), theta.to(device), sigma, kind
        ours, want = OPS.threshold(*args), reference.threshold(*args)
        assert same_values(ours.cpu(), want.cpu())
        grad = torch.randn(rows, p).to(dtype).to(device)
        args = grad[:, :1].expand(rows, p), u.nan_to_num(1.0).to(device), *args[1:]
        for mask in range(4):
            for got, right in zip(
                OPS.threshold_backward(*args, mask), reference.threshold_backward(*args, mask),
                strict=True,
            ):  # fmt: skip
                assert got.shape == right.shape
                torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)
    nan = torch.full((9,), torch.nan, device=device)
    assert OPS.threshold(u.to(device), nan, 0.5, kind).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["plain", "transposed", "steps"])
@pytest.mark.parametrize(("stages", "shape"), [(1, "one"), (2, "each"), (3, "stages"), (4, "one")])
def test_encoder_of_thresholds(device, stages, shape, layout, dtype):
    batch, n, p = 67, 5, 12
    x, W = exact(batch, n).to(dtype), exact(p, n).to(dtype)
    S = exact(*((stages - 1, p, p) if layout == "steps" else (p, p))).to(dtype) / 8
    S = S.t().contiguous().t() if layout == "transposed" else S
    bias, theta = exact(p).to(dtype), thetas(p, stages, shape)
    outs = []
    for backend in ("cuda", "reference"):
        with dk.use_backend(backend):
            leaves = [t.clone().to(device).requires_grad_() for t in (x, W, bias, theta, S)]
            if stages == 1:
                del leaves[4]
            x_, W_, b, t, *s = leaves
            more = dict(num_stages=stages, bias=b, sigma=0.5)
            z = dk.encode_l0(x_, W_, s[0] if s else None, t, **more)
            assert dk.last_call().backend == backend
            plain = dk.encode_l0(*(v.detach() for v in (x_, W_)),
                                 s[0].detach() if s else None, t.detach(), num_stages=stages,
                                 bias=b.detach(), sigma=0.5)  # fmt: skip
            assert torch.equal(plain, z)
            outs.append((z, *gradients(z.float(), leaves)))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for ours, want in zip(*outs, strict=True):
        assert ours.dtype == want.dtype
        torch.testing.assert_close(
            ours, want, rtol=tolerance, atol=tolerance * want.abs().max().item()
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(("batch", "p", "n", "m"), [*SIZES, (1, 90, 8, 4)])
@pytest.mark.parametrize("way", ["gathers", "products"])
def test_decode(device, force, way, batch, p, n, m, transposed, dtype):
    force(way)
    at = torch.rand(batch, p).argsort(1)[:, :m]
    values, D = torch.randn(batch, m).to(dtype), torch.randn(n, p).to(dtype)
    if transposed:
        D = D.t().contiguous().t()
    outs = []
    for backend in ("cuda", "reference"):
        with dk.use_backend(backend):
            v, d = (t.clone().to(device).requires_grad_() for t in (values, D))
            out = dk.decode(dk.SparseCode(v, at.to(device), p), d)
            grads = gradients(out.float(), (v, d))
            assert grads[1].dtype == dtype
            outs.append((out, *grads))
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    for ours, want in zip(*outs, strict=True):
        torch.testing.assert_close(
            ours, want, rtol=tolerance, atol=tolerance * want.abs().max().item()
        )


def test_empty_batches(device):
    x, W, S = torch.empty(0, 4), torch.randn(9, 4), torch.randn(9, 9)
    leaves = [t.to(device).requires_grad_() for t in (x, W, S)]
    with dk.use_backend("cuda"):
        code = dk.encode_top_m(*leaves, 3)
        assert code.values.shape == (0, 3)
        out = dk.decode(code, W.t().to(device))
        assert out.shape == (0, 4)
        grads = torch.autograd.grad(code.values.sum() + out.sum(), leaves)
    assert all((g == 0).all() for g in grads)


def test_operators_pass_opcheck(device):
    from torch.library import opcheck

    tests = ("test_schema", "test_faketensor")
    x, W, S = torch.randn(3, 5), torch.randn(20, 5), torch.randn(20, 20)
    opcheck(torch.ops.deepl0.top_m.default, (x.to(device), 2, True), test_utils=tests)
    opcheck(torch.ops.deepl0.keep_top_m.default, (x.to(device), 2, False), test_utils=tests)
    args = tuple(t.to(device) for t in (x, W, S))
    given = (*args, args[1][:, 0], 3, 2, True)
    opcheck(torch.ops.deepl0.encode_top_m.default, given, test_utils=tests)
    opcheck(torch.ops.deepl0.encode_top_m_saving.default, given, test_utils=tests)
    values, indices, saved, before = torch.ops.deepl0.encode_top_m_saving(*given)
    for s, mask in itertools.product((args[2], args[2].t()), (0, 5, 10, 15)):
        opcheck(
            torch.ops.deepl0.encode_top_m_backward.default,
            (values, values, indices, saved, before, *args[:2], s, mask), test_utils=tests,
        )  # fmt: skip
    D = W.t().to(device)
    for d in (D, D.contiguous()):
        opcheck(torch.ops.deepl0.decode.default, (values, indices, d), test_utils=tests)
        for mask in range(4):
            opcheck(torch.ops.deepl0.decode_backward.default, (args[0], values, indices, d, mask),
                    test_utils=tests)  # fmt: skip


def test_nan_is_never_lost(device):
    u = torch.tensor([[1.0, torch.nan, -torch.inf, 2.0, -torch.nan]]).to(device)
    with dk.use_backend("cuda"):
        values, indices = dk.top_m(u, 3)
        positive, at = dk.top_m(u, 4, positive=True)
    assert indices.tolist() == [[1, 2, 4]]
    assert same_values(values.cpu(), u.cpu()[:, [1, 2, 4]])
    assert at.tolist() == [[0, 1, 3, 4]]
    assert same_values(positive.cpu(), u.cpu()[:, [0, 1, 3, 4]])


def test_every_operator_of_the_floor_is_served_here(device):
    tested = {"top_m", "keep_top_m", "batch_top_m", "unpool", "apply_mask", "encode_top_m",
              "decode", "encode_top_m_backward", "decode_backward", "encode_top_m_factored",
              "encode_top_m_factored_backward", "encode_l0", "encode_l0_backward", "threshold",
              "threshold_backward", "omp", "least_squares"}  # fmt: skip
    assert set(GPU["cuda"].operators) == tested


class TestChoice:
    """The rule between the two GPU backends, without a GPU."""

    both = ("cuda", "triton")

    def test_cuda_serves_what_it_has(self):
        x = torch.empty(2, 3, device="meta")
        for name in GPU["cuda"].operators:
            assert backends.choose(name, self.both, (x,)) == "cuda"
        assert backends.choose("top_m_stage", ("triton",), (x,)) == "triton"

    def test_a_forced_backend_wins_where_it_has_the_operator(self, monkeypatch):
        x = torch.empty(2, 3, device="meta")
        monkeypatch.setattr(backends, "_forced", "triton")
        assert backends.choose("top_m", self.both, (x,)) == "triton"
        assert backends.choose("decode", ("cuda",), (x,)) == "cuda"

    def test_a_device_that_cannot_run_them_gets_triton(self, monkeypatch):
        monkeypatch.setattr(backends, "_runs_cuda", lambda args: False)
        assert backends.choose("top_m", self.both, (torch.empty(2, 3),)) == "triton"


def test_reference_agrees_on_the_mask(device):
    u = hostile((4, 33), torch.float32, 9, "ties").to(device)
    with dk.use_backend("cuda"):
        mask = torch.ops.deepl0.keep_top_m(u, 11, False)[1]
    assert torch.equal(mask.cpu(), reference.keep_top_m(u.cpu(), 11)[1])
