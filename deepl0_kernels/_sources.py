"""Arrays of data files: found, read, and checked before anything is cast."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._optional import require


def folder_of(folder: str | os.PathLike | None, holds: str, where: str) -> Path:
    """``folder``, or ``$DEEPL0_DATA`` in its place.

    Raises:
        TypeError: it is no path.
        FileNotFoundError: neither is named; says what it should hold, and ``where`` that is from.
    """
    folder = folder if folder is not None else os.environ.get("DEEPL0_DATA")
    if not folder:
        raise FileNotFoundError(
            f"no data folder: set DEEPL0_DATA to the folder that holds {holds}. {where}"
        )
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"folder must be a path, got {type(folder).__name__}")
    return Path(folder)


def read(path: Path, what: str) -> dict[str, Any]:
    """The arrays of an .npz or .mat file, by name, in the machine's byte order.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read as ``what``.
    """
    np = require("numpy", "reading a data set")
    try:
        if path.suffix == ".mat":
            stored = require("scipy.io", "reading a .mat file", extra="sklearn").loadmat(path)
            arrays = {key: a for key, a in stored.items() if not key.startswith("__")}
        else:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
        return {key: a.astype(a.dtype.newbyteorder("="), copy=False) for key, a in arrays.items()}
    except (FileNotFoundError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise ValueError(f"{path} cannot be read as {what}: {error!r}") from error


def pick(path: Path, what: str, arrays: dict[str, Any], names: Sequence[str]) -> list[Any]:
    """Those of ``names``; a missing one is a ValueError."""
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(
            f"{path} cannot be read as {what}: it lacks {', '.join(missing)}; "
            f"it has {', '.join(arrays)}"
        )
    return [arrays[name] for name in names]


def numbers(path: Path, name: str, array: Any, low: float, high: float) -> Any:
    """``array`` as float64, every entry a number in [low, high].

    Raises:
        ValueError: it holds none, or something else.
    """
    np = require("numpy", "reading a data set")
    if array.dtype.kind not in "iuf" or array.size == 0:
        raise ValueError(
            f"{path}: {name} must hold numbers, got {array.dtype} of shape {array.shape}"
        )
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(
            f"{path}: {name} must be finite, has {(~np.isfinite(values)).sum()} others"
        )
    if values.min() < low or values.max() > high:
        raise ValueError(
            f"{path}: {name} must be in {low:g}..{high:g}, got {values.min():g} to {values.max():g}"
        )
    return values


def integers(path: Path, name: str, array: Any, low: int, high: int) -> Tensor:
    """``array`` as int64, every entry a whole number in [low, high], else a ValueError."""
    values = numbers(path, name, array, low, high)
    if (values != values.round()).any():
        raise ValueError(f"{path}: {name} must hold integers, got {array.dtype} with fractions")
    return torch.from_numpy(values.astype("int64"))
