"""The record of a run: written whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..backends import backends
from ..version import __version__


def environment() -> dict[str, Any]:
    """Machine and versions: what a figure must be read with."""
    from .._C import build_info

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{model}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepl0_kernels": __version__,
        "build": build_info(),
        "backends": backends(),
        "threads": torch.get_num_threads(),
    }


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write through a temporary file in the same folder, so that a reader never sees half of it."""
    write_atomically(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def write_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        # mkstemp is private; what is published has the modes of an ordinary file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
