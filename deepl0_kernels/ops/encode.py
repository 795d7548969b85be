"""The whole encoder in one operator: z_1 = h(x W' + b), z_{k+1} = h(x W' + b + z_k S')."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from .._matrices import gradient_of_matrix
from ..reference.precision import accumulation_dtype
from . import checks, placements, registration, sharded
from .encode_factored import encode_l0_factored, encode_top_m_factored, entries_of_stages
from .plan import Plan, checked_plan
from .sparse_code import SparseCode
from .thresholds import GRADS, kind_of

_L0 = (
    "(Tensor x, Tensor W, Tensor? S, Tensor? bias, Tensor theta, SymInt num_stages, float sigma,"
    " str kind)"
)
_TOP_M = "(Tensor x, Tensor W, Tensor? S, Tensor? bias, SymInt m, SymInt num_stages, bool positive)"


def _fake_l0(x, W, S, bias, theta, num_stages, sigma, kind):
    return x.new_empty((x.shape[0], W.shape[0]))


def _fake_l0_saving(x, W, S, bias, theta, num_stages, sigma, kind):
    z = x.new_empty((x.shape[0], W.shape[0]))
    return z, z.new_empty((num_stages, *z.shape), dtype=accumulation_dtype(x.dtype))


def _fake_top_m(x, W, S, bias, m, num_stages, positive):
    code = (x.shape[0], m)
    return x.new_empty(code), x.new_empty(code, dtype=torch.int64)


def _fake_top_m_saving(x, W, S, bias, m, num_stages, positive):
    before = (num_stages - 1, x.shape[0], m)
    return (
        *_fake_top_m(x, W, S, bias, m, num_stages, positive),
        x.new_empty(before, dtype=accumulation_dtype(x.dtype)),
        x.new_empty(before, dtype=torch.int64),
    )


registration.define("encode_l0", f"{_L0} -> Tensor", _fake_l0)
# -> z_K, and the pre-activations of all stages [K, B, p].
registration.define("encode_l0_saving", f"{_L0} -> (Tensor, Tensor)", _fake_l0_saving)
registration.define(
    "encode_l0_backward",
    "(Tensor grad_z, Tensor saved, Tensor x, Tensor W, Tensor? S, Tensor theta, float sigma,"
    " str kind, int mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    lambda grad_z, saved, x, W, S, theta, sigma, kind, mask: (
        registration.gradient(x, mask & 1),
        registration.gradient(W, mask & 2),
        x.new_empty(0) if S is None else registration.gradient(S, mask & 4),
        registration.gradient(theta, mask & 8),
        x.new_empty(W.shape[0] if mask & 16 else 0),
    ),
)
registration.define("encode_top_m", f"{_TOP_M} -> (Tensor, Tensor)", _fake_top_m)
# -> values and indices, and those of the stages before [K - 1, B, m].
registration.define(
    "encode_top_m_saving", f"{_TOP_M} -> (Tensor, Tensor, Tensor, Tensor)", _fake_top_m_saving
)
# values: of the code, where it is nonnegative; then what is 0 passes no gradient, in any stage.
registration.define(
    "encode_top_m_backward",
    "(Tensor grad_values, Tensor? values, Tensor indices, Tensor saved_values,"
    " Tensor saved_indices, Tensor x, Tensor W, Tensor? S, int mask)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    lambda grad_values, values, indices, saved_values, saved_indices, x, W, S, mask: (
        registration.gradient(x, mask & 1),
        registration.gradient(W, mask & 2),
        gradient_of_matrix(S) if S is not None and mask & 4 else x.new_empty(0),
        x.new_empty(W.shape[0] if mask & 8 else 0),
    ),
)
_l0_backward = registration.native("encode_l0_backward")
_top_m_backward = registration.native("encode_top_m_backward")


# S of a single stage is not used: it is neither saved nor differentiated.


def _setup_l0(ctx, inputs, output):
    x, W, S, _, theta, num_stages, ctx.sigma, ctx.kind = inputs
    ctx.uses_S = num_stages > 1
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, W, S if ctx.uses_S else None, theta, output[1])


def _backward_l0(ctx, grad_z, *_):
    x, W, S, theta, saved = ctx.saved_tensors
    mask = registration.mask(ctx, 0, 1, 2, 4, 3) & (~0 if ctx.uses_S else ~4)
    grads = _l0_backward(grad_z, saved, x, W, S, theta, ctx.sigma, ctx.kind, mask)
    gx, gW, gS, gtheta, gbias = registration.wanted(mask, *grads)
    return gx, gW, gS, gbias, gtheta, None, None, None


def _setup_top_m(ctx, inputs, output):
    x, W, S, _, _, num_stages, positive = inputs
    values, *codes = output
    ctx.uses_S = num_stages > 1
    ctx.mark_non_differentiable(*codes)
    ctx.save_for_backward(x, W, S if ctx.uses_S else None, values if positive else None, *codes)


def _backward_top_m(ctx, grad_values, *_):
    x, W, S, *codes = ctx.saved_tensors
    mask = registration.mask(ctx, 0, 1, 2, 3) & (~0 if ctx.uses_S else ~4)
    grads = _top_m_backward(grad_values, *codes, x, W, S, mask)
    return *registration.wanted(mask, *grads), None, None, None


def _prepare(x, W, S, bias, num_stages):
    num_stages = checks.integer("num_stages", num_stages, 1)
    checks.encoder_operands(x, W, S, bias, num_stages)
    return checks.rows(x), W, S if num_stages > 1 else None, num_stages


def _prepare_l0(x, W, S, bias, theta, num_stages, sigma, kind):
    rows, _, S, num_stages = _prepare(x, W, S, bias, num_stages)
    theta = checks.theta(theta, x, W.shape[0], stages=num_stages)
    return rows, W, S, bias, theta, num_stages, checks.sigma(sigma), kind


def _prepare_top_m(x, W, S, bias, m, num_stages, positive):
    rows, _, S, num_stages = _prepare(x, W, S, bias, num_stages)
    m = checks.integer("m", m, 0, W.shape[0], "p")
    return rows, W, S, bias, m, num_stages, checks.boolean("positive", positive)


registration.differentiate("encode_l0", _setup_l0, _backward_l0)
registration.differentiate("encode_top_m", _setup_top_m, _backward_top_m)
registration.refuse_double_backward("encode_l0_backward", "encode_l0")
registration.refuse_double_backward("encode_top_m_backward", "encode_top_m")
_encode_l0 = registration.serve(
    "encode_l0",
    lambda *args: reference.encode_l0(*args)[0],
    _prepare_l0,
    low=(0, 1, 2, 3),
    dims=2,
)
_encode_top_m = registration.serve(
    "encode_top_m",
    lambda *args: reference.encode_top_m(*args)[:2],
    _prepare_top_m,
    low=(0, 1, 2, 3),
    dims=2,
)
registration.vmap_rows("encode_l0", rows=(0,), batch_dims=(0,))
registration.vmap_rows("encode_top_m", rows=(0,), batch_dims=(0, 0))


def encode_l0(
    x: Tensor,
    W: Tensor,
    S: Tensor | None,
    theta: float | Tensor,
    *,
    num_stages: int = 2,
    sigma: float | Tensor = 0.0,
    grad: str = "helu",
    bias: Tensor | None = None,
    positive: bool = False,
    D: Tensor | None = None,
    step: float | Sequence[float] | Tensor | None = None,
    plan: Plan | None = None,
) -> Tensor:
    """Deep l0-regularized encoder: K stages of ``z <- helu(x W' + bias + z S', theta, sigma)``
    from z_0 = 0, or, with D, of ``z <- helu(z + step (x - z D') W' + bias, theta, sigma)``.

    Args:
        x: signals [..., n], float32, float64, float16 or bfloat16 (half types accumulate and
            threshold in float32, and z is rounded to them in every stage).
        W: [p, n]. S: [p, p] shared by the stages, or [num_stages - 1, p, p], one for each; None
            when num_stages is 1, which does not use it. Dtype and device of x.
        theta: > 0, a number or a tensor [], [p], or [num_stages, p].
        num_stages: K >= 1.
        sigma: in [0, 1], width of the ramp, a number or a tensor []; 0 is the hard threshold.
        grad: derivative mode, as in :func:`helu`.
        bias: [p] in the dtype of x, or None.
        positive: nonnegative codes: one-sided thresholds, as in :func:`helu`.
        D: [n, p] in the place of S: the factored stage, where S is ``I - W D``, never formed.
        step: with D, a factor > 0 of W: a number, or one for each stage, as numbers or as a
            tensor [num_stages].
        plan: of :func:`prepare`, for weights that serve many calls.

    Returns:
        z_K [..., p], differentiable in every tensor argument. Deterministic.

    Raises:
        ValueError: wrong shape, dtype, device, num_stages, sigma, grad or step; both S and D, or
            step without D.
        RuntimeError: on CPU, a theta with a value that is not > 0.

    At most 2 B p (n + (K - 1) p) flops, with D 2 B p n (2 K - 1); for training, the K
    pre-activations [B, p] are saved. Source: Wang, Ling, Huang 2016, eq. 6 and 9.

    Example:
        >>> D = torch.nn.functional.normalize(torch.randn(16, 32), dim=0)
        >>> step = 0.99 / torch.linalg.matrix_norm(D, 2) ** 2
        >>> W, S = step * D.T, torch.eye(32) - step * D.T @ D  # two iterations of IHT
        >>> z = dk.encode_l0(torch.randn(8, 16), W, S, theta=0.5, num_stages=2)
        >>> z.shape, bool((z[z != 0].abs() >= 0.5).all())
        (torch.Size([8, 32]), True)
    """
    placements.refuse("encode_l0", x, W, D)
    checks.one_of("grad", grad, tuple(GRADS))
    kind = kind_of(GRADS[grad], positive)
    if plan is not None and _may_serve(plan, x):
        z = plan._encode_l0(x, W, S, theta, num_stages, sigma, kind, bias, D, step)
        if z is not None:
            return z if x.dim() == 2 else z.reshape(*x.shape[:-1], W.shape[0])
    if D is None:
        _no_factors(step)
        z = _encode_l0(x, W, S, bias, theta, num_stages, sigma, kind)
    else:
        _no_matrix(S)
        z = encode_l0_factored(x, W, D, bias, step, theta, num_stages, sigma, kind)
    return z if x.dim() == 2 else z.reshape(*x.shape[:-1], W.shape[0])


def encode_top_m(
    x: Tensor,
    W: Tensor,
    S: Tensor | None,
    m: int | Sequence[int],
    *,
    num_stages: int = 2,
    bias: Tensor | None = None,
    positive: bool = False,
    D: Tensor | None = None,
    step: float | Sequence[float] | Tensor | None = None,
    plan: Plan | None = None,
) -> SparseCode:
    """Deep M-sparse encoder: K stages of ``z <- keep_top_m(x W' + bias + z S', m)``, z_0 = 0, or,
    with D, of ``z <- keep_top_m(z + step (x - z D') W' + bias, m)``.

    Args:
        x: signals [..., n], float32, float64, float16 or bfloat16 (half types accumulate and
            select in float32, and z is rounded to them in every stage).
        W: [p, n]. S: [p, p] shared by the stages, or [num_stages - 1, p, p], one for each; None
            when num_stages is 1, which does not use it. Dtype and device of x.
        m: entries of the code, 0 <= m <= p, zeros among them where fewer are nonzero; with D also
            a sequence of num_stages such numbers, one for each stage.
        num_stages: K >= 1.
        bias: [p] in the dtype of x, or None.
        positive: nonnegative codes, as in :func:`top_m`: with one stage the encoder of a TopK
            sparse autoencoder.
        D: [n, p] in the place of S: the factored stage, where S is ``I - W D``, never formed.
        step: with D, a factor > 0 of W: a number, or one for each stage, as numbers or as a
            tensor [num_stages].
        plan: of :func:`prepare`, for weights that serve many calls.

    W and bias may be DTensors with the placement Shard(0), D with Shard(1): a dictionary whose
    units are spread over ranks, with one stage or D, and the code comes back whole on every rank
    (docs/scale.md).

    Returns:
        :class:`SparseCode` with values and indices [..., m]: exactly m entries, chosen as in
        :func:`top_m`. Differentiable in every tensor argument, through the values. Deterministic.

    Raises:
        ValueError: wrong shape, dtype, device, m, num_stages or step; both S and D, or a step or
            several m without D.

    2 B p (n + (K - 1) m) flops where the sparse product pays; for training, only the values and
    indices of the K stages are saved, O(K B m). With D 2 K B (n p + m n) flops, and no memory of
    B p or p^2 entries; a D stored by columns (``D.t().contiguous().t()``) spares a copy of it, and
    for a few signals an S stored so is several times faster. Source: Wang, Ling, Huang 2016,
    eq. 10.

    Example:
        >>> x, W, S = torch.randn(8, 16), torch.randn(32, 16) / 4, torch.randn(32, 32) / 32
        >>> code = dk.encode_top_m(x, W, S, m=3, num_stages=2)
        >>> code.values.shape, code.indices.shape, code.to_dense().shape
        (torch.Size([8, 3]), torch.Size([8, 3]), torch.Size([8, 32]))
    """
    if placements.is_dtensor(x, W):
        values, indices = sharded.encode_top_m(x, W, S, m, num_stages, bias, positive, D, step)
        return SparseCode(values, indices, W.shape[0])
    found = None
    if plan is not None and _may_serve(plan, x):
        found = plan._encode_top_m(x, W, S, m, num_stages, bias, positive, D, step)
    if found is not None:
        values, indices = found
    elif D is None:
        _no_factors(step)
        if type(m) is not int and isinstance(m, Sequence):
            raise ValueError(f"m must be one number without D, got {m!r}")
        values, indices = _encode_top_m(x, W, S, bias, m, num_stages, positive)
    else:
        _no_matrix(S)
        entries = entries_of_stages(m, num_stages)
        values, indices = encode_top_m_factored(x, W, D, bias, step, entries, positive)
    if x.dim() != 2:
        values, indices = (t.reshape(*x.shape[:-1], t.shape[-1]) for t in (values, indices))
    return SparseCode(values, indices, W.shape[0])


def _may_serve(plan: Plan, x: object) -> bool:
    """Whether a plan is to be asked: a graph has the operators in it."""
    if torch.compiler.is_compiling():
        return False
    checked_plan(plan)
    return type(x) is Tensor


def _no_factors(step: object) -> None:
    if step is not None:
        raise ValueError(f"step must be None without D, got {step!r}")


def _no_matrix(S: object) -> None:
    if S is not None:
        what = checks.shape(S) if isinstance(S, Tensor) else repr(S)
        raise ValueError(f"S must be None where D is given, got {what}")
