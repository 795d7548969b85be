"""Instructions in which the lanes of a warp work together."""

from __future__ import annotations

import numpy as np

from .decode import DTYPES, Context, assign, decoder
from .errors import UnknownInstructionError, WarpSyncError


def active_rows(ctx: Context, m) -> np.ndarray:
    """[warps, 32] mask of the lanes executing."""
    if m is True:
        return np.ones((ctx.machine.warps, 32), bool)
    return m.reshape(-1, 32)


def ballot(lanes: np.ndarray) -> np.ndarray:
    """The mask of [..., 32] lanes."""
    return np.packbits(lanes, axis=-1, bitorder="little").view("<u4")[..., 0]


def members(ctx: Context, operand):
    """A check of the member mask: exactly the lanes it names must have arrived together."""
    mask = ctx.src(operand, "u32")
    whole = not ctx.register(operand) and int(mask[0]) == 0xFFFFFFFF
    name = ".".join(ctx.ins.opcode)

    def check(m) -> np.ndarray | None:
        """Per-lane member masks [threads]; None when all lanes of all warps take part."""
        if m is True and whole:
            return None
        active = active_rows(ctx, m)
        arrived = ballot(active)
        named = mask.reshape(-1, 32)
        if not np.count_nonzero((named != arrived[:, None]) & active):
            return None if whole else mask
        outside = active & ((named >> np.arange(32, dtype=np.uint32)) & 1 == 0)
        if outside.any():
            thread = int(np.flatnonzero(outside.ravel())[0])
            raise WarpSyncError(
                f"{name}: the lane executing it is not in its member mask "
                f"{int(mask[thread]):#010x}",
                thread,
            )
        missing = active & (named & ~arrived[:, None] != 0)
        if missing.any():
            thread = int(np.flatnonzero(missing.ravel())[0])
            raise WarpSyncError(
                f"{name}: mask {int(mask[thread]):#010x} names lanes that did not arrive "
                f"(arrived: {int(arrived[thread // 32]):#010x})",
                thread,
            )
        return mask

    return check


@decoder("shfl")
def _shfl(ctx: Context):
    mode = next(m for m in ctx.mods if m in ("up", "down", "bfly", "idx"))
    if not ctx.has("sync"):
        raise UnknownInstructionError("shfl without sync")
    first = ctx.operands[0]
    out, pred = first if isinstance(first, tuple) else (first, None)
    d = ctx.dst(out, "b32")
    p = ctx.dst(pred, "pred") if pred not in (None, "_") else None
    a, b, c = (ctx.src(o, "b32") for o in ctx.operands[1:4])
    check = members(ctx, ctx.operands[4])
    lane = ctx.machine.special["%laneid"].astype(np.int64)
    base = ctx.machine.all - lane
    fixed = not ctx.register(ctx.operands[2]) and not ctx.register(ctx.operands[3])

    def lookup() -> tuple[np.ndarray, np.ndarray]:
        segment = (c >> np.uint32(8)) & np.uint32(31)
        clamp = (c & np.uint32(31)).astype(np.int64)
        seg = segment.astype(np.int64)
        n = (b & np.uint32(31)).astype(np.int64)
        low, high = lane & seg, (lane & seg) | (clamp & ~seg)
        if mode == "up":
            j = lane - n
            valid = j >= high
        elif mode == "down":
            j = lane + n
            valid = j <= high
        elif mode == "bfly":
            j = lane ^ n
            valid = j <= high
        else:
            j = low | (n & ~seg)
            valid = j <= high
        j = np.where(valid, j, lane)
        return base + j, valid

    prepared = lookup() if fixed else None

    def run(m) -> None:
        mask = check(m)
        source, valid = prepared or lookup()
        if mask is not None:
            reads = (mask >> (source - base).astype(np.uint32)) & 1 == 0
            if m is not True:
                reads = reads & m
            if reads.any():
                thread = int(np.flatnonzero(reads)[0])
                raise WarpSyncError(
                    f"shfl reads lane {int((source - base)[thread])}, not in its member mask",
                    thread,
                )
        value = a[source]
        if p is not None:
            assign(p, valid, m)
        assign(d, value, m)

    return run


