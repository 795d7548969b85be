"""cvt: integers, floating point, packed halves, with rounding and saturation."""

from __future__ import annotations

import numpy as np

from .decode import DTYPES, FLOATS, Context, assign, decoder
from .errors import UnknownInstructionError
from .floating import bf16_to_f32, f32_to_bf16, flush, round_f32

_INT_ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_KNOWN = {"rn", "rz", "rna", "rm", "rp", "ftz", "sat", "satfinite", "relu", *_INT_ROUND}


def _source(ctx: Context, operand, kind: str):
    """Values of the source: the low bits of a register that may be wider than the type."""
    if ctx.register(operand):
        raw = ctx.raw(operand)
        bits = DTYPES["b" + str(8 * DTYPES[kind].itemsize)]

        def low() -> np.ndarray:
            return (
                raw.astype(bits).view(DTYPES[kind]) if raw.dtype != bits else raw.view(DTYPES[kind])
            )

    else:
        row = ctx.src(operand, kind)

        def low() -> np.ndarray:
            return row

    if kind == "bf16":
        return lambda: bf16_to_f32(low())
    return low


def tf32_round(x: np.ndarray, mode: str) -> np.ndarray:
    """float32 bits with 10 bits of mantissa: rna is to nearest, ties away."""
    bits = x.view(np.uint32)
    special = ~np.isfinite(x)
    if mode == "rna":
        out = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    elif mode == "rn":
        odd = (bits >> np.uint32(13)) & np.uint32(1)
        out = (bits + np.uint32(0xFFF) + odd) & np.uint32(0xFFFFE000)
    else:
        out = bits & np.uint32(0xFFFFE000)
    return np.where(special, bits, out)


def _to_half(value: np.ndarray, kind: str, mode: str) -> np.ndarray:
    """Rounded to bf16 or f16, as 16-bit integers."""
    if kind == "bf16":
        x = value.astype(np.float32)
        if mode == "rz":
            bits = (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
            bits[x != x] = 0x7FFF
            return bits
        return f32_to_bf16(x)
    half = value.astype(np.float16)
    if mode == "rz":
        grown = np.abs(half.astype(value.dtype)) > np.abs(value)
        half = np.where(grown, np.nextafter(half, np.float16(0)), half)
    return half.view(np.uint16)


def _to_integer(value: np.ndarray, dtype: np.dtype, mode: str) -> np.ndarray:
    """Float to integer: rounds, saturates, and NaN gives 0."""
    info = np.iinfo(dtype)
    x = _INT_ROUND[mode](value.astype(np.float64))
    bits = 8 * dtype.itemsize
    high = x >= float(info.max) + (0 if bits < 64 else 1)
    low = x <= float(info.min)
    inside = np.where(high | low | (x != x), 0, x).astype(dtype)
    out = np.where(high, info.max, np.where(low, info.min, inside)).astype(dtype)
    # NaN: 0 for 32-bit and narrower results, the sign bit for 64-bit ones.
    nan = 0 if bits < 64 else (1 << 63 if dtype.kind == "u" else info.min)
    return np.where(x != x, np.array(nan, dtype), out)


def _store(ctx: Context, operand, dtype: np.dtype):
    """Write into a register that may be wider: sign- or zero-extended."""
    raw = ctx.raw(operand)
    wide = raw.view(f"i{raw.dtype.itemsize}") if dtype.kind == "i" else raw

    def write(value: np.ndarray, m) -> None:
        assign(wide, value.astype(dtype).astype(wide.dtype), m)

    return write


def _saturated(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    info = np.iinfo(dtype)
    if value.dtype.kind == "u":
        return np.minimum(value, np.array(info.max).astype(value.dtype)).astype(dtype)
    wide = value.astype(object if dtype == np.uint64 else np.int64)
    return np.clip(wide, info.min, info.max).astype(dtype)


@decoder("cvt")
def _cvt(ctx: Context):
    if ctx.has("pack"):
        return _pack(ctx)
    ctx.only(*_KNOWN)
    types = [m for m in ctx.mods if m in DTYPES]
    to, kind = types[0], types[1]
    mode = next((m for m in ctx.mods if m in ("rn", "rz", "rna", "rm", "rp", *_INT_ROUND)), "")
    if to in ("bf16x2", "f16x2"):
        return _pair(ctx, to, kind, mode)
    source = _source(ctx, ctx.operands[1], kind)
    ftz, sat, relu = ctx.has("ftz"), ctx.has("sat"), ctx.has("relu")
    if to == "tf32":
        d = ctx.dst(ctx.operands[0], "b32")
        return lambda m: assign(d, tf32_round(source(), mode), m)
    if to not in FLOATS:
        write = _store(ctx, ctx.operands[0], DTYPES[to])
        if kind in FLOATS:

            def to_integer(m) -> None:
                value = flush(source()) if ftz and kind == "f32" else source()
                write(_to_integer(value, DTYPES[to], mode), m)

            return to_integer
        if sat:
            return lambda m: write(_saturated(source(), DTYPES[to]), m)
        return lambda m: write(source(), m)
    if kind not in FLOATS and to in ("bf16",):
        raise UnknownInstructionError(f"cvt to bf16 from {kind}")

    def value_of() -> np.ndarray:
        value = source()
        if ftz and kind == "f32":
            value = flush(value)
        if mode in _INT_ROUND:
            value = _INT_ROUND[mode](value)
        if sat:
            value = np.where(value != value, 0, np.clip(value, 0, 1)).astype(value.dtype)
        if relu:
            value = np.where(value > 0, value, np.where(value != value, value, 0))
        return value

    if to in ("bf16", "f16"):
        write = _store(ctx, ctx.operands[0], np.dtype("u2"))
        return lambda m: write(_to_half(value_of(), to, mode), m)
    d = ctx.dst(ctx.operands[0], to)
    if to == "f32":

        def to_f32(m) -> None:
            out = round_f32(value_of(), mode)
            assign(d, flush(out) if ftz else out, m)

        return to_f32
    return lambda m: assign(d, value_of().astype(np.float64), m)


def _pair(ctx: Context, to: str, kind: str, mode: str):
    """Two float32 into packed halves: the first operand is the upper half."""
    d = ctx.dst(ctx.operands[0], "b32")
    high, low = (_source(ctx, o, kind) for o in ctx.operands[1:3])
    half, relu = to[:-2], ctx.has("relu")

    def run(m) -> None:
        parts = []
        for source in (high, low):
            value = source()
            if relu:
                value = np.where(value != value, value, np.maximum(value, 0))
            parts.append(_to_half(value, half, mode).astype(np.uint32))
        assign(d, (parts[0] << np.uint32(16)) | parts[1], m)

    return run


def _pack(ctx: Context):
    """cvt.pack.sat: two integers, saturated and packed."""
    types = [m for m in ctx.mods if m in DTYPES]
    to, kind = types[0], types[1]
    bits = 8 * DTYPES[to].itemsize
    unsigned = DTYPES["u" + to[1:]]
    d = ctx.dst(ctx.operands[0], "b32")
    a, b = (ctx.src(o, kind) for o in ctx.operands[1:3])
    c = ctx.src(ctx.operands[3], "b32") if len(ctx.operands) > 3 else None

    def run(m) -> None:
        parts = [_saturated(x, DTYPES[to]).view(unsigned).astype(np.uint32) for x in (a, b)]
        result = (parts[0] << np.uint32(bits)) | parts[1]
        if c is not None:
            result |= c << np.uint32(2 * bits)
        assign(d, result, m)

    return run
