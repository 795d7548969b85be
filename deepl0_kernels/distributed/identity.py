"""Whose codes a folder holds: of which model, and of which rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._report import record

_PLAIN = (bool, int, float, str, type(None))
# The attribute of models that does not change a code: where one was loaded from.
_ORIGIN = "source"
# Of a file, or of a part of it: so many places, and so many bytes at each.
_PLACES, _BYTES = 16, 1 << 12


def digest_of(model: Any) -> str:
    """Of what makes a model's codes: its weights, whatever their device, and its settings, as m.

    Settings are attributes that are numbers, words or sequences of such; of a model that is no
    ``nn.Module`` its tensors, arrays and modules count, too. What hides elsewhere is not seen.
    """
    found = hashlib.blake2b(digest_size=16)
    for fact in _facts(model):
        found.update(fact)
    return found.hexdigest()


def _facts(thing: Any) -> Iterator[bytes | memoryview]:
    yield type(thing).__name__.encode()
    own = vars(thing) if hasattr(thing, "__dict__") else {}
    if isinstance(thing, nn.Module):
        for name, t in thing.state_dict().items():
            if isinstance(t, Tensor):
                yield from _numbers(name, t)
        for name, part in thing.named_modules():
            public = {k: v for k, v in vars(part).items() if not k.startswith("_")}
            yield from _settings(f"{name}.", public)
        return
    yield from _settings("", own)
    for name, value in sorted(own.items()):
        if isinstance(value, Tensor):
            yield from _numbers(name, value)
        elif hasattr(value, "__array_interface__") and not value.dtype.hasobject:
            # Of NumPy, which need not be there.
            yield f"{name} {value.dtype.str} {value.shape}".encode()
            yield value.tobytes()
        elif isinstance(value, nn.Module):
            yield name.encode()
            yield from _facts(value)


def _settings(where: str, attributes: dict[str, Any]) -> Iterator[bytes]:
    for name, value in sorted(attributes.items()):
        plain = value if isinstance(value, (tuple, list)) else (value,)
        if name != _ORIGIN and all(isinstance(v, _PLAIN) for v in plain):
            yield f"{where}{name} = {value!r}".encode()


def _numbers(name: str, t: Tensor) -> Iterator[bytes | memoryview]:
    yield f"{name} {t.dtype} {tuple(t.shape)}".encode()
    plain = t.detach()
    for piece in (plain.t() if plain.dim() == 2 else plain[None]).split(1 << 12):
        flat = piece.contiguous().view(-1).view(torch.uint8)
        yield flat.numpy(force=True).data


def sample_of(path: str | Path, begin: int = 0, end: int | None = None) -> str:
    """A digest of bytes [begin, end) of a file by 64 KiB of them, its ends among them: a terabyte
    takes no longer, and numbers that were computed anew differ everywhere."""
    found = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        end = file.seek(0, 2) if end is None else end
        last = max(end - begin - _BYTES, 0)
        for at in sorted({begin + last * i // (_PLACES - 1) for i in range(_PLACES)}):
            file.seek(at)
            found.update(file.read(min(_BYTES, end - at)))
    return found.hexdigest()


def agree(path: Path, identity: dict[str, Any], command: str) -> None:
    """The folder of ``path`` holds codes of this, or nothing and becomes it.

    Raises:
        ValueError: it holds codes of something else; says what differs.
    """
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if any(folder.glob("*.parquet")):
            raise ValueError(f"{folder} must be empty or of a data set of codes, it holds others")
        record.write_json(path, identity)
        return
    before = record.read_json(path, identity, command)
    if changed := [key for key in identity if before[key] != identity[key]]:
        listed = ", ".join(
            f"{key} = {was!r}, not {now!r}"
            for key in changed
            for was, now in [_difference(before[key], identity[key])]
        )
        raise ValueError(
            f"{folder} holds codes with {listed}: give another folder, or the same data set"
        )


def _difference(was: Any, now: Any) -> tuple[Any, Any]:
    """Of two lists the first items that differ, or the lengths: there may be thousands."""
    if not (isinstance(was, list) and isinstance(now, list)):
        return was, now
    if len(was) != len(now):
        return f"{len(was)} of them", f"{len(now)} of them"
    return next((a, b) for a, b in zip(was, now, strict=True) if a != b)
