"""What one batch does to a dictionary: the methods of :mod:`.dictionary`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops import checks, decode, encode_l0, encode_top_m, hard_threshold, keep_top_m
from . import step as steps
from .fista import fista
from .omp import omp

# MOD: weight of the old dictionary, relative to an atom's mean energy in the statistics. It decides
# where the codes say nothing (fewer signals than atoms, atoms never used) and nowhere else.
_PROXIMITY = 1e-6
# Adam's eps, and the mean ||x||^2 of signals below which it shrinks with them.
_EPS, _SMALL = 1e-8, 1e-3


class Outcome(NamedTuple):
    """A batch, coded with the dictionary as it was before the update.

    Attributes:
        used: [p] int64, how many signals use each atom.
        objective: mean over the signals.
        residual: [B, n], x - D a.
    """

    used: Tensor
    objective: float
    residual: Tensor


def like(name: str, value: Any, own: Tensor) -> Tensor:
    """An entry of a state, if it is finite and has the shape and dtype of ``own``."""
    if not isinstance(value, Tensor) or value.shape != own.shape or value.dtype != own.dtype:
        kind = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{name} must be {own.dtype} {tuple(own.shape)}, got {kind}")
    if own.is_floating_point() and not torch.isfinite(value).all():
        raise ValueError(f"{name} must be finite")
    return value


class Update(ABC):
    """A dictionary D [n, p] and the state that its updates carry from batch to batch."""

    D: Tensor

    @abstractmethod
    def __call__(self, x: Tensor) -> Outcome:
        """Code x [B, n] and move D."""

    @abstractmethod
    def replace(self, atoms: Tensor, directions: Tensor) -> None:
        """Put ``directions`` [k, n], of norm 1, in the place of D[:, atoms]; these begin anew."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state made with the same options.

        Raises:
            ValueError, KeyError: it is damaged; what is left of this update is of no use then.
        """

    def result(self) -> Tensor:
        """The dictionary as it is, a copy."""
        return self.D.detach().clone()


class Unrolled(Update):
    """Adam on the objective through K stages of hard thresholding; ``||D||_2 <= 1``."""

    def __init__(
        self,
        D: Tensor,
        *,
        m: int | None,
        lam: float | None,
        num_stages: int,
        lr: float,
        total_steps: int | None,
        positive: bool,
    ) -> None:
        # The nearest tight frame: all singular values are 1, and every atom is in use from the
        # start. Signals as they are share one direction, whose bound would shrink all the others.
        wide = D.double()
        U, _, Vh = torch.linalg.svd(wide, full_matrices=False)
        self.D = (U @ Vh).to(D.dtype).contiguous().requires_grad_()
        self.m, self.lam, self.num_stages, self.positive = m, lam, num_stages, positive
        p = D.shape[1]
        self.eye = torch.eye(p, dtype=D.dtype, device=D.device)
        # Gradients grow as the signals squared, and D is drawn from them: Adam's eps stays below.
        energy = wide.square().sum(0).mean().item()
        self.optimizer = torch.optim.Adam([self.D], lr=lr, eps=_EPS * min(1.0, energy / _SMALL))
        self.schedule = None
        if total_steps is not None:
            self.schedule = torch.optim.lr_scheduler.OneCycleLR(
                self.optimizer, lr, total_steps=total_steps
            )

    def __call__(self, x: Tensor) -> Outcome:
        D = self.D
        S = self.eye - D.T @ D
        penalty = 0.0
        if self.positive:
            a = self._nonnegative(x, S)
            used = (a.detach() != 0).sum(0)
            residual = x - a @ D.T
        elif self.m is not None:
            code = encode_top_m(x, D.T, S, self.m, num_stages=self.num_stages)
            used = torch.bincount(code.indices.flatten(), minlength=D.shape[1])
            residual = x - decode(code, D)
        else:
            assert self.lam is not None
            theta = math.sqrt(2 * self.lam)
            a = encode_l0(x, D.T, S, theta, num_stages=self.num_stages)
            used = (a.detach() != 0).sum(0)
            residual = x - a @ D.T
        if self.lam is not None:
            penalty = self.lam * used.sum().item() / len(x)
        loss = 0.5 * residual.square().sum() / len(x)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        self._project()
        return Outcome(used, loss.item() + penalty, residual.detach())

    def _nonnegative(self, x: Tensor, S: Tensor) -> Tensor:
        """The codes of the encoders with max(u, 0) in the place of u."""

        def select(u: Tensor) -> Tensor:
            if self.m is not None:
                return keep_top_m(u.relu(), self.m)
            assert self.lam is not None
            return hard_threshold(u.relu(), math.sqrt(2 * self.lam))

        wx = x @ self.D
        a = select(wx)
        for _ in range(self.num_stages - 1):
            a = select(torch.addmm(wx, a, S))  # S is symmetric
        return a

    @torch.no_grad()
    def _project(self) -> None:
        """The nearest D with ``||D||_2 <= 1``: singular values above 1 become 1, no other moves."""
        n, p = self.D.shape
        wide = n <= p
        squares, U = torch.linalg.eigh(self.D @ self.D.T if wide else self.D.T @ self.D)
        over = squares > 1
        if over.any():
            U = U[:, over]
            shrink = 1 - squares[over].rsqrt()
            self.D -= (
                U @ (shrink[:, None] * (U.T @ self.D)) if wide else (self.D @ U * shrink) @ U.T
            )

    @torch.no_grad()
    def replace(self, atoms: Tensor, directions: Tensor) -> None:
        self.D[:, atoms] = (directions * (self.D.norm() / math.sqrt(self.D.shape[1]))).T
        for moment in self.optimizer.state[self.D].values():
            if moment.shape == self.D.shape:
                moment[:, atoms] = 0
        self._project()

    def state_dict(self) -> dict[str, Any]:
        return {
            "D": self.D.detach().clone(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.D.copy_(like("D", state["D"], self.D))
        self.optimizer.load_state_dict(state["optimizer"])
        moments = self.optimizer.state.get(self.D, {})
        if moments and set(moments) != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError(f"Adam's state has {', '.join(map(str, moments))}")
        for name in ("exp_avg", "exp_avg_sq"):
            if moments:
                like(name, moments[name], self.D)
        schedule = state["schedule"]
        if (schedule is None) != (self.schedule is None):
            raise ValueError(f"schedule must {'not ' * (self.schedule is not None)}be None")
        if self.schedule is not None:
            self.schedule.load_state_dict(schedule)

    def result(self) -> Tensor:
        D = super().result()  # projected up to rounding
        return D / max(1.0, math.sqrt(steps.squared_norm(D)))


class _Statistics(Update):
    """A = sum of a a', B = sum of x a' over the stream, the older the less (float64)."""

    def __init__(self, D: Tensor, forgetting: float) -> None:
        n, p = D.shape
        self.forgetting = forgetting
        wide = D.double()
        self.D = (wide / wide.norm(dim=0).clamp_min(torch.finfo(wide.dtype).tiny)).to(D.dtype)
        self.A = torch.zeros(p, p, dtype=torch.float64, device=D.device)
        self.B = torch.zeros(n, p, dtype=torch.float64, device=D.device)
        self.batches = 0

    @abstractmethod
    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [B, p], dense, and the objective of each signal."""

    @abstractmethod
    def solve(self, D: Tensor) -> Tensor:
        """The next dictionary from D, A and B, all float64."""

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Outcome:
        a, objective = self.code(x)
        residual = x - a @ self.D.T
        # After t batches the k-th weighs (k / t)^forgetting: early codes are of a poor dictionary
        # (Mairal et al. 2010, 3.4.2).
        keep = (self.batches / (self.batches + 1)) ** self.forgetting
        wide, signals = a.double(), x.double()
        self.A.mul_(keep).addmm_(wide.T, wide, alpha=1 / len(x))
        self.B.mul_(keep).addmm_(signals.T, wide, alpha=1 / len(x))
        self.batches += 1
        self.D = self.solve(self.D.double()).to(x.dtype)
        return Outcome((a != 0).sum(0), objective.double().mean().item(), residual)

    def replace(self, atoms: Tensor, directions: Tensor) -> None:
        self.D[:, atoms] = directions.T
        self.A[atoms], self.A[:, atoms], self.B[:, atoms] = 0, 0, 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "D": self.D.clone(),
            "A": self.A.clone(),
            "B": self.B.clone(),
            "batches": self.batches,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.D, self.A, self.B = (
            like(key, state[key], getattr(self, key)).clone() for key in ("D", "A", "B")
        )
        self.batches = checks.integer("batches", state["batches"], 0)


