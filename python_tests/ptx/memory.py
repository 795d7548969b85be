"""Global, shared and local memory with exact bounds, alignment and race checks."""

from __future__ import annotations

import bisect
import ctypes

import numpy as np

from .errors import (
    AsyncCopyError,
    MisalignedError,
    OutOfBoundsError,
    RaceError,
    UninitializedError,
    WgmmaError,
)
from .races import Order, Tracker

UINT = {1: np.dtype("u1"), 2: np.dtype("u2"), 4: np.dtype("u4"), 8: np.dtype("u8")}
# Shared memory starts at a 1024-byte boundary, as on the device; 0 stays invalid.
SHARED_BASE = 1024
SHARED_WINDOW = 0x0100_0000_0000
LOCAL_WINDOW = 0x0200_0000_0000
WINDOW_BYTES = 1 << 24
GLOBAL_BASE = 0x7F00_0000_0000
GUARD = 1 << 36  # more than any offset a 32-bit index can make

WRITING, READING = 1, 2  # pending asynchronous operations on shared memory


def granules_of(offset: np.ndarray, size: int, shift: int, threads: np.ndarray):
    """Granules of accesses of `size` bytes, and the thread of each."""
    start, count = offset >> shift, size >> shift
    if count <= 1:  # also the bytes of a partial cp.async, which are smaller than a granule
        return start, threads
    return (start[:, None] + np.arange(count)).ravel(), np.repeat(threads, count)


def _align(offset: np.ndarray, size: int, threads: np.ndarray, space: str) -> None:
    if size > 1:
        low = offset & (size - 1)
        if np.count_nonzero(low):
            i = int(np.flatnonzero(low)[0])
            raise MisalignedError(
                f"misaligned {space} access of {size} bytes at address {int(offset[i]):#x}",
                int(threads[i]),
            )


def _lost(written: np.ndarray, values: np.ndarray, threads: np.ndarray, space: str) -> None:
    """Two lanes of one store wrote different values to one place: the result is undefined."""
    lost = written != values
    if np.count_nonzero(lost):
        thread = int(threads[np.flatnonzero(lost)[0]])
        raise RaceError(f"race on {space} memory: one store, one address, two values", thread)


class Region:
    """One contiguous piece of memory: an argument, a module variable."""

    def __init__(self, name: str, start: int, data: np.ndarray, size: int) -> None:
        self.name = name
        self.start = start  # virtual address of the first valid byte
        self.end = start + size
        self.size = size
        self._data = data  # bytes; begins at start rounded down to 16
        self.skew = start & 15
        self._views: dict[int, np.ndarray] = {}
        self.tracker: Tracker | None = None
        self.owner: np.ndarray | None = None
        self.reads: list[tuple[int, np.ndarray, np.ndarray]] = []
        self.initial: np.ndarray | None = None  # of a module variable

    def view(self, width: int) -> np.ndarray:
        if width not in self._views:
            usable = self._data.size // width * width
            self._views[width] = self._data[:usable].view(UINT[width])
        return self._views[width]


def host_bytes(address: int, size: int) -> np.ndarray:
    """The process's memory at an address, from the 16-byte boundary below to the one above."""
    low = address & ~15
    high = (address + size + 15) & ~15
    return np.ctypeslib.as_array((ctypes.c_uint8 * (high - low)).from_address(low))


