"""encode_top_m and decode of DTensors: dictionaries whose units are spread over ranks.

W [p, n] and bias [p] with the placement Shard(0), D [n, p] with Shard(1), over one dimension of a
mesh or several; x whole on every rank of these, as a plain tensor, or as a DTensor of the same mesh
that may be sharded over its batch in the other dimensions. Every rank selects among its units, one
all-gather of (values, indices) a level decides (:mod:`.units`), and the code that comes back is
whole on every rank, with indices in the whole dictionary: plain tensors, or with a DTensor x
DTensors with its placements.

What travels, for B rows, in values of 4 bytes (8 in float64), on each of R ranks:

* forward, a stage: 8 B m bytes sent and 8 B m R received, and in every stage but the first an
  all-reduce of 4 B n bytes, the partial D z. decode: one all-reduce of 4 B n bytes.
* backward, a stage: an all-reduce of 4 B n bytes, in the first stage only where x (or step) wants a
  gradient. decode: 4 B m bytes for the values, if they want one.
* a call: twice some 100 bytes, by which ranks agree that they make the same call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._isolation import isolated
from ..reference.precision import accumulation_dtype
from ..reference.top_m import unpool
from . import checks
from .encode_factored import entries_of_stages
from .placements import Mesh, agreed, shape_here, wants_gradient
from .shard import shard_top_m
from .sparse_code import SparseCode
from .units import Own, has_values

# -- encode


def encode_top_m(
    x: Tensor,
    W: Tensor,
    S: Tensor | None,
    m: int | Sequence[int],
    num_stages: int,
    bias: Tensor | None,
    positive: bool,
    D: Tensor | None,
    step: Any,
) -> tuple[Tensor, Tensor]:
    """Values and indices [..., m] of :func:`deepl0_kernels.encode_top_m` for DTensors."""

    def facts() -> dict[str, Any]:
        operands = x, W, bias, D, step
        return {
            "m": m if isinstance(m, int) else list(m),
            "num_stages": num_stages,
            "the shape of W": list(W.shape),
            "the shape of x": shape_here(x),
            "the dtype": str(x.dtype),
            "positive": positive,
            "what is given": [t is not None for t in (bias, D, step)],
            "what wants a gradient": [wants_gradient(t) for t in operands],
        }

    mesh, (rows, placements, operands, step, entries) = agreed(
        Mesh("W", 0),
        W,
        lambda mesh: _prepare(mesh, x, W, S, m, num_stages, bias, positive, D, step),
        facts,
    )
    lead, low = rows.shape[:-1], checks.dtype_of_products(rows)
    rows, *operands = (_to(t, low) for t in (checks.rows(rows), *operands))
    if D is not None:
        step = checks.steps(step, rows, len(entries))
    values, indices = _Encode.apply(mesh.units, entries, positive, rows, *operands, step)
    return mesh.placed(values, placements, lead), mesh.placed(indices, placements, lead)


def _prepare(
    mesh: Mesh,
    x: Any,
    W: Any,
    S: Any,
    m: Any,
    num_stages: Any,
    bias: Any,
    positive: Any,
    D: Any,
    step: Any,
) -> Any:
    """This rank's operands, checked."""
    entries = entries_of_stages(m, num_stages)
    if S is not None:
        raise ValueError(
            "S must be None where the units of W are sharded, as it couples all of them; factored "
            f"stages (D=) shard, got S {checks.shape(S)}"
        )
    if D is None and step is not None:
        raise ValueError(f"step must be None without D, got {step!r}")
    if D is None and len(entries) > 1:
        raise ValueError(
            f"num_stages must be 1 without D where units are sharded, got {len(entries)}"
        )
    checks.first_operands(x, W, bias)
    if D is not None:
        checks.like("D", D, "x", x)
        checks.has_shape("D", D, (W.shape[1], W.shape[0]), "[n, p]")
    checks.boolean("positive", positive)
    entries = [checks.integer("m", one, 0, W.shape[0], "p") for one in entries]
    rows, placements = mesh.vectors(x)
    operands = mesh.weights("W", W, 0), mesh.weights("bias", bias, 0), mesh.weights("D", D, 1)
    if isinstance(step, Tensor):
        step = mesh.weights("step", step, None)
    checks.steps(step, rows, len(entries))
    return rows, placements, operands, step, entries


def _to(t: Any, dtype: torch.dtype) -> Any:
    return None if t is None else t.to(dtype)


