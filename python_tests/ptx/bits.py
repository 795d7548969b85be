"""Shifts, bit fields, permutations, counts."""

from __future__ import annotations

import numpy as np

from .decode import DTYPES, Context, assign, decoder
from .errors import UnknownInstructionError
from .integer import computed


@decoder("shl", "shr")
def _shift(ctx: Context):
    kind = ctx.type
    dtype = DTYPES[kind]
    bits = 8 * dtype.itemsize
    d, a = ctx.dst(ctx.operands[0], kind), ctx.src(ctx.operands[1], kind)
    n = ctx.src(ctx.operands[2], "u32")
    ufunc = np.left_shift if ctx.ins.opcode[0] == "shl" else np.right_shift
    if not ctx.register(ctx.operands[2]) and int(n[0]) < bits:
        amount = ctx.machine.constant(int(n[0]), dtype)
        return lambda m: ufunc(a, amount, out=d, where=m)
    signed = dtype.kind == "i"

    def run(m) -> None:
        amount = np.minimum(n, bits - 1).astype(dtype)
        result = ufunc(a, amount)
        if not signed:
            result[n >= bits] = 0
        assign(d, result, m)

    return run


@decoder("shf")
def _funnel(ctx: Context):
    left, clamp = ctx.has("l"), ctx.has("clamp")

    def function(a, b, c):
        n = np.minimum(c, 32) if clamp else c & 31
        both = (b.astype(np.uint64) << np.uint64(32)) | a
        n = n.astype(np.uint64)
        if left:
            return ((both << n) >> np.uint64(32)).astype(np.uint32)
        return (both >> n).astype(np.uint32)

    return computed(ctx, function, ("u32",) * 3)


@decoder("bfe")
def _bfe(ctx: Context):
    kind = ctx.type
    dtype = DTYPES[kind]
    bits = 8 * dtype.itemsize

    def function(a, pos, length):
        p = (pos & 255).astype(np.int64)
        n = (length & 255).astype(np.int64)
        word = a.astype(np.uint64)
        field = np.where(p < bits, word >> np.minimum(p, 63).astype(np.uint64), np.uint64(0))
        mask = np.where(
            n >= 64, ~np.uint64(0), (np.uint64(1) << np.minimum(n, 63).astype(np.uint64)) - 1
        )
        inside = np.uint64((1 << bits) - 1)
        field = field & inside & mask
        if dtype.kind == "i":
            last = np.minimum(p + n - 1, bits - 1)
            negative = (n > 0) & ((word >> np.maximum(last, 0).astype(np.uint64)) & 1 != 0)
            kept = np.maximum(np.minimum(n, bits - p), 0).astype(np.uint64)
            fill = ~((np.uint64(1) << np.minimum(kept, 63)) - 1)
            fill = np.where(kept >= bits, np.uint64(0), fill)
            field = np.where(negative, field | fill, field)
        return (field & inside).astype(f"u{dtype.itemsize}").view(dtype)

    if not any(ctx.register(o) for o in ctx.operands[2:4]):
        p, n = (int(ctx.src(o, "u32")[0]) & 255 for o in ctx.operands[2:4])
        if n > 0 and p + n <= bits:
            left = ctx.machine.constant(bits - p - n, dtype)
            right = ctx.machine.constant(bits - n, dtype)
            d, a = ctx.dst(ctx.operands[0], kind), ctx.src(ctx.operands[1], kind)
            return lambda m: np.right_shift(a << left, right, out=d, where=m)
    return computed(ctx, function, (kind, "u32", "u32"))


@decoder("bfi")
def _bfi(ctx: Context):
    kind = ctx.type
    bits = 8 * DTYPES[kind].itemsize
    one = np.uint64(1)

    def function(a, b, pos, length):
        p, n = pos & 255, length & 255
        n64 = np.minimum(n, bits).astype(np.uint64)
        ones = np.where(n64 >= 64, ~np.uint64(0), (one << np.minimum(n64, 63)) - one)
        p64 = np.minimum(p, 63).astype(np.uint64)
        mask = np.where(p < bits, ones << p64, np.uint64(0))
        moved = np.where(p < bits, a.astype(np.uint64) << p64, np.uint64(0))
        return ((b & ~mask) | (moved & mask)).astype(b.dtype)

    return computed(ctx, function, (kind, kind, "u32", "u32"))


