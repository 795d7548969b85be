"""The launches of the CUDA floor at any size, recorded on tensors without data.

Launchers and bindings run as they are, on PyTorch's meta tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .emulator import Emulator, Job, Launch, base_name, serving


@contextmanager
def recording(emulator: Emulator) -> Iterator[list[Launch]]:
    """Inside, launches on meta tensors are collected; a memset is one of a single thread."""
    launches: list[Launch] = []

    def record(job: Job) -> None:
        threads = job.block[0] * job.block[1] * job.block[2]
        name = base_name(job.kernel.decode())
        assert 0 < threads <= 1024, f"{threads} threads"
        launches.append(Launch(name, job.grid[0], threads, job.shared_bytes))

    emulator.record = record
    try:
        with serving("meta"):
            yield launches
    finally:
        emulator.record = None