class GlobalMemory:
    """Regions at virtual addresses, far apart; addresses keep the low bits of the real ones."""

    moved = 0  # bytes read and written, of all launches in this process: for those who count

    def __init__(self, granule: int, order: Order, check_blocks: bool = True) -> None:
        self.regions: list[Region] = []
        self.starts: list[int] = []
        self.shift = granule.bit_length() - 1
        self.order = order
        self.check_blocks = check_blocks
        self.block = 0
        self._next = GLOBAL_BASE

    def reserve(self, size: int, low_bits: int = 0) -> int:
        """A virtual range behind a guard gap whose start has the given low bits."""
        start = (self._next + GUARD - 1) // GUARD * GUARD + GUARD + (low_bits % 4096)
        self._next = start + size
        return start

    def map(self, name: str, start: int, host: int, size: int) -> Region:
        region = Region(name, start, host_bytes(host, size), size)
        at = bisect.bisect(self.starts, start)
        self.starts.insert(at, start)
        self.regions.insert(at, region)
        return region

    def new(self, name: str, data: np.ndarray) -> Region:
        """A module variable; the array must stay alive as long as this memory."""
        region = self.map(name, self.reserve(data.size), data.ctypes.data, data.size)
        region.initial = data.copy()
        return region

    def unmap_arguments(self) -> None:
        """Forget all but the module's own variables, which get their initial values again."""
        kept = [r for r in self.regions if r.initial is not None]
        for region in kept:
            region.view(1)[region.skew : region.skew + region.size] = region.initial
            region.owner = region.tracker = None
        self.regions, self.starts = kept, [r.start for r in kept]
        self._next = max([GLOBAL_BASE, *(r.end for r in kept)])

    def _outside(self, address: int, size: int, thread: int) -> None:
        at = bisect.bisect_right(self.starts, address) - 1
        near = ""
        if at >= 0:
            r = self.regions[at]
            near = f"; {r.name} has {r.size} bytes, this is at offset {address - r.start}"
        raise OutOfBoundsError(
            f"global access of {size} bytes out of bounds at {address:#x}{near}", thread
        )

    def locate(self, address: np.ndarray, size: int, threads: np.ndarray):
        """[(region, selection, offset from the region's 16-byte base)]; selection None is all."""
        address = address.view(np.int64)
        _align(address, size, threads, "global")
        low, high = int(address.min()), int(address.max())
        at = bisect.bisect_right(self.starts, low) - 1
        if at >= 0 and high + size <= self.regions[at].end:
            region = self.regions[at]
            return [(region, None, address - (region.start - region.skew))]
        index = np.searchsorted(np.array(self.starts, np.int64), address, side="right") - 1
        parts = []
        for at in np.unique(index):
            chosen = np.flatnonzero(index == at)
            mine = address[chosen]
            bad = mine if at < 0 else mine[mine + size > self.regions[at].end]
            if bad.size:
                first = chosen[np.flatnonzero(mine == bad[0])[0]]
                self._outside(int(bad[0]), size, int(threads[first]))
            region = self.regions[at]
            parts.append((region, chosen, mine - (region.start - region.skew)))
        return parts

    def load(self, address: np.ndarray, width: int, count: int, threads: np.ndarray) -> list:
        parts = self.locate(address, width * count, threads)
        out: list = []
        for region, chosen, offset in parts:
            who = threads if chosen is None else threads[chosen]
            self.track(region, offset, width * count, who, "read")
            view, index = region.view(width), offset >> (width.bit_length() - 1)
            values = [view[index + j] if j else view[index] for j in range(count)]
            if chosen is None:
                return values
            if not out:
                out = [np.empty(len(threads), view.dtype) for _ in range(count)]
            for j in range(count):
                out[j][chosen] = values[j]
        return out

    def store(self, address: np.ndarray, width: int, values: list, threads: np.ndarray) -> None:
        size = width * len(values)
        for region, chosen, offset in self.locate(address, size, threads):
            who = threads if chosen is None else threads[chosen]
            self.track(region, offset, size, who, "write")
            view, index = region.view(width), offset >> (width.bit_length() - 1)
            for j, value in enumerate(values):
                mine = value if chosen is None else value[chosen]
                view[index + j] = mine
                _lost(view[index + j], mine, who, "global")

    def track(
        self, region: Region, offset: np.ndarray, size: int, who: np.ndarray, kind: str
    ) -> None:
        """Bytes moved; order within the block, and plain writes of other blocks."""
        GlobalMemory.moved += size * len(who)
        if kind == "read" and region.owner is None:
            if self.order.warps > 1:
                region.reads.append((self.order.epoch, offset, who, size))
            return
        g, threads = granules_of(offset, size, self.shift, who)
        if region.owner is None:
            count = (region.size + region.skew >> self.shift) + 1
            region.owner = np.zeros(count, np.int32)
            if self.order.warps > 1:
                region.tracker = Tracker(count, self.order, f"global memory ({region.name})")
        if self.check_blocks:
            owner = region.owner[g]
            bad = (owner != 0) & (owner != self.block + 1)
            if bad.any():
                i = int(np.flatnonzero(bad)[0])
                raise RaceError(
                    f"race on global memory ({region.name}): a {kind} of what block "
                    f"{int(owner[i]) - 1} (linear) wrote in the same launch",
                    int(threads[i]),
                )
            if kind == "write":
                region.owner[g] = self.block + 1
        if region.tracker is None:
            return
        # Reads are only listed until the block first writes the region: most are never written.
        for epoch, past, reader, width in region.reads:
            if epoch == self.order.epoch:
                region.tracker.read(*granules_of(past, width, self.shift, reader))
        region.reads.clear()
        getattr(region.tracker, kind)(g, threads)

    def new_block(self, block: int) -> None:
        self.block = block
        for region in self.regions:
            region.reads.clear()


