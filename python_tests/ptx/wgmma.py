"""wgmma.mma_async: four warps, operands in shared memory through descriptors.

The product is computed when the instruction is issued; until wgmma.wait_group covers it the
accumulators may not be touched and the shared memory it reads may not be overwritten.
"""

from __future__ import annotations

import numpy as np

from . import dataflow
from .decode import Context, decoder
from .errors import MisalignedError, UnknownInstructionError, WgmmaError
from .matrix import a_layout, register_rows, to_float, whole_warps
from .memory import READING, SHARED_BASE

_BYTES = {"f16": 2, "bf16": 2, "tf32": 4}
# Descriptor bits 62-63: bytes in a row of a swizzle atom.
_SWIZZLE = {0: 16, 1: 128, 2: 64, 3: 32}


def element_offsets(
    rows: int, columns: int, width: int, leading: int, stride: int, row_bytes: int, mn_major: bool
) -> np.ndarray:
    """Byte offset, before swizzling, of element (m or n, k) from the descriptor's address.

    The canonical layouts of the PTX manual: core matrices of 8 rows of 16 bytes. `leading` and
    `stride` are the descriptor's two byte offsets.
    """
    r, c = np.arange(rows)[:, None], np.arange(columns)[None, :]
    if not mn_major:
        byte = c * width
        if row_bytes == 16:
            return (r // 8) * stride + (r % 8) * 16 + (byte // 16) * leading + byte % 16
        return (r // 8) * stride + (r % 8) * row_bytes + byte
    byte = r * width
    if row_bytes == 16:
        return (byte // 16) * stride + byte % 16 + (c % 8) * 16 + (c // 8) * leading
    atom, inside = byte // row_bytes, byte % row_bytes
    return atom * leading + inside + (c % 8) * row_bytes + (c // 8) * stride


class WgmmaState:
    """Per warpgroup: groups in flight, registers changed since the last fence."""

    def __init__(self, machine) -> None:
        self.machine = machine
        self.groups = max(1, machine.warps // 4)
        self.registers: set[int] = set()  # rows of the 32-bit file any wgmma uses
        machine.reset_hooks.append(self.reset)
        for function in machine.functions:
            for ins in function.instructions:
                if "mma_async" in ins.opcode:
                    for operand in ins.operands[:2]:
                        if isinstance(operand, list):
                            names = operand
                            self.registers |= {
                                machine.register_index[function.name, n][1] for n in names
                            }
        self.reset()

    def reset(self) -> None:
        self.open: list[list[tuple]] = [[] for _ in range(self.groups)]
        self.committed: list[list[list[tuple]]] = [[] for _ in range(self.groups)]
        self.busy: list[dict[int, int]] = [{} for _ in range(self.groups)]
        self.changed: list[set[int]] = [set(self.registers) for _ in range(self.groups)]

    def chosen(self, ctx: Context, m) -> list[int]:
        """Warpgroups executing; all four warps must arrive."""
        warps = whole_warps(ctx, m)
        groups = sorted({int(w) // 4 for w in warps})
        if len(warps) != 4 * len(groups):
            raise WgmmaError(f"{'.'.join(ctx.ins.opcode)} needs all warps of a warpgroup")
        return groups

    def guard(self, ctx: Context, operation):
        """Watch ordinary instructions that use registers of some wgmma."""
        if ctx.ins.opcode[0] == "wgmma":
            return operation
        reads, writes = dataflow.roles(ctx.ins, ctx.function.registers)
        index = ctx.machine.register_index

        def mine(names: list[str]) -> set[int]:
            places = (index[ctx.function.name, n] for n in names)
            return {row for width, row in places if width == 32} & self.registers

        touched, written = mine(reads) | mine(writes), mine(writes)
        if not touched:
            return operation

        def run(m):
            for g in range(self.groups):
                executing = m is True or m[128 * g : 128 * g + 128].any()
                if executing and not touched.isdisjoint(self.busy[g]):
                    raise WgmmaError(
                        "a register of an unfinished wgmma.mma_async is used before "
                        "wgmma.wait_group",
                        128 * g,
                    )
                if written:
                    self.changed[g] |= written
            return operation(m)

        return run

    def issue(self, g: int, accumulators: set[int], registers: set[int], granules) -> None:
        for row in accumulators | registers:
            self.busy[g][row] = self.busy[g].get(row, 0) + 1
        self.open[g].append((accumulators | registers, granules))
        self.machine.shared.begin(granules, READING)

    def commit(self, g: int) -> None:
        self.committed[g].append(self.open[g])
        self.open[g] = []

    def wait(self, g: int, allowed: int) -> None:
        shared = self.machine.shared
        done = self.committed[g][: max(0, len(self.committed[g]) - allowed)]
        self.committed[g] = self.committed[g][len(done) :]
        if not done:
            return
        for group in done:
            for rows, granules in group:
                for row in rows:
                    self.busy[g][row] -= 1
                    if not self.busy[g][row]:
                        del self.busy[g][row]
                for warp in range(4 * g, 4 * g + 4):
                    who = np.full(len(granules), 32 * warp)
                    shared.finish(granules, who, READING)
        # Another operation still in flight may read what a finished one read.
        for pieces in (*self.open, *(p for groups in self.committed for p in groups)):
            for _, granules in pieces:
                shared.begin(granules, READING)


@decoder("wgmma")
@decoder("wgmma.f")
def _wgmma(ctx: Context):
    state: WgmmaState = ctx.machine.wgmma
    if ctx.has("mma_async"):
        return _mma_async(ctx, state)
    if ctx.has("fence"):

        def fence(m) -> None:
            for g in state.chosen(ctx, m):
                state.changed[g].clear()

        return fence
    if ctx.has("commit_group"):

        def commit(m) -> None:
            for g in state.chosen(ctx, m):
                state.commit(g)

        return commit
    if ctx.has("wait_group"):
        allowed = int(ctx.operands[0], 0)

        def wait(m) -> None:
            for g in state.chosen(ctx, m):
                state.wait(g, allowed)

        return wait
    raise UnknownInstructionError(f"unknown instruction {'.'.join(ctx.ins.opcode)}")


def _uniform(row: np.ndarray, g: int, what: str) -> int:
    part = row[128 * g : 128 * g + 128]
    if (part != part[0]).any():
        raise WgmmaError(f"{what} differs between the threads of a warpgroup", 128 * g)
    return int(part[0])


def _mma_async(ctx: Context, state: WgmmaState):
    mods = ctx.mods
    shape = next(m for m in mods if m.startswith("m64n"))
    n, k = (int(x) for x in shape[4:].split("k"))
    to, a_kind, b_kind = mods[-3:]
    if to != "f32" or a_kind not in _BYTES or b_kind != a_kind or ctx.has("sp"):
        raise UnknownInstructionError(f"unknown instruction {'.'.join(ctx.ins.opcode)}")
    width = _BYTES[a_kind]
    file, shared = ctx.machine.files[32], ctx.machine.shared
    ops = ctx.operands
    d_rows = register_rows(ctx, ops[0])
    from_registers = isinstance(ops[1], list)
    a_rows = register_rows(ctx, ops[1]) if from_registers else None
    a_desc = None if from_registers else ctx.src(ops[1], "b64")
    b_desc = ctx.src(ops[2], "b64")
    literal = ops[3] in ("0", "1")
    keep = ctx.src(ops[3], "pred") if not literal else np.full(ctx.threads, ops[3] == "1")
    scales = [int(o) for o in ops[4:6]]
    transposed = [int(o) for o in ops[6:]]
    a_trans = bool(transposed[0]) if len(transposed) > 1 else False
    b_trans = bool(transposed[-1]) if transposed else False
    accumulators = {int(r) for r in d_rows}
    registers = {int(r) for r in a_rows} if from_registers else set()
    per_word = 4 // width
    if from_registers:
        ar, ac = a_layout(k, per_word)
        a_place = np.empty((16, k), np.int64)
        a_place[ar, ac] = np.arange(ar.size).reshape(ar.shape)
    # Value i of lane l of warp w: row 16 w + l // 4 + 8 (i // 2 % 2), column 8 (i // 4) + ...
    i, thread = np.arange(n // 2)[:, None], np.arange(128)[None, :]
    lane = thread % 32
    row = 16 * (thread // 32) + lane // 4 + 8 * (i // 2 % 2)
    column = 8 * (i // 4) + 2 * (lane % 4) + i % 2

    def fetch(descriptor: int, rows: int, trans: bool, g: int) -> tuple[np.ndarray, np.ndarray]:
        start = (descriptor & 0x3FFF) << 4
        leading = (descriptor >> 16 & 0x3FFF) << 4
        stride = (descriptor >> 32 & 0x3FFF) << 4
        if descriptor >> 49 & 7:
            raise UnknownInstructionError("wgmma descriptor with a base offset")
        row_bytes = _SWIZZLE[descriptor >> 62]
        place = start + element_offsets(rows, k, width, leading, stride, row_bytes, trans)
        # Swizzling exchanges 16-byte pieces by the address bits above a row of 128 bytes.
        place ^= ((place >> 7) & (row_bytes // 16 - 1)) << 4
        flat = place.ravel()
        pieces = np.unique(flat >> 4) << 4
        who = np.full(len(pieces), 128 * g)
        offset = shared.offsets(pieces, 16, who)
        if start % 16 or SHARED_BASE % 1024:
            raise MisalignedError("wgmma descriptor", 128 * g)
        granules = (offset >> shared.shift)[:, None] + np.arange(16 >> shared.shift)
        granules = granules.ravel()
        if shared.unfenced[granules].any():
            raise WgmmaError(
                "wgmma.mma_async reads shared memory written by ordinary stores without a "
                "fence.proxy.async in between",
                128 * g,
            )
        for warp in range(4 * g, 4 * g + 4):
            shared.check_read_granules(granules, np.full(len(granules), 32 * warp))
        words = shared.views[width][(flat - SHARED_BASE) // width]
        if width == 2:
            words = words.view(np.uint32)
        return to_float(words, a_kind).reshape(rows, k), granules

    def run(m) -> None:
        for g in state.chosen(ctx, m):
            used = accumulators | registers
            if not used.isdisjoint(state.changed[g]):
                raise WgmmaError(
                    "registers of wgmma.mma_async changed without a wgmma.fence in between", 128 * g
                )
            if not registers.isdisjoint(state.busy[g]):
                raise WgmmaError("operand A registers are still in use", 128 * g)
            mine = slice(128 * g, 128 * g + 128)
            granules = []
            if from_registers:
                words = file[a_rows, mine].reshape(len(a_rows), 4, 32).transpose(1, 0, 2)
                a = to_float(words, a_kind).reshape(4, -1)[:, a_place].reshape(64, k)
            else:
                a, g_a = fetch(_uniform(a_desc, g, "descriptor A"), 64, a_trans, g)
                granules.append(g_a)
            b, g_b = fetch(_uniform(b_desc, g, "descriptor B"), n, b_trans, g)
            granules.append(g_b)
            product = np.matmul(a.astype(np.float64), b.T.astype(np.float64))
            if scales:
                product *= scales[0] * scales[1]
            out = product[row, column]
            if _uniform(keep, g, "scale-d"):
                out = out + file[d_rows, mine].view(np.float32)
            file[d_rows, mine] = out.astype(np.float32).view(np.uint32)
            state.issue(g, accumulators, registers, np.unique(np.concatenate(granules)))

    return run
