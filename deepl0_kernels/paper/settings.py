"""The choices of an experiment: each declared with its range, changed from the command line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from ..ops import checks

T = TypeVar("T", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """A dataclass whose fields are :func:`number`, :func:`count` or :func:`one_of`."""

    def changed(self: T, settings: Iterable[str]) -> T:
        """With fields set anew, each written ``name=value``.

        Raises:
            ValueError: a setting without ``=``, an unknown name, a value of another type or out of
                its range.
        """
        values: dict[str, Any] = {}
        known = {f.name: type(getattr(self, f.name)) for f in fields(self)}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals or name not in known:
                raise ValueError(
                    f"a setting must be NAME=VALUE with a name of {', '.join(known)}; "
                    f"got {setting!r}"
                )
            try:
                values[name] = known[name](text)
            except ValueError:
                raise ValueError(
                    f"{name} must be of type {known[name].__name__}, got {text!r}"
                ) from None
        found = replace(self, **values)
        found.check()
        return found

    def check(self) -> None:
        """Every field is in its range, else a ValueError that names it."""
        for f in fields(self):
            if check := f.metadata.get("check"):
                check(f.name, getattr(self, f.name))


def number(default: float, *, above: float | None = None, most: float = math.inf) -> Any:
    """A finite number greater than ``above``, or without it at least 0, and at most ``most``."""

    def check(name: str, value: float) -> None:
        low_enough = value <= most and value < math.inf
        if not (low_enough and (value >= 0 if above is None else value > above)):
            low = ">= 0" if above is None else f"> {above:g}"
            high = "" if most == math.inf else f" and <= {most:g}"
            raise ValueError(f"{name} must be a finite number {low}{high}, got {value}")

    return _checked(default, check)


def share(default: float, *, zero: bool = False) -> Any:
    """A part of something: in (0, 1), or with ``zero`` in [0, 1)."""

    def check(name: str, value: float) -> None:
        if not (0 < value < 1 or (zero and value == 0)):
            raise ValueError(f"{name} must be in {'[' if zero else '('}0, 1), got {value}")

    return _checked(default, check)


def count(default: int, least: int = 1, most: int | None = None, limit: str = "") -> Any:
    """An integer in [least, most]; ``limit`` says in words what ``most`` is."""
    return _checked(default, lambda name, value: checks.integer(name, value, least, most, limit))


def one_of(default: str, choices: Sequence[str]) -> Any:
    """One of a few words."""
    return _checked(default, lambda name, value: checks.one_of(name, value, choices))


def _checked(default: Any, check: Callable[[str, Any], object]) -> Any:
    return field(default=default, metadata={"check": check})
