"""Least squares on the support of a code, with a gradient that keeps no gathered atoms."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import reference
from .._matrices import gradient_of_matrix
from ..backends import implementation
from ..reference.least_squares import floor
from ..reference.precision import accumulation_dtype
from ..reference.refit import Supports, supports
from ..reference.thresholds import readable
from . import checks, registration
from .sparse_code import SparseCode

# Numbers of the systems that are formed at a time: on a CPU they stay in cache.
_AT_ONCE, _AT_ONCE_ELSEWHERE = 2**19, 2**24


def _systems(x: Tensor, D: Tensor, indices: Tensor) -> Iterator[tuple[slice, Supports]]:
    """Of a few rows after the others."""
    (B, m), n = indices.shape, x.shape[1]
    if B * m >= D.shape[1]:  # each atom is read once or more
        D = D.t().contiguous().t()
    at_once = _AT_ONCE if x.is_cpu else _AT_ONCE_ELSEWHERE
    count = max(1, at_once // max(1, m * (n + m)))
    for start in range(0, B, count):
        rows = slice(start, start + count)
        yield rows, supports(x[rows], D, indices[rows])


def _refit(x: Tensor, D: Tensor, indices: Tensor) -> Tensor:
    _in_range(indices, -1, D.shape[1])  # -1: no atom
    values = x.new_empty(indices.shape)
    least = floor(D.dtype)
    for rows, s in _systems(x, D, indices):
        values[rows] = s.solve(s.products, least)[..., 0].masked_fill_(s.spoilt, torch.nan)
    return values


def _in_range(indices: Tensor, least: int, p: int) -> None:
    if not indices.numel():
        return
    low, high = (int(end) for end in indices.aminmax())
    if low < least or high >= p:
        seen = low if low < least else high
        raise ValueError(f"support must have indices in [0, p) with p = {p}, got {seen}")


def _refit_backward(
    grad: Tensor, x: Tensor, D: Tensor, indices: Tensor, mask: int
) -> tuple[Tensor, Tensor]:
    """With G = D_S'D_S and w = G^-1 grad: dx = D_S w, dD_S = (x - D_S v) w' - D_S w v'."""
    (B, m), n = indices.shape, x.shape[1]
    grad_x = registration.gradient(x, mask & 1)
    # What D's gradient is the sum of: sides [2 B, n] times values [2 B, m] of sparse codes.
    dtype = accumulation_dtype(x.dtype)
    sides, values = (x.new_empty((2, B, k) if mask & 2 else 0, dtype=dtype) for k in (n, m))
    least = floor(D.dtype)
    for rows, s in _systems(x, D, indices) if mask else ():
        w = grad[rows].double()[:, :, None]
        # Two right sides whatever is asked for: one alone would be rounded otherwise.
        wv = s.solve(torch.cat((w, s.products if mask & 2 else torch.zeros_like(w)), 2), least)
        made = wv.mT @ s.atoms  # D_S w, and D_S v
        spoilt = s.spoilt.any(1, keepdim=True)
        if mask & 1:
            grad_x[rows] = made[:, 0].masked_fill(spoilt, torch.nan)
        if mask & 2:
            # Of a row that is NaN the values are, at its atoms alone.
            wv = wv.masked_fill(s.spoilt[:, :, None], torch.nan)
            values[0, rows], values[1, rows] = wv[..., 0], wv[..., 1]
            sides[0, rows] = (s.x - made[:, 1]).masked_fill(spoilt, 0.0)
            sides[1, rows] = made[:, 0].masked_fill(spoilt, 0.0).neg_()
    if not mask & 2:
        return grad_x, D.new_empty(0)
    return grad_x, _sum_of_products(
        sides.flatten(0, 1), values.flatten(0, 1), indices.clamp_min(0).repeat(2, 1), D
    )


