"""The record of a run: written whole or not at all."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import write_atomically
from .._optional import require
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
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, if it does."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def write_json(path: Path, record: dict[str, Any]) -> None:
    """``record`` as JSON; NaN and infinity are errors."""
    write_atomically(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def write_arrays(path: Path, arrays: Mapping[str, Tensor]) -> None:
    """Tensors as a compressed .npz, whole or not at all."""
    np = require("numpy", "the figures of a run")
    buffer = io.BytesIO()
    plain: dict[str, Any] = {name: a.numpy(force=True) for name, a in arrays.items()}
    np.savez_compressed(buffer, **plain)
    write_atomically(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, Tensor]:
    """What :func:`write_arrays` wrote; empty where there is no such file.

    Raises:
        ValueError: the file cannot be read.
    """
    if not path.exists():
        return {}
    np = require("numpy", "the figures of a run")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except Exception as error:
        raise ValueError(f"{path} cannot be read as arrays: {error!r}") from error


def read_json(path: Path, keys: Collection[str], command: str) -> dict[str, Any]:
    """The results that ``command`` wrote.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they cannot be read, or lack one of ``keys``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {path.name}; run {command} first")
    try:
        results = json.loads(path.read_text())
        lacks = set(keys) - set(results)
    except (json.JSONDecodeError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as results: {error!r}") from error
    if lacks:
        raise ValueError(f"{path} cannot be read as results: it lacks {', '.join(sorted(lacks))}")
    return results


def claim(path: Path, protocols: dict[str, Any]) -> None:
    """Note what a folder's cells are computed by: those of different protocols must not meet.

    Args:
        path: the note. protocols: the protocol, a dataclass, of each part of the run. Parts that
            the note does not have are added.

    Raises:
        ValueError: the folder holds a part by another protocol.
    """
    known = json.loads(path.read_text()) if path.exists() else {}
    for name, protocol in protocols.items():
        this = json.loads(json.dumps(asdict(protocol)))
        before = known.setdefault(name, this)
        if changed := [key for key in this if before.get(key) != this[key]]:
            raise ValueError(
                f"{path.parent} holds a run of another protocol ({name}: {', '.join(changed)} "
                "differ); give another folder"
            )
    write_json(path, known)
