"""float64 for float32 problems whose squares leave float32's range."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..ops import SparseCode
from .result import SolverResult
from .step import known, largest_entry

# Largest entries of a signal and of D, and weights, between 2^-e and 2^e: float32 then holds
# ||x||^2, ||x||^2 / ||D||^2 and ||D||^4 ||x||^2 with all that counts beside them.
_SIGNAL, _DICTIONARY, _WEIGHT = 2.0**32, 2.0**12, 2.0**60

_F = TypeVar("_F", bound=Callable[..., Any])


def in_range(*weights: str, together: bool = False) -> Callable[[_F], _F]:
    """Decorates a solver of ``x`` and ``D``: in float64 where float32 cannot hold the squares.

    Each signal by itself, by its largest entry; all of them where D or one of the arguments named
    in ``weights`` is out of range, or where signals are solved ``together``. The results are
    rounded to float32.

    Raises:
        ValueError: float32 cannot hold a result.
    """

    def decorate(solve: _F) -> _F:
        signature = inspect.signature(solve)

        @functools.wraps(solve)
        def call(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            given = bound.arguments
            x, D = given["x"], given["D"]
            if not _suits(x, D):
                return solve(*args, **kwargs)
            facts = known(D, given.get("plan"))
            if "plan" in signature.parameters:
                given["plan"] = kwargs["plan"] = facts  # for all parts of this call
            everything = _outside_range(facts.once(largest_entry), _DICTIONARY) or any(
                _outside_weight(given.get(name)) for name in weights
            )
            far = _outside(x.detach().abs().amax(-1), _SIGNAL)
            start = given.get("init")
            if isinstance(start, Tensor) and start.shape == (*x.shape[:-1], D.shape[1]):
                far = far | (start.detach().abs().amax(-1) > _SIGNAL)
            if everything or (together and far.any()):
                far = torch.ones_like(far)
            if not far.any():
                return solve(*args, **kwargs)
            _refuse_squares(x)
            lead, p = x.shape[:-1], D.shape[1]
            far = far.flatten()

            def part(rows: Tensor, wide: bool):
                changed = {k: _rows(k, v, rows, lead, p, wide) for k, v in given.items()}
                if wide and "plan" in changed:  # they are of D as it is given
                    changed["plan"] = None
                changed["x"] = _cast(x if together else x.reshape(-1, x.shape[-1])[rows], wide)
                return solve(**changed)

            near = None if far.all() else part(~far, False)
            return _joined(part(far, True), near, far, lead)

        return call  # type: ignore[return-value]

    return decorate


def _suits(x: Any, D: Any) -> bool:
    return (
        isinstance(x, Tensor)
        and isinstance(D, Tensor)
        and x.dtype == D.dtype == torch.float32
        and x.layout == D.layout == torch.strided
        and not (x.is_nested or D.is_nested or x.is_meta or D.is_meta)
        and x.dim() >= 1
        and x.numel() > 0
        and D.dim() == 2
        and D.numel() > 0
    )


def _outside_range(largest: float, limit: float) -> bool:
    return largest != 0 and math.isfinite(largest) and not 1 / limit <= largest <= limit


def _outside(largest: Tensor, limit: float) -> Tensor:
    return (largest != 0) & ((largest < 1 / limit) | (largest > limit)) & largest.isfinite()


def _outside_weight(value: Any) -> bool:
    """Of a number, or of the entries of a sparse matrix."""
    if isinstance(value, Tensor) and value.layout == torch.sparse_coo:
        values = value.coalesce().values()
        value = values.abs().max().item() if values.numel() else 0.0
        return not value <= _WEIGHT
    return isinstance(value, (int, float)) and value > 0 and not 1 / _WEIGHT <= value <= _WEIGHT


def _refuse_squares(x: Tensor) -> None:
    """The objective of the zero code fits."""
    largest = 0.5 * x.detach().double().square().sum(-1).max().item()
    if largest > torch.finfo(x.dtype).max:
        raise ValueError(
            f"x must have ||x||^2 / 2 within float32 for its objective, got {largest:.3g}: scale x "
            "or give float64"
        )


def _cast(value: Tensor, wide: bool) -> Tensor:
    return value.double() if wide and value.dtype == torch.float32 else value


def _rows(name: str, value: Any, rows: Tensor, lead: torch.Size, p: int, wide: bool) -> Any:
    """An argument for some of the signals, in float64 if wide; what does not fit as it is."""
    if isinstance(value, SparseCode):
        if value.values.shape[:-1] != lead or value.indices.shape != value.values.shape:
            return value
        values, indices = (t.reshape(-1, t.shape[-1])[rows] for t in (value.values, value.indices))
        return SparseCode(_cast(values, wide), indices, value.size)
    if not isinstance(value, Tensor):
        return value
    if name in ("init", "code") and value.shape == (*lead, p):
        value = value.reshape(-1, p)[rows]
    return _cast(value, wide)


def _joined(far: Any, near: Any, rows: Tensor, lead: torch.Size) -> Any:
    """The results of the signals in ``rows``, rounded to float32, and of the others."""

    def merged(a: Tensor, b: Tensor | None, dim: int = 0) -> Tensor:
        if b is not None:
            shape = list(a.shape)
            shape[dim] = len(rows)
            order = torch.cat((rows.nonzero(), (~rows).nonzero()))[:, 0]
            a = a.new_empty(shape).index_copy_(dim, order, torch.cat((a, b), dim))
        return a.reshape(*a.shape[:dim], *lead, *a.shape[dim + 1 :])

    if isinstance(far, Tensor):
        return merged(_narrow("result", far), near)
    code, other = far.code, None if near is None else near.code
    if isinstance(code, SparseCode):
        code = SparseCode(
            merged(_narrow("codes", code.values), getattr(other, "values", None)),
            merged(code.indices, getattr(other, "indices", None)),
            code.size,
        )
    else:
        code = merged(_narrow("codes", code), other)
    objective, others = _narrow("objective", far.objective), None
    if near is not None:
        length = max(len(objective), len(near.objective))
        objective, others = _extended(objective, length), _extended(near.objective, length)
    return SolverResult(
        code,
        merged(far.iterations, near and near.iterations),
        merged(far.converged, near and near.converged),
        merged(objective, others, 1),
    )


def _extended(objective: Tensor, length: int) -> Tensor:
    return torch.cat((objective, objective[-1:].expand(length - len(objective), -1)))


def _narrow(what: str, value: Tensor) -> Tensor:
    narrow = value.float()
    if not narrow.isfinite().all():
        largest = value.abs().max().item()
        raise ValueError(
            f"the {what} must fit float32, reached {largest:.3g}: scale x or D, or give float64"
        )
    return narrow
