"""What a run keeps: written whole or not at all, and named where it cannot be read."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
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


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Tensors, and what holds them, as ``torch.save`` writes them."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def write_arrays(path: Path, arrays: Mapping[str, Tensor]) -> None:
    """Tensors as a compressed .npz."""
    np = require("numpy", "the figures of a run")
    buffer = io.BytesIO()
    plain: dict[str, Any] = {name: a.numpy(force=True) for name, a in arrays.items()}
    np.savez_compressed(buffer, **plain)
    write_atomically(path, buffer.getvalue())


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever is wrong with the content of ``path`` becomes a ValueError that names it."""
    try:
        yield
    except Exception as error:
        # Those of the file system name the file; torch.load has others for a file that ends early.
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(
            f"{path} cannot be read: {error!r}; without it the command that wrote it makes it anew"
        ) from error


def read_tensors(path: Path) -> dict[str, Any]:
    """What :func:`write_tensors` wrote; a damaged file is a ValueError."""
    with reading(path):
        return torch.load(path, weights_only=True)


def read_arrays(path: Path) -> dict[str, Tensor]:
    """What :func:`write_arrays` wrote, empty where nothing is; a damaged file is a ValueError."""
    if not path.exists():
        return {}
    np = require("numpy", "the figures of a run")
    with reading(path), np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def read_json(
    path: Path, keys: Collection[str] = (), command: str = "deepl0 reproduce"
) -> dict[str, Any]:
    """What :func:`write_json` wrote, of a run of ``command``.

    Raises:
        FileNotFoundError: nothing did.
        ValueError: it cannot be read, or lacks one of ``keys``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {path.name}; run {command} first")
    with reading(path):
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise TypeError(f"a mapping is expected, not {type(found).__name__}")
        if lacks := set(keys) - set(found):
            raise KeyError(f"it lacks {', '.join(sorted(lacks))}")
    return found


def agree(path: Path, protocols: dict[str, Any], write: bool) -> list[str]:
    """The cells of a folder are those of these protocols: different ones must not meet.

    Args:
        path: the note of what they are computed by; choices that came after it had their
            defaults. protocols: that of each part of a run, a dataclass. write: add the parts that
            the note does not have, which are returned.

    Raises:
        ValueError: the folder holds a part by another protocol, or the note cannot be read.
    """
    known = read_json(path) if path.exists() else {}
    new = [name for name in protocols if name not in known]
    for name, protocol in protocols.items():
        this = json.loads(json.dumps(asdict(protocol)))
        with reading(path):
            before = {f.name: f.default for f in fields(protocol)} | known.setdefault(name, this)
        if changed := [key for key in this if before[key] != this[key]]:
            raise ValueError(
                f"{path.parent} holds a run of another protocol ({name}: {', '.join(changed)} "
                "differ); give another folder"
            )
    if write and new:
        write_json(path, known)
    return new


def retract(path: Path, names: Collection[str], stems: Collection[str]) -> None:
    """Take ``names`` from the note again, and with them what cells of these stems had begun."""
    known = {name: protocol for name, protocol in read_json(path).items() if name not in names}
    for stem in stems:
        for begun in (path.parent / "cells" / "cache").glob(f"{stem}-p*-seed*"):
            begun.unlink()
    if known:
        write_json(path, known)
    else:
        path.unlink()
