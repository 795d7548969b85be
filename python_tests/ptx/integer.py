"""Integer arithmetic and logic."""

from __future__ import annotations

import numpy as np

from .decode import DTYPES, Context, assign, decoder
from .errors import UnknownInstructionError

_WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


def binary(ctx: Context, ufunc, kind: str | None = None):
    kind = kind or ctx.type
    d, a, b = ctx.dst(ctx.operands[0], kind), *(ctx.src(o, kind) for o in ctx.operands[1:3])

    def run(m) -> None:
        ufunc(a, b, out=d, where=m)

    return run


def computed(ctx: Context, function, kinds: tuple[str, ...], out: str | None = None):
    """An instruction whose result is a function of whole rows of its operands."""
    d = ctx.dst(ctx.operands[0], out or ctx.type)
    sources = [ctx.src(o, k) for o, k in zip(ctx.operands[1:], kinds, strict=True)]

    def run(m) -> None:
        assign(d, function(*sources), m)

    return run


@decoder("and", "or", "xor")
def _logic(ctx: Context):
    ctx.only()
    ufunc = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    return binary(ctx, ufunc[ctx.ins.opcode[0]])


@decoder("not")
def _not(ctx: Context):
    d, a = ctx.dst(ctx.operands[0], ctx.type), ctx.src(ctx.operands[1], ctx.type)
    return lambda m: np.invert(a, out=d, where=m)


@decoder("cnot")
def _cnot(ctx: Context):
    return computed(ctx, lambda a: a == 0, (ctx.type,))


@decoder("add", "sub")
def _add(ctx: Context):
    name, kind = ctx.ins.opcode[0], ctx.type
    ufunc = np.add if name == "add" else np.subtract
    if ctx.has("cc"):
        return _carry(ctx, name == "sub", reads=False)
    if ctx.has("sat"):
        low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
        return computed(
            ctx,
            lambda a, b: np.clip(ufunc(a.astype(np.int64), b.astype(np.int64)), low, high),
            (kind, kind),
        )
    ctx.only()
    return binary(ctx, ufunc)


@decoder("addc", "subc")
def _addc(ctx: Context):
    return _carry(ctx, ctx.ins.opcode[0] == "subc", reads=True)


def _carry(ctx: Context, subtract: bool, reads: bool, product=None):
    """add.cc, addc and their kin: the carry flag is one more row of the machine.

    With `product` the first two sources are multiplied first, as in mad.lo.cc and madc.hi.
    """
    kind = "u64" if ctx.type.endswith("64") else "u32"
    flag, writes = ctx.machine.carry, ctx.has("cc")
    d = ctx.dst(ctx.operands[0], kind)
    sources = [ctx.src(o, kind) for o in ctx.operands[1:]]

    def run(m) -> None:
        a, b = sources if product is None else (product(*sources[:2]), sources[2])
        c = flag.astype(a.dtype) if reads else a.dtype.type(0)
        if subtract:
            result = a - b - c
            out = (a < b) | ((a == b) & (c != 0))
        else:
            result = a + b + c
            out = (result < a) | ((result == a) & (c != 0))
        if writes:
            assign(flag, out, m)
        assign(d, result, m)

    return run


def _high(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Upper half of the product."""
    bits = 8 * a.dtype.itemsize
    if bits < 64:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return ((a.astype(wide) * b.astype(wide)) >> wide(bits)).astype(a.dtype)
    product = a.astype(object) * b.astype(object)
    mask = (1 << 64) - 1
    high = np.array([(int(p) >> 64) & mask for p in product], np.uint64)
    return high.view(a.dtype)


@decoder("mul", "mad", "madc")
def _mul(ctx: Context):
    kind, ops = ctx.type, ctx.operands
    if ctx.has("cc") or ctx.ins.opcode[0] == "madc":
        if kind[0] == "s" and ctx.has("hi"):
            raise UnknownInstructionError(f"signed {'.'.join(ctx.ins.opcode)}")
        product = _high if ctx.has("hi") else np.multiply
        return _carry(ctx, False, ctx.ins.opcode[0] == "madc", product)
    ctx.only("lo", "hi", "wide")
    third = ctx.ins.opcode[0] == "mad"
    out = _WIDE[kind] if ctx.has("wide") else kind
    d = ctx.dst(ops[0], out)
    a, b = ctx.src(ops[1], kind), ctx.src(ops[2], kind)
    c = ctx.src(ops[3], out) if third else None
    if ctx.has("wide"):
        dtype, temporary = DTYPES[out], np.empty(ctx.threads, DTYPES[out])

        def wide(m) -> None:
            np.multiply(a, b, out=temporary, dtype=dtype)
            if third:
                np.add(temporary, c, out=d, where=m)
            else:
                assign(d, temporary, m)

        return wide
    if ctx.has("hi"):
        return computed(
            ctx, (lambda x, y, z: _high(x, y) + z) if third else _high, (kind,) * (2 + third)
        )
    if not third:
        return lambda m: np.multiply(a, b, out=d, where=m)
    return lambda m: np.add(a * b, c, out=d, where=m)


@decoder("mul24", "mad24")
def _mul24(ctx: Context):
    kind = ctx.type
    shift = DTYPES[kind].type(8)

    def product(a, b, c=0):
        low = ((a << shift) >> shift) * ((b << shift) >> shift)
        return low + c

    if not ctx.has("lo"):
        raise UnknownInstructionError("mul24.hi")
    return computed(ctx, product, (kind,) * (len(ctx.operands) - 1))


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Truncating division; by zero all ones, as the hardware does."""
    zero = b == 0
    safe = np.where(zero, np.ones_like(b), b)
    if a.dtype.kind == "u":
        q = a // safe
    else:
        q = a // safe
        q = q + ((q * safe != a) & ((a < 0) != (safe < 0))).astype(a.dtype)
    return np.where(zero, ~np.zeros_like(a), q)


@decoder("div")
def _div(ctx: Context):
    return computed(ctx, divide, (ctx.type,) * 2)


@decoder("rem")
def _rem(ctx: Context):
    return computed(ctx, lambda a, b: np.where(b == 0, a, a - divide(a, b) * b), (ctx.type,) * 2)


@decoder("min", "max")
def _minmax(ctx: Context):
    ufunc = np.minimum if ctx.ins.opcode[0] == "min" else np.maximum
    if ctx.has("u16x2", "s16x2"):
        half = np.dtype("u2" if ctx.has("u16x2") else "i2")
        return computed(
            ctx, lambda a, b: ufunc(a.view(half), b.view(half)).view("u4"), ("b32",) * 2, "b32"
        )
    ctx.only()
    return binary(ctx, ufunc)


@decoder("neg", "abs")
def _sign(ctx: Context):
    ufunc = np.negative if ctx.ins.opcode[0] == "neg" else np.abs
    d, a = ctx.dst(ctx.operands[0], ctx.type), ctx.src(ctx.operands[1], ctx.type)
    return lambda m: ufunc(a, out=d, where=m)


@decoder("sad")
def _sad(ctx: Context):
    return computed(ctx, lambda a, b, c: c + (np.maximum(a, b) - np.minimum(a, b)), (ctx.type,) * 3)
