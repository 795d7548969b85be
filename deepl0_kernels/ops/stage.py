"""One stage of the unrolled iteration, z' = h(x W' + z S'), in one operator."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..backends import implementation
from ..reference.precision import accumulation_dtype
from . import checks, registration

registration.define(
    "threshold_stage",
    "(Tensor x, Tensor W, Tensor z, Tensor S, Tensor theta, float sigma, bool save)"
    " -> (Tensor, Tensor)",
    lambda x, W, z, S, theta, sigma, save: (
        z.new_empty(z.shape),
        z.new_empty((z.shape[0] if save else 0, z.shape[1]), dtype=accumulation_dtype(z.dtype)),
    ),
)
registration.define(
    "top_m_stage",
    "(Tensor x, Tensor W, Tensor z, Tensor S, SymInt m) -> (Tensor, Tensor)",
    lambda x, W, z, S, m: (
        z.new_empty(z.shape),
        z.new_empty((z.shape[0], (z.shape[1] + 7) // 8), dtype=torch.uint8),
    ),
)


def _product_grads(ctx, grad_u: Tensor, x: Tensor, W: Tensor, z: Tensor, S: Tensor):
    """Gradients of u = x W' + z S' in x, W, z, S; None where nobody asks."""
    low, grad_u = x.dtype, grad_u.to(accumulation_dtype(x.dtype))
    x, W, z, S = (t.to(grad_u.dtype) for t in (x, W, z, S))
    need = ctx.needs_input_grad
    return (
        (grad_u @ W).to(low) if need[0] else None,
        (grad_u.t() @ x).to(low) if need[1] else None,
        (grad_u @ S).to(low) if need[2] else None,
        (grad_u.t() @ z).to(low) if need[3] else None,
    )


def _setup_threshold(ctx, inputs, output):
    x, W, z, S, theta, ctx.sigma, ctx.save = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, W, z, S, theta, output[1])


def _backward_threshold(ctx, grad_out, _):
    if not ctx.save:
        raise RuntimeError("threshold_stage: backward needs the call to be made with save=True")
    x, W, z, S, theta, u = ctx.saved_tensors
    need = ctx.needs_input_grad
    mask = any(need[:4]) | need[4] << 1
    grad_u, grad_theta = torch.ops.deepl0.threshold_backward(
        grad_out.to(u.dtype), u, theta, ctx.sigma, "helu", mask
    )
    grads = _product_grads(ctx, grad_u, x, W, z, S)
    return *grads, grad_theta if need[4] else None, None, None


def _setup_top_m(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4], output[1])


def _backward_top_m(ctx, grad_out, _):
    *operands, mask = ctx.saved_tensors
    return *_product_grads(ctx, torch.ops.deepl0.apply_mask(grad_out, mask), *operands), None


torch.library.register_autograd(
    "deepl0::threshold_stage", _backward_threshold, setup_context=_setup_threshold
)
torch.library.register_autograd("deepl0::top_m_stage", _backward_top_m, setup_context=_setup_top_m)
registration.serve("threshold_stage", reference.threshold_stage, low=(0, 1, 2, 3))
registration.serve("top_m_stage", reference.top_m_stage, low=(0, 1, 2, 3))
registration.vmap_rows("threshold_stage", rows=(0, 2), batch_dims=(0, 0))
registration.vmap_rows("top_m_stage", rows=(0, 2), batch_dims=(0, 0))


def threshold_stage(
    x: Tensor, W: Tensor, z: Tensor, S: Tensor, theta: float | Tensor, sigma: float = 0.0
) -> Tensor:
    """``helu(x W' + z S', theta, sigma)``: one stage of the deep l0 encoder.

    Args:
        x: signals [B, n]. W: [p, n]. z: codes [B, p]. S: [p, p]. All of one dtype: float32,
            float64, float16 or bfloat16 (half types accumulate and threshold in float32).
        theta: > 0, a number or a tensor [] or [p].
        sigma: in [0, 1], width of the ramp.

    Returns:
        z' [B, p], differentiable in every tensor argument.

    Raises:
        ValueError: wrong shape, dtype, device or sigma.
        RuntimeError: on CPU, a theta with a value that is not > 0.

    2 B p (n + p) flops. Source: Wang, Ling, Huang 2016, eq. 6 and 9.
    """
    _check_operands(x, W, z, S)
    sigma = checks.sigma(sigma)
    theta = checks.theta(theta, x, W.shape[0])
    save = registration.records_gradient(x, W, z, S, theta)
    return implementation("threshold_stage", x)(x, W, z, S, theta, sigma, save)[0]


def top_m_stage(x: Tensor, W: Tensor, z: Tensor, S: Tensor, m: int) -> Tensor:
    """``keep_top_m(x W' + z S', m)``: one stage of the deep M-sparse encoder, dense [B, p].

    Operands and errors are those of :func:`threshold_stage`; 0 <= m <= p, selection as in
    :func:`top_m`. 2 B p (n + p) flops. Source: Wang, Ling, Huang 2016, eq. 10.
    """
    _check_operands(x, W, z, S)
    m = checks.integer("m", m, 0, W.shape[0], "p")
    return implementation("top_m_stage", x)(x, W, z, S, m)[0]


def _check_operands(x: Tensor, W: Tensor, z: Tensor, S: Tensor) -> None:
    checks.encoder_operands(x, W, S, 2)
    if x.dim() != 2:
        raise ValueError(f"x must have shape [B, n], got {checks.shape(x)}")
    checks.like("z", z, "x", x)
    checks.has_shape("z", z, (x.shape[0], W.shape[0]), "[B, p]")
    checks.has_shape("S", S, (W.shape[0], W.shape[0]), "[p, p]")
