"""What the readers share: a file's values, taken one by one, each checked and named where wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._optional import require
from ...ops.checks import FLOATING

_MISSING = object()
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATING}


def safetensors_of(purpose: str) -> Any:
    """The module safetensors.torch, or which extra brings it."""
    return require("safetensors.torch", purpose, extra="sae")


class Settings:
    """The entries of a JSON object, taken one by one; what is left over at the end is refused."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self.values = path, dict(values)

    @classmethod
    def of_file(cls, path: Path) -> Settings:
        """The object in a JSON file."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is no JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
        return cls(path, values)

    def wrong(self, key: str, must: str, value: Any) -> ValueError:
        return ValueError(f"{self.path}: {key} must be {must}, got {value!r}")

    def take(self, key: str, default: Any = _MISSING) -> Any:
        """Any value."""
        value = self.values.pop(key, default)
        if value is _MISSING:
            raise ValueError(f"{self.path}: {key} is missing; it has {sorted(self.values)}")
        return value

    def integer(self, key: str, low: int = 1, default: Any = _MISSING) -> int:
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise self.wrong(key, f"an integer >= {low}", value)
        return value

    def entries(self, key: str, p: int) -> int:
        """k of a TopK: at most p."""
        value = self.integer(key)
        if value > p:
            raise self.wrong(key, f"at most the code size {p}", value)
        return value

    def boolean(self, key: str, default: Any = _MISSING) -> bool:
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return value

    def word(self, key: str, choices: Sequence[str], default: Any = _MISSING, why: str = "") -> str:
        """One of some words; ``why`` explains what the others would need."""
        value = self.take(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.wrong(key, f"one of {list(choices)}{why}", value)
        return value

    def absent(self, key: str, why: str) -> None:
        """What must be false, null or not there at all."""
        value = self.values.pop(key, None)
        if value:
            raise ValueError(f"{self.path}: {key} = {value!r} is not supported: {why}")

    def inner(self, key: str) -> Settings:
        """An object within."""
        value = self.take(key)
        if not isinstance(value, dict):
            raise self.wrong(key, "a JSON object", value)
        return Settings(self.path, value)

    def drop(self, *keys: str) -> None:
        """What says nothing about the function."""
        for key in keys:
            self.values.pop(key, None)

    def done(self) -> None:
        if self.values:
            raise ValueError(
                f"{self.path}: unknown entries {self.values!r}; what they do to the function is "
                "not known here"
            )


class Tensors:
    """The tensors of a file, taken one by one; what is left over at the end is refused.

    Weights are converted to ``dtype`` where it is given, and have to be of one dtype where not.
    """

    def __init__(
        self, path: Path, values: Mapping[str, Any], dtype: torch.dtype | None = None
    ) -> None:
        self.path, self.values, self.dtype = path, dict(values), dtype
        self.converts = dtype is not None

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def take(self, key: str) -> Any:
        if key not in self.values:
            raise ValueError(f"{self.path}: {key} is missing; it has {sorted(self.values)}")
        return self.values.pop(key)

    def tensor(self, key: str) -> Tensor:
        value = self.take(key)
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            kind = f"layout {value.layout}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{self.path}: {key} must be a dense tensor, got {kind}")
        return value

    def weight(self, key: str, *shape: int | None) -> Tensor:
        """A finite floating tensor of a shape (None: any size)."""
        value = self.tensor(key)
        if value.dtype not in FLOATING:
            raise ValueError(
                f"{self.path}: {key} must be one of {sorted(DTYPES)}, got {value.dtype}"
            )
        fits = value.dim() == len(shape) and all(
            want in (None, have) for want, have in zip(shape, value.shape, strict=True)
        )
        if not fits or 0 in value.shape:
            wanted = "[" + ", ".join("any" if s is None else str(s) for s in shape) + "]"
            raise ValueError(
                f"{self.path}: {key} must have shape {wanted}, got {list(value.shape)}"
            )
        stored = value.dtype
        if self.dtype is None:
            self.dtype = stored
        _finite(self.path, key, value, "")
        if self.converts:
            value = value.to(self.dtype)
            _finite(self.path, key, value, f" as {self.dtype}, from {stored}")
        elif stored != self.dtype:
            raise ValueError(
                f"{self.path}: {key} must be {self.dtype} like the other weights, got {stored}"
            )
        return value

    def number(self, key: str) -> float:
        """What a tensor of one entry holds."""
        value = self.tensor(key)
        if value.numel() != 1:
            raise ValueError(
                f"{self.path}: {key} must have one entry, got shape {list(value.shape)}"
            )
        return value.item()

    def level(self, key: str) -> float:
        """One threshold for all units, as a training over batches measures it."""
        value = self.number(key)
        if not 0 <= value < math.inf:
            never = ": it was never measured" if value == -1 else ""
            raise ValueError(f"{self.path}: {key} must be finite and >= 0, got {value}{never}")
        return value

    def thresholds(self, key: str, p: int) -> Tensor:
        """[p], one for each unit."""
        value = self.weight(key, p)
        if (value == -1).all():
            raise ValueError(
                f"{self.path}: {key} is -1 in every unit, which stands for a threshold that was "
                "never measured"
            )
        return value

    def drop(self, *keys: str) -> None:
        """What says nothing about the function."""
        for key in keys:
            self.values.pop(key, None)

    def done(self) -> None:
        if self.values:
            raise ValueError(f"{self.path}: unknown entries {sorted(map(str, self.values))}")


def _finite(path: Path, key: str, value: Tensor, what: str) -> None:
    finite = torch.isfinite(value)
    if not finite.all():
        at = int(finite.flatten().logical_not().nonzero()[0, 0])
        raise ValueError(
            f"{path}: {key} must be finite{what}, got {value.flatten()[at].item()} at {at}"
        )


def of_safetensors(path: Path, dtype: torch.dtype | None = None) -> Tensors:
    """The tensors of a safetensors file, in the memory of the host."""
    module = safetensors_of(f"reading {path.name}")
    data = path.read_bytes()
    return Tensors(path, guarded(path, "safetensors", lambda: module.load(data)), dtype)


def of_torch(path: Path) -> Tensors:
    """What ``torch.save`` wrote: tensors, numbers, words and dictionaries; nothing is executed."""
    with path.open("rb") as file:  # by its name, torch.load would take it for other kinds
        values = guarded(
            path,
            "a file of weights of torch.save",
            lambda: torch.load(file, map_location="cpu", weights_only=True),
        )
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a dictionary of weights, got {type(values).__name__}")
    return Tensors(path, values)


def guarded(path: Path, kind: str, read: Callable[[], Any]) -> Any:
    """``read()``, whose errors become a ValueError that names the file."""
    try:
        return read()
    except FileNotFoundError:
        raise
    except Exception as error:  # parsers of damaged files raise all kinds
        reason = str(error).strip().split("\n", 1)[0]
        raise ValueError(f"{path} cannot be read as {kind}: {reason}") from error
