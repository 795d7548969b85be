"""One stage of the unrolled iteration, z' = h(x W' + b + z S'), in one operator."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..reference.precision import accumulation_dtype
from . import checks, registration
from .thresholds import kind_of, threshold_backward
from .top_m import apply_mask

_THRESHOLD = (
    "(Tensor x, Tensor W, Tensor z, Tensor S, Tensor? bias, Tensor theta, float sigma, str kind)"
)
registration.define(
    "threshold_stage",
    f"{_THRESHOLD} -> Tensor",
    lambda x, W, z, S, bias, theta, sigma, kind: z.new_empty(z.shape),
)
# -> z', and the pre-activations.
registration.define(
    "threshold_stage_saving",
    f"{_THRESHOLD} -> (Tensor, Tensor)",
    lambda x, W, z, S, bias, theta, sigma, kind: (
        z.new_empty(z.shape),
        z.new_empty(z.shape, dtype=accumulation_dtype(z.dtype)),
    ),
)
# -> z', and the mask of the kept.
registration.define(
    "top_m_stage",
    "(Tensor x, Tensor W, Tensor z, Tensor S, Tensor? bias, SymInt m, bool positive)"
    " -> (Tensor, Tensor)",
    lambda x, W, z, S, bias, m, positive: (
        z.new_empty(z.shape),
        z.new_empty((z.shape[0], (z.shape[1] + 7) // 8), dtype=torch.uint8),
    ),
)


def _save_products(ctx, x: Tensor, W: Tensor, z: Tensor, S: Tensor, *others: Tensor) -> None:
    """Keep of the factors of u = x W' + b + z S' those that a wanted gradient reads."""
    need = ctx.needs_input_grad
    kept = (x if need[1] else None, W if need[0] else None)
    ctx.save_for_backward(*kept, z if need[3] else None, S if need[2] else None, *others)


def _product_grads(ctx, grad_u: Tensor, dtype: torch.dtype) -> list[Tensor | None]:
    """Gradients of u = x W' + b + z S' in x, W, z, S, b; None where nobody asks."""
    factors = [None if t is None else t.to(grad_u.dtype) for t in ctx.saved_tensors[:4]]
    x, W, z, S = factors
    grads = [
        None if t is None else (left @ t).to(dtype)
        for left, t in ((grad_u, W), (grad_u.t(), x), (grad_u, S), (grad_u.t(), z))
    ]
    return [*grads, grad_u.sum(0).to(dtype) if ctx.needs_input_grad[4] else None]


def _setup_threshold(ctx, inputs, output):
    *factors, _, theta, ctx.sigma, ctx.kind = inputs
    ctx.mark_non_differentiable(output[1])
    _save_products(ctx, *factors, theta, output[1])


def _backward_threshold(ctx, grad_out, *_):
    *_, theta, u = ctx.saved_tensors
    mask = 1 * any(ctx.needs_input_grad[:5]) + 2 * ctx.needs_input_grad[5]
    grads = threshold_backward(grad_out.to(u.dtype), u, theta, ctx.sigma, ctx.kind, mask)
    grad_u, grad_theta = registration.wanted(mask, *grads)
    products = [None] * 5 if grad_u is None else _product_grads(ctx, grad_u, grad_out.dtype)
    return *products, grad_theta, None, None


def _setup_top_m(ctx, inputs, output):
    _save_products(ctx, *inputs[:4], output[1])


def _backward_top_m(ctx, grad_out, _):
    dtype = accumulation_dtype(grad_out.dtype)
    grad_u = apply_mask(grad_out, ctx.saved_tensors[4]).to(dtype)
    return *_product_grads(ctx, grad_u, grad_out.dtype), None, None


def _prepare(x, W, z, S, bias):
    checks.encoder_operands(x, W, S, bias, 2)
    if x.dim() != 2:
        raise ValueError(f"x must have shape [B, n], got {checks.shape(x)}")
    checks.like("z", z, "x", x)
    checks.has_shape("z", z, (x.shape[0], W.shape[0]), "[B, p]")
    checks.has_shape("S", S, (W.shape[0], W.shape[0]), "[p, p]")
    return x, W, z, S, bias


def _prepare_threshold(x, W, z, S, bias, theta, sigma, kind):
    operands = _prepare(x, W, z, S, bias)
    return *operands, checks.theta(theta, x, W.shape[0]), checks.sigma(sigma), kind


def _prepare_top_m(x, W, z, S, bias, m, positive):
    operands = _prepare(x, W, z, S, bias)
    m = checks.integer("m", m, 0, W.shape[0], "p")
    return *operands, m, checks.boolean("positive", positive)


registration.differentiate("threshold_stage", _setup_threshold, _backward_threshold)
registration.differentiate("top_m_stage", _setup_top_m, _backward_top_m)
_threshold_stage = registration.serve(
    "threshold_stage",
    lambda *args: reference.threshold_stage(*args)[0],
    _prepare_threshold,
    low=(0, 1, 2, 3, 4),
)
_top_m_stage = registration.serve(
    "top_m_stage", reference.top_m_stage, _prepare_top_m, low=(0, 1, 2, 3, 4)
)
registration.vmap_rows("threshold_stage", rows=(0, 2), batch_dims=(0,))
registration.vmap_rows("top_m_stage", rows=(0, 2), batch_dims=(0, 0))


def threshold_stage(
    x: Tensor,
    W: Tensor,
    z: Tensor,
    S: Tensor,
    theta: float | Tensor,
    sigma: float | Tensor = 0.0,
    *,
    bias: Tensor | None = None,
    positive: bool = False,
) -> Tensor:
    """``helu(x W' + bias + z S', theta, sigma)``: one stage of the deep l0 encoder.

    Args:
        x: signals [B, n]. W: [p, n]. z: codes [B, p]. S: [p, p]. All of one dtype: float32,
            float64, float16 or bfloat16 (half types accumulate and threshold in float32).
        theta: > 0, a number or a tensor [] or [p].
        sigma: in [0, 1], width of the ramp, a number or a tensor [].
        bias: [p] in the dtype of x, or None.
        positive: one-sided, as in :func:`helu`.

    Returns:
        z' [B, p], differentiable in every tensor argument.

    Raises:
        ValueError: wrong shape, dtype, device or sigma.
        RuntimeError: on CPU, a theta with a value that is not > 0.

    2 B p (n + p) flops. Source: Wang, Ling, Huang 2016, eq. 6 and 9.

    Example:
        >>> x, W = torch.ones(1, 2), torch.eye(2)
        >>> dk.threshold_stage(x, W, z=torch.tensor([[0.5, -0.5]]), S=torch.eye(2), theta=1.0)
        tensor([[1.5000, 0.0000]])
    """
    return _threshold_stage(x, W, z, S, bias, theta, sigma, kind_of("helu", positive))


def top_m_stage(
    x: Tensor,
    W: Tensor,
    z: Tensor,
    S: Tensor,
    m: int,
    *,
    bias: Tensor | None = None,
    positive: bool = False,
) -> Tensor:
    """``keep_top_m(x W' + bias + z S', m)``: one stage of the deep M-sparse encoder, dense [B, p].

    Operands and errors are those of :func:`threshold_stage`; 0 <= m <= p, selection as in
    :func:`top_m`. 2 B p (n + p) flops. Source: Wang, Ling, Huang 2016, eq. 10.

    Example:
        >>> x, W = torch.ones(1, 2), torch.eye(2)
        >>> dk.top_m_stage(x, W, z=torch.tensor([[0.5, -0.5]]), S=torch.eye(2), m=1)
        tensor([[1.5000, 0.0000]])
    """
    return _top_m_stage(x, W, z, S, bias, m, positive)[0]
