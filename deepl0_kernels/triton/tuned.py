"""Configurations that ``deepl0 tune`` measured on this machine, before those of the decision table.

They stand in one JSON file: ``DEEPL0_TUNED``, else ``deepl0-kernels/tuned.json`` in
``XDG_CACHE_HOME`` (``~/.cache``). It is read once; a file that cannot be understood is ignored with
a warning. A key names the device, the version of triton, the kernel, the size and the dtype, so
that a result never serves what it was not measured on.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .._files import write_atomically

_FORMAT = 2


class Config(NamedTuple):
    """Tile of a program: rows of the batch, columns (units), and what a kernel calls its depth."""

    rows: int
    columns: int
    depth: int = 0
    warps: int = 4


_forced: dict[str, Config] = {}
_served = threading.local()


def path() -> Path:
    """Where the results stand."""
    if named := os.environ.get("DEEPL0_TUNED"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "deepl0-kernels" / "tuned.json"


def key(device: str, triton: str, kernel: str, p: int, dtype: torch.dtype) -> str:
    """Sizes share an entry up to the next power of two."""
    bucket = 1 << max(0, p - 1).bit_length()
    return f"{device} | triton {triton} | {kernel} | p <= {bucket} | {str(dtype).split('.')[-1]}"


@contextmanager
def serving(tensor: Tensor) -> Iterator[None]:
    """Within the block configurations are looked up for ``tensor``'s device and dtype."""
    before = getattr(_served, "key", None)
    _served.key = tensor.device, tensor.dtype
    try:
        yield
    finally:
        _served.key = before


def lookup(kernel: str, p: int) -> Config | None:
    """The measured configuration for rows of length ``p`` where :func:`serving` is, if any."""
    served: tuple[torch.device, torch.dtype] | None = getattr(_served, "key", None)
    if served is None or served[0].type != "cuda" or not load():
        return None
    device, dtype = served
    return load().get(key(*device_and_version(device), kernel, p, dtype))


@functools.cache
def device_and_version(device: torch.device) -> tuple[str, str]:
    """Name of the device and version of triton: results are valid for both together."""
    import triton

    return torch.cuda.get_device_name(device), triton.__version__


def forced(kernel: str) -> Config | None:
    """The configuration of :func:`force`, if any."""
    return _forced.get(kernel)


@contextmanager
def force(kernel: str, config: Config) -> Iterator[None]:
    """Within the block ``kernel`` is launched with ``config``, whatever its size."""
    _forced[kernel] = config
    try:
        yield
    finally:
        del _forced[kernel]


@functools.cache
def load() -> Mapping[str, Config]:
    """All results; empty when there are none or the file is not what :func:`store` writes."""
    file = path()
    try:
        content = json.loads(file.read_text())
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}")
        found = {name: Config(*values) for name, values in content["configs"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{file} is ignored, run 'deepl0 tune' again: {error!r}", stacklevel=2)
        return {}
    return found


def store(found: Mapping[str, Config]) -> Path:
    """Add ``found`` to the file, which changes at once or not at all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what cannot be read is replaced
        load.cache_clear()
        merged = {**load(), **found}
    file = path()
    content = {"format": _FORMAT, "configs": {k: list(c) for k, c in sorted(merged.items())}}
    write_atomically(file, json.dumps(content, indent=1).encode())
    load.cache_clear()
    return file
