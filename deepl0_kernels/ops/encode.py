"""The whole encoder in one operator: z_1 = h(x W'), z_{k+1} = h(x W' + z_k S')."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import reference
from ..backends import implementation
from ..reference.precision import accumulation_dtype
from . import checks, registration
from .sparse_code import SparseCode
from .thresholds import GRADS


def _fake_l0(x, W, S, theta, num_stages, sigma, kind, save):
    batch, p = x.shape[0], W.shape[0]
    dtype = accumulation_dtype(x.dtype)
    return x.new_empty((batch, p)), x.new_empty((num_stages if save else 0, batch, p), dtype=dtype)


def _fake_top_m(x, W, S, m, num_stages, save):
    last, before = (x.shape[0], m), (num_stages - 1 if save else 0, x.shape[0], m)
    return (
        x.new_empty(last),
        x.new_empty(last, dtype=torch.int64),
        x.new_empty(before, dtype=accumulation_dtype(x.dtype)),
        x.new_empty(before, dtype=torch.int64),
    )


registration.define(
    "encode_l0",
    "(Tensor x, Tensor W, Tensor? S, Tensor theta, int num_stages, float sigma, str kind,"
    " bool save) -> (Tensor, Tensor)",
    _fake_l0,
)
registration.define(
    "encode_l0_backward",
    "(Tensor grad_z, Tensor saved, Tensor x, Tensor W, Tensor? S, Tensor theta, float sigma,"
    " str kind, int mask) -> (Tensor, Tensor, Tensor, Tensor)",
    lambda grad_z, saved, x, W, S, theta, sigma, kind, mask: registration.fake_gradients(
        mask, x, W, x.new_empty(0) if S is None else S, theta
    ),
)
registration.define(
    "encode_top_m",
    "(Tensor x, Tensor W, Tensor? S, SymInt m, int num_stages, bool save)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_top_m,
)
registration.define(
    "encode_top_m_backward",
    "(Tensor grad_values, Tensor indices, Tensor saved_values, Tensor saved_indices, Tensor x,"
    " Tensor W, Tensor? S, int mask) -> (Tensor, Tensor, Tensor)",
    lambda grad_values, indices, saved_values, saved_indices, x, W, S, mask: (
        registration.fake_gradients(mask, x, W, x.new_empty(0) if S is None else (S,))
    ),
)


def _setup_l0(ctx, inputs, output):
    x, W, S, theta, _, ctx.sigma, ctx.kind, ctx.save = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, W, S, theta, output[1])


def _backward_l0(ctx, grad_z, _):
    _require_saved("encode_l0", ctx)
    x, W, S, theta, saved = ctx.saved_tensors
    mask = _wanted(ctx, saved.shape[0], 3)
    grads = torch.ops.deepl0.encode_l0_backward(
        grad_z, saved, x, W, S, theta, ctx.sigma, ctx.kind, mask
    )
    return (*_present(mask, grads), None, None, None, None)


def _setup_top_m(ctx, inputs, output):
    x, W, S, _, _, ctx.save = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, W, S, *output[1:])


def _backward_top_m(ctx, grad_values, *_):
    _require_saved("encode_top_m", ctx)
    x, W, S, indices, saved_values, saved_indices = ctx.saved_tensors
    mask = _wanted(ctx, saved_values.shape[0] + 1)
    grads = torch.ops.deepl0.encode_top_m_backward(
        grad_values, indices, saved_values, saved_indices, x, W, S, mask
    )
    return (*_present(mask, grads), None, None, None)


def _require_saved(name: str, ctx) -> None:
    if not ctx.save:
        raise RuntimeError(f"{name}: backward needs the call to be made with save=True")


def _wanted(ctx, stages: int, *others: int) -> int:
    """Of x, W, S and the others; one stage does not use S, whose gradient is then none."""
    mask = registration.wanted(ctx, 0, 1, 2, *others)
    return mask if stages > 1 else mask & ~4


def _present(mask: int, grads):
    return tuple(g if mask >> bit & 1 else None for bit, g in enumerate(grads))


torch.library.register_autograd("deepl0::encode_l0", _backward_l0, setup_context=_setup_l0)
torch.library.register_autograd("deepl0::encode_top_m", _backward_top_m, setup_context=_setup_top_m)
registration.refuse_double_backward("encode_l0_backward", "encode_l0")
registration.refuse_double_backward("encode_top_m_backward", "encode_top_m")
_l0_on_cpu = registration.serve("encode_l0", reference.encode_l0, low=(0, 1, 2))
_top_m_on_cpu = registration.serve("encode_top_m", reference.encode_top_m, low=(0, 1, 2))
registration.vmap_rows("encode_l0", rows=(0,), batch_dims=(0, 1))
registration.vmap_rows("encode_top_m", rows=(0,), batch_dims=(0, 0, 1, 1))

_PLAIN = (Tensor, Parameter)


def _checked_natively(x, W, S) -> bool:
    """Whether the CPU kernel itself refuses what does not fit these arguments.

    Then the checks in Python, a third of the time of a batch of one, are made only after it has
    refused, for the sake of their messages.
    """
    return (
        type(x) is Tensor
        and x.is_cpu
        and x.dim() == 2
        and type(W) in _PLAIN
        and W.is_cpu
        and (S is None or (type(S) in _PLAIN and S.is_cpu))
        and not torch.compiler.is_compiling()
    )


def encode_l0(
    x: Tensor,
    W: Tensor,
    S: Tensor | None,
    theta: float | Tensor,
    *,
    num_stages: int = 2,
    sigma: float = 0.0,
    grad: str = "helu",
) -> Tensor:
    """Deep l0-regularized encoder: K stages of ``z <- helu(x W' + z S', theta, sigma)``, z_0 = 0.

    Args:
        x: signals [..., n], float32, float64, float16 or bfloat16 (half types accumulate and
            threshold in float32, in every stage).
        W: [p, n]. S: [p, p] shared by the stages, or [num_stages - 1, p, p], one for each; None
            when num_stages is 1. Dtype and device of x.
        theta: > 0, a number or a tensor [], [p], or [num_stages, p].
        num_stages: K >= 1.
        sigma: in [0, 1], width of the ramp; 0 is the hard threshold.
        grad: derivative mode, as in :func:`helu`.

    Returns:
        z_K [..., p], differentiable in x, W, S and theta. Deterministic.

    Raises:
        ValueError: wrong shape, dtype, device, num_stages, sigma or grad.
        RuntimeError: on CPU, a theta with a value that is not > 0.

    At most 2 B p (n + (K - 1) p) flops; for training, the K pre-activations [B, p] are saved.
    Source: Wang, Ling, Huang 2016, eq. 6 and 9.
    """
    if (
        isinstance(theta, Tensor)
        and type(theta) in _PLAIN
        and theta.is_cpu
        and type(num_stages) is int
        and type(sigma) is float
        and type(grad) is str
        and grad in GRADS
        and _checked_natively(x, W, S)
        and theta.dtype == accumulation_dtype(x.dtype)
    ):
        encode = implementation("encode_l0", x)
        if encode is _l0_on_cpu:
            save = registration.records_gradient(x, W, S, theta)
            try:
                return encode(x, W, S, theta, num_stages, sigma, GRADS[grad], save)[0]
            except RuntimeError:
                pass  # what follows says what is wrong
    num_stages = checks.integer("num_stages", num_stages, 1)
    checks.encoder_operands(x, W, S, num_stages)
    sigma = checks.sigma(sigma)
    checks.one_of("grad", grad, tuple(GRADS))
    theta = checks.theta(theta, x, W.shape[0], stages=num_stages)
    save = registration.records_gradient(x, W, S, theta)
    rows = checks.rows(x)
    encode = implementation("encode_l0", x)
    z, _ = encode(rows, W, S, theta, num_stages, sigma, GRADS[grad], save)
    return z if x.dim() == 2 else z.reshape(*x.shape[:-1], W.shape[0])


def encode_top_m(
    x: Tensor, W: Tensor, S: Tensor | None, m: int, *, num_stages: int = 2
) -> SparseCode:
    """Deep M-sparse encoder: K stages of ``z <- keep_top_m(x W' + z S', m)``, z_0 = 0.

    Args:
        x: signals [..., n], float32, float64, float16 or bfloat16 (half types accumulate and
            select in float32, in every stage).
        W: [p, n]. S: [p, p] shared by the stages, or [num_stages - 1, p, p], one for each; None
            when num_stages is 1. Dtype and device of x.
        m: nonzeros of the code, 0 <= m <= p.
        num_stages: K >= 1.

    Returns:
        :class:`SparseCode` with values and indices [..., m]: exactly m entries, chosen as in
        :func:`top_m`. Differentiable in x, W and S through the values. Deterministic.

    Raises:
        ValueError: wrong shape, dtype, device, m or num_stages.

    2 B p (n + (K - 1) m) flops where the sparse product pays; for training, only the values and
    indices of the K stages are saved, O(K B m). For a few signals S stored by columns
    (``S.t().contiguous().t()``) is several times faster. Source: Wang, Ling, Huang 2016, eq. 10.
    """
    if type(m) is int and type(num_stages) is int and _checked_natively(x, W, S):
        encode = implementation("encode_top_m", x)
        if encode is _top_m_on_cpu:
            save = registration.records_gradient(x, W, S)
            try:
                values, indices, _, _ = encode(x, W, S, m, num_stages, save)
            except RuntimeError:
                pass  # what follows says what is wrong
            else:
                return SparseCode(values, indices, W.shape[0])
    num_stages = checks.integer("num_stages", num_stages, 1)
    checks.encoder_operands(x, W, S, num_stages)
    p = W.shape[0]
    m = checks.integer("m", m, 0, p, "p")
    save = registration.records_gradient(x, W, S)
    rows = checks.rows(x)
    values, indices, *_ = implementation("encode_top_m", x)(rows, W, S, m, num_stages, save)
    if x.dim() != 2:
        values, indices = (t.reshape(*x.shape[:-1], m) for t in (values, indices))
    return SparseCode(values, indices, p)
