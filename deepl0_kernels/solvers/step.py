"""Step sizes from the dictionary, and checks that all solvers share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from .._isolation import isolated
from ..ops import Plan, checks
from ..ops.plan import checked_plan
from ..reference.descent import positive_part
from ..reference.least_squares import norms as norms_of

# Up to this size the norm is an exact eigenvalue, beyond it a bounded power iteration.
_EXACT = 1024
_BLOCK, _ITERATIONS, _MARGIN = 8, 100, 1.01
# Largest entries of a signal and of D, and weights, lie between 2^-e and 2^e: float64 then holds
# ||x||^2, ||x||^2 / ||D||^2 and ||D||^4 ||x||^2 with all that counts beside them. (precision.py has
# the limits of float32, all of whose numbers lie in these.)
_SIGNAL, _DICTIONARY, _WEIGHT = 2.0**180, 2.0**150, 2.0**320


_T = TypeVar("_T")


@isolated(False)
def squared_norm(D: Tensor) -> float:
    """An upper estimate of ``||D||_2^2``, D [n, p] with finite entries, not all 0.

    Exact (float64 eigenvalue, rounded up) while min(n, p) <= 1024. Beyond that a block power
    iteration of 100 steps, which approaches from below, enlarged by 1 %; the solvers watch their
    objective, so that an estimate which is still too low ends in an error, not in divergence.

    Raises:
        ValueError: D is no such matrix.

    O(n p min(n, p)), beyond 1024 O(3200 n p).

    Example:
        >>> round(dk.solvers.squared_norm(torch.tensor([[3.0, 0.0], [0.0, 2.0]])), 4)
        9.0
    """
    dictionary("D", D)
    n, p = D.shape
    A = D.detach().double()
    if min(n, p) <= _EXACT:
        gram = A @ A.T if n <= p else A.T @ A
        value = torch.linalg.eigvalsh(gram)[-1].item() * (1 + 1e-12)
    else:
        generator = torch.Generator().manual_seed(0)
        V = torch.randn(p, _BLOCK, generator=generator, dtype=torch.float64).to(D.device)
        for _ in range(_ITERATIONS):
            V = A.T @ (A @ torch.linalg.qr(V)[0])
        value = torch.linalg.matrix_norm(A @ torch.linalg.qr(V)[0], 2).item() ** 2 * _MARGIN
    return value


def safe_step(D: Tensor) -> float:
    """mu = 0.99 / ||D||_2^2, at which every iteration of IHT lowers the objective."""
    return Facts(D).safe_step


def dictionary(name: str, D: Tensor) -> None:
    """D is a finite, nonzero floating matrix [n, p]."""
    checks.floating(name, D)
    if D.is_meta:
        raise ValueError(f"{name} must hold values, got a tensor on the meta device")
    if D.dim() != 2 or 0 in D.shape:
        raise ValueError(f"{name} must be a matrix [n, p], got shape {tuple(D.shape)}")
    largest = _largest(name, D)
    if largest == 0:
        raise ValueError(f"{name} must not be all 0")
    if not 1 / _DICTIONARY <= largest <= _DICTIONARY:
        raise ValueError(
            f"{name} must have its largest entry in [{1 / _DICTIONARY:.2g}, {_DICTIONARY:.2g}], "
            f"got {largest:.3g}: scale it"
        )


def largest_entry(t: Tensor) -> float:
    """The largest modulus of a tensor, NaN if there is one, in one pass; 0 if it is empty."""
    if not t.numel():
        return 0.0
    low, high = (end.item() for end in torch.aminmax(t.detach()))
    return max(-low, high) if low <= high else math.nan


def _largest(name: str, t: Tensor) -> float:
    """The same of a tensor that must be finite."""
    largest = largest_entry(t)
    if not math.isfinite(largest):
        bad = int((~torch.isfinite(t)).sum())
        raise ValueError(f"{name} must be finite, got {bad} entries that are nan or inf")
    return largest


class Facts:
    """What solvers work out of a dictionary D [n, p] alone, each when it is first asked for."""

    def __init__(self, D: Tensor) -> None:
        self._D = D
        self._made: dict[Any, Any] = {}

    def once(self, make: Callable[[Tensor], _T]) -> _T:
        """``make(D)``, an error included only as long as it is one."""
        if make not in self._made:
            self._made[make] = make(self._D)
        return self._made[make]

    @property
    def squared_norm(self) -> float:
        return self.once(squared_norm)

    @property
    def safe_step(self) -> float:
        """mu = 0.99 / ||D||_2^2, at which every iteration of IHT lowers the objective."""
        return 0.99 / self.squared_norm

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors made so far."""
        return sum(_nbytes(value) for value in self._made.values())