@decoder("vote")
def _vote(ctx: Context):
    kind = next(m for m in ctx.mods if m in ("ballot", "any", "all", "uni"))
    source = ctx.predicate(ctx.operands[1])
    check = members(ctx, ctx.operands[2])
    out = ctx.dst(ctx.operands[0], "b32" if kind == "ballot" else "pred")

    def run(m) -> None:
        check(m)
        active = active_rows(ctx, m)
        votes = source().reshape(-1, 32) & active
        if kind == "ballot":
            value = ballot(votes)
        elif kind == "any":
            value = votes.any(1)
        elif kind == "all":
            value = (votes | ~active).all(1)
        else:
            value = (votes | ~active).all(1) | ~votes.any(1)
        assign(out, np.repeat(value, 32), m)

    return run


@decoder("activemask")
def _activemask(ctx: Context):
    d = ctx.dst(ctx.operands[0], "b32")

    def run(m) -> None:
        assign(d, np.repeat(ballot(active_rows(ctx, m)), 32), m)

    return run


@decoder("match")
def _match(ctx: Context):
    first = ctx.operands[0]
    out, pred = first if isinstance(first, tuple) else (first, None)
    d = ctx.dst(out, "b32")
    p = ctx.dst(pred, "pred") if pred not in (None, "_") else None
    a = ctx.src(ctx.operands[1], ctx.type)
    check = members(ctx, ctx.operands[2])
    everywhere = ctx.has("all")

    def run(m) -> None:
        check(m)
        active = active_rows(ctx, m)
        rows = a.reshape(-1, 32)
        same = (rows[:, :, None] == rows[:, None, :]) & active[:, None, :]
        bits = ballot(same)
        if everywhere:
            arrived = ballot(active)[:, None]
            equal = bits == arrived
            bits = np.where(equal, bits, np.uint32(0))
            if p is not None:
                assign(p, equal.ravel(), m)
        assign(d, bits.ravel(), m)

    return run


@decoder("redux", "redux.f")
def _redux(ctx: Context):
    name = next(m for m in ctx.mods if m in ("add", "min", "max", "and", "or", "xor"))
    ufunc = {
        **{"add": np.add, "min": np.minimum, "max": np.maximum},
        **{"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor},
    }[name]
    kind = ctx.type
    d, a = ctx.dst(ctx.operands[0], kind), ctx.src(ctx.operands[1], kind)
    if kind == "f32":
        ufunc = {"min": np.fmin, "max": np.fmax}[name]
        if ctx.has("abs"):
            raise UnknownInstructionError("redux.abs")
    check = members(ctx, ctx.operands[2])

    def run(m) -> None:
        check(m)
        rows, active = a.reshape(-1, 32), active_rows(ctx, m)
        arrived = ballot(active)
        if ((arrived == 0) | (arrived == 0xFFFFFFFF)).all():  # of warps that are absent, anything
            values = ufunc.reduce(rows, axis=1, dtype=rows.dtype)
        else:
            values = [
                ufunc.reduce(row[on]) if on.any() else row[0]
                for row, on in zip(rows, active, strict=True)
            ]
        assign(d, np.repeat(np.array(values, DTYPES[kind]), 32), m)

    return run


@decoder("elect")
def _elect(ctx: Context):
    out, p = ctx.operands[0]
    check = members(ctx, ctx.operands[1])
    d = ctx.dst(out, "b32")
    pred = ctx.dst(p, "pred")
    lane = ctx.machine.special["%laneid"]

    def run(m) -> None:
        check(m)
        leader = np.repeat(active_rows(ctx, m).argmax(1).astype(np.uint32), 32)
        assign(d, leader, m)
        assign(pred, lane == leader, m)

    return run


@decoder("bar")
def _bar_warp(ctx: Context):
    """bar.warp.sync; the barriers of the block end a basic block, see barriers.py."""
    check = members(ctx, ctx.operands[0])

    def run(m) -> None:
        check(m)

    return run


@decoder("fence")
def _fence(ctx: Context):
    if ctx.has("proxy"):
        shared = ctx.machine.shared

        def run(m) -> None:
            shared.unfenced[:] = False

        return run
    return lambda m: None
