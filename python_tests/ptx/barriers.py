"""Barriers of the block: bar.sync, barrier.sync, bar.arrive, bar.red."""

from __future__ import annotations

import numpy as np

from .decode import Context
from .errors import BarrierError, UnknownInstructionError


def decode_barrier(ctx: Context, following: int | None):
    """A terminator: threads that arrive stop until all the barrier waits for have."""
    machine, operands = ctx.machine, list(ctx.operands)
    mods = ctx.mods
    if not ctx.has("sync", "arrive", "red"):
        raise UnknownInstructionError(f"unknown instruction {'.'.join(ctx.ins.opcode)}")
    aligned = ctx.ins.opcode[0] == "bar" or "aligned" in mods
    reduction = out = vote = None
    if "red" in mods:
        reduction = next(x for x in mods if x in ("popc", "and", "or"))
        out = ctx.dst(operands.pop(0), "b32" if reduction == "popc" else "pred")
        vote = ctx.predicate(operands.pop())
    number = ctx.src(operands[0], "u32")
    count = ctx.src(operands[1], "u32") if len(operands) > 1 else None
    state = machine.__dict__.setdefault("barriers", {"votes": {}, "arrived": {}})
    if not state.get("hooked"):
        state["hooked"] = True
        machine.reset_hooks.append(lambda: (state["votes"].clear(), state["arrived"].clear()))
    simple = machine.real == machine.threads and reduction is None and count is None

    def finish_votes(ident: int, members: np.ndarray) -> None:
        votes = state["votes"].pop(ident, None)
        if not votes:
            return
        yes = sum(int(v.sum()) for _, _, _, v in votes)
        total = sum(len(v) for _, _, _, v in votes)
        for row, kind, mask, _ in votes:
            value = yes if kind == "popc" else (yes == total if kind == "and" else yes > 0)
            row[mask] = value

    def run(m):
        if m is True and simple and (number == number[0]).all():
            machine.order.barrier()
            return following
        mask = np.ones(machine.threads, bool) if m is True else m
        threads = np.flatnonzero(mask)
        if aligned:
            together = mask.reshape(-1, 32)
            expected = machine.real_mask.reshape(-1, 32)
            partial = together.any(1) & (together != expected).any(1)
            if partial.any():
                warp = int(np.flatnonzero(partial)[0])
                raise BarrierError(
                    f"divergent barrier: {int(together[warp].sum())} of "
                    f"{int(expected[warp].sum())} lanes of warp {warp} reach it",
                    int(threads[threads >= 32 * warp][0]),
                )
        ident = int(number[threads[0]])
        if (number[threads] != ident).any():
            raise UnknownInstructionError("barrier number differs between threads")
        need = machine.real if count is None else int(count[threads[0]])
        if reduction is not None:
            votes = vote()[mask]
            state["votes"].setdefault(ident, []).append((out, reduction, mask.copy(), votes))
        arrived_only = state["arrived"].setdefault(ident, np.zeros(machine.threads, bool))
        machine.pcs[mask] = following if following is not None else len(machine.blocks)
        if "arrive" in mods:
            arrived_only |= mask
        else:
            machine.waiting[mask] = True
            machine.barrier_of[mask] = ident
        members = (machine.waiting & (machine.barrier_of == ident)) | arrived_only
        present = int(members.sum())
        if present > need:
            raise BarrierError(f"{present} threads at barrier {ident} of {need}", int(threads[0]))
        if present == need:
            machine.waiting[members & (machine.barrier_of == ident)] = False
            machine.barrier_of[members] = -1
            finish_votes(ident, members)
            state["arrived"].pop(ident, None)
            warps = np.unique(np.flatnonzero(members) // 32)
            machine.order.barrier(None if len(warps) == machine.warps else warps)
        return None

    return run
