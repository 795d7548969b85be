"""ldmatrix, stmatrix, movmatrix and mma.sync.

Products are exact; each instruction sums in float64 and rounds once to its accumulator type. The
hardware sums in another order and with a little less precision, within the usual tolerances.
"""

from __future__ import annotations

import numpy as np

from .decode import Context, decoder
from .errors import UnknownInstructionError, WarpSyncError
from .floating import bf16_to_f32

_LANE = np.arange(32)


def whole_warps(ctx: Context, m) -> np.ndarray:
    """Numbers of the warps executing; .aligned instructions need all their lanes."""
    machine = ctx.machine
    if m is True:
        return np.arange(machine.warps)
    rows = m.reshape(-1, 32)
    partial = rows.any(1) & ~rows.all(1)
    if partial.any():
        warp = int(np.flatnonzero(partial)[0])
        raise WarpSyncError(
            f"{'.'.join(ctx.ins.opcode)}: only {int(rows[warp].sum())} lanes of warp {warp} arrive",
            32 * warp + int(rows[warp].argmax()),
        )
    return np.flatnonzero(rows.any(1))


def register_rows(ctx: Context, operand) -> np.ndarray:
    """Indices into the 32-bit register file of a vector operand."""
    names = operand if isinstance(operand, list) else [operand]
    places = [ctx.machine.register_index[ctx.function.name, n] for n in names]
    if any(width != 32 for width, _ in places):
        raise UnknownInstructionError("matrix operand that is not in 32-bit registers")
    return np.array([index for _, index in places])


@decoder("ldmatrix", "stmatrix")
def _ldmatrix(ctx: Context):
    load = ctx.ins.opcode[0] == "ldmatrix"
    if not ctx.has("m8n8") or ctx.type != "b16":
        raise UnknownInstructionError(".".join(ctx.ins.opcode))
    count, trans = int(next(m for m in ctx.mods if m in ("x1", "x2", "x4"))[1:]), ctx.has("trans")
    registers, where = ctx.operands if load else reversed(ctx.operands)
    rows, address = register_rows(ctx, registers), ctx.address(where)
    file, shared, everyone = ctx.machine.files[32], ctx.machine.shared, ctx.machine.all
    # Lane l supplies the address of row l % 8 of matrix l // 8 and holds (l // 4, 2 (l % 4)).
    suppliers = 8 * count > _LANE

    def run(m) -> None:
        warps = whole_warps(ctx, m)
        lanes = everyone.reshape(-1, 32)[warps]
        giving = lanes[:, suppliers].ravel()
        offset = shared.offsets(address(True)[giving], 16, giving)
        words = offset >> 2
        index = words[:, None] + np.arange(4)
        if load:
            shared.check_read(offset, 16, giving)
            data = shared.views[4][index].view(np.uint16).reshape(len(warps), count, 8, 8)
            if trans:
                data = data.transpose(0, 1, 3, 2)
            pairs = np.ascontiguousarray(data).view(np.uint32)  # [warps, count, 8, 4]
            values = pairs.reshape(len(warps), count, 32).transpose(1, 0, 2)
            if m is True:
                file[rows] = values.reshape(count, -1)
            else:
                file[rows[:, None], lanes.ravel()] = values.reshape(count, -1)
        else:
            shared.check_write(offset, 16, giving)
            values = file[rows[:, None], lanes.ravel()].reshape(count, len(warps), 32)
            data = np.ascontiguousarray(values.transpose(1, 0, 2)).view(np.uint16)
            data = data.reshape(len(warps), count, 8, 8)
            if trans:
                data = np.ascontiguousarray(data.transpose(0, 1, 3, 2))
            shared.views[4][index] = data.view(np.uint32).reshape(-1, 4)

    return run


@decoder("movmatrix")
def _movmatrix(ctx: Context):
    d, a = ctx.dst(ctx.operands[0], "b32"), ctx.src(ctx.operands[1], "b32")

    def run(m) -> None:
        warps = whole_warps(ctx, m)
        lanes = ctx.machine.all.reshape(-1, 32)[warps].ravel()
        data = a[lanes].view(np.uint16).reshape(-1, 8, 8).transpose(0, 2, 1)
        d[lanes] = np.ascontiguousarray(data).view(np.uint32).ravel()

    return run


# --- mma.sync -----------------------------------------------------------------------------------


def to_float(words: np.ndarray, kind: str) -> np.ndarray:
    """Register words [..., lanes] to values [..., lanes, elements in a word]."""
    words = np.ascontiguousarray(words)
    if kind == "tf32":
        return (words & np.uint32(0xFFFFE000)).view(np.float32)[..., None]
    if kind == "f32":
        return words.view(np.float32)[..., None]
    shape = (*words.shape, 2)
    if kind == "bf16":
        return bf16_to_f32(words.view(np.uint16)).reshape(shape)
    if kind == "f16":
        return words.view(np.float16).astype(np.float32).reshape(shape)
    if kind in ("s8", "u8"):
        dtype = np.int8 if kind == "s8" else np.uint8
        return words.view(dtype).astype(np.float64).reshape((*words.shape, 4))
    raise UnknownInstructionError(f"matrix type {kind}")


