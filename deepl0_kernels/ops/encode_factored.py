"""The whole encoder without S, in one operator: z_{k+1} = h(z_k + step_k W (x - D z_k) + b)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import reference
from .._matrices import gradient_of_matrix
from ..reference.precision import accumulation_dtype
from . import checks, registration

_OPERANDS = "Tensor x, Tensor W, Tensor D, Tensor? bias, Tensor? step"
_L0 = f"({_OPERANDS}, Tensor theta, SymInt num_stages, float sigma, str kind)"
_TOP_M = f"({_OPERANDS}, int[] m, bool positive)"


def _fake_l0(x, W, D, bias, step, theta, num_stages, sigma, kind):
    return x.new_empty((x.shape[0], W.shape[0]))


def _fake_l0_saving(x, W, D, bias, step, theta, num_stages, sigma, kind):
    z = x.new_empty((x.shape[0], W.shape[0]))
    return z, z.new_empty((num_stages, *z.shape), dtype=accumulation_dtype(x.dtype))


def _fake_top_m(x, W, D, bias, step, m, positive):
    code = (x.shape[0], m[-1])
    return x.new_empty(code), x.new_empty(code, dtype=torch.int64)


def _fake_top_m_saving(x, W, D, bias, step, m, positive):
    before = x.shape[0] * sum(m[:-1])
    return (
        *_fake_top_m(x, W, D, bias, step, m, positive),
        x.new_empty(before, dtype=accumulation_dtype(x.dtype)),
        x.new_empty(before, dtype=torch.int64),
    )


def _gradient_of_step(x, stages, wanted):
    return x.new_empty(stages if wanted else 0, dtype=accumulation_dtype(x.dtype))


registration.define("encode_l0_factored", f"{_L0} -> Tensor", _fake_l0)
# -> z_K, and the pre-activations of all stages [K, B, p].
registration.define("encode_l0_factored_saving", f"{_L0} -> (Tensor, Tensor)", _fake_l0_saving)
registration.define(
    "encode_l0_factored_backward",
    "(Tensor grad_z, Tensor saved, Tensor x, Tensor W, Tensor D, Tensor? step, Tensor theta,"
    " float sigma, str kind, int mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    lambda grad_z, saved, x, W, D, step, theta, sigma, kind, mask: (
        registration.gradient(x, mask & 1),
        registration.gradient(W, mask & 2),
        gradient_of_matrix(D) if mask & 4 else x.new_empty(0),
        registration.gradient(theta, mask & 8),
        x.new_empty(W.shape[0] if mask & 16 else 0),
        _gradient_of_step(x, saved.shape[0], mask & 32),
    ),
)
registration.define("encode_top_m_factored", f"{_TOP_M} -> (Tensor, Tensor)", _fake_top_m)
# -> values and indices, and those of the stages before, [B, m[k]] each, flattened, in one row.
registration.define(
    "encode_top_m_factored_saving",
    f"{_TOP_M} -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_top_m_saving,
)
# values: of the code, where it is nonnegative; then what is 0 passes no gradient, in any stage.
registration.define(
    "encode_top_m_factored_backward",
    "(Tensor grad_values, Tensor? values, Tensor indices, Tensor saved_values,"
    " Tensor saved_indices, Tensor x, Tensor W, Tensor D, Tensor? step, int[] m, int mask)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    lambda grad_values, values, indices, saved_values, saved_indices, x, W, D, step, m, mask: (
        registration.gradient(x, mask & 1),
        registration.gradient(W, mask & 2),
        gradient_of_matrix(D) if mask & 4 else x.new_empty(0),
        x.new_empty(W.shape[0] if mask & 8 else 0),
        _gradient_of_step(x, len(m), mask & 16),
    ),
)
_l0_backward = registration.native("encode_l0_factored_backward")
_top_m_backward = registration.native("encode_top_m_factored_backward")


# D of a single stage is not used: it is not differentiated.


def _setup_l0(ctx, inputs, output):
    x, W, D, _, step, theta, num_stages, ctx.sigma, ctx.kind = inputs
    ctx.uses_D = num_stages > 1
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, W, D, step, theta, output[1])


def _backward_l0(ctx, grad_z, *_):
    x, W, D, step, theta, saved = ctx.saved_tensors
    mask = registration.mask(ctx, 0, 1, 2, 5, 3, 4) & (~0 if ctx.uses_D else ~4)
    grads = _l0_backward(grad_z, saved, x, W, D, step, theta, ctx.sigma, ctx.kind, mask)
    gx, gW, gD, gtheta, gbias, gstep = registration.wanted(mask, *grads)
    return gx, gW, gD, gbias, gstep, gtheta, None, None, None


def _setup_top_m(ctx, inputs, output):
    x, W, D, _, step, ctx.m, positive = inputs
    values, *codes = output
    ctx.mark_non_differentiable(*codes)
    ctx.save_for_backward(x, W, D, step, values if positive else None, *codes)


def _backward_top_m(ctx, grad_values, *_):
    x, W, D, step, *codes = ctx.saved_tensors
    mask = registration.mask(ctx, 0, 1, 2, 3, 4) & (~0 if len(ctx.m) > 1 else ~4)
    grads = _top_m_backward(grad_values, *codes, x, W, D, step, ctx.m, mask)
    return *registration.wanted(mask, *grads), None, None


def _prepare(x, W, D, bias, step, num_stages):
    checks.first_operands(x, W, bias)
    checks.like("D", D, "x", x)
    checks.has_shape("D", D, (W.shape[1], W.shape[0]), "[n, p]")
    return checks.rows(x), W, D, bias, checks.steps(step, x, num_stages)


def _prepare_l0(x, W, D, bias, step, theta, num_stages, sigma, kind):
    num_stages = checks.integer("num_stages", num_stages, 1)
    operands = _prepare(x, W, D, bias, step, num_stages)
    theta = checks.theta(theta, x, W.shape[0], stages=num_stages)
    return *operands, theta, num_stages, checks.sigma(sigma), kind


def _prepare_top_m(x, W, D, bias, step, m, positive):
    operands = _prepare(x, W, D, bias, step, len(m))
    m = [checks.integer("m", entries, 0, W.shape[0], "p") for entries in m]
    return *operands, m, checks.boolean("positive", positive)


registration.differentiate("encode_l0_factored", _setup_l0, _backward_l0)
registration.differentiate("encode_top_m_factored", _setup_top_m, _backward_top_m)
registration.refuse_double_backward("encode_l0_factored_backward", "encode_l0")
registration.refuse_double_backward("encode_top_m_factored_backward", "encode_top_m")
encode_l0_factored = registration.serve(
    "encode_l0_factored",
    lambda *args: reference.encode_l0_factored(*args)[0],
    _prepare_l0,
    low=(0, 1, 2, 3),
    dims=2,
    absent=4,
)
encode_top_m_factored = registration.serve(
    "encode_top_m_factored",
    lambda *args: reference.encode_top_m_factored(*args)[:2],
    _prepare_top_m,
    low=(0, 1, 2, 3),
    dims=2,
    absent=4,
)
registration.vmap_rows("encode_l0_factored", rows=(0,), batch_dims=(0,))
registration.vmap_rows("encode_top_m_factored", rows=(0,), batch_dims=(0, 0))


def entries_of_stages(m: int | Sequence[int], num_stages: int) -> list[int]:
    """m of every stage."""
    return checks.of_stages("m", m, checks.integer("num_stages", num_stages, 1))
