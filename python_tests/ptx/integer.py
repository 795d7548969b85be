"""Integer, logical, comparison and move instructions."""

from __future__ import annotations

import operator

import numpy as np

from .decode import DTYPES, FLOATS, Context, assign, decoder
from .errors import ParseError, UnknownInstructionError

_WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
_BITS = {1: "b8", 2: "b16", 4: "b32", 8: "b64"}


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


def _carry(ctx: Context, subtract: bool, reads: bool):
    """add.cc, addc and their kin: the carry flag is one more row of the machine."""
    kind = "u64" if ctx.type.endswith("64") else "u32"
    flag = ctx.machine.__dict__.setdefault("carry", np.zeros(ctx.threads, bool))
    writes = ctx.has("cc")

    def function(a, b):
        c = flag.astype(a.dtype) if reads else a.dtype.type(0)
        if subtract:
            result = a - b - c
            out = (a < b) | ((a == b) & (c != 0))
        else:
            result = a + b + c
            out = (result < a) | ((result == a) & (c != 0) & (b != 0))
        return result, out

    d = ctx.dst(ctx.operands[0], kind)
    a, b = (ctx.src(o, kind) for o in ctx.operands[1:3])

    def run(m) -> None:
        result, out = function(a, b)
        assign(d, result, m)
        if writes:
            assign(flag, out, m)

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


@decoder("mul", "mad")
def _mul(ctx: Context):
    kind, ops = ctx.type, ctx.operands
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
    ctx.only()
    return binary(ctx, np.minimum if ctx.ins.opcode[0] == "min" else np.maximum)


@decoder("neg", "abs")
def _sign(ctx: Context):
    ufunc = np.negative if ctx.ins.opcode[0] == "neg" else np.abs
    d, a = ctx.dst(ctx.operands[0], ctx.type), ctx.src(ctx.operands[1], ctx.type)
    return lambda m: ufunc(a, out=d, where=m)


@decoder("sad")
def _sad(ctx: Context):
    return computed(ctx, lambda a, b, c: c + (np.maximum(a, b) - np.minimum(a, b)), (ctx.type,) * 3)


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


# --- comparison and selection -------------------------------------------------------------------

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


def _float_source(ctx: Context, operand, kind: str):
    from .floating import reader

    return reader(ctx, operand, kind)


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
    left, right = _float_source(ctx, ops[1], kind), _float_source(ctx, ops[2], kind)
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
    left, right = (_float_source(ctx, o, kind) for o in ctx.operands[1:3])
    true = 1.0 if to[0] == "f" else ~np.zeros(1, DTYPES[to])[0]
    zero = np.zeros(1, DTYPES[to])[0]
    return lambda m: assign(d, np.where(compare(name, left(), right()), true, zero), m)


@decoder("selp")
def _selp(ctx: Context):
    kind = _BITS[DTYPES[ctx.type].itemsize] if ctx.type != "pred" else "pred"
    literal = ctx.type
    d = ctx.dst(ctx.operands[0], kind)
    a, b = (ctx.src(o, literal).view(d.dtype) for o in ctx.operands[1:3])
    choose = ctx.predicate(ctx.operands[3])
    return lambda m: assign(d, np.where(choose(), a, b), m)


@decoder("slct")
def _slct(ctx: Context):
    to, kind = [m for m in ctx.mods if m in DTYPES]
    return computed(ctx, lambda a, b, c: np.where(c >= 0, a, b), (to, to, kind), to)


# --- moves --------------------------------------------------------------------------------------


@decoder("mov")
def _mov(ctx: Context):
    kind, (to, source) = ctx.type, ctx.operands
    if isinstance(source, list):
        d = ctx.dst(to, kind)
        part = d.dtype.itemsize // len(source)
        lanes = d.view(f"u{part}").reshape(ctx.threads, len(source))
        rows = [ctx.src(o, _BITS[part]) for o in source]
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
        rows = [ctx.dst(o, _BITS[part]) if o != "_" else None for o in to]

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
    from .memory import SHARED_WINDOW

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
    from .memory import GLOBAL_BASE, LOCAL_WINDOW, SHARED_WINDOW, WINDOW_BYTES

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
