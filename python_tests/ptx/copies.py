"""cp.async: copies from global to shared memory that finish when waited for."""

from __future__ import annotations

import numpy as np

from .decode import Context, decoder
from .errors import UnknownInstructionError
from .loadstore import refuse_unknown
from .memory import WRITING


class AsyncGroups:
    """Copies in flight: (threads, granules [n, k], group per thread or -1 while uncommitted)."""

    def __init__(self, machine) -> None:
        self.machine = machine
        self.committed = np.zeros(machine.threads, np.int64)
        self.flight: list[list[np.ndarray]] = []
        machine.reset_hooks.append(self.reset)

    def reset(self) -> None:
        self.committed[:] = 0
        self.flight.clear()

    def commit(self, m) -> None:
        mask = slice(None) if m is True else m
        for record in self.flight:
            threads, _, group = record
            open_here = group < 0
            if open_here.any():
                if m is not True:
                    open_here &= m[threads]
                record[2] = np.where(open_here, self.committed[threads], group)
        self.committed[mask] += 1

    def wait(self, m, allowed: int | None) -> None:
        """Complete all but the newest `allowed` groups; None also takes uncommitted copies."""
        shared = self.machine.shared
        kept = []
        for threads, granules, group in self.flight:
            if allowed is None:
                done = np.ones(len(threads), bool)
            else:
                done = (group >= 0) & (group < self.committed[threads] - allowed)
            if m is not True:
                done &= m[threads]
            if done.any():
                mine = granules[done]
                shared.finish(mine.ravel(), np.repeat(threads[done], mine.shape[1]), WRITING)
            if not done.all():
                kept.append([threads[~done], granules[~done], group[~done]])
        self.flight = kept


def _groups(ctx: Context) -> AsyncGroups:
    if ctx.machine.async_groups is None:
        ctx.machine.async_groups = AsyncGroups(ctx.machine)
    return ctx.machine.async_groups


@decoder("cp")
def _cp(ctx: Context):
    if not ctx.has("async") or ctx.has("bulk", "mbarrier", "reduce"):
        raise UnknownInstructionError(f"unknown instruction {'.'.join(ctx.ins.opcode)}")
    groups = _groups(ctx)
    if ctx.has("commit_group"):
        return groups.commit
    if ctx.has("wait_all"):
        return lambda m: groups.wait(m, None)
    if ctx.has("wait_group"):
        allowed = int(ctx.operands[0], 0)
        return lambda m: groups.wait(m, allowed)
    refuse_unknown(ctx, "async")
    size = int(ctx.operands[2], 0)
    to, source, lanes = ctx.address(ctx.operands[0]), ctx.address(ctx.operands[1]), ctx.lanes()
    extra = [o for o in ctx.operands[3:] if isinstance(o, str)]
    taken = ctx.src(extra[0], "u32") if extra and not ctx.has("L2::cache_hint") else None
    shared, memory = ctx.machine.shared, ctx.machine.globals

    def run(m) -> None:
        threads, where = lanes(m), to(m)
        offset = shared.offsets(where, size, threads)
        g, _ = shared.check_write(offset, size, threads)
        data = np.zeros((len(threads), size), np.uint8)
        counts = np.full(len(threads), size) if taken is None else taken[threads]
        address = source(m)
        for count in np.unique(counts):
            if count == 0:
                continue  # nothing is read: the address may be anything
            chosen = np.flatnonzero(counts == count)
            mine, reader = address[chosen], threads[chosen]
            if count == size:
                width = min(size, 8)
                parts = memory.load(mine, width, size // width, reader)
                data[chosen] = np.stack(parts, 1).view(np.uint8)
            else:
                for j in range(int(count)):
                    data[chosen, j] = memory.load(mine + np.uint64(j), 1, 1, reader)[0]
        view = shared.views[min(size, 8)]
        words = data.view(view.dtype)
        index = offset // view.dtype.itemsize
        for j in range(words.shape[1]):
            view[index + j] = words[:, j]
        shared.begin(g, WRITING)
        groups.flight.append(
            [threads, g.reshape(len(threads), -1), np.full(len(threads), -1, np.int64)]
        )

    return run