@decoder("bmsk")
def _bmsk(ctx: Context):
    def function(a, b):
        p, n = (
            (a & 31 if ctx.has("wrap") else np.minimum(a, 32)),
            (b & 31 if ctx.has("wrap") else np.minimum(b, 32)),
        )
        one = np.uint64(1)
        return (((one << n.astype(np.uint64)) - one) << p.astype(np.uint64)).astype(np.uint32)

    return computed(ctx, function, ("u32", "u32"), "b32")


@decoder("lop3")
def _lop3(ctx: Context):
    table = int(ctx.operands[4], 0)

    def function(a, b, c):
        result = np.zeros_like(a)
        for bit in range(8):
            if table >> bit & 1:
                x = a if bit & 4 else ~a
                y = b if bit & 2 else ~b
                z = c if bit & 1 else ~c
                result |= x & y & z
        return result

    ctx.operands = ctx.operands[:4]
    return computed(ctx, function, ("b32",) * 3)


@decoder("prmt")
def _prmt(ctx: Context):
    modes = {"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"}
    if modes & set(ctx.mods):
        raise UnknownInstructionError("prmt with a mode")

    def function(a, b, c):
        both = (b.astype(np.uint64) << np.uint64(32)) | a
        result = np.zeros_like(a)
        for i in range(4):
            choice = (c >> np.uint32(4 * i)) & 15
            byte = (both >> ((choice & 7).astype(np.uint64) * np.uint64(8))).astype(np.uint32) & 255
            sign = np.where(byte & 128, np.uint32(255), np.uint32(0))
            byte = np.where(choice & 8, sign, byte)
            result |= byte << np.uint32(8 * i)
        return result

    return computed(ctx, function, ("b32",) * 3)


def _count_ones(a: np.ndarray) -> np.ndarray:
    return np.unpackbits(a.view(np.uint8).reshape(len(a), -1), axis=1).sum(1).astype(np.uint32)


def _highest(a: np.ndarray) -> np.ndarray:
    """Position of the highest set bit, -1 if none."""
    position = np.full(len(a), -1, np.int64)
    for bit in range(8 * a.dtype.itemsize):
        position[(a >> a.dtype.type(bit)) & a.dtype.type(1) != 0] = bit
    return position


@decoder("popc")
def _popc(ctx: Context):
    return computed(ctx, _count_ones, (ctx.type,), "u32")


@decoder("clz")
def _clz(ctx: Context):
    bits = 8 * DTYPES[ctx.type].itemsize
    return computed(ctx, lambda a: (bits - 1 - _highest(a)).astype(np.uint32), (ctx.type,), "u32")


@decoder("bfind")
def _bfind(ctx: Context):
    kind, unsigned = ctx.type, "u" + ctx.type[1:]
    bits = 8 * DTYPES[kind].itemsize

    def function(a):
        word = np.where(a < 0, ~a, a).astype(DTYPES[unsigned]) if kind[0] == "s" else a
        found = _highest(word)
        if ctx.has("shiftamt"):
            found = np.where(found < 0, -1, bits - 1 - found)
        return found.astype(np.uint32)

    return computed(ctx, function, (kind,), "u32")


@decoder("brev")
def _brev(ctx: Context):
    kind = ctx.type

    def function(a):
        bits = np.unpackbits(a.view(np.uint8).reshape(len(a), -1), axis=1, bitorder="little")
        return np.packbits(bits[:, ::-1], axis=1, bitorder="little").copy().view(a.dtype).ravel()

    return computed(ctx, function, (kind,))


@decoder("dp4a")
def _dp4a(ctx: Context):
    kinds = [m for m in ctx.mods if m in DTYPES]
    pieces = [np.int8 if k == "s32" else np.uint8 for k in kinds]
    out = "s32" if "s32" in kinds else "u32"

    def function(a, b, c):
        parts = [
            x.view(t).reshape(-1, 4).astype(np.int64) for x, t in zip((a, b), pieces, strict=True)
        ]
        return c + (parts[0] * parts[1]).sum(1).astype(c.dtype)

    return computed(ctx, function, ("b32", "b32", out), out)