def _sum_of_products(sides: Tensor, values: Tensor, indices: Tensor, D: Tensor) -> Tensor:
    """``sum_b sides_b a_b'`` [n, p] for codes a, like D; the same bits in every run."""
    out = gradient_of_matrix(D)
    if D.is_cpu:
        wide = D.to(values.dtype)
        return out.copy_(torch.ops.deepl0.decode_backward(sides, values, indices, wide, 2)[1])
    total = sides.new_zeros(D.shape[1], D.shape[0])
    count = max(1, _AT_ONCE_ELSEWHERE // max(1, values.shape[1] * D.shape[0]))
    parts = (t.split(count) for t in (sides, values, indices))
    for side, value, at in zip(*parts, strict=True):
        products = value[:, :, None] * side[:, None, :]
        # (index_add_ would use atomics.)
        total.index_put_((at.flatten(),), products.flatten(0, 1), accumulate=True)
    return out.copy_(total.t())


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    mask = registration.mask(ctx, 0, 1)
    grads = torch.ops.deepl0.refit_backward(grad, *ctx.saved_tensors, mask)
    return *registration.wanted(mask, *grads), None


registration.define(
    "refit",
    "(Tensor x, Tensor D, Tensor indices) -> Tensor",
    lambda x, D, indices: x.new_empty(indices.shape),
)
registration.define(
    "refit_backward",
    "(Tensor grad, Tensor x, Tensor D, Tensor indices, int mask) -> (Tensor, Tensor)",
    lambda grad, x, D, indices, mask: (
        registration.gradient(x, mask & 1),
        gradient_of_matrix(D) if mask & 2 else D.new_empty(0),
    ),
)
registration.compose("refit", _refit, reference.refit)
registration.compose("refit_backward", _refit_backward)
registration.differentiate("refit", _setup, _backward)
registration.refuse_double_backward("refit_backward", "refit")
registration.vmap_rows("refit", rows=(0, 2), batch_dims=(0,))


def refit(x: Tensor, D: Tensor, support: SparseCode | Tensor) -> SparseCode:
    """The code that fits x best on a given support, by least squares: ``argmin_v ||x - D_S v||``.

    The support, which another has chosen (:func:`deepl0_kernels.solvers.omp`, :func:`top_m`), is a
    constant; the values are differentiable in x and D, by the implicit function theorem. This is
    how a sparse autoencoder whose codes a pursuit finds is trained.

    Args:
        x: [..., n], float32, float64, float16 or bfloat16.
        D: dictionary [n, p], columns are atoms of any norm; dtype and device of x.
        support: a :class:`SparseCode` with x's leading dimensions, whose entries other than 0 are
            the support: those that a pursuit has left over stay 0. Or its indices [..., m], int64,
            distinct within a row, all of which are in it. m may exceed n.

    Returns:
        :class:`SparseCode` with the indices given. An atom that depends on others of its support
        (closer to their span than 10 sqrt(eps), as unit atoms) has the value 0, the farthest being
        taken first, and passes no gradient. A row with inf or NaN, in x or in an atom of its
        support, is NaN. Deterministic.

    Raises:
        TypeError: support is no code and no tensor.
        ValueError: wrong shape, dtype or device, ``support.size`` is not p, an index out of range.
        RuntimeError: a gradient is differentiated again; the reference does that.

    Solved in float64 on unit atoms, O(m^2 n + m^3) a row, forward and again backward; D'D is not
    formed. Kept for the backward are x, D and the indices; the atoms of a few rows, 4 MiB on a CPU,
    are gathered at a time. PyTorch's operators serve, on any device; under torch.func and forward
    mode by the reference, which gathers [B, m, n] and keeps it.
    Source: the gradient of a least squares solution, Golub and Pereyra 1973.

    Example:
        >>> D = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])  # two pixels, three atoms
        >>> dk.refit(torch.tensor([[3.0, 2.0]]), D, torch.tensor([[0, 1]])).to_dense()
        tensor([[1., 2., 0.]])
    """
    checks.floating("x", x)
    checks.like("D", D, "x", x)
    n = x.shape[-1]
    if D.dim() != 2 or D.shape[0] != n:
        raise ValueError(f"D must have shape [n, p] with n = {n}, got {checks.shape(D)}")
    given, at = _indices(support, D.shape[1])
    if given.dim() == 0 or given.shape[:-1] != x.shape[:-1] or given.device != x.device:
        raise ValueError(
            f"support must have shape [..., m] with the leading dimensions of x "
            f"{tuple(x.shape[:-1])} and be on its device ({x.device}), got {checks.shape(given)}, "
            f"{given.device}"
        )
    values = implementation("refit", x)(checks.rows(x), D, checks.rows(at))
    return SparseCode(values.reshape(given.shape), given, D.shape[1])


def _indices(support: SparseCode | Tensor, p: int) -> tuple[Tensor, Tensor]:
    """Those of a support, as given, and with -1 where there is no atom."""
    if isinstance(support, SparseCode):
        checks.floating("support.values", support.values)
        checks.indices("support.indices", support.indices, "support.values", support.values)
        if support.size != p:
            raise ValueError(f"support must have size p = {p}, got {support.size}")
        indices = support.indices
        return indices, indices.masked_fill(support.values.detach() == 0, -1)
    if not isinstance(support, Tensor):
        raise TypeError(f"support must be a SparseCode or a tensor, got {type(support).__name__}")
    if support.dtype != torch.int64:
        raise ValueError(f"support must be int64, got {support.dtype}")
    if readable(support):
        _in_range(support, 0, p)
    return support, support