class OnlineL1(_Statistics):
    """l1 codes; each atom in turn to its best place within the unit ball."""

    def __init__(
        self,
        D: Tensor,
        forgetting: float,
        lam: float,
        tol: float,
        max_iter: int,
        positive: bool,
    ) -> None:
        super().__init__(D, forgetting)
        self.lam = lam
        self.options: dict[str, Any] = dict(tol=tol, max_iter=max_iter, positive=positive)

    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = fista(x, self.D, self.lam, history=False, **self.options)
        return found.dense, found.objective[-1]

    def solve(self, D: Tensor) -> Tensor:
        weight = self.A.diagonal().tolist()
        for j, w in enumerate(weight):
            if w > 1e-12:
                atom = D[:, j] + (self.B[:, j] - D @ self.A[:, j]) / w
                D[:, j] = atom / atom.norm().clamp_min(1)
        return D


class MOD(_Statistics):
    """m-sparse codes by OMP; least squares for all atoms at once, then unit norm."""

    def __init__(self, D: Tensor, forgetting: float, m: int, positive: bool) -> None:
        super().__init__(D, forgetting)
        self.m, self.positive = m, positive

    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = omp(x, self.D, self.m, positive=self.positive)
        return found.dense, found.objective[-1]

    def solve(self, D: Tensor) -> Tensor:
        near = _PROXIMITY * self.A.diagonal().mean().clamp_min(1e-12)
        eye = torch.eye(len(self.A), dtype=self.A.dtype, device=self.A.device)
        D = torch.linalg.solve(self.A + near * eye, (self.B + near * D).T).T
        norms = D.norm(dim=0).clamp_min(torch.finfo(D.dtype).tiny)
        # The same signals in atoms of unit norm: their coefficients grow by what the atoms lose.
        self.A *= norms[:, None] * norms
        self.B *= norms
        return D / norms
