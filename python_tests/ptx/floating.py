"""Floating-point arithmetic.

Rounding is to nearest even. f32 fma is computed in float64 and rounded once more to float32, which
differs from the single rounding in about one case in 2**29. Approximate instructions (ex2, lg2,
rcp, div.full, ...) are computed to full accuracy. NaN payloads are numpy's, not the canonical ones.
"""

from __future__ import annotations

import numpy as np

from .decode import DTYPES, Context, assign, decoder
from .errors import UnknownInstructionError

_TINY32 = np.float32(2.0**-126)


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(x: np.ndarray) -> np.ndarray:
    """Round to nearest even; NaN becomes 0x7fff as in hardware."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    out = (rounded >> np.uint32(16)).astype(np.uint16)
    nan = x != x
    if nan.any():
        out[nan] = 0x7FFF
    return out


def flush(x: np.ndarray) -> np.ndarray:
    """Subnormals to zero of the same sign."""
    return np.where(np.abs(x) < np.float32(_TINY32), np.copysign(np.float32(0), x), x)


def reader(ctx: Context, operand, kind: str):
    """A function giving the operand's values in a type numpy can compute with."""
    if kind == "bf16":
        row = ctx.src(operand, "b16")
        return lambda: bf16_to_f32(row)
    if kind == "f16":
        row = ctx.src(operand, "f16")
        return lambda: row.astype(np.float32)
    if kind == "bf16x2":
        halves = ctx.src(operand, "b32").view(np.uint16)
        return lambda: bf16_to_f32(halves)
    if kind == "f16x2":
        halves = ctx.src(operand, "b32").view(np.float16)
        return lambda: halves.astype(np.float32)
    row = ctx.src(operand, kind)
    if kind == "f32" and ctx.has("ftz"):
        return lambda: flush(row)
    return lambda: row


def writer(ctx: Context, operand, kind: str):
    """A function that rounds values into a register under a mask."""
    if kind in ("bf16x2", "f16x2"):
        d = ctx.dst(operand, "b32")

        def pair(value, m) -> None:
            half = f32_to_bf16(value) if kind == "bf16x2" else value.astype(np.float16)
            assign(d, half.view(np.uint32), m)

        return pair
    if kind == "bf16":
        d = ctx.dst(operand, "b16")
        return lambda value, m: assign(d, f32_to_bf16(value), m)
    d = ctx.dst(operand, kind)
    if kind == "f32" and ctx.has("ftz"):
        return lambda value, m: assign(d, flush(value.astype(np.float32)), m)
    return lambda value, m: assign(d, value, m)


_DIRECTED = ("rz", "rm", "rp")


def round_f32(value: np.ndarray, mode: str) -> np.ndarray:
    """Round float64 or integers to float32 in a direction: rz, rm, rp; otherwise to nearest."""
    out = value.astype(np.float32)
    if mode not in _DIRECTED:
        return out
    exact = value.astype(np.longdouble) if value.dtype.kind in "iu" else value
    back = out.astype(exact.dtype)
    wrong = {
        "rz": np.abs(back) > np.abs(exact),
        "rm": back > exact,
        "rp": back < exact,
    }[mode]
    toward = {"rz": 0.0, "rm": -np.inf, "rp": np.inf}[mode]
    return np.where(wrong, np.nextafter(out, np.float32(toward)), out)


def _general(ctx: Context, function, count: int):
    kind = ctx.type
    if mode := next((x for x in _DIRECTED if ctx.has(x)), ""):
        nearest = function

        def function(*sources):
            return round_f32(nearest(*(s.astype(np.float64) for s in sources)), mode)

    sources = [reader(ctx, o, kind) for o in ctx.operands[1 : 1 + count]]
    write = writer(ctx, ctx.operands[0], kind)
    saturate = ctx.has("sat")

    def run(m) -> None:
        value = function(*(s() for s in sources))
        if saturate:
            value = np.where(value != value, 0, np.clip(value, 0, 1)).astype(value.dtype)
        write(value, m)

    return run


def _plain(ctx: Context) -> bool:
    """f32 and f64 without modifiers that need more than a ufunc."""
    if ctx.has(*_DIRECTED) and ctx.type != "f32":
        raise UnknownInstructionError(f"rounding mode of {'.'.join(ctx.ins.opcode)}")
    return ctx.type in ("f32", "f64") and not ctx.has("ftz", "sat", *_DIRECTED)


@decoder("add.f", "sub.f", "mul.f")
def _arithmetic(ctx: Context):
    ctx.only("rn", "ftz", "sat", *_DIRECTED)
    ufunc = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[ctx.ins.opcode[0]]
    if _plain(ctx):
        kind = ctx.type
        d = ctx.dst(ctx.operands[0], kind)
        a, b = (ctx.src(o, kind) for o in ctx.operands[1:3])
        return lambda m: ufunc(a, b, out=d, where=m)
    return _general(ctx, ufunc, 2)