class SharedMemory:
    """Shared memory of one block: bounds, initialisation, races, pending asynchronous copies."""

    def __init__(self, size: int, granule: int, order: Order, check_init: bool) -> None:
        self.size = size
        self.shift = granule.bit_length() - 1
        self.data = np.zeros((size + 1023) // 1024 * 1024, np.uint8)
        self.views = {w: self.data.view(d) for w, d in UINT.items()}
        count = self.data.size >> self.shift
        self.order = order
        self.tracker = Tracker(count, order, "shared memory") if order.warps > 1 else None
        self.check_init = check_init
        self.known = np.zeros(count, bool)
        self.pending = np.zeros(count, np.uint8)
        self.any_pending = False
        # Written by ordinary stores and not yet passed to the asynchronous proxy by a fence.
        self.unfenced = np.zeros(count, bool)

    def new_block(self) -> None:
        self.known[:] = False
        self.pending[:] = 0
        self.any_pending = False
        self.unfenced[:] = False
        self.data[:] = 0xA5

    def offsets(self, address: np.ndarray, size: int, threads: np.ndarray) -> np.ndarray:
        offset = address.astype(np.int64) - SHARED_BASE
        _align(offset, size, threads, "shared")
        if offset.size and (int(offset.min()) < 0 or int(offset.max()) + size > self.size):
            i = int(np.flatnonzero((offset < 0) | (offset + size > self.size))[0])
            raise OutOfBoundsError(
                f"shared access of {size} bytes out of bounds at offset {int(offset[i])} "
                f"of {self.size}",
                int(threads[i]),
            )
        return offset

    def _not_pending(self, g: np.ndarray, threads: np.ndarray, mask: int, what: str) -> None:
        if self.any_pending:
            bad = self.pending[g] & mask
            if bad.any():
                i = int(np.flatnonzero(bad)[0])
                by = "a cp.async" if bad[i] & WRITING else "a wgmma"
                kind = AsyncCopyError if bad[i] & WRITING else WgmmaError
                raise kind(
                    f"{what} of shared memory at offset {int(g[i]) << self.shift} while {by} "
                    "on it has not been waited for",
                    int(threads[i]),
                )

    def check_read(self, offset: np.ndarray, size: int, threads: np.ndarray) -> None:
        g, who = granules_of(offset, size, self.shift, threads)
        self.check_read_granules(g, who)

    def check_read_granules(self, g: np.ndarray, who: np.ndarray) -> None:
        self._not_pending(g, who, WRITING, "a read")
        if self.check_init:
            self.require_known(g, who)
        if self.tracker is not None:
            self.tracker.read(g, who)

    def require_known(self, g: np.ndarray, who: np.ndarray) -> None:
        known = self.known[g]
        if np.count_nonzero(known) < len(known):
            i = int(np.flatnonzero(~known)[0])
            raise UninitializedError(
                f"read of shared memory never written, offset {int(g[i]) << self.shift}",
                int(who[i]),
            )

    def check_write(
        self, offset: np.ndarray, size: int, threads: np.ndarray, kind: str = "write"
    ) -> tuple[np.ndarray, np.ndarray]:
        g, who = granules_of(offset, size, self.shift, threads)
        self._not_pending(g, who, WRITING | READING, "a write")
        self.known[g] = True
        self.unfenced[g] = True
        if self.tracker is not None:
            getattr(self.tracker, kind)(g, who)
        return g, who

    def load(self, address: np.ndarray, width: int, count: int, threads: np.ndarray) -> list:
        offset = self.offsets(address, width * count, threads)
        self.check_read(offset, width * count, threads)
        view, index = self.views[width], offset >> (width.bit_length() - 1)
        return [view[index + j] if j else view[index] for j in range(count)]

    def store(self, address: np.ndarray, width: int, values: list, threads: np.ndarray) -> None:
        size = width * len(values)
        offset = self.offsets(address, size, threads)
        self.check_write(offset, size, threads)
        view, index = self.views[width], offset >> (width.bit_length() - 1)
        for j, value in enumerate(values):
            view[index + j] = value
            _lost(view[index + j], value, threads, "shared")

    def begin(self, g: np.ndarray, kind: int) -> None:
        self.pending[g] |= kind
        self.any_pending = True

    def finish(self, g: np.ndarray, threads: np.ndarray, kind: int) -> None:
        """An asynchronous access is complete: it counts as made by its issuer at this moment."""
        self.pending[g] &= ~np.uint8(kind)
        if self.tracker is not None:
            warp = threads >> 5
            if kind == WRITING:
                self.tracker.write_clock[g] = self.order.clock[warp]
            else:
                self.tracker.read_clock[g, warp] = self.order.clock[warp]


class LocalMemory:
    """A private array per thread."""

    def __init__(self, size: int, threads: int) -> None:
        self.size = size
        self.data = np.zeros((threads, (size + 15) // 16 * 16), np.uint8)
        self.views = {w: self.data.view(d) for w, d in UINT.items()}

    def _index(self, address: np.ndarray, width: int, count: int, threads: np.ndarray):
        offset = address.astype(np.int64) & (WINDOW_BYTES - 1)
        _align(offset, width * count, threads, "local")
        bad = offset + width * count > self.size
        if bad.any():
            raise OutOfBoundsError(
                f"local access out of bounds, {self.size} bytes", int(threads[np.argmax(bad)])
            )
        return offset >> (width.bit_length() - 1)

    def load(self, address: np.ndarray, width: int, count: int, threads: np.ndarray) -> list:
        index = self._index(address, width, count, threads)
        return [self.views[width][threads, index + j] for j in range(count)]

    def store(self, address: np.ndarray, width: int, values: list, threads: np.ndarray) -> None:
        index = self._index(address, width, len(values), threads)
        for j, value in enumerate(values):
            self.views[width][threads, index + j] = value
