"""Elementwise thresholds: hard, soft and HELU_sigma, differentiable in u and theta."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..backends import implementation
from ..reference.thresholds import coefficients
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
    lambda grad_out, u, theta, sigma, kind, mask: registration.fake_gradients(mask, u, theta),
)


def _setup(ctx, inputs, output):
    u, theta, ctx.sigma, ctx.kind = inputs
    ctx.save_for_backward(u, theta)


def _backward(ctx, grad_out):
    mask = registration.wanted(ctx, 0, 1)
    grad_u, grad_theta = torch.ops.deepl0.threshold_backward(
        grad_out, *ctx.saved_tensors, ctx.sigma, ctx.kind, mask
    )
    return grad_u if mask & 1 else None, grad_theta if mask & 2 else None, None, None


def _setup_double(ctx, inputs, output):
    _, u, theta, ctx.sigma, ctx.kind, ctx.mask = inputs
    ctx.save_for_backward(u, theta)


def _double_backward(ctx, grad_u, grad_theta):
    # The backward is linear in grad_out with piecewise constant coefficients.
    u, theta = ctx.saved_tensors
    d_u, d_theta = coefficients(u.to(theta.dtype), theta, ctx.sigma, ctx.kind)
    terms = [(grad_u, d_u), (grad_theta, d_theta)]
    grad = sum(g * d for bit, (g, d) in enumerate(terms) if ctx.mask >> bit & 1)
    return grad.to(u.dtype), torch.zeros_like(u), torch.zeros_like(theta), None, None, None


torch.library.register_autograd("deepl0::threshold", _backward, setup_context=_setup)
torch.library.register_autograd(
    "deepl0::threshold_backward", _double_backward, setup_context=_setup_double
)
registration.serve("threshold", reference.threshold)
registration.vmap_rows("threshold", rows=(0,))


def _vmap_backward(info, in_dims, grad_out, u, theta, sigma, kind, mask):
    # theta's gradient is summed per mapped sample, which the kernel does not do.
    def one(g, u, t):
        grads = reference.threshold_backward(g, u, t, sigma, kind)
        return tuple(
            grad if mask >> bit & 1 else grad.new_empty(0) for bit, grad in enumerate(grads)
        )

    return torch.func.vmap(one, in_dims[:3])(grad_out, u, theta), (0, 0)


torch.library.register_vmap("deepl0::threshold_backward", _vmap_backward)


def hard_threshold(u: Tensor, theta: float | Tensor) -> Tensor:
    """``u`` where ``|u| >= theta``, else 0: the proximal step of the l0 penalty.

    Args:
        u: [..., p], float32, float64, float16 or bfloat16 (half types compute in float32).
        theta: >= 0, a number or a tensor of shape [] or [p].

    Returns:
        Tensor of u's shape and dtype. A NaN in u gives NaN.

    The derivative in u is 1 where u is kept; in theta it is 0. O(size of u): one read, one write.

    Raises:
        ValueError: wrong shape, dtype or device, or a number theta that is negative or NaN.
        RuntimeError: on CPU, a tensor theta with such a value. (The reference does not look at the
            values; a NaN theta gives NaN there.)

    Source: Blumensath and Davies 2008; kept at equality.
    """
    checks.floating("u", u)
    theta = checks.theta(theta, u, u.shape[-1], zero=True)
    return implementation("threshold", u)(u, theta, 0.0, "hard")


def soft_threshold(u: Tensor, theta: float | Tensor) -> Tensor:
    """``sign(u) max(|u| - theta, 0)``: the proximal step of the l1 penalty (ISTA, LISTA).

    Arguments, result and errors are those of :func:`hard_threshold`; the derivatives are 1 in u and
    ``-sign(u)`` in theta where ``|u| > theta``, else 0. O(size of u): one read, one write. Source:
    Gregor and LeCun 2010.
    """
    checks.floating("u", u)
    theta = checks.theta(theta, u, u.shape[-1], zero=True)
    return implementation("threshold", u)(u, theta, 0.0, "soft")


def helu(u: Tensor, theta: float | Tensor, sigma: float = 0.0, grad: str = "helu") -> Tensor:
    """``theta * HELU_sigma(u / theta)``, the hard threshold with a ramp of width sigma * theta.

    Args:
        u: [..., p], float32, float64, float16 or bfloat16 (half types compute in float32).
        theta: > 0, a number or a tensor of shape [] or [p].
        sigma: in [0, 1]; 0 is the hard threshold.
        grad: which value and derivatives (``lo = (1 - sigma) theta``; on the ramp
            ``lo < |u| < theta``):

            * ``"helu"``: the ramp is in the value; d/du is 1/sigma on the ramp, 1 above, 0 below;
              d/dtheta is -sign(u)(1 - sigma)/sigma on the ramp, else 0 (eq. 9).
            * ``"ste"``: value of the hard threshold, derivatives of ``"helu"`` (straight-through).
            * ``"ste_theta"``: value and d/du of the hard threshold, d/dtheta of ``"helu"``
              (JumpReLU with a one-sided window of bandwidth sigma * theta).
            * ``"hard"``: value and derivatives of the hard threshold; none in theta.

    Returns:
        Tensor of u's shape and dtype. A NaN in u gives NaN.

    Raises:
        ValueError: wrong shape, dtype, device, sigma or grad, or a number theta that is not > 0.
        RuntimeError: on CPU, a tensor theta with a value that is not > 0. (The reference does not
            look at the values; a NaN theta gives NaN there.)

    O(size of u): one read, one write. Source: Wang, Ling, Huang 2016, eq. 9.
    """
    checks.floating("u", u)
    checks.one_of("grad", grad, tuple(GRADS))
    sigma = checks.sigma(sigma)
    theta = checks.theta(theta, u, u.shape[-1])
    return implementation("threshold", u)(u, theta, sigma, GRADS[grad])
