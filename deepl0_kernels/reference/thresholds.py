"""Thresholds: hard, soft and HELU_sigma (Wang, Ling, Huang 2016, eq. 9), scaled by theta.

With ``a = |u|`` and ``lo = (1 - sigma) theta``, ``theta * HELU_sigma(u / theta)`` is::

    0                       a <= lo
    sign(u) (a - lo)/sigma  lo < a < theta      (the ramp)
    u                       a >= theta

and at ``sigma = 0`` the hard threshold: ``u`` where ``|u| >= theta``, else 0. A NaN in u or theta
gives NaN, so it is never lost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import accumulation_dtype

KINDS = ("hard", "soft", "helu", "ste", "ste_theta")


class _WithGradientOf(torch.autograd.Function):
    """Value of the first argument, gradient of the second."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, surrogate: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad: Tensor):
        return None, grad

    @staticmethod
    def jvp(ctx, value: Tensor | None, surrogate: Tensor):
        return surrogate


def _hard(u: Tensor, theta: Tensor) -> Tensor:
    return torch.where(u.abs() < theta, 0.0, u)


def _soft(u: Tensor, theta: Tensor) -> Tensor:
    return torch.where(u.abs() <= theta, 0.0, u - u.sign() * theta)


def _helu(u: Tensor, theta: Tensor, sigma: float) -> Tensor:
    if sigma == 0.0:
        return _hard(u, theta)
    lo = (1.0 - sigma) * theta
    ramp = (u - u.sign() * lo) / sigma
    return torch.where(u.abs() <= lo, 0.0, torch.where(u.abs() < theta, ramp, u))


def threshold(u: Tensor, theta: Tensor, sigma: float, kind: str) -> Tensor:
    """Threshold ``u [..., p]`` at ``theta`` (shape [] or [p]).

    ``kind`` names the function and its derivative: ``"hard"``, ``"soft"``, ``"helu"`` are
    themselves; ``"ste"`` has the value of hard and the derivatives of HELU_sigma; ``"ste_theta"``
    has the value and the u-derivative of hard and the theta-derivative of HELU_sigma (JumpReLU).
    """
    dtype = u.dtype
    u = u.to(accumulation_dtype(dtype))
    theta = theta.to(u.dtype)
    if kind == "hard":
        out = _hard(u, theta)
    elif kind == "soft":
        out = _soft(u, theta)
    elif kind == "helu":
        out = _helu(u, theta, sigma)
    elif kind == "ste":
        out = _WithGradientOf.apply(_hard(u, theta).detach(), _helu(u, theta, sigma))
    elif kind == "ste_theta":
        surrogate = _hard(u, theta.detach()) + _helu(u.detach(), theta, sigma)
        out = _WithGradientOf.apply(_hard(u, theta).detach(), surrogate)
    else:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    return torch.where(theta.isnan(), theta, out).to(dtype)


def coefficients(u: Tensor, theta: Tensor, sigma: float, kind: str) -> tuple[Tensor, Tensor]:
    """The derivatives (d/du, d/dtheta) of :func:`threshold`, elementwise, shape of ``u``.

    They are piecewise constant, so the operator's backward is linear in the incoming gradient and
    its second derivatives in u and theta vanish.
    """
    a = u.abs()
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    if kind == "soft":
        above = a > theta
        return torch.where(above, one, zero), torch.where(above, -u.sign(), zero)
    kept = torch.where(a >= theta, one, zero)
    if kind == "hard" or sigma == 0.0:
        return kept, zero
    ramp = (a > (1.0 - sigma) * theta) & (a < theta)
    d_theta = torch.where(ramp, -u.sign() * ((1.0 - sigma) / sigma), zero)
    if kind == "ste_theta":
        return kept, d_theta
    return torch.where(ramp, one / sigma, kept), d_theta


def threshold_backward(
    grad_out: Tensor, u: Tensor, theta: Tensor, sigma: float, kind: str
) -> tuple[Tensor, Tensor]:
    """Gradients in ``u`` and in ``theta`` ([] or [p]: summed over the other dimensions)."""
    dtype = u.dtype
    u = u.to(accumulation_dtype(dtype))
    grad = grad_out.to(u.dtype)
    d_u, d_theta = coefficients(u, theta.to(u.dtype), sigma, kind)
    rows = grad * d_theta
    rows = rows.flatten(0, -2) if rows.dim() > 1 else rows.unsqueeze(0)
    grad_theta = rows.sum(0) if theta.dim() == 1 else rows.sum()
    return (grad * d_u).to(dtype), grad_theta.to(theta.dtype)
