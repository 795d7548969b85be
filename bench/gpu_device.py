"""The card that is measured, and its clock; or a stub of one, to try the command without.

With DEEPL0_GPU_STUB=1 tensors live on the CPU, a graph is the call itself, and the clock is made
up: nothing that comes out is a measurement, and every record says "stub".
"""

from __future__ import annotations

import os
import re
import subprocess
import zlib
from collections.abc import Callable
from typing import NamedTuple

import torch

STUB = os.environ.get("DEEPL0_GPU_STUB") == "1"
DEVICE = "cpu" if STUB else "cuda"


class Card(NamedTuple):
    """What a record must be read with."""

    name: str
    capability: str  # 9.0
    multiprocessors: int
    driver: str
    toolkit: str  # of torch
    triton: str

    @property
    def slug(self) -> str:
        """As its record's file is called: gpu-h200.csv."""
        words = re.sub(r"[^a-z0-9]+", "-", self.name.lower().removeprefix("nvidia "))
        return words.strip("-")


def present() -> bool:
    return STUB or torch.cuda.is_available()


def card() -> Card:
    """The current card. Wakes CUDA."""
    if STUB:
        return Card("stub", "9.0", 1, "none", "none", _version_of_triton())
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    toolkit = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"HIP {torch.version.hip}"
    major, minor = torch.cuda.get_device_capability(0)
    return Card(
        properties.name, f"{major}.{minor}", properties.multi_processor_count, driver, toolkit,
        _version_of_triton(),
    )  # fmt: skip


def _version_of_triton() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return triton.__version__


def microseconds(call: Callable[[], object], name: str = "") -> float:
    """One call by the events of the device."""
    if STUB:
        call()
        return 10.0 + zlib.crc32(name.encode()) % 90
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return 1e3 * begin.elapsed_time(end)


def captured(call: Callable[[], object]) -> Callable[[], object] | None:
    """The call as a graph, or None where it cannot be one (it waits for the device)."""
    if STUB:
        return call
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def is_lost() -> bool:
    """Whether an error of a kernel has made the device useless to this process."""
    if STUB or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
