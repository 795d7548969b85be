"""atom and red."""

from __future__ import annotations

import numpy as np

from .decode import DTYPES, Context, decoder
from .errors import UnknownInstructionError
from .floating import bf16_to_f32, f32_to_bf16, minmax
from .loadstore import Generic, memory_of, refuse_unknown, source_values, space_of, vector
from .memory import granules_of
from .parser import TYPE_BYTES

_OPERATIONS = {"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"}
_ASSOCIATIVE = {"add", "min", "max", "and", "or", "xor"}  # of integers


def _apply(name: str, kind: str):
    """new = f(old, value, ...) on one-element arrays of the type."""
    if kind in ("f16", "f16x2"):
        return lambda old, v: (old.view("f2") + v.view("f2")).view(old.dtype)
    if kind in ("bf16", "bf16x2"):
        return lambda old, v: f32_to_bf16(
            bf16_to_f32(old.view("u2")) + bf16_to_f32(v.view("u2"))
        ).view(old.dtype)
    dtype = DTYPES[kind]
    if name in ("min", "max") and dtype.kind == "f":
        return lambda old, v: minmax(old.view(dtype), v.view(dtype), name == "max", False).view(
            old.dtype
        )
    table = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
        "exch": lambda old, v: v,
        "inc": lambda old, v: np.where(old >= v, 0, old + 1).astype(dtype),
        "dec": lambda old, v: np.where((old == 0) | (old > v), v, old - 1).astype(dtype),
    }
    function = table[name]
    return lambda old, v: function(old.view(dtype), v.view(dtype)).view(old.dtype)


def _atomic_views(ctx: Context, memory, address: np.ndarray, width: int, threads: np.ndarray):
    """(view, index, selection) after all checks, for each region touched."""
    m = ctx.machine
    shift = width.bit_length() - 1
    if isinstance(memory, Generic):
        for part, chosen, where in memory.split(address):
            picked = np.flatnonzero(chosen)
            for view, index, sub in _atomic_views(ctx, part, where, width, threads[picked]):
                yield view, index, picked if sub is None else picked[sub]
    elif memory is m.shared:
        offset = memory.offsets(address, width, threads)
        g, who = granules_of(offset, width, memory.shift, threads)
        if memory.check_init:
            memory.require_known(g, who)
        memory.check_write(offset, width, threads, "atomic")
        yield memory.views[width], offset >> shift, None
    elif memory is m.globals:
        for region, chosen, offset in memory.locate(address, width, threads):
            who = threads if chosen is None else threads[chosen]
            memory.track(region, offset, width, who, "atomic")
            yield region.view(width), offset >> shift, chosen
    else:
        raise UnknownInstructionError("atomic on local memory")


@decoder("atom", "red")
def _atom(ctx: Context):
    refuse_unknown(ctx, *_OPERATIONS)
    returns = ctx.ins.opcode[0] == "atom"
    operands = list(ctx.operands)
    out = operands.pop(0) if returns else None
    name = next(m for m in ctx.mods if m in _OPERATIONS)
    kind, space = ctx.type, space_of(ctx)
    width = TYPE_BYTES[kind]
    memory, address, lanes = memory_of(ctx, space), ctx.address(operands[0]), ctx.lanes()
    outs = [ctx.raw(o) for o in vector(out)] if returns else []
    sources = [source_values(ctx, o, kind) for o in vector(operands[1])]
    compare = name == "cas"
    swap = source_values(ctx, operands[2], kind) if compare else None
    apply = None if compare else _apply(name, kind)
    if len(sources) > 1:
        raise UnknownInstructionError("vector atomics")
    value_of = sources[0]
    associative = name in _ASSOCIATIVE and "f" not in kind

    def run(m) -> None:
        threads, where = lanes(m), address(m)
        value = value_of()[threads]
        new = swap()[threads] if compare else None
        old = np.empty(len(threads), f"u{width}")
        for view, index, chosen in _atomic_views(ctx, memory, where, width, threads):
            mine = value if chosen is None else value[chosen]
            fresh = None if new is None else (new if chosen is None else new[chosen])
            seen = _update(view, index, mine, fresh, apply, associative)
            old[slice(None) if chosen is None else chosen] = seen
        for row in outs[:1]:
            row[threads] = old

    return run


def _update(view, index, value, fresh, apply, associative: bool) -> np.ndarray:
    """Lanes in order; what each saw."""
    order = np.argsort(index, kind="stable")
    place, value = index[order], value[order]
    begin = np.flatnonzero(np.diff(place, prepend=place[0] - 1)) if len(place) else order
    at, count = place[begin], np.diff(begin, append=len(place))
    most = int(count.max(initial=0))
    seen, old = np.empty(len(place), view.dtype), view[at]
    if associative and most > 2:  # a scan of every address's lanes
        rank = np.arange(len(place)) - np.repeat(begin, count)
        distance = 1
        while distance < most:
            later = np.flatnonzero(rank >= distance)
            value[later] = apply(value[later - distance], value[later])
            distance *= 2
        seen[begin] = old
        later = np.flatnonzero(rank)
        seen[later] = apply(np.repeat(old, count - 1), value[later - 1])
        view[at] = apply(old, value[begin + count - 1])
    else:  # the first of every address at once, then the second
        fresh = None if fresh is None else fresh[order]
        for round in range(most):
            go = np.flatnonzero(count > round)
            now, old = begin[go] + round, view[at[go]]
            seen[now] = old
            if apply is None:
                view[at[go]] = np.where(old == value[now], fresh[now], old)
            else:
                view[at[go]] = apply(old, value[now])
    out = np.empty_like(seen)
    out[order] = seen
    return out
