"""The arguments of ``torch.ops.deepl0.*`` on a GPU, checked before a kernel follows them.

The public functions have checked theirs; these calls may come from anywhere. (On the CPU the
bindings of csrc/torch check.) float64 has no GPU kernels but that of ``least_squares``: the public
functions serve it by the reference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..reference.precision import accumulation_dtype
from ..reference.thresholds import KINDS
from . import checks


def _rows(name: str, t: Tensor, dims: int = 0) -> None:
    """Of a dtype that has GPU kernels; a matrix if ``dims`` is 2."""
    checks.floating(name, t)
    if t.dtype == torch.float64:
        raise ValueError(f"{name} must be float32, float16 or bfloat16 on a GPU, got {t.dtype}")
    if dims and t.dim() != dims:
        raise ValueError(f"{name} must have {dims} dimensions, got {checks.shape(t)}")


def _same(name: str, t: Tensor, other_name: str, other: Tensor) -> None:
    checks.like(name, t, other_name, other)
    checks.has_shape(name, t, other.shape, f"that of {other_name}")


def _code(values: Tensor, indices: Tensor) -> None:
    _rows("values", values)
    checks.indices("indices", indices, "values", values)


def _theta(theta: Tensor, u: Tensor, p: int, sigma: float, kind: str, stages: int = 0) -> None:
    checks.sigma(sigma)
    checks.one_of("kind", kind, KINDS)
    checks.theta(theta, u, p, stages=stages)
    if theta.dtype != accumulation_dtype(u.dtype):
        raise ValueError(f"theta must be {accumulation_dtype(u.dtype)}, got {theta.dtype}")


def _encoder(x: Tensor, W: Tensor, S: Tensor | None, bias: Tensor | None, stages: int) -> int:
    _rows("x", x, 2)
    checks.integer("num_stages", stages, 1)
    checks.encoder_operands(x, W, S, bias, stages)
    return W.shape[0]


def _saved(name: str, t: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    checks.has_shape(name, t, shape, "what the forward has saved")
    if t.dtype != dtype:
        raise ValueError(f"{name} must be {dtype}, got {t.dtype}")


def threshold(u, theta, sigma, kind):
    _rows("u", u)
    _theta(theta, u, u.shape[-1], sigma, kind)


def threshold_backward(grad_out, u, theta, sigma, kind, mask):
    threshold(u, theta, sigma, kind)
    _same("grad_out", grad_out, "u", u)


def top_m(u, m, positive):
    _rows("u", u)
    checks.integer("m", m, 0, u.shape[-1], "p")


def unpool(values, indices, size):
    _code(values, indices)
    checks.integer("size", size, values.shape[-1])


def apply_mask(u, mask):
    _rows("u", u)
    checks.has_shape("mask", mask, (*u.shape[:-1], (u.shape[-1] + 7) // 8), "[..., ceil(p / 8)]")
    if mask.dtype != torch.uint8 or mask.device != u.device:
        raise ValueError(f"mask must be uint8 on {u.device}, got {mask.dtype} on {mask.device}")


def _stage(x, W, z, S, bias):
    p = _encoder(x, W, S, bias, 2)
    checks.like("z", z, "x", x)
    checks.has_shape("z", z, (x.shape[0], p), "[B, p]")
    checks.has_shape("S", S, (p, p), "[p, p]")
    return p


def threshold_stage(x, W, z, S, bias, theta, sigma, kind, save):
    _theta(theta, x, _stage(x, W, z, S, bias), sigma, kind)


def top_m_stage(x, W, z, S, bias, m, positive):
    checks.integer("m", m, 0, _stage(x, W, z, S, bias), "p")


def encode_l0(x, W, S, bias, theta, num_stages, sigma, kind, save):
    _theta(theta, x, _encoder(x, W, S, bias, num_stages), sigma, kind, num_stages)


def encode_l0_backward(grad_z, saved, x, W, S, theta, sigma, kind, mask):
    if saved.dim() != 3:
        raise ValueError(f"saved must have shape [K, B, p], got {checks.shape(saved)}")
    stages = saved.shape[0]
    encode_l0(x, W, S, None, theta, stages, sigma, kind, True)
    batch_and_p = (x.shape[0], W.shape[0])
    checks.like("grad_z", grad_z, "x", x)
    checks.has_shape("grad_z", grad_z, batch_and_p, "[B, p]")
    _saved("saved", saved, (stages, *batch_and_p), accumulation_dtype(x.dtype))


def encode_top_m(x, W, S, bias, m, num_stages, positive, save):
    checks.integer("m", m, 0, _encoder(x, W, S, bias, num_stages), "p")


def encode_top_m_backward(grad_values, values, indices, saved_values, saved_indices, x, W, S, mask):
    if saved_values.dim() != 3:
        raise ValueError(
            f"saved_values must have shape [K - 1, B, m], got {checks.shape(saved_values)}"
        )
    steps = saved_values.shape[0]
    _code(grad_values, indices)
    _rows("grad_values", grad_values, 2)
    if values is not None:
        _same("values", values, "grad_values", grad_values)
    encode_top_m(x, W, S, None, grad_values.shape[1], steps + 1, False, True)
    checks.like("grad_values", grad_values, "x", x)
    checks.has_shape("grad_values", grad_values, (x.shape[0], grad_values.shape[1]), "[B, m]")
    saved = (steps, *grad_values.shape)
    _saved("saved_values", saved_values, saved, accumulation_dtype(x.dtype))
    _saved("saved_indices", saved_indices, saved, torch.int64)


def _factored(x: Tensor, W: Tensor, D: Tensor, bias: Tensor | None, step: Tensor | None) -> int:
    _rows("x", x, 2)
    checks.first_operands(x, W, bias)
    checks.like("D", D, "x", x)
    checks.has_shape("D", D, (W.shape[1], W.shape[0]), "[n, p]")
    if step is not None and step.dtype != accumulation_dtype(x.dtype):
        raise ValueError(f"step must be {accumulation_dtype(x.dtype)}, got {step.dtype}")
    return W.shape[0]


def encode_l0_factored(x, W, D, bias, step, theta, num_stages, sigma, kind, save):
    checks.integer("num_stages", num_stages, 1)
    _theta(theta, x, _factored(x, W, D, bias, step), sigma, kind, num_stages)
    checks.steps(step, x, num_stages)


def encode_l0_factored_backward(grad_z, saved, x, W, D, step, theta, sigma, kind, mask):
    if saved.dim() != 3:
        raise ValueError(f"saved must have shape [K, B, p], got {checks.shape(saved)}")
    encode_l0_factored(x, W, D, None, step, theta, saved.shape[0], sigma, kind, True)
    batch_and_p = (x.shape[0], W.shape[0])
    checks.like("grad_z", grad_z, "x", x)
    checks.has_shape("grad_z", grad_z, batch_and_p, "[B, p]")
    _saved("saved", saved, (saved.shape[0], *batch_and_p), accumulation_dtype(x.dtype))


def encode_top_m_factored(x, W, D, bias, step, m, positive, save):
    p = _factored(x, W, D, bias, step)
    checks.integer("num_stages", len(m), 1)
    checks.steps(step, x, len(m))
    for entries in m:
        checks.integer("m", entries, 0, p, "p")


def encode_top_m_factored_backward(
    grad_values, values, indices, saved_values, saved_indices, x, W, D, step, m, mask
):
    _code(grad_values, indices)
    if values is not None:
        _same("values", values, "grad_values", grad_values)
    encode_top_m_factored(x, W, D, None, step, m, False, True)
    checks.like("grad_values", grad_values, "x", x)
    checks.has_shape("grad_values", grad_values, (x.shape[0], m[-1]), "[B, m]")
    saved = (x.shape[0] * sum(m[:-1]),)
    _saved("saved_values", saved_values, saved, accumulation_dtype(x.dtype))
    _saved("saved_indices", saved_indices, saved, torch.int64)


def decode(values, indices, D):
    _code(values, indices)
    _rows("values", values, 2)
    _rows("D", D, 2)
    checks.like("D", D, "values", values)
    if values.shape[1] > D.shape[1]:
        raise ValueError(
            f"values must have at most p = {D.shape[1]} columns, got {values.shape[1]}"
        )


def decode_backward(grad, values, indices, D, mask):
    decode(values, indices, D)
    checks.like("grad", grad, "values", values)
    checks.has_shape("grad", grad, (values.shape[0], D.shape[0]), "[B, n]")


def omp(x, D, m, tol, positive=False):
    for name, t in (("x", x), ("D", D)):
        _rows(name, t, 2)
        if t.dtype != torch.float32:
            raise ValueError(f"{name} must be float32 on a GPU, got {t.dtype}")
    checks.like("D", D, "x", x)
    checks.has_shape("x", x, (x.shape[0], D.shape[0]), "[B, n]")
    checks.integer("m", m, 1, min(D.shape), "min(n, p)")


def least_squares(gram, right, support, floor):
    for name, t in (("gram", gram), ("right", right)):
        checks.floating(name, t)
        if t.dim() != 2 or t.dtype != torch.float64:
            raise ValueError(
                f"{name} must be a float64 matrix, got {t.dtype} of shape {tuple(t.shape)}"
            )
    checks.like("right", right, "gram", gram)
    checks.has_shape("gram", gram, (gram.shape[1], gram.shape[1]), "[p, p]")
    checks.indices("support", support, "right", right)
    if not floor >= 0:
        raise ValueError(f"floor must be >= 0, got {floor}")


CHECKS: dict[str, Callable[..., None]] = {
    check.__name__: check
    for check in (
        threshold, threshold_backward, top_m, unpool, apply_mask, threshold_stage, top_m_stage,
        encode_l0, encode_l0_backward, encode_l0_factored, encode_l0_factored_backward,
        encode_top_m, encode_top_m_backward, encode_top_m_factored, encode_top_m_factored_backward,
        decode, decode_backward, omp, least_squares,
    )
} | {"keep_top_m": top_m, "batch_top_m": top_m}  # fmt: skip
