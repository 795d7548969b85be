"""ld and st."""

from __future__ import annotations

import numpy as np

from .decode import DTYPES, Context, decoder
from .errors import UnknownInstructionError
from .memory import (
    LOCAL_WINDOW,
    SHARED_WINDOW,
    WINDOW_BYTES,
)
from .parser import TYPE_BYTES

SPACES = {"global", "shared", "local", "param", "const"}
HINTS = {
    *("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "weak", "volatile", "relaxed", "acquire"),
    *("release", "acq_rel", "cta", "gpu", "sys", "cluster", "v2", "v4", "v8", "noftz", "mmio"),
    *("level::eviction_priority", "unified", "async"),
}


def space_of(ctx: Context) -> str:
    for mod in ctx.mods:
        head = mod.split("::")[0]
        if head in SPACES:
            return head
    return "generic"


def refuse_unknown(ctx: Context, *more: str) -> None:
    for mod in ctx.mods:
        head = mod.split("::")[0]
        if head not in SPACES | HINTS | {"L1", "L2", "entry", "func", *more} and mod not in DTYPES:
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


def vector(operand) -> list:
    return operand if isinstance(operand, list) else [operand]


@decoder("ld", "ldu")
def _ld(ctx: Context):
    refuse_unknown(ctx)
    kind, space = ctx.type, space_of(ctx)
    width, to = TYPE_BYTES[kind], vector(ctx.operands[0])
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


def source_values(ctx: Context, operand, kind: str):
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
    refuse_unknown(ctx)
    kind, space = ctx.type, space_of(ctx)
    width = TYPE_BYTES[kind]
    memory, address, lanes = memory_of(ctx, space), ctx.address(ctx.operands[0]), ctx.lanes()
    sources = [source_values(ctx, o, kind) for o in vector(ctx.operands[1])]

    def run(m) -> None:
        values = [s() if m is True else s()[m] for s in sources]
        memory.store(address(m), width, values, lanes(m))

    return run
