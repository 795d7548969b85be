"""Thresholds: hard, soft and HELU_sigma (Wang, Ling, Huang 2016, eq. 9), scaled by theta.

With ``a = |u|`` and ``lo = (1 - sigma) theta``, ``theta * HELU_sigma(u / theta)`` is::

    0                       a <= lo
    sign(u) (a - lo)/sigma  lo < a < theta      (the ramp)
    u                       a >= theta

and at ``sigma = 0`` the hard threshold: ``u`` where ``|u| >= theta``, else 0. A NaN in u or theta
gives NaN, so it is never lost. The one-sided kinds are those of ``max(u, 0)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import accumulation_dtype

ONE_SIDED = "positive_"  # before the kind of a threshold of max(u, 0)
_TWO_SIDED = ("hard", "soft", "helu", "ste", "ste_theta")
KINDS = (*_TWO_SIDED, *(ONE_SIDED + kind for kind in _TWO_SIDED))


def positive_part(u: Tensor) -> Tensor:
    """``max(u, 0)``: a NaN stays, -0.0 becomes +0; the derivative is 1 where u > 0, else 0."""
    return torch.where(u <= 0, 0.0, u)


def may_be_zero(kind: str) -> bool:
    """Whether the kind of threshold takes a theta of 0."""
    return kind.removeprefix(ONE_SIDED) in ("hard", "soft")


def _hard(u: Tensor, theta: Tensor) -> Tensor:
    return torch.where(u.abs() < theta, 0.0, u)


def _soft(u: Tensor, theta: Tensor) -> Tensor:
    return torch.where(u.abs() <= theta, 0.0, u - u.sign() * theta)


def _helu(u: Tensor, theta: Tensor, sigma: float | Tensor) -> Tensor:
    if isinstance(sigma, Tensor):  # in a graph, which cannot branch on it: at 0 there is no ramp
        slope = torch.where(sigma > 0, 1.0 / sigma, 0.0)
    elif sigma == 0.0:
        return _hard(u, theta)
    else:
        slope = None
    lo = (1.0 - sigma) * theta
    rise = u - u.sign() * lo
    ramp = rise / sigma if slope is None else rise * slope
    return torch.where(u.abs() >= theta, u, torch.where(u.abs() <= lo, 0.0, ramp))


def threshold(u: Tensor, theta: Tensor, sigma: float | Tensor, kind: str) -> Tensor:
    """Threshold ``u [..., p]`` at ``theta`` (shape [] or [p]).

    ``kind`` names the function and its derivative: ``"hard"``, ``"soft"``, ``"helu"`` are
    themselves; ``"ste"`` has the value of hard and the derivatives of HELU_sigma; ``"ste_theta"``
    has the value and the u-derivative of hard and the theta-derivative of HELU_sigma (JumpReLU).
    After ``"positive_"`` they are one-sided.
    """
    check_theta(theta.to(accumulation_dtype(u.dtype)), kind)
    return apply(u, theta, sigma, kind)


def apply(u: Tensor, theta: Tensor, sigma: float | Tensor, kind: str) -> Tensor:
    """:func:`threshold` at a theta of one's own making, which may be NaN where operands are."""
    dtype = u.dtype
    u = u.to(accumulation_dtype(dtype))
    theta = theta.to(u.dtype)
    if kind.startswith(ONE_SIDED):
        u = positive_part(u)
    kind = kind.removeprefix(ONE_SIDED)
    if kind == "hard":
        out = _hard(u, theta)
    elif kind == "soft":
        out = _soft(u, theta)
    elif kind == "helu":
        out = _helu(u, theta, sigma)
    elif kind in ("ste", "ste_theta"):
        # Below theta a surrogate of value 0 brings the derivatives; above they are the same.
        surrogate = _helu(u if kind == "ste" else u.detach(), theta, sigma)
        below = surrogate - surrogate.detach()
        # Of an infinite theta it is inf - inf; a NaN in u stays.
        below = torch.where(below.isnan() & ~u.isnan(), 0.0, below)
        out = torch.where(u.abs() >= theta, u, below)
    else:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    return torch.where(theta.isnan(), theta, out).to(dtype)


def check_theta(theta: Tensor, kind: str) -> None:
    """A theta that is not > 0 (>= 0 for hard and soft) is an error wherever its values can be read:
    eagerly, on the CPU. A GPU is not waited for, and a graph has none."""
    if not readable(theta):
        return
    zero = may_be_zero(kind)
    good = theta >= 0 if zero else theta > 0
    if not good.all():
        at = int(good.logical_not().flatten().nonzero()[0, 0])
        raise RuntimeError(
            f"theta must be {'>= 0' if zero else '> 0'}, got {theta.flatten()[at].item()} "
            f"at position {at}"
        )


def readable(t: Tensor) -> bool:
    """Whether the values of ``t`` can be read at once: there are some, on the CPU."""
    return (
        type(t) in (Tensor, torch.nn.Parameter)
        and t.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
    )


def coefficients(
    u: Tensor, theta: Tensor, sigma: float | Tensor, kind: str
) -> tuple[Tensor, Tensor]:
    """The derivatives (d/du, d/dtheta) of :func:`threshold`, elementwise, shape of ``u``.

    They are piecewise constant, so the operator's backward is linear in the incoming gradient and
    its second derivatives in u and theta vanish.
    """
    if kind.startswith(ONE_SIDED):
        of_part, d_theta = coefficients(positive_part(u), theta, sigma, kind[len(ONE_SIDED) :])
        return torch.where(u > 0, of_part, 0.0), d_theta
    a = u.abs()
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    if kind == "soft":
        above = a > theta
        return torch.where(above, one, zero), torch.where(above, -u.sign(), zero)
    kept = torch.where(a >= theta, one, zero)
    if kind == "hard" or (not isinstance(sigma, Tensor) and sigma == 0.0):
        return kept, zero
    ramp = (a > (1.0 - sigma) * theta) & (a < theta)
    d_theta = torch.where(ramp, -u.sign() * ((1.0 - sigma) / sigma), zero)
    if kind == "ste_theta":
        return kept, d_theta
    return torch.where(ramp, one / sigma, kept), d_theta


def threshold_backward(
    grad_out: Tensor, u: Tensor, theta: Tensor, sigma: float | Tensor, kind: str, mask: int = 3
) -> tuple[Tensor, Tensor]:
    """Gradients in ``u`` (bit 1 of ``mask``) and in ``theta`` (bit 2; [] or [p]: summed over the
    other dimensions); empty where the bit is not set."""
    dtype = u.dtype
    u = u.to(accumulation_dtype(dtype))
    grad = grad_out.to(u.dtype)
    d_u, d_theta = coefficients(u, theta.to(u.dtype), sigma, kind)
    grad_u = (grad * d_u).to(dtype) if mask & 1 else u.new_empty(0, dtype=dtype)
    if not mask & 2:
        return grad_u, theta.new_empty(0)
    rows = grad * d_theta
    rows = rows.flatten(0, -2) if rows.dim() > 1 else rows.unsqueeze(0)
    grad_theta = rows.sum(0) if theta.dim() == 1 else rows.sum()
    return grad_u, grad_theta.to(theta.dtype)