class _Encode(torch.autograd.Function):
    """All stages on this rank's units: r_k = step_k (x - D z_k), z_{k+1} = top_m(z_k + W r_k + b).

    Of every stage the residual [B, n] and this rank's entries are kept.
    """

    @staticmethod
    @isolated()
    def forward(ctx, units, m, positive, x, W, bias, D, step):
        wide = accumulation_dtype(x.dtype)
        ctx.given = [t if t is None else t.dtype for t in (x, W, bias, D)]
        xw, Ww, bw, Dw = (_to(t, wide) for t in (x, W, bias, D))
        z = (xw.new_empty(len(x), 0), xw.new_empty(len(x), 0).long())
        stages: list[Any] = []
        values: Any = None
        indices: Any = None
        for k, entries in enumerate(m):
            r = xw
            if k > 0:
                r = xw - units.sum(_gather_sum(stages[-1][2], stages[-1][1].local, Dw))
            if step is not None:
                r = r * step[k]
            local = shard_top_m(r, Ww, bw, *z, min(entries, units.count), positive)
            values, indices = units.select(*local, entries, positive)
            values = values.to(x.dtype).to(wide)
            own = units.own(indices)
            z = own.pick(values), own.local
            stages.append((r, own, z[0]))
        out = values.to(x.dtype)
        ctx.units, ctx.m, ctx.positive, ctx.step, ctx.stages = units, m, positive, step, stages
        ctx.passing = stages[-1][1].pick(out) != 0 if positive else None
        ctx.save_for_backward(x, W, D)
        ctx.mark_non_differentiable(indices)
        return out, indices

    @staticmethod
    @torch.autograd.function.once_differentiable
    @isolated()
    def backward(ctx, grad, _):
        units, stages, step = ctx.units, ctx.stages, ctx.step
        x, W, D = ctx.saved_tensors
        wide = accumulation_dtype(x.dtype)
        need_x, need_W, need_b, need_D, need_step = ctx.needs_input_grad[3:]
        Ww, Dw = W.to(wide), _to(D, wide)
        du = stages[-1][1].pick(grad.to(wide))
        if ctx.passing is not None:
            du = torch.where(ctx.passing, du, 0.0)
        gx = gW = gD = None
        gb = torch.zeros(units.count, dtype=torch.float64, device=x.device) if need_b else None
        gstep = torch.zeros_like(step, dtype=torch.float64) if need_step else None
        for k in range(len(stages) - 1, -1, -1):
            r, own, _mine = stages[k]
            if need_W:
                gW = _plus(gW, _outer_sum(r, du, own.local, Ww))
            if gb is not None:
                _add_at(gb, own.local, du)
            if k == 0 and not (need_x or need_step):
                break
            # Of the residual before its step.
            g = units.sum(_gather_sum(du, own.local, Ww.t()))
            if gstep is not None:
                gstep[k] = (g.double() * r.double()).sum() / step[k]
            if step is not None:
                g = g * step[k]
            gx = _plus(gx, g) if need_x else None
            if k == 0:
                break
            _, below, z = stages[k - 1]
            if need_D:
                gD = _plus(gD, -_outer_sum(g, z, below.local, Dw.t()).t())
            dz = _same_units(du, own, below) - _dots(g, below.local, Dw)
            dz = torch.where(below.present, dz, 0.0)
            du = torch.where(z != 0, dz, 0.0) if ctx.positive else dz
        grads = [gx, gW, gb, gD]
        if gstep is not None:
            gstep = gstep.to(step.dtype)
        cast = [_to(g, t) for g, t in zip(grads, ctx.given, strict=True)]
        return None, None, None, *cast, gstep


class Some:
    """Some units of a sharded dictionary, the same on all ranks, as a dictionary of its own.

    units: int64, ascending. x is whole on every rank, which make the same calls.
    """

    def __init__(self, W: Any, bias: Any, D: Any, units: Tensor) -> None:
        mesh = Mesh("W", 0).of(W)
        self.units, self.mine = mesh.units.some(units)
        self.W = self._mine(mesh.weights("W", W, 0))
        self.bias = self._mine(mesh.weights("bias", bias, 0))
        local: Any = mesh.weights("D", D, 1)
        self.D = self._mine(local.t()).t()

    def _mine(self, t: Any) -> Tensor:
        return t.index_select(0, self.mine)

    def encode(self, x: Tensor, bias: Tensor, m: int, positive: bool) -> tuple[Tensor, Tensor]:
        """The m largest, values and indices among these units."""
        return _Encode.apply(self.units, [m], positive, x, self.W, bias, None, None)

    def decode(self, values: Tensor, indices: Tensor) -> Tensor:
        return _Decode.apply(self.units, values, indices, self.D)


# -- decode