def _nbytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    parts = value if isinstance(value, tuple) else getattr(value, "__dict__", {}).values()
    return sum(_nbytes(part) for part in parts)


def one_problem(m: int | None, lam: float | None) -> None:
    """Codes are of one problem: m entries, or a penalty lam."""
    if (m is None) == (lam is None):
        raise ValueError(f"give exactly one of m and lam, got m={m} and lam={lam}")


def unit_atoms(D: Tensor) -> tuple[Tensor, Tensor]:
    """Norms [p] of the atoms of D, 1 of a zero atom, and the atoms over them; in float64.

    The norms are constants of autograd's, the atoms are not.
    """
    norms = norms_of(D, 0)
    return norms, D.double() / norms


def known(D: Tensor, plan: Plan | Facts | None) -> Facts:
    """The facts of D that a plan keeps, or new ones. Facts are returned: those of this call.

    Raises:
        TypeError: plan is no plan.
    """
    if plan is None:
        return Facts(D)
    if isinstance(plan, Facts):
        return plan
    checked_plan(plan)
    return plan._facts(D, Facts) if type(D) in (Tensor, Parameter) else Facts(D)


def _checked(D: Tensor) -> None:
    dictionary("D", D)


def weight(name: str, value: float) -> float:
    """``value`` is a number > 0 whose product with squares of signals float64 can hold."""
    value = checks.positive(name, value)
    if not 1 / _WEIGHT <= value <= _WEIGHT:
        raise ValueError(
            f"{name} must be in [{1 / _WEIGHT:.2g}, {_WEIGHT:.2g}], got {value}: scale the signals"
        )
    return value


def weight_or_zero(name: str, value: float) -> float:
    """A weight that may be 0: without the term."""
    value = checks.nonnegative(name, value)
    return weight(name, value) if value else value


def signals(x: Tensor, D: Tensor, facts: Facts | None = None) -> Tensor:
    """x [..., n] fits D [n, p] and is finite; returns it as rows [B, n], detached."""
    (facts or Facts(D)).once(_checked)
    checks.like("x", x, "D", D)  # autocast is off: the dtypes are equal
    if D.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"D must be float32 or float64, got {D.dtype}")
    if x.dim() < 1 or x.shape[-1] != D.shape[0]:
        raise ValueError(f"x must be [..., n] with n = {D.shape[0]}, got {tuple(x.shape)}")
    _largest("x", x)
    rows = x.detach().reshape(-1, x.shape[-1])
    if x.dtype == torch.float64 and len(rows):
        largest = rows.abs().amax(1)
        bad_rows = (largest != 0) & ((largest < 1 / _SIGNAL) | (largest > _SIGNAL))
        if bad_rows.any():
            raise ValueError(
                f"signals of x must be 0 or have their largest entry in [{1 / _SIGNAL:.2g}, "
                f"{_SIGNAL:.2g}], got {largest[bad_rows][0].item():.3g}: scale x"
            )
    return rows


def codes(name: str, init: Tensor, x: Tensor, D: Tensor, positive: bool = False) -> Tensor:
    """Codes [..., p] that fit x [..., n] and D [n, p] and are finite; as rows [B, p], detached.

    ``positive``: their positive part.
    """
    checks.like(name, init, "x", x)
    checks.has_shape(name, init, (*x.shape[:-1], D.shape[1]), "[..., p]")
    if (largest := _largest(name, init)) > _SIGNAL:
        raise ValueError(f"{name} must be at most {_SIGNAL:.2g}, got {largest:.3g}")
    rows = init.detach().reshape(-1, D.shape[1])
    return positive_part(rows) if positive else rows
