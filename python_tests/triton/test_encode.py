"""The encoders of the Triton floor against the reference, forward and backward.

Exact comparisons use inputs for which every order of summation gives the same float32: small
integers, or products with a single 1.
"""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch.library import opcheck

import deepl0_kernels as dk
from deepl0_kernels import reference
from python_tests.ops.test_encode import problem
from python_tests.ops.test_registration import samples
from python_tests.oracle import as_bits, same_values
from python_tests.rounding import ENCODERS, HALF_TYPES, check_rounding
from python_tests.triton.conftest import CHECKS
from python_tests.triton.test_stage import bias_of, integers, on

OPS = torch.ops.deepl0
# B, n, p, m, K: ragged sizes, ties, m = 0 and p, one stage and several, empty batch.
SHAPES = [(5, 7, 17, 3, 3), (11, 40, 100, 10, 2), (1, 1, 1, 1, 3), (5, 7, 33, 33, 2),
          (5, 40, 200, 0, 2), (0, 7, 33, 10, 2), (1, 40, 128, 10, 1), (3, 7, 512, 20, 2),
          (2, 3, 600, 9, 2)]  # fmt: skip


def operands(batch, n, p, stages=None, dtype=torch.float32):
    x, W = integers(batch, n), integers(p, n, seed=1)
    S = integers(*(() if stages is None else (stages,)), p, p, high=1, seed=3)
    return tuple(t.to(dtype) for t in (x, W, S))


def matrices_for(K, per_stage):
    return K - 1 if per_stage and K > 1 else None


def assert_close_in_norm(got, want, tolerance):
    for ours, theirs in zip(got, want, strict=True):
        assert ours.shape == theirs.shape
        error = (ours.cpu().double() - theirs).norm()
        assert error <= tolerance * theirs.norm().clamp(min=1e-30)


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_codes_of_half_types_are_rounded_between_stages(engine, device, encoder, dtype):
    check_rounding(encoder, dtype, device)


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
            opcheck(getattr(OPS, name).default, moved, test_utils=CHECKS)
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
