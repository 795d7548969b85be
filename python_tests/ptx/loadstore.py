"""ld, st, atom, red and cp.async."""

from __future__ import annotations

import numpy as np

from .decode import DTYPES, Context, decoder
from .errors import UnknownInstructionError
from .floating import bf16_to_f32, f32_to_bf16, minmax
from .memory import (
    LOCAL_WINDOW,
    SHARED_WINDOW,
    WINDOW_BYTES,
    WRITING,
    _granules,
)
from .parser import TYPE_BYTES

_SPACES = {"global", "shared", "local", "param", "const"}
_HINTS = {
    *("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "weak", "volatile", "relaxed", "acquire"),
    *("release", "acq_rel", "cta", "gpu", "sys", "cluster", "v2", "v4", "v8", "noftz", "mmio"),
    *("level::eviction_priority", "unified", "async"),
}


def _space(ctx: Context) -> str:
    for mod in ctx.mods:
        head = mod.split("::")[0]
        if head in _SPACES:
            return head
    return "generic"


def _refuse_unknown(ctx: Context, *more: str) -> None:
    for mod in ctx.mods:
        head = mod.split("::")[0]
        if (
            head not in _SPACES | _HINTS | {"L1", "L2", "entry", "func", *more}
            and mod not in DTYPES
        ):
            raise UnknownInstructionError(f"unknown modifier .{mod} of {'.'.join(ctx.ins.opcode)}")


class Generic:
    """Addresses that may point to any space: each lane's window decides."""

    def __init__(self, machine) -> None:
        self.machine = machine

    def split(self, address: np.ndarray):
        shared = (address >= SHARED_WINDOW) & (address < SHARED_WINDOW + WINDOW_BYTES)
        local = (address >= LOCAL_WINDOW) & (address < LOCAL_WINDOW + WINDOW_BYTES)
        m = self.machine
        for memory, chosen, base in (
            (m.shared, shared, SHARED_WINDOW),
            (m.local, local, 0),
            (m.globals, ~(shared | local), 0),
        ):
            if chosen.any():
                yield memory, chosen, address[chosen] - np.uint64(base)

    def load(self, address, width: int, count: int, threads):
        out = [np.empty(len(threads), f"u{width}") for _ in range(count)]
        for memory, chosen, where in self.split(address):
            values = memory.load(where, width, count, threads[chosen])
            for j in range(count):
                out[j][chosen] = values[j]
        return out

    def store(self, address, width: int, values: list, threads) -> None:
        for memory, chosen, where in self.split(address):
            memory.store(where, width, [v[chosen] for v in values], threads[chosen])


def memory_of(ctx: Context, space: str):
    m = ctx.machine
    return {
        "global": m.globals,
        "const": m.globals,
        "shared": m.shared,
        "local": m.local,
        "param": m.params,
        "generic": Generic(m),
    }[space]


def _vector(operand) -> list:
    return operand if isinstance(operand, list) else [operand]


@decoder("ld", "ldu")
def _ld(ctx: Context):
    _refuse_unknown(ctx)
    kind, space = ctx.type, _space(ctx)
    width, to = TYPE_BYTES[kind], _vector(ctx.operands[0])
    memory, address, lanes = memory_of(ctx, space), ctx.address(ctx.operands[1]), ctx.lanes()
    rows = []
    for operand in to:
        raw = ctx.raw(operand)
        if kind[0] == "s" and raw.dtype.itemsize > width:
            rows.append((raw.view(f"i{raw.dtype.itemsize}"), np.dtype(f"i{width}")))
        else:
            rows.append((raw, None))
    count = len(rows)

    def run(m) -> None:
        values = memory.load(address(m), width, count, lanes(m))
        where = slice(None) if m is True else m
        for (row, signed), value in zip(rows, values, strict=True):
            row[where] = value if signed is None else value.view(signed)

    return run


def _values(ctx: Context, operand, kind: str):
    """Source of a store: the low bits of a register, or a literal."""
    width = TYPE_BYTES[kind]
    if ctx.register(operand):
        raw = ctx.raw(operand)
        if raw.dtype.itemsize != width:
            return lambda: raw.astype(f"u{width}")
        return lambda: raw
    row = ctx.src(operand, kind).view(f"u{width}")
    return lambda: row


@decoder("st")
def _st(ctx: Context):
    _refuse_unknown(ctx)
    kind, space = ctx.type, _space(ctx)
    width = TYPE_BYTES[kind]
    memory, address, lanes = memory_of(ctx, space), ctx.address(ctx.operands[0]), ctx.lanes()
    sources = [_values(ctx, o, kind) for o in _vector(ctx.operands[1])]

    def run(m) -> None:
        values = [s() if m is True else s()[m] for s in sources]
        memory.store(address(m), width, values, lanes(m))

    return run


# --- atomics ------------------------------------------------------------------------------------

_OPERATIONS = {"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"}


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
        g, who = _granules(offset, width, memory.shift, threads)
        if memory.check_init:
            memory.require_known(g, who)
        memory.check_write(offset, width, threads, "atomic")
        yield memory.views[width], offset >> shift, None
    elif memory is m.globals:
        for region, chosen, offset in memory.locate(address, width, threads):
            who = threads if chosen is None else threads[chosen]
            memory._track(region, offset, width, who, "atomic")
            yield region.view(width), offset >> shift, chosen
    else:
        raise UnknownInstructionError("atomic on local memory")


@decoder("atom", "red")
def _atom(ctx: Context):
    _refuse_unknown(ctx, *_OPERATIONS)
    returns = ctx.ins.opcode[0] == "atom"
    operands = list(ctx.operands)
    out = operands.pop(0) if returns else None
    name = next(m for m in ctx.mods if m in _OPERATIONS)
    kind, space = ctx.type, _space(ctx)
    width = TYPE_BYTES[kind]
    memory, address, lanes = memory_of(ctx, space), ctx.address(operands[0]), ctx.lanes()
    outs = [ctx.raw(o) for o in _vector(out)] if returns else []
    sources = [_values(ctx, o, kind) for o in _vector(operands[1])]
    compare = name == "cas"
    swap = _values(ctx, operands[2], kind) if compare else None
    apply = None if compare else _apply(name, kind)
    if len(sources) > 1:
        raise UnknownInstructionError("vector atomics")
    value_of = sources[0]

    def run(m) -> None:
        threads, where = lanes(m), address(m)
        value = value_of()[threads]
        new = swap()[threads] if compare else None
        old = np.empty(len(threads), f"u{width}")
        for view, index, chosen in _atomic_views(ctx, memory, where, width, threads):
            mine = value if chosen is None else value[chosen]
            fresh = None if new is None else (new if chosen is None else new[chosen])
            seen = _update(view, index, mine, fresh, apply)
            old[slice(None) if chosen is None else chosen] = seen
        for row in outs[:1]:
            row[threads] = old

    return run


def _update(view, index, value, fresh, apply) -> np.ndarray:
    """Lanes in order; distinct addresses at once."""
    seen = np.empty(len(index), view.dtype)
    left = np.arange(len(index))
    while len(left):
        _, first = np.unique(index[left], return_index=True)
        now = left[first]
        old = view[index[now]].copy()
        seen[now] = old
        if apply is None:
            view[index[now]] = np.where(old == value[now], fresh[now], old)
        else:
            view[index[now]] = apply(old, np.ascontiguousarray(value[now]))
        left = np.delete(left, first)
    return seen


# --- cp.async -----------------------------------------------------------------------------------


class AsyncGroups:
    """Copies in flight: (threads, granules [n, k], group per thread or -1 while uncommitted)."""

    def __init__(self, machine) -> None:
        self.machine = machine
        self.committed = np.zeros(machine.threads, np.int64)
        self.flight: list[list[np.ndarray]] = []
        machine.reset_hooks.append(self.reset)

    def reset(self) -> None:
        self.committed[:] = 0
        self.flight.clear()

    def commit(self, m) -> None:
        mask = slice(None) if m is True else m
        for record in self.flight:
            threads, _, group = record
            open_here = group < 0
            if open_here.any():
                if m is not True:
                    open_here &= m[threads]
                record[2] = np.where(open_here, self.committed[threads], group)
        self.committed[mask] += 1

    def wait(self, m, allowed: int | None) -> None:
        """Complete all but the newest `allowed` groups; None also takes uncommitted copies."""
        shared = self.machine.shared
        kept = []
        for threads, granules, group in self.flight:
            if allowed is None:
                done = np.ones(len(threads), bool)
            else:
                done = (group >= 0) & (group < self.committed[threads] - allowed)
            if m is not True:
                done &= m[threads]
            if done.any():
                mine = granules[done]
                shared.finish(mine.ravel(), np.repeat(threads[done], mine.shape[1]), WRITING)
            if not done.all():
                kept.append([threads[~done], granules[~done], group[~done]])
        self.flight = kept


def _groups(ctx: Context) -> AsyncGroups:
    if ctx.machine.async_groups is None:
        ctx.machine.async_groups = AsyncGroups(ctx.machine)
    return ctx.machine.async_groups


@decoder("cp")
def _cp(ctx: Context):
    if not ctx.has("async") or ctx.has("bulk", "mbarrier", "reduce"):
        raise UnknownInstructionError(f"unknown instruction {'.'.join(ctx.ins.opcode)}")
    groups = _groups(ctx)
    if ctx.has("commit_group"):
        return groups.commit
    if ctx.has("wait_all"):
        return lambda m: groups.wait(m, None)
    if ctx.has("wait_group"):
        allowed = int(ctx.operands[0], 0)
        return lambda m: groups.wait(m, allowed)
    _refuse_unknown(ctx, "async")
    size = int(ctx.operands[2], 0)
    to, source, lanes = ctx.address(ctx.operands[0]), ctx.address(ctx.operands[1]), ctx.lanes()
    extra = [o for o in ctx.operands[3:] if isinstance(o, str)]
    taken = ctx.src(extra[0], "u32") if extra and not ctx.has("L2::cache_hint") else None
    shared, memory = ctx.machine.shared, ctx.machine.globals

    def run(m) -> None:
        threads, where = lanes(m), to(m)
        offset = shared.offsets(where, size, threads)
        g, _ = shared.check_write(offset, size, threads)
        data = np.zeros((len(threads), size), np.uint8)
        counts = np.full(len(threads), size) if taken is None else taken[threads]
        address = source(m)
        for count in np.unique(counts):
            if count == 0:
                continue  # nothing is read: the address may be anything
            chosen = np.flatnonzero(counts == count)
            mine, reader = address[chosen], threads[chosen]
            if count == size:
                width = min(size, 8)
                parts = memory.load(mine, width, size // width, reader)
                data[chosen] = np.stack(parts, 1).view(np.uint8)
            else:
                for j in range(int(count)):
                    data[chosen, j] = memory.load(mine + np.uint64(j), 1, 1, reader)[0]
        view = shared.views[min(size, 8)]
        words = data.view(view.dtype)
        index = offset // view.dtype.itemsize
        for j in range(words.shape[1]):
            view[index + j] = words[:, j]
        shared.begin(g, WRITING)
        groups.flight.append(
            [threads, g.reshape(len(threads), -1), np.full(len(threads), -1, np.int64)]
        )

    return run
