"""Thresholds against eq. 9 written out by hand, their derivatives against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import deepl0_kernels as dk
from python_tests.oracle import DTYPES, STYLES, hostile, rows, same_bits

BACKENDS = ("reference", "cpu")
KINDS = ("hard", "soft", "helu", "ste", "ste_theta")


def eq9(v: float, sigma: float) -> float:
    """HELU_sigma of Wang, Ling, Huang 2016, equation 9; HELU itself at sigma = 0."""
    if math.isnan(v):
        return v
    if abs(v) >= 1:
        return v
    if abs(v) <= 1 - sigma:
        return 0.0
    return (v - 1 + sigma) / sigma if v > 0 else (v + 1 - sigma) / sigma


def call(kind: str, u, theta, sigma):
    if kind == "hard":
        return dk.hard_threshold(u, theta)
    if kind == "soft":
        return dk.soft_threshold(u, theta)
    return dk.helu(u, theta, sigma, grad=kind)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    v=st.lists(st.floats(-3, 3), min_size=1, max_size=50),
    theta=st.floats(1e-3, 10),
    sigma=st.floats(0.0, 1.0),
)
def test_helu_is_equation_9(backend, v, theta, sigma):
    if 0 < sigma < 1e-3:
        sigma = 1e-3  # the ramp's slope 1 / sigma multiplies the rounding of u
    u = theta * torch.tensor(v, dtype=torch.float64)
    want = [theta * eq9(x / theta, sigma) for x in u.tolist()]
    with dk.use_backend(backend):
        got = dk.helu(u, theta, sigma)
    # Rounding of u / theta and of the ramp, magnified by 1 / sigma: docs/numerics.md.
    bound = 16 * 2.0**-53 * 3 * theta / max(sigma, 1e-3)
    for g, w, x in zip(got.tolist(), want, u.tolist(), strict=True):
        at_a_kink = abs(abs(x) - theta) <= 4 * 2.0**-53 * theta
        assert abs(g - w) <= bound or at_a_kink, (g, w, x, theta, sigma)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kept_at_equality_and_the_limit_sigma_to_zero(backend):
    u = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.5, 1.0, 1.5])
    with dk.use_backend(backend):
        assert dk.hard_threshold(u, 1.0).tolist() == [-2.0, -1.0, 0.0, 0.0, 0.0, 1.0, 1.5]
        assert same_bits(dk.helu(u, 1.0), dk.hard_threshold(u, 1.0))
        for sigma in (1e-1, 1e-2, 1e-3):
            off_ramp = (u.abs() <= 1 - sigma) | (u.abs() >= 1)
            got, want = dk.helu(u, 1.0, sigma), dk.hard_threshold(u, 1.0)
            assert torch.equal(got[off_ramp], want[off_ramp])
        assert same_bits(dk.hard_threshold(u, 0.0), u)
        assert torch.equal(dk.soft_threshold(u, 1.0), torch.nn.functional.softshrink(u, 1.0))


@pytest.mark.parametrize("kind", KINDS)
@given(u=rows(), data=st.data())
def test_native_equals_reference(kind, u, data):
    p = u.shape[-1]
    sigma = data.draw(st.sampled_from((0.0, 0.05, 0.25, 1.0)))
    theta = torch.rand((p,) if data.draw(st.booleans()) else ()) + 0.1
    theta = theta.to(torch.float64 if u.dtype == torch.float64 else torch.float32)
    grad = torch.randn(u.shape).to(u.dtype)
    native = call(kind, u, theta, sigma)
    native_grads = torch.ops.deepl0.threshold_backward(grad, u, theta, sigma, kind, 3)
    with dk.use_backend("reference"):
        assert_close(native, call(kind, u, theta, sigma), u.dtype, sigma, u.abs())
    want = dk.reference.threshold_backward(grad, u, theta, sigma, kind, 3)
    finite = u.isfinite()
    assert_close(native_grads[0][finite], want[0][finite], u.dtype, sigma, grad.abs()[finite])
    if finite.all():
        scale = grad.abs().sum().to(theta.dtype)
        assert_close(native_grads[1], want[1], theta.dtype, sigma, scale * max(1, u.numel() / p))


def assert_close(got, want, dtype, sigma, scale):
    """A few units in the last place of the scale, magnified by the slope of the ramp."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert torch.equal(got.isnan(), want.isnan())
    same = (got == want) | got.isnan()
    bound = 4 * torch.finfo(dtype).eps * torch.as_tensor(scale).double() / max(sigma, 0.05)
    close = (got.double() - want.double()).abs() <= bound + torch.finfo(dtype).tiny
    assert (same | close).all(), (got[~(same | close)], want[~(same | close)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_entry", [False, True])
@pytest.mark.parametrize("kind", ["hard", "soft", "helu"])
def test_gradcheck_away_from_the_kinks(backend, per_entry, kind):
    sigma = 0.3
    theta = torch.tensor([0.7, 1.0, 1.3, 2.0, 0.5] if per_entry else 0.9, dtype=torch.float64)
    v = torch.tensor(
        [[-2.0, -0.95, -0.8, -0.3, 0.1], [0.2, 0.75, 0.9, 1.1, 1.8], [0.65, 0.85, -0.9, 3, -0.72]]
    )
    u = (v.double() * theta).requires_grad_()
    theta.requires_grad_()
    with dk.use_backend(backend):
        assert torch.autograd.gradcheck(lambda u, t: call(kind, u, t, sigma), (u, theta))
        assert torch.autograd.gradgradcheck(lambda u, t: call(kind, u, t, sigma), (u, theta))


@pytest.mark.parametrize("backend", BACKENDS)
def test_straight_through_modes(backend):
    v = torch.tensor([-1.5, -0.9, -0.5, 0.85, 1.0, 2.0], dtype=torch.float64)
    ramp = torch.tensor([0, 1, 0, 1, 0, 0], dtype=torch.float64)
    kept = torch.tensor([1, 0, 0, 0, 1, 1], dtype=torch.float64)
    sign, sigma = v.sign(), 0.25
    expected = {
        "ste": (kept + ramp / sigma, -(sign * ramp).sum() * (1 - sigma) / sigma),
        "ste_theta": (kept, -(sign * ramp).sum() * (1 - sigma) / sigma),
        "hard": (kept, torch.zeros((), dtype=torch.float64)),
        "helu": (kept + ramp / sigma, -(sign * ramp).sum() * (1 - sigma) / sigma),
    }
    with dk.use_backend(backend):
        for grad, (grad_u, grad_theta) in expected.items():
            u, theta = (
                v.clone().requires_grad_(),
                torch.ones((), dtype=torch.float64, requires_grad=True),
            )
            out = dk.helu(u, theta, sigma, grad=grad)
            if grad != "helu":
                assert same_bits(out.detach(), dk.hard_threshold(v, 1.0))
            out.sum().backward()
            assert torch.equal(u.grad, grad_u), grad
            assert torch.allclose(theta.grad, grad_theta, rtol=1e-15, atol=0), grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_never_lost(backend, dtype, kind):
    u = torch.tensor([float("nan"), 1.0, -float("inf")], dtype=dtype)
    with dk.use_backend(backend):
        out = call(kind, u, 0.5, 0.1)
    assert out[0].isnan()
    assert out[2] == -float("inf")


@pytest.mark.parametrize("sigma", [0.25, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_an_infinite_theta_keeps_what_is_infinite(kind, sigma):
    theta, (inf, nan) = torch.tensor(math.inf), (math.inf, math.nan)
    u = torch.tensor([0.0, 1.0, -2.0, 3e38, nan, inf, -inf])
    kernel = torch.ops.deepl0.threshold(u, theta, sigma, kind)
    for got in (kernel, dk.reference.threshold(u, theta, sigma, kind)):
        # (The ramp of helu at sigma 1 begins at 0 theta, which is none of an infinite theta.)
        assert got[:4].isnan().all() if (kind, sigma) == ("helu", 1.0) else not got[:4].any()
        assert got[4].isnan()
        if kind != "soft":
            assert got[5:].tolist() == [inf, -inf]
    assert torch.equal(kernel.isnan(), got.isnan())


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("per_entry", [False, True])
def test_gradient_in_theta_does_not_depend_on_the_threads(threads, per_entry):
    u, grad = torch.randn(5000, 37), torch.randn(5000, 37)
    theta = torch.rand(37) + 0.5 if per_entry else torch.tensor(0.9)
    want = torch.ops.deepl0.threshold_backward(grad, u, theta, 0.5, "helu", 3)
    torch.set_num_threads(threads)
    try:
        got = torch.ops.deepl0.threshold_backward(grad, u, theta, 0.5, "helu", 3)
    finally:
        torch.set_num_threads(1)
    assert same_bits(got[0], want[0])
    assert same_bits(got[1], want[1])


def test_gradient_in_theta_is_accurate_over_many_rows():
    u = torch.full((100_000, 3), 0.9)
    grad = torch.full_like(u, 0.1)
    theta = torch.ones(3)
    _, got = torch.ops.deepl0.threshold_backward(grad, u, theta, 0.5, "helu", 3)
    exact = -100_000 * torch.tensor(0.1).double()
    # float32 within a block of 32 rows, float64 across blocks: docs/numerics.md.
    assert ((got.double() - exact).abs() <= 33 * 2.0**-24 * exact.abs()).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda u: dk.helu(u, 0.0), ValueError, ("theta must be > 0", "0.0")),
        (lambda u: dk.helu(u, -1), ValueError, ("theta must be > 0", "-1.0")),
        (lambda u: dk.helu(u, float("nan")), ValueError, ("theta must be > 0", "nan")),
        (lambda u: dk.hard_threshold(u, -0.5), ValueError, ("theta must be >= 0", "-0.5")),
        (lambda u: dk.soft_threshold(u, float("nan")), ValueError, ("theta must be >= 0", "nan")),
        (
            lambda u: dk.helu(u, torch.ones(6)),
            ValueError,
            ("theta must have shape", "(7,)", "(6,)"),
        ),
        (lambda u: dk.helu(u, torch.ones(2, 7)), ValueError, ("theta must have shape", "(2, 7)")),
        (lambda u: dk.helu(u, torch.ones(7).double()), ValueError, ("theta must be", "float64")),
        (
            lambda u: dk.helu(u, torch.ones(7, device="meta")),
            ValueError,
            ("theta must be on", "meta"),
        ),
        (lambda u: dk.helu(u, "0.5"), TypeError, ("theta must be a number", "'0.5'")),
        (lambda u: dk.helu(u, None), TypeError, ("theta must be a number", "None")),
        (lambda u: dk.soft_threshold(u, [1.0]), TypeError, ("theta must be a number", "[1.0]")),
        (lambda u: dk.helu(u, 1.0, sigma=None), TypeError, ("sigma must be a number", "None")),
        (lambda u: dk.helu(u, 1.0, sigma=1.5), ValueError, ("sigma must be in [0, 1]", "1.5")),
        (lambda u: dk.helu(u, 1.0, sigma=float("nan")), ValueError, ("sigma must be", "nan")),
        (lambda u: dk.helu(u, 1.0, grad="soft"), ValueError, ("grad must be one of", "'soft'")),
        (lambda u: dk.helu(u.int(), 1.0), ValueError, ("u must be", "int32")),
        (lambda u: dk.hard_threshold(u[0, 0], 1.0), ValueError, ("u must have", "()")),
    ],
)
def test_bad_input_is_named(backend, call, error, words):
    with dk.use_backend(backend), pytest.raises(error) as caught:
        call(torch.randn(2, 7))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(("bad", "word"), [(float("nan"), "nan"), (0.0, "0"), (-2.0, "-2")])
def test_bad_values_in_a_theta_tensor_are_found_by_the_kernel(bad, word):
    theta = torch.ones(7)
    theta[3] = bad
    with pytest.raises(RuntimeError, match=rf"theta must be > 0, got {word} at position 3"):
        dk.helu(torch.randn(2, 7), theta)
    if bad != 0:
        with pytest.raises(RuntimeError, match=r"theta must be >= 0.*position 3"):
            dk.hard_threshold(torch.randn(2, 7), theta)


@pytest.mark.parametrize("style", STYLES)
def test_extreme_values_pass_through(style):
    u = hostile((5, 33), torch.float32, 3, style)
    with dk.use_backend("reference"):
        want = dk.hard_threshold(u, 1e-30)
    assert torch.equal(dk.hard_threshold(u, 1e-30).nan_to_num(7), want.nan_to_num(7))
