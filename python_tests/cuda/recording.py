"""The launches of the CUDA floor at any size, recorded on tensors without data.

Launchers and bindings run as they are, on PyTorch's meta tensors; :class:`Capturable` refuses what
a CUDA graph cannot hold. What a launch is made of is read from its arguments, under their names in
the sources.
"""

from __future__ import annotations

import ctypes
import functools
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from deepl0_kernels import cuda as floor
from deepl0_kernels.backends import serve_device
from deepl0_kernels.cuda import library
from deepl0_kernels.ops import registration
from python_tests.triton.recording import Capturable

from . import build
from .budget import variant
from .emulator import BIG, Emulator, Job, base_name


class Launch(NamedTuple):
    """One launch. ``arguments`` are those of the kernel by name; pointers are left out."""

    kernel: str
    variant: str  # template arguments
    grid: int
    threads: int
    shared: int
    arguments: dict[str, int]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.arguments[name]
        except KeyError:
            raise AttributeError(name) from None


@functools.cache
def parameters() -> dict[str, tuple[tuple[str, bool], ...]]:
    """Kernel -> (name, whether it is a pointer) of its parameters, from the sources."""
    found = {}
    for source in build.SOURCES:
        text = (build.CSRC / "cuda" / f"{source}.cu").read_text()
        for kernel, inside in re.findall(r"(\w+_kernel)\(([^()]*)\)\s*\{", text):
            found[kernel] = tuple(
                (re.findall(r"\w+", one)[-1], "*" in one) for one in inside.split(",")
            )
    return found


@contextmanager
def recording(emulator: Emulator, device: tuple[int, int] = BIG) -> Iterator[list[Launch]]:
    """Inside, launches on meta tensors are collected as if made for the ``device``: its
    multiprocessors and the shared memory of a block."""
    launches: list[Launch] = []

    def record(job: Job) -> None:
        name = job.kernel.decode()
        threads = job.block[0] * job.block[1] * job.block[2]
        if name == "memset":
            launches.append(Launch(name, "", 1, 1, 0, {"bytes": job.shared_bytes}))
            return
        assert 0 < threads <= 1024, f"{threads} threads"
        kernel = base_name(name)
        sizes = emulator.parameters[name]
        arguments = {
            label: int.from_bytes(
                ctypes.string_at(job.arguments[i], size), "little", signed=size > 1
            )
            for i, ((label, pointer), size) in enumerate(
                zip(parameters()[kernel], sizes, strict=True)
            )
            if not pointer
        }
        launches.append(
            Launch(kernel, variant(name), job.grid[0], threads, job.shared_bytes, arguments)
        )

    before = library.kernels, floor.launcher
    library.kernels = torch.ops.deepl0_emulated
    floor.launcher = lambda name: _guarded(before[1](name))
    emulator.record = record
    emulator.set_device(*device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Overriding a previously registered kernel")
        registered = registration.serve_natively("meta", ("cuda",))
    try:
        yield launches
    finally:
        registered._destroy()
        serve_device("meta")
        emulator.record = None
        emulator.set_device(*BIG)
        library.kernels, floor.launcher = before


def _guarded(launcher):
    def guarded(*args):
        with Capturable():
            return launcher(*args)

    return guarded