def decode(code: SparseCode, D: Tensor) -> Tensor:
    """:func:`deepl0_kernels.decode` for a sharded D: [..., n] on every rank, placed as the code."""

    def prepare(mesh: Mesh) -> Any:
        if not isinstance(code, SparseCode):
            raise TypeError(f"code must be a SparseCode, got {type(code).__name__}")
        values, p = code.values, mesh.units.p
        checks.floating("code.values", values)
        checks.like("D", D, "code.values", values)
        if D.dim() != 2 or code.size != p:
            raise ValueError(
                f"D must have shape [n, p] with p = {code.size}, got {checks.shape(D)}"
            )
        rows, placements = mesh.vectors(values)
        at = mesh.vectors(code.indices)[0]
        checks.indices("code.indices", at, "code.values", rows)
        if has_values(at) and at.numel():
            low, high = int(at.min()), int(at.max())
            if low < 0 or high >= p:
                raise ValueError(
                    f"code.indices must be in [0, p) with p = {p}, got {low} to {high}"
                )
        return rows, placements, at, mesh.weights("D", D, 1)

    def facts() -> dict[str, Any]:
        return {
            "the shape of D": list(D.shape),
            "the shape of the code": shape_here(code.values),
            "the dtype": str(code.values.dtype),
            "what wants a gradient": [wants_gradient(t) for t in (code.values, D)],
        }

    mesh, (rows, placements, at, local) = agreed(Mesh("D", 1), D, prepare, facts)
    lead, low = rows.shape[:-1], checks.dtype_of_products(rows)
    out = _Decode.apply(mesh.units, checks.rows(rows).to(low), checks.rows(at), local.to(low))
    return mesh.placed(out, placements, lead)


class _Decode(torch.autograd.Function):
    @staticmethod
    @isolated()
    def forward(ctx, units, values, indices, D):
        wide = accumulation_dtype(values.dtype)
        own = units.own(indices)
        mine, Dw = own.pick(values.to(wide)), D.to(wide)
        ctx.units, ctx.own, ctx.mine, ctx.m = units, own, mine, values.shape[1]
        ctx.save_for_backward(values, D)
        return units.sum(_gather_sum(mine, own.local, Dw)).to(values.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    @isolated()
    def backward(ctx, grad):
        values, D = ctx.saved_tensors
        wide = accumulation_dtype(values.dtype)
        grad, Dw, own = grad.to(wide), D.to(wide), ctx.own
        gv = gD = None
        if ctx.needs_input_grad[1]:
            dots = _dots(grad, own.local, Dw)
            gv = ctx.units.sum(own.put(dots, ctx.m).contiguous()).to(values.dtype)
        if ctx.needs_input_grad[3]:
            gD = _outer_sum(grad, ctx.mine, own.local, Dw.t()).t().to(D.dtype)
        return None, gv, None, gD


# -- this rank's sums


def _gather_sum(values: Tensor, local: Tensor, D: Tensor) -> Tensor:
    """D z [B, n] of codes [B, w] over D [n, p]."""
    if values.shape[1] == 0:
        return values.new_zeros(len(values), len(D))
    if not _native(values):
        return unpool(values, local, D.shape[1]) @ D.t()
    return torch.ops.deepl0.decode(values, local, D)


def _native(t: Tensor) -> bool:
    return t.device.type == "cpu" or (t.is_cuda and t.dtype != torch.float64)


def _outer_sum(r: Tensor, values: Tensor, local: Tensor, W: Tensor) -> Tensor:
    """sum_b z_b r_b' [p, n] of codes z [B, w] and rows r [B, n], in the layout of W [p, n]; unit by
    unit over ascending rows."""
    if values.shape[1] == 0 or len(values) == 0:
        return torch.zeros_like(W)
    if not _native(r):
        return unpool(values, local, len(W)).t() @ r
    backward = torch.ops.deepl0.decode_backward
    return backward(r.contiguous(), values.contiguous(), local, W.t(), 2)[1].t()


def _dots(r: Tensor, local: Tensor, D: Tensor) -> Tensor:
    """<d_j, r_b> [B, w] for the units j of each row."""
    if local.shape[1] == 0 or len(local) == 0:
        return r.new_zeros(local.shape)
    if not _native(r):
        return (r @ D).gather(1, local)
    return torch.ops.deepl0.decode_backward(r.contiguous(), r.new_zeros(local.shape), local, D, 1)[
        0
    ]


def _add_at(total: Tensor, local: Tensor, values: Tensor) -> None:
    """total[local] += values, rows in ascending order."""
    if not local.numel():
        return
    if total.is_cuda:  # the deterministic one there
        total.index_put_((local.flatten(),), values.double().flatten(), accumulate=True)
    else:
        total.index_add_(0, local.flatten(), values.double().flatten())


def _same_units(values: Tensor, of: Own, at: Own) -> Tensor:
    """[B, w'] values of the units ``at`` in codes [B, w] over the units ``of``, 0 where there is
    none."""
    if not values.shape[1] or not at.local.shape[1]:
        return values.new_zeros(at.local.shape)
    place = torch.searchsorted(of.local, at.local).clamp_max_(values.shape[1] - 1)
    return torch.where(of.local.gather(1, place) == at.local, values.gather(1, place), 0.0)


def _plus(total: Tensor | None, t: Tensor) -> Tensor:
    return t if total is None else total + t
