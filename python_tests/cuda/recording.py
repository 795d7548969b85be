"""The launches of the CUDA floor at any size, recorded on tensors without data.

Launchers and bindings run as they are, on PyTorch's meta tensors; what a CUDA graph cannot hold is
refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from deepl0_kernels.backends import GPU, serve_device
from deepl0_kernels.cuda import library
from deepl0_kernels.ops import registration
from python_tests.triton.recording import guarded

from .emulator import Emulator, Job, Launch, base_name


@contextmanager
def recording(emulator: Emulator) -> Iterator[list[Launch]]:
    """Inside, launches on meta tensors are collected; a memset is one of a single thread."""
    launches: list[Launch] = []

    def record(job: Job) -> None:
        threads = job.block[0] * job.block[1] * job.block[2]
        name = base_name(job.kernel.decode())
        assert 0 < threads <= 1024, f"{threads} threads"
        launches.append(Launch(name, job.grid[0], threads, job.shared_bytes))

    floor = GPU["cuda"]
    before = library.kernels, floor.launcher
    library.kernels = torch.ops.deepl0_emulated
    floor.launcher = lambda name: guarded(before[1](name))
    emulator.record = record
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Overriding a previously registered kernel")
        registered = registration.serve_natively("meta", ("cuda",))
    try:
        yield launches
    finally:
        registered._destroy()
        serve_device("meta")
        emulator.record = None
        library.kernels, floor.launcher = before
