"""Happens-before between the warps of a block, per granule of memory.

Each warp has a clock; a barrier hands every participant the clocks of the others (vector clocks). A
granule is the smallest piece any instruction of the kernel touches, so byte accuracy costs nothing
where all accesses are words. Clocks never restart, so blocks need no reset of the tables.
"""

from __future__ import annotations

import numpy as np

from .errors import RaceError

_OWN = np.iinfo(np.int64).max


class Order:
    """Vector clocks of the warps of one block."""

    def __init__(self, warps: int) -> None:
        self.warps = warps
        self.clock = np.ones(warps, np.int64)
        self.known = np.zeros((warps, warps), np.int64)
        self._diagonal()
        self.epoch = 0  # number of barriers of the whole block

    def _diagonal(self) -> None:
        np.fill_diagonal(self.known, _OWN)

    def barrier(self, warps: np.ndarray | None = None) -> None:
        """All warps, or those named, learn of each other's accesses."""
        if warps is None:
            self.known[:] = self.clock
            self.clock += 1
            self.epoch += 1
        else:
            merged = self.known[warps].max(axis=0)
            merged[warps] = self.clock[warps]
            self.known[warps] = merged
            self.clock[warps] += 1
        self._diagonal()

    def new_block(self) -> None:
        """What the last block did is ordered before everything in this one."""
        self.clock[:] = self.clock.max()
        self.barrier()


class Tracker:
    """Last accesses to each granule of one region."""

    def __init__(self, granules: int, order: Order, name: str) -> None:
        self.order, self.name = order, name
        warps = order.warps
        self.writer = np.zeros(granules, np.int8)
        self.write_clock = np.zeros(granules, np.int32)
        self.read_clock = np.zeros((granules, warps), np.int32)
        self.atomic_clock: np.ndarray | None = None

    def _fail(self, bad: np.ndarray, threads: np.ndarray, what: str) -> None:
        thread = int(threads[np.flatnonzero(bad)[0]])
        raise RaceError(f"race on {self.name}: {what} without a barrier between them", thread)

    def _check_writes(self, g: np.ndarray, warp: np.ndarray, threads: np.ndarray, what: str):
        order = self.order
        known = order.known.ravel()[warp * order.warps + self.writer[g]]
        bad = self.write_clock[g] > known
        if np.count_nonzero(bad):
            other = int(self.writer[g][np.flatnonzero(bad)[0]])
            self._fail(bad, threads, f"{what} after a write by warp {other}")

    def _check_clocks(
        self, clocks: np.ndarray, g: np.ndarray, warp: np.ndarray, threads: np.ndarray, what: str
    ) -> None:
        late = clocks[g] > self.order.known[warp]
        if np.count_nonzero(late):
            bad = late.any(axis=1)
            other = int(np.flatnonzero(late[np.flatnonzero(bad)[0]])[0])
            self._fail(bad, threads, f"{what} by warp {other}")

    def read(self, g: np.ndarray, threads: np.ndarray) -> None:
        warp = threads >> 5
        self._check_writes(g, warp, threads, "a read")
        if self.atomic_clock is not None:
            self._check_clocks(self.atomic_clock, g, warp, threads, "a read after an atomic")
        self.read_clock[g, warp] = self.order.clock[warp]

    def write(self, g: np.ndarray, threads: np.ndarray) -> None:
        warp = threads >> 5
        self._check_writes(g, warp, threads, "a write")
        self._check_clocks(self.read_clock, g, warp, threads, "a write after a read")
        if self.atomic_clock is not None:
            self._check_clocks(self.atomic_clock, g, warp, threads, "a write after an atomic")
        self.writer[g] = warp
        self.write_clock[g] = self.order.clock[warp]
        # Two warps that write one value to one place in one instruction are harmless, and Triton
        # does so; different values are caught by the memory itself.

    def atomic(self, g: np.ndarray, threads: np.ndarray) -> None:
        """Atomic accesses do not race with each other, only with plain ones."""
        warp = threads >> 5
        self._check_writes(g, warp, threads, "an atomic")
        self._check_clocks(self.read_clock, g, warp, threads, "an atomic after a read")
        if self.atomic_clock is None:
            self.atomic_clock = np.zeros_like(self.read_clock)
        self.atomic_clock[g, warp] = self.order.clock[warp]