def a_layout(k: int, per_word: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of element [register, lane, part] of a 16 x k operand A."""
    registers = 16 * k // 32 // per_word
    r = np.arange(registers)[:, None, None]
    lane, part = _LANE[None, :, None], np.arange(per_word)[None, None, :]
    row = lane // 4 + 8 * (r % 2) + 0 * part
    column = (lane % 4) * per_word + part + 4 * per_word * (r // 2)
    return row, column


def b_layout(k: int, per_word: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of element [register, lane, part] of a k x 8 operand B."""
    registers = 8 * k // 32 // per_word
    r = np.arange(registers)[:, None, None]
    lane, part = _LANE[None, :, None], np.arange(per_word)[None, None, :]
    row = (lane % 4) * per_word + part + 4 * per_word * r
    return row, lane // 4 + 0 * row


def _accumulator_layout() -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of value [i, lane] of a 16 x 8 accumulator, i = 0..3."""
    i = np.arange(4)[:, None]
    return _LANE // 4 + 8 * (i // 2), (_LANE % 4) * 2 + i % 2


_ELEMENTS = {"tf32": 1, "f16": 2, "bf16": 2, "s8": 4, "u8": 4}


def _mma_f64(ctx: Context):
    """m8n8k4: one element of A and of B in a lane, two of C."""
    d, a, b, c = ([ctx.row(n).view(np.float64) for n in vector] for vector in ctx.operands)
    row, k = _LANE // 4, _LANE % 4

    def run(m) -> None:
        for warp in whole_warps(ctx, m):
            lanes = slice(32 * warp, 32 * warp + 32)
            left, right = np.empty((8, 4)), np.empty((4, 8))
            left[row, k], right[k, row] = a[0][lanes], b[0][lanes]
            product = left @ right
            values = [c[i][lanes] + product[row, 2 * k + i] for i in range(2)]
            for i in range(2):
                d[i][lanes] = values[i]

    return run


def products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What an instruction adds to its accumulators; tests put hardware that rounds here."""
    return np.matmul(a.astype(np.float64), b.astype(np.float64))


@decoder("mma", "mma.f")
def _mma(ctx: Context):
    shape = next(m for m in ctx.mods if m[0] == "m" and m[1].isdigit())
    k = int(shape.split("k")[1])
    if shape == "m8n8k4" and ctx.type == "f64":
        return _mma_f64(ctx)
    if not shape.startswith("m16n8k") or ctx.has("sp", "block_scale"):
        raise UnknownInstructionError(".".join(ctx.ins.opcode))
    to, a_kind, b_kind, c_kind = ctx.mods[-4:]
    per_word = _ELEMENTS[a_kind]
    d_rows, a_rows, b_rows = (register_rows(ctx, o) for o in ctx.operands[:3])
    zero = not isinstance(ctx.operands[3], list) or not ctx.register(ctx.operands[3][0])
    if zero:
        constants = [ctx.src(o, c_kind) for o in ctx.operands[3]]
    c_rows = None if zero else register_rows(ctx, ctx.operands[3])
    file = ctx.machine.files[32]
    ar, ac = a_layout(k, per_word)
    br, bc = b_layout(k, per_word)
    cr, cc = _accumulator_layout()
    # Where entry (row, column) of each operand sits among [register, lane, part].
    a_place = np.empty((16, k), np.int64)
    a_place[ar, ac] = np.arange(ar.size).reshape(ar.shape)
    b_place = np.empty((k, 8), np.int64)
    b_place[br, bc] = np.arange(br.size).reshape(br.shape)
    integer = to == "s32"
    half_out, half_in = to == "f16", c_kind == "f16"

    def gather(rows: np.ndarray, kind: str, place: np.ndarray, chosen, warps: int) -> np.ndarray:
        words = file[rows] if chosen is None else file[rows[:, None], chosen]
        words = words.reshape(len(rows), warps, 32).transpose(1, 0, 2)
        return to_float(words, kind).reshape(warps, -1)[:, place]

    def run(m) -> None:
        numbers = whole_warps(ctx, m)
        warps = len(numbers)
        chosen = None if m is True else ctx.machine.all.reshape(-1, 32)[numbers].ravel()
        a = gather(a_rows, a_kind, a_place, chosen, warps)
        b = gather(b_rows, b_kind, b_place, chosen, warps)
        product = products(a, b)[:, cr, cc]
        product = product.transpose(1, 0, 2).reshape(4, -1)  # [value, thread]
        if zero:
            c = np.stack([row[: product.shape[1]] for row in constants])
        else:
            words = file[c_rows] if chosen is None else file[c_rows[:, None], chosen]
            if half_in:
                c = words.view(np.float16).reshape(2, -1, 2).transpose(0, 2, 1).reshape(4, -1)
            else:
                c = words.view(np.int32 if integer else np.float32)
        if integer:
            out = (product.astype(np.int64) + c).astype(np.int32).view(np.uint32)
        elif half_out:
            halves = (product + c).astype(np.float16).reshape(2, 2, -1).transpose(0, 2, 1)
            out = np.ascontiguousarray(halves).view(np.uint32).reshape(2, -1)
        else:
            out = (product + c).astype(np.float32).view(np.uint32)
        if chosen is None:
            file[d_rows] = out
        else:
            file[d_rows[:, None], chosen] = out

    return run
