"""Changing the choices of a protocol from the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

T = TypeVar("T")


def changed(protocol: T, settings: Iterable[str], data: Sequence[str]) -> T:
    """``protocol``, a dataclass, with fields set anew, each written ``name=value``.

    Args:
        data: the values that the field of this name may have.

    Raises:
        ValueError: a setting without ``=``, an unknown name, a value of another type.
    """
    values: dict[str, Any] = {}
    known = {f.name: type(getattr(protocol, f.name)) for f in fields(protocol)}  # type: ignore[arg-type]
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in known:
            raise ValueError(
                f"a setting must be NAME=VALUE with a name of {', '.join(known)}; got {setting!r}"
            )
        try:
            values[name] = known[name](text)
        except ValueError:
            raise ValueError(
                f"{name} must be of type {known[name].__name__}, got {text!r}"
            ) from None
    if values.get("data", data[0]) not in data:
        raise ValueError(f"data must be one of {tuple(data)}, got {values['data']!r}")
    return replace(protocol, **values)  # type: ignore[type-var]
