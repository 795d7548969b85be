"""Comparison, selection, moves and address conversion."""

from __future__ import annotations

import operator

import numpy as np

from .decode import BITS, DTYPES, FLOATS, Context, assign, decoder
from .errors import ParseError, UnknownInstructionError
from .floating import reader
from .integer import computed
from .memory import GLOBAL_BASE, LOCAL_WINDOW, SHARED_WINDOW, WINDOW_BYTES

_ORDERED = {
    **{"eq": operator.eq, "lt": operator.lt, "le": operator.le},
    **{"gt": operator.gt, "ge": operator.ge},
    **{"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge},
}
_OPPOSITE = {"equ": "ne", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt"}
_UFUNC = {
    **{"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal},
    **{"gt": np.greater, "ge": np.greater_equal},
    **{"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal},
}


def compare(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A PTX comparison; the plain names are false and the ...u names true where one is NaN."""
    if name in _ORDERED:
        return _ORDERED[name](a, b)
    if name == "ne":
        return (a < b) | (a > b) if a.dtype.kind == "f" else a != b
    if name == "neu":
        return a != b
    if name == "num":
        return (a == a) & (b == b)
    if name == "nan":
        return (a != a) | (b != b)
    return ~compare(_OPPOSITE[name], a, b)


_COMBINE = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
COMPARISONS = {*_ORDERED, *_OPPOSITE, "ne", "neu", "num", "nan"}


@decoder("setp", "set")
def _setp(ctx: Context):
    kind, ops = ctx.type, ctx.operands
    name = next(m for m in ctx.mods if m in COMPARISONS)
    ctx.only(name, "ftz", *_COMBINE)
    if ctx.ins.opcode[0] == "set":
        return _set(ctx, name)
    if kind in ("f16x2", "bf16x2"):
        raise UnknownInstructionError(f"setp.{kind}")
    first, second = ops[0] if isinstance(ops[0], tuple) else (ops[0], "_")
    p, q = ctx.dst(first, "pred"), ctx.dst(second, "pred") if second != "_" else None
    combine = next((_COMBINE[m] for m in ctx.mods if m in _COMBINE), None)
    direct = kind not in FLOATS or (kind in ("f32", "f64") and name != "ne" and not ctx.has("ftz"))
    if direct and combine is None and q is None and name in _UFUNC:
        ufunc, a, b = _UFUNC[name], ctx.src(ops[1], kind), ctx.src(ops[2], kind)
        return lambda m: ufunc(a, b, out=p, where=m)
    left, right = reader(ctx, ops[1], kind), reader(ctx, ops[2], kind)
    other = ctx.predicate(ops[3]) if combine else None

    def run(m) -> None:
        result = compare(name, left(), right())
        opposite = ~result
        if combine:
            c = other().copy()
            result, opposite = combine(result, c), combine(opposite, c)
        assign(p, result, m)
        if q is not None:
            assign(q, opposite, m)

    return run


def _set(ctx: Context, name: str):
    to, kind = [m for m in ctx.mods if m in DTYPES]
    d = ctx.dst(ctx.operands[0], to)
    left, right = (reader(ctx, o, kind) for o in ctx.operands[1:3])
    true = 1.0 if to[0] == "f" else ~np.zeros(1, DTYPES[to])[0]
    zero = np.zeros(1, DTYPES[to])[0]
    return lambda m: assign(d, np.where(compare(name, left(), right()), true, zero), m)


@decoder("selp")
def _selp(ctx: Context):
    kind = BITS[DTYPES[ctx.type].itemsize] if ctx.type != "pred" else "pred"
    literal = ctx.type
    d = ctx.dst(ctx.operands[0], kind)
    a, b = (ctx.src(o, literal).view(d.dtype) for o in ctx.operands[1:3])
    choose = ctx.predicate(ctx.operands[3])
    return lambda m: assign(d, np.where(choose(), a, b), m)


@decoder("slct")
def _slct(ctx: Context):
    to, kind = [m for m in ctx.mods if m in DTYPES]
    return computed(ctx, lambda a, b, c: np.where(c >= 0, a, b), (to, to, kind), to)


@decoder("mov")
def _mov(ctx: Context):
    kind, (to, source) = ctx.type, ctx.operands
    if isinstance(source, list):
        d = ctx.dst(to, kind)
        part = d.dtype.itemsize // len(source)
        lanes = d.view(f"u{part}").reshape(ctx.threads, len(source))
        rows = [ctx.src(o, BITS[part]) for o in source]
        if ctx.register(to) is None:
            raise ParseError(f"cannot pack into {to}")

        def pack(m) -> None:
            values = [row.copy() for row in rows] if m is not True else rows
            for j, row in enumerate(values):
                assign(lanes[:, j], row, m)

        return pack
    if isinstance(to, list):
        a = ctx.src(source, kind)
        part = a.dtype.itemsize // len(to)
        parts = a.view(f"u{part}").reshape(ctx.threads, len(to))
        rows = [ctx.dst(o, BITS[part]) if o != "_" else None for o in to]

        def unpack(m) -> None:
            for j, row in enumerate(rows):
                if row is not None:
                    assign(row, parts[:, j], m)

        return unpack
    d, a = ctx.dst(to, kind), ctx.src(source, kind)

    def run(m) -> None:
        if m is True:
            d[...] = a
        else:
            np.copyto(d, a, where=m)

    return run


@decoder("cvta")
def _cvta(ctx: Context):
    kind = ctx.type
    space = next((x for m in ctx.mods for x in [m.split("::")[0]] if m not in DTYPES), "")
    if ctx.has("to"):
        space = next(m.split("::")[0] for m in ctx.mods if m not in DTYPES and m != "to")
    window = np.uint64(SHARED_WINDOW if space == "shared" else 0)
    if ctx.has("to"):
        return computed(ctx, lambda a: a - window, (kind,))
    return computed(ctx, lambda a: a + window, (kind,))


@decoder("isspacep")
def _isspacep(ctx: Context):
    space = ctx.mods[0].split("::")[0]
    p, a = ctx.dst(ctx.operands[0], "pred"), ctx.src(ctx.operands[1], "u64")
    low = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW, "global": GLOBAL_BASE}[space]
    high = (1 << 63) if space == "global" else low + WINDOW_BYTES
    return lambda m: assign(p, (a >= np.uint64(low)) & (a < np.uint64(high)), m)


@decoder("createpolicy")
def _policy(ctx: Context):
    d = ctx.dst(ctx.operands[0], "b64")
    return lambda m: assign(d, np.zeros_like(d), m)


@decoder("prefetch", "prefetchu", "nanosleep", "pmevent", "discard", "applypriority")
@decoder("membar", "griddepcontrol", "setmaxnreg")
def _nothing(ctx: Context):
    return lambda m: None
