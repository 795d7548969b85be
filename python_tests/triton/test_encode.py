"""The Triton kernels of the encoders against the reference, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch.library import opcheck

import deepl0_kernels as dk
from deepl0_kernels import reference
from deepl0_kernels.triton import dense_sums, encode_rows, table
from python_tests.ops.test_encode import assert_top_m_stage, pre_activation, problem
from python_tests.ops.test_registration import samples
from python_tests.oracle import as_bits, same_values
from python_tests.triton.conftest import EVERY, crossed
from python_tests.triton.test_stage import bias_of, integers, on

OPS = torch.ops.deepl0
THETAS = ["scalar", "vector", "per_stage"]
# B, n, p, m, K: ragged sizes, ties, m = 0 and p, one stage and several, empty batch.
SHAPES = [(5, 7, 17, 3, 3), (40, 40, 100, 10, 2), (1, 1, 1, 1, 3), (5, 7, 33, 33, 2),
          (5, 40, 200, 0, 2), (0, 7, 33, 10, 2), (1, 40, 128, 10, 1), (3, 7, 512, 20, 2),
          (2, 3, 600, 9, 2)]  # fmt: skip


def operands(batch, n, p, stages=None, dtype=torch.float32):
    x, W = integers(batch, n), integers(p, n, seed=1)
    S = integers(*(() if stages is None else (stages,)), p, p, high=1, seed=3)
    return tuple(t.to(dtype) for t in (x, W, S))


def matrices_for(K, per_stage):
    return K - 1 if per_stage and K > 1 else None


@pytest.mark.parametrize(("per_stage", "positive"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@EVERY
def test_top_m_is_exact_on_integers(engine, device, shape, per_stage, positive):
    batch, n, p, m, K = shape
    x, W, S = operands(batch, n, p, matrices_for(K, per_stage))
    given = x, W, S, bias_of(p) if positive else None
    want = reference.encode_top_m(*given, m, K, positive, True)
    got = OPS.encode_top_m_saving(*on(device, *given), m, K, positive)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))
    got = OPS.encode_top_m(*on(device, *given), m, K, positive)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want[:2], strict=True))


@pytest.mark.parametrize(
    ("ramp", "theta_shape"),
    [
        *crossed([(0.0, "helu"), (0.5, "helu"), (0.5, "ste")], THETAS),
        ((0.5, "positive_helu"), "vector"),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@EVERY
def test_l0_is_exact_on_integers(engine, device, shape, theta_shape, ramp):
    sigma, kind = ramp
    batch, n, p, _, K = shape
    x, W, S = operands(batch, n, p, matrices_for(K, theta_shape == "per_stage"))
    theta = integers(K, p, high=9).abs() + 4.0
    theta = {"scalar": theta[0, 0], "vector": theta[0], "per_stage": theta}[theta_shape]
    given = x, W, S, bias_of(p) if kind.startswith("positive") else None, theta
    want, want_saved = reference.encode_l0(*given, K, sigma, kind, True)
    z, saved = OPS.encode_l0_saving(*on(device, *given), K, sigma, kind)
    assert torch.equal(saved.cpu(), want_saved)
    assert torch.equal(z.cpu(), want)
    assert torch.equal(OPS.encode_l0(*on(device, *given), K, sigma, kind).cpu(), want)


@pytest.mark.parametrize("K", [1, 2, 4])
@pytest.mark.parametrize("save", [False, True])
def test_l0_by_stages(engine, device, monkeypatch, K, save):
    """The launches for long rows, on rows that are short enough for a test."""
    monkeypatch.setattr(table, "FUSED_P", 16)
    # Compiled, float32 goes by PyTorch's products.
    dtype = torch.float32 if engine == "interpreter" else torch.float16
    x, W, S = operands(5, 7, 100, K - 1, dtype)
    theta = integers(K, 100, high=9).abs() + 4.0
    bias = bias_of(100, dtype)
    want, want_saved = reference.encode_l0(x, W, S, bias, theta, K, 0.5, "helu", True)
    args = (*on(device, x, W, S, bias, theta), K, 0.5, "helu")
    if save:
        z, saved = OPS.encode_l0_saving(*args)
        assert torch.equal(saved.cpu(), want_saved)
    else:
        z = OPS.encode_l0(*args)
    assert torch.equal(z.cpu(), want)


def test_a_program_walks_over_many_tiles(engine, device, monkeypatch):
    """As on a device that holds fewer programs than there are tiles."""
    monkeypatch.setattr(encode_rows, "resident_programs", lambda device: 2)
    x, W, S = operands(300, 3, 20)
    theta = torch.tensor(4.0)
    bias = bias_of(20)
    want = reference.encode_top_m(x, W, S, bias, 5, 2, False, True)
    got = OPS.encode_top_m_saving(*on(device, x, W, S, bias), 5, 2, False)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))
    want = reference.encode_l0(x, W, S, bias, theta, 2, 0.5, "helu", True)
    got = OPS.encode_l0_saving(*on(device, x, W, S, bias, theta), 2, 0.5, "helu")
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))


def test_without_a_matrix(engine, device):
    x, W, _ = operands(4, 5, 20)
    theta = torch.tensor(4.0)
    want = reference.encode_top_m(x, W, None, None, 6, 1, False, True)
    got = OPS.encode_top_m_saving(*on(device, x, W), None, None, 6, 1, False)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))
    want = reference.encode_l0(x, W, None, None, theta, 1, 0.0, "hard", True)
    got = OPS.encode_l0_saving(*on(device, x, W), None, None, theta.to(device), 1, 0.0, "hard")
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))


def test_nan_and_inf_in_a_signal_stay_in_its_row(engine, device):
    x, W, S = operands(5, 7, 40)
    x[1, 3], x[3, 0] = torch.nan, -torch.inf
    W[2:9, 0] = 1.0
    for positive in (False, True):
        want = reference.encode_top_m(x, W, S, None, 12, 2, positive, True)
        got = OPS.encode_top_m_saving(*on(device, x, W, S), None, 12, 2, positive)
        got = [t.cpu() for t in got]
        assert torch.equal(got[1], want[1])
        assert torch.equal(got[3], want[3])
        assert same_values(got[0], want[0])
        assert same_values(got[2], want[2])
    theta = torch.tensor(4.0)
    want = reference.encode_l0(x, W, S, None, theta, 2, 0.5, "helu", True)
    got = OPS.encode_l0_saving(*on(device, x, W, S, None, theta), 2, 0.5, "helu")
    assert all(same_values(a.cpu(), b) for a, b in zip(got, want, strict=True))
    assert want[0][[0, 2, 4]].isfinite().all()


def test_operands_may_be_views(engine, device):
    x, W, S = operands(6, 8, 20, 2)
    bias = bias_of(20)
    pairs, Wt, St = on(device, torch.stack([x, x + 9.0], dim=2), W.t(), S.mT)
    bias_view = torch.stack([bias, bias + 9.0], dim=1).to(device)[:, 0]
    views = pairs[:, :, 0], Wt.contiguous().t(), St.contiguous().mT, bias_view
    theta = torch.tensor(4.0, device=device)
    assert not any(t.is_contiguous() for t in views)
    want = reference.encode_top_m(x, W, S, bias, 7, 3, False, True)
    got = OPS.encode_top_m_saving(*views, 7, 3, False)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))
    want_z = reference.encode_l0(x, W, S, bias, theta.cpu(), 3, 0.0, "hard")[0]
    assert torch.equal(OPS.encode_l0(*views, theta, 3, 0.0, "hard").cpu(), want_z)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@EVERY
def test_half_types_keep_float32_between_the_stages(engine, device, dtype):
    """z needs more bits than the half type has, and the supports show whether it had them."""
    x, W, S = (t.to(dtype) for t in operands(9, 40, 72))
    x = integers(9, 40, high=99).to(dtype)
    bias = bias_of(72, dtype)
    want = reference.encode_top_m(x, W, S, bias, 11, 3, False, True)
    got = [t.cpu() for t in OPS.encode_top_m_saving(*on(device, x, W, S, bias), 11, 3, False)]
    assert (want[2].to(dtype).float() != want[2]).any()
    assert all(torch.equal(got[i], want[i]) for i in (1, 2, 3))
    # Triton's interpreter truncates to bfloat16 where the hardware rounds.
    ulp = torch.finfo(dtype).eps if engine == "interpreter" else 0.0
    torch.testing.assert_close(got[0], want[0], rtol=ulp, atol=0)
    theta = torch.tensor(200.0)
    want_z, want_saved = reference.encode_l0(x, W, S, bias, theta, 3, 0.0, "hard", True)
    z, saved = OPS.encode_l0_saving(*on(device, x, W, S, bias, theta), 3, 0.0, "hard")
    assert torch.equal(saved.cpu(), want_saved)
    torch.testing.assert_close(z.cpu(), want_z, rtol=ulp, atol=0)


def test_random_values_follow_from_their_own_stage_before(engine, device):
    """A swap is excused only between entries within the rounding bound of each other."""
    m, K = 12, 3
    x, W, S, _ = problem(30, 25, 100, seed=4)
    code = [t.cpu() for t in OPS.encode_top_m_saving(*on(device, x, W, S), None, m, K, False)]
    z, swaps = torch.zeros(30, 100), 0
    for k in range(K):
        values, indices = (code[2][k], code[3][k]) if k + 1 < K else code[:2]
        u, bound = pre_activation(x, W, z, S if k else torch.zeros(100, 100))
        swaps += assert_top_m_stage(u, bound, dk.SparseCode(values, indices, 100), m)
        z = reference.unpool(values, indices, 100)
    assert swaps <= 1


def assert_close_in_norm(got, want, tolerance):
    for ours, theirs in zip(got, want, strict=True):
        assert ours.shape == theirs.shape
        error = (ours.cpu().double() - theirs).norm()
        assert error <= tolerance * theirs.norm().clamp(min=1e-30)


@pytest.mark.parametrize(
    ("per_stage", "chunk_bytes", "positive"),
    [(False, None, False), (True, None, False), (True, 1, False), (False, 1, True)],
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@EVERY
def test_top_m_gradients_at_equal_supports(
    engine, device, monkeypatch, shape, per_stage, chunk_bytes, positive
):
    batch, n, p, m, K = shape
    if chunk_bytes is not None:
        monkeypatch.setattr(dense_sums, "CHUNK_BYTES", chunk_bytes)
    inputs = problem(batch, n, p, 5, torch.float64, matrices_for(K, per_stage))[:3]
    bias = bias_of(p, torch.float64)
    if positive:  # fewer than m units have a chance
        bias[m // 2 :] -= 20.0
    leaves = [t.requires_grad_() for t in (*inputs, bias)]
    values, *code = reference.encode_top_m(*leaves, m, K, positive, True)
    assert (values == 0).any() == (positive and values.numel() > 0)
    grad = torch.randn(values.shape, dtype=torch.float64)
    want = torch.autograd.grad(values, leaves, grad, materialize_grads=True)
    code[1] = code[1].detach().float()
    given = values.detach().float() if positive else None
    args = (grad.float(), given, *code, *(t.detach().float() for t in inputs))
    got = OPS.encode_top_m_backward(*on(device, *args), 15)
    assert_close_in_norm(got, want, 1e-5)
    got = OPS.encode_top_m_backward(*on(device, *args), 14)
    assert got[0].shape == (0,)
    assert_close_in_norm(got[1:], want[1:], 1e-5)


@pytest.mark.parametrize(
    ("kind", "theta_shape"),
    crossed(["helu", "ste", "ste_theta", "hard", "soft", "positive_helu", "positive_soft"], THETAS),
)
@pytest.mark.parametrize(
    "shape", [(70, 7, 33, 0, 3), (1, 1, 1, 0, 2), (0, 7, 9, 0, 2), (5, 40, 100, 0, 1)], ids=str
)
@EVERY
def test_l0_gradients(engine, device, shape, theta_shape, kind):
    batch, n, p, _, K = shape
    per_stage = theta_shape == "per_stage"
    x, W, S, theta = problem(batch, n, p, 6, torch.float64, matrices_for(K, per_stage))
    theta = {"scalar": theta[0], "vector": theta, "per_stage": theta.expand(K, p) * 1.0}[
        theta_shape
    ]
    bias = bias_of(p, torch.float64)
    leaves = [t.clone().requires_grad_() for t in (x, W, S, theta, bias)]
    z, saved = reference.encode_l0(*leaves[:3], leaves[4], leaves[3], K, 0.5, kind, True)
    grad = torch.randn(z.shape, dtype=torch.float64)
    want = torch.autograd.grad(z, leaves, grad, materialize_grads=True)
    args = [t.detach().float() for t in (grad, saved, x, W, S, theta)]
    got = OPS.encode_l0_backward(*on(device, *args), 0.5, kind, 31)
    assert_close_in_norm(got, want, 1e-5)


def test_l0_gradients_of_chunks_and_of_long_rows(engine, device, monkeypatch):
    for batch, p in ((150, 20), (4, 300)):
        x, W, S, theta = problem(batch, 6, p, 6, torch.float64)
        leaves = [t.clone().requires_grad_() for t in (x, W, S, theta, bias_of(p).double())]
        z, saved = reference.encode_l0(*leaves[:3], leaves[4], leaves[3], 2, 0.5, "helu", True)
        grad = torch.randn(z.shape, dtype=torch.float64)
        want = torch.autograd.grad(z, leaves, grad)
        args = on(device, *(t.detach().float() for t in (grad, saved, x, W, S, theta)))
        monkeypatch.setattr(dense_sums, "CHUNK_BYTES", 1)
        assert_close_in_norm(OPS.encode_l0_backward(*args, 0.5, "helu", 31), want, 1e-5)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_through_the_layers(engine, device, tied, transposed):
    D = 3.0 * torch.randn(12, 20, generator=torch.Generator().manual_seed(1))
    x = torch.randn(9, 12, generator=torch.Generator().manual_seed(2)).to(device)
    for make in (
        lambda: dk.nn.DeepL0Encoder.from_dictionary(D, 0.01, num_stages=3, tied=tied),
        lambda: dk.nn.DeepMSparseEncoder.from_dictionary(D, 5, num_stages=3, tied=tied),
    ):
        grads = []
        for backend in (None, "reference"):
            encoder = make().to(device)
            if transposed:
                encoder.S.data = encoder.S.data.mT.contiguous().mT
            with dk.use_backend(backend):
                z = encoder(x)
                z.square().sum().backward()
            grads.append([z.detach(), *(p.grad for p in encoder.parameters())])
        for ours, want in zip(*grads, strict=True):
            torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-4)


@EVERY
def test_half_gradients_are_computed_in_float32(engine, device):
    x, W, S = operands(6, 8, 30, dtype=torch.bfloat16)
    leaves = [t.float().requires_grad_() for t in (x, W, S, bias_of(30))]
    values, *code = reference.encode_top_m(*leaves, 5, 2, False, True)
    grad = integers(6, 5)
    want = torch.autograd.grad(values, leaves, grad)
    args = (grad.bfloat16(), None, code[0], code[1].detach(), code[2], x, W, S)
    for ours, theirs in zip(OPS.encode_top_m_backward(*on(device, *args), 15), want, strict=True):
        assert torch.equal(ours.cpu(), theirs.bfloat16())
    theta = torch.tensor(5.0, requires_grad=True)
    z, saved = reference.encode_l0(*leaves, theta, 2, 0.5, "helu", True)
    grad = integers(6, 30)
    want = torch.autograd.grad(z, (*leaves[:3], theta, leaves[3]), grad)
    args = (grad.bfloat16(), saved.detach(), x, W, S, theta.detach())
    got = OPS.encode_l0_backward(*on(device, *args), 0.5, "helu", 31)
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours.cpu(), theirs.to(ours.dtype))


NAMES = ("threshold_stage", "threshold_stage_saving", "top_m_stage", "encode_l0",
         "encode_l0_saving", "encode_top_m", "encode_top_m_saving", "encode_l0_backward",
         "encode_top_m_backward")  # fmt: skip


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(engine, device, grad):
    found = 0
    for name, args in samples(torch.float32, grad):
        if name in NAMES:
            moved = [
                a.detach().to(device).requires_grad_(a.requires_grad)
                if isinstance(a, torch.Tensor) else a
                for a in args
            ]  # fmt: skip
            opcheck(getattr(OPS, name).default, moved)
            found += 1
    assert found >= 8


def test_compile_without_recompilation(engine, device):
    def function(x, W, S, theta):
        code = dk.encode_top_m(x, W, S, 5, bias=theta, positive=True)
        z = dk.encode_l0(x, W, S, theta, sigma=0.3, bias=theta, positive=True)
        z = dk.threshold_stage(x, W, z, S, theta, 0.1) + dk.top_m_stage(x, W, z, S, 4, bias=theta)
        return z + code.to_dense()

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for batch in (7, 12):
        args = [t.to(device).requires_grad_() for t in problem(batch, 6, 11)]
        out, want = compiled(*args), function(*args)
        torch.testing.assert_close(out, want)
        for ours, theirs in zip(
            torch.autograd.grad(out.square().sum(), args),
            torch.autograd.grad(want.square().sum(), args),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)
    assert counter.frame_count == 1


def test_two_runs_give_the_same_bits(engine, device):
    def run():
        args = [t.to(device).requires_grad_() for t in problem(70, 10, 40)]
        values = dk.encode_top_m(*args[:3], 6).values
        z = dk.encode_l0(*args, sigma=0.2)
        return values, z, *torch.autograd.grad(values.sum() + z.square().sum(), args)

    assert all(torch.equal(as_bits(a), as_bits(b)) for a, b in zip(run(), run(), strict=True))
