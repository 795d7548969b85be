"""Elementwise thresholds: hard, soft and HELU_sigma, differentiable in u and theta."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ..reference.thresholds import ONE_SIDED, coefficients, may_be_zero
from . import checks, registration

# Gradient modes of helu -> kind of the kernel.
GRADS = {"helu": "helu", "ste": "ste", "ste_theta": "ste_theta", "hard": "hard"}

registration.define(
    "threshold",
    "(Tensor u, Tensor theta, float sigma, str kind) -> Tensor",
    lambda u, theta, sigma, kind: u.new_empty(u.shape),
)
registration.define(
    "threshold_backward",
    "(Tensor grad_out, Tensor u, Tensor theta, float sigma, str kind, int mask)"
    " -> (Tensor, Tensor)",
    lambda grad_out, u, theta, sigma, kind, mask: (
        registration.gradient(u, mask & 1),
        registration.gradient(theta, mask & 2),
    ),
)
threshold_backward = registration.native("threshold_backward")


def _setup(ctx, inputs, output):
    u, theta, ctx.sigma, ctx.kind = inputs
    ctx.save_for_backward(u, theta)


def _backward(ctx, grad_out):
    mask = registration.mask(ctx, 0, 1)
    grads = threshold_backward(grad_out, *ctx.saved_tensors, ctx.sigma, ctx.kind, mask)
    return *registration.wanted(mask, *grads), None, None


def _setup_double(ctx, inputs, output):
    _, u, theta, ctx.sigma, ctx.kind, ctx.mask = inputs
    ctx.save_for_backward(u, theta)


def _double_backward(ctx, grad_u, grad_theta):
    # The backward is linear in grad_out with piecewise constant coefficients: it has no
    # derivatives in u and theta.
    if not ctx.needs_input_grad[0]:
        return (None,) * 6
    u, theta = ctx.saved_tensors
    d_u, d_theta = coefficients(u.to(theta.dtype), theta, ctx.sigma, ctx.kind)
    terms = []
    if ctx.mask & 1 and grad_u is not None:
        terms.append(grad_u * d_u)
    if ctx.mask & 2 and grad_theta is not None:
        terms.append(grad_theta * d_theta)
    return sum(terms[1:], terms[0]).to(u.dtype), None, None, None, None, None


registration.differentiate("threshold", _setup, _backward)
registration.differentiate("threshold_backward", _setup_double, _double_backward)


def _prepare(u, theta, sigma, kind):
    checks.floating("u", u)
    zero = may_be_zero(kind)
    sigma = 0.0 if zero else checks.sigma(sigma)
    return u, checks.theta(theta, u, u.shape[-1], zero=zero), sigma, kind


_threshold = registration.serve("threshold", reference.threshold, _prepare)
registration.vmap_rows("threshold", rows=(0,))


def kind_of(kind: str, positive: bool) -> str:
    """The kind as the operators know it: ``kind``, or its one-sided form."""
    return ONE_SIDED + kind if checks.boolean("positive", positive) else kind


def hard_threshold(u: Tensor, theta: float | Tensor, *, positive: bool = False) -> Tensor:
    """``u`` where ``|u| >= theta``, else 0: the proximal step of the l0 penalty.

    Args:
        u: [..., p], float32, float64, float16 or bfloat16 (half types compute in float32).
        theta: >= 0, a number or a tensor of shape [] or [p].
        positive: one-sided: ``u`` where ``u >= theta``, else 0.

    Returns:
        Tensor of u's shape and dtype. A NaN in u gives NaN.

    The derivative in u is 1 where u is kept; in theta it is 0. O(size of u): one read, one write.

    Raises:
        ValueError: wrong shape, dtype or device, or a number theta that is negative or NaN.
        RuntimeError: on CPU, a tensor theta with such a value. (A graph made of the reference and
            a GPU do not look at the values; a NaN theta gives NaN there.)

    Source: Blumensath and Davies 2008; kept at equality.

    Example:
        >>> dk.hard_threshold(torch.tensor([-2.0, -0.5, 0.5, 1.0]), 1.0)
        tensor([-2.,  0.,  0.,  1.])
    """
    return _threshold(u, theta, 0.0, kind_of("hard", positive))


def soft_threshold(u: Tensor, theta: float | Tensor, *, positive: bool = False) -> Tensor:
    """``sign(u) max(|u| - theta, 0)``: the proximal step of the l1 penalty (ISTA, LISTA);
    ``max(u - theta, 0)`` where ``positive``.

    Arguments, result and errors are those of :func:`hard_threshold`; the derivatives are 1 in u and
    ``-sign(u)`` in theta where ``|u| > theta``, else 0. O(size of u): one read, one write. Source:
    Gregor and LeCun 2010.

    Example:
        >>> dk.soft_threshold(torch.tensor([-2.0, 0.5, 1.5]), 1.0)
        tensor([-1.0000,  0.0000,  0.5000])
    """
    return _threshold(u, theta, 0.0, kind_of("soft", positive))


def helu(
    u: Tensor,
    theta: float | Tensor,
    sigma: float | Tensor = 0.0,
    grad: str = "helu",
    *,
    positive: bool = False,
) -> Tensor:
    """``theta * HELU_sigma(u / theta)``, the hard threshold with a ramp of width sigma * theta.

    Args:
        u: [..., p], float32, float64, float16 or bfloat16 (half types compute in float32).
        theta: > 0, a number or a tensor of shape [] or [p].
        sigma: in [0, 1], a number or a tensor []; 0 is the hard threshold.
        grad: which value and derivatives (``lo = (1 - sigma) theta``; on the ramp
            ``lo < |u| < theta``):

            * ``"helu"``: the ramp is in the value; d/du is 1/sigma on the ramp, 1 above, 0 below;
              d/dtheta is -sign(u)(1 - sigma)/sigma on the ramp, else 0 (eq. 9).
            * ``"ste"``: value of the hard threshold, derivatives of ``"helu"`` (straight-through).
            * ``"ste_theta"``: value and d/du of the hard threshold, d/dtheta of ``"helu"``
              (JumpReLU with a one-sided window of bandwidth sigma * theta).
            * ``"hard"``: value and derivatives of the hard threshold; none in theta.

        positive: one-sided, of ``max(u, 0)`` in the place of u: every u < 0 gives 0, and no
            derivative. With sigma = 0 it is JumpReLU.

    Returns:
        Tensor of u's shape and dtype. A NaN in u gives NaN.

    Raises:
        ValueError: wrong shape, dtype, device, sigma or grad, or a number theta that is not > 0.
        RuntimeError: on CPU, a tensor theta with a value that is not > 0. (A graph made of the
            reference and a GPU do not look at the values; a NaN theta gives NaN there.)

    In ``torch.compile`` a number costs two compilations, one for its first value and one for all
    others (sigma = 0 has one of its own); a tensor [] costs one. O(size of u): one read, one write.
    Source: Wang, Ling, Huang 2016, eq. 9.

    Example:
        >>> u = torch.tensor([0.7, 0.9, 1.5])
        >>> dk.helu(u, theta=1.0, sigma=0.2)  # nothing below 0.8, a ramp up to 1, then u
        tensor([0.0000, 0.5000, 1.5000])
    """
    checks.one_of("grad", grad, tuple(GRADS))
    return _threshold(u, theta, sigma, kind_of(GRADS[grad], positive))