@decoder("fma.f", "mad.f")
def _fma(ctx: Context):
    ctx.only("rn", "ftz", "sat", "relu", *_DIRECTED)
    if _plain(ctx) and ctx.type == "f32":
        d = ctx.dst(ctx.operands[0], "f32")
        a, b, c = (ctx.src(o, "f32") for o in ctx.operands[1:4])
        temporary = np.empty(ctx.threads, np.float64)

        def run(m) -> None:
            np.multiply(a, b, out=temporary, dtype=np.float64)
            np.add(temporary, c, out=temporary)
            if m is True:
                d[...] = temporary
            else:
                np.copyto(d, temporary, where=m, casting="unsafe")

        return run

    def function(a, b, c):
        if ctx.type == "f64":
            return np.array(
                (a.astype(np.longdouble) * b + c).astype(np.float64)
            )  # 64-bit mantissa: a close fma
        value = a.astype(np.float64) * b + c
        if not ctx.has(*_DIRECTED):
            value = value.astype(np.float32)
        return np.maximum(value, 0) if ctx.has("relu") else value

    return _general(ctx, function, 3)


@decoder("div.f")
def _div(ctx: Context):
    ctx.only("rn", "full", "approx", "ftz", *_DIRECTED)
    _plain(ctx)
    return _general(ctx, np.divide, 2)


def _unary(function):
    def decode(ctx: Context):
        ctx.only("rn", "approx", "ftz", *_DIRECTED)
        _plain(ctx)
        return _general(ctx, function, 1)

    return decode


def _precise(function):
    """Computed in float64, rounded once."""

    def call(x):
        return function(x.astype(np.float64)).astype(x.dtype)

    return call


for _name, _function in {
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": lambda x: 1.0 / x,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "sqrt": np.sqrt,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}.items():
    decoder(f"{_name}.f")(_unary(_precise(_function)))


@decoder("neg.f", "abs.f")
def _sign(ctx: Context):
    """On the bits: exact for NaN and zero in every format."""
    kind = ctx.type
    width = DTYPES[kind].itemsize
    half = width == 2 or kind.endswith("x2")
    bits = f"b{8 * width}"
    mask = {1: 0}.get(width, (0x80008000 if width == 4 else 0x8000) if half else 1 << 8 * width - 1)
    row = ctx.machine.constant(mask, DTYPES[bits])
    inverse = ctx.machine.constant(~mask & ((1 << 8 * width) - 1), DTYPES[bits])
    d = ctx.dst(ctx.operands[0], bits)
    negate = ctx.ins.opcode[0] == "neg"
    if ctx.has("ftz"):
        return _general(ctx, np.negative if negate else np.abs, 1)
    a = ctx.src(ctx.operands[1], kind).view(DTYPES[bits])
    if negate:
        return lambda m: np.bitwise_xor(a, row, out=d, where=m)
    return lambda m: np.bitwise_and(a, inverse, out=d, where=m)


def minmax(a: np.ndarray, b: np.ndarray, largest: bool, nan: bool) -> np.ndarray:
    """PTX min and max: NaN loses unless .NaN, which has one NaN, all ones; -0 is below +0."""
    pick = np.fmax if largest else np.fmin
    if nan:
        pick = np.maximum if largest else np.minimum
    result = pick(a, b)
    if nan:
        ones = np.array(-1, f"i{a.dtype.itemsize}").view(f"u{a.dtype.itemsize}") >> 1
        result = np.where(np.isnan(result), ones.view(a.dtype), result)
    zeros = (a == 0) & (b == 0)
    if zeros.any():
        bits = f"u{a.dtype.itemsize}"
        x, y = np.ascontiguousarray(a).view(bits), np.ascontiguousarray(b).view(bits)
        result = np.where(zeros, (x & y if largest else x | y).view(a.dtype), result)
    return result


@decoder("min.f", "max.f")
def _minmax(ctx: Context):
    ctx.only("ftz", "NaN")
    largest, nan = ctx.ins.opcode[0] == "max", ctx.has("NaN")
    if len(ctx.operands) > 3:
        return _general(ctx, lambda a, b, c: minmax(minmax(a, b, largest, nan), c, largest, nan), 3)
    return _general(ctx, lambda a, b: minmax(a, b, largest, nan), 2)


@decoder("copysign.f")
def _copysign(ctx: Context):
    return _general(ctx, lambda a, b: np.copysign(b, a), 2)


@decoder("testp.f")
def _testp(ctx: Context):
    p = ctx.dst(ctx.operands[0], "pred")
    source = reader(ctx, ctx.operands[1], ctx.type)
    tiny = np.finfo(DTYPES[ctx.type]).tiny
    tests = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda x: x == x,
        "notanumber": np.isnan,
        "normal": lambda x: np.isfinite(x) & (np.abs(x) >= tiny),
        "subnormal": lambda x: (x != 0) & (np.abs(x) < tiny),
    }
    test = tests[ctx.mods[0]]
    return lambda m: assign(p, test(source()), m)
