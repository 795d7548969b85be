"""The two problems, each with its dictionary, optimal codes, encoder and iterations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..nn import LISTA, DeepL0Encoder, DeepMSparseEncoder
from ..solvers import DictionaryResult, SolverResult, fista, iht, iht_m, learn_dictionary

# A tolerance that nothing meets: exactly so many iterations are wanted.
_NEVER = 1e-300


@dataclass(frozen=True)
class MSparse:
    """``min ||x - D a||^2  s.t. ||a||_0 <= m``.

    Optimal codes start from the l1 solution for a penalty so small that it has m nonzeros: at the
    other problem's lam many have fewer, and the first gradient step would choose the rest.
    """

    m: int = 32
    l1_lam: float = 0.1
    tol: float = 1e-5
    max_iter: int = 5_000

    key = "m_sparse"
    name = "M-sparse"

    @property
    def formula(self) -> str:
        return f"exactly {self.m} nonzeros"

    def learn(self, x: Tensor, p: int, **options: Any) -> DictionaryResult:
        return learn_dictionary(x, p, m=self.m, **options)

    def l1(self, x: Tensor, D: Tensor) -> Tensor:
        return fista(x, D, self.l1_lam, tol=self.tol, max_iter=self.max_iter, history=False).dense

    def optimal(self, x: Tensor, D: Tensor) -> SolverResult:
        """l1 first, then hard thresholding from there until it stands still."""
        options: dict[str, Any] = dict(tol=self.tol, max_iter=self.max_iter, history=False)
        return iht_m(x, D, self.m, init="l1", l1_lam=self.l1_lam, **options)

    def iterate(
        self,
        x: Tensor,
        D: Tensor,
        k: int,
        start: Tensor | None = None,
        step: str | float = "lipschitz",
    ) -> Tensor:
        """The code after k iterations from ``start`` (zero)."""
        init: str | Tensor = "zero" if start is None else start
        return iht_m(
            x, D, self.m, init=init, step=step, tol=_NEVER, max_iter=k, history=False
        ).dense

    def encoder(self, D: Tensor, num_stages: int = 2, tied: bool = True) -> nn.Module:
        return DeepMSparseEncoder.from_dictionary(D, self.m, num_stages, tied)

    def lista(self, D: Tensor, num_stages: int = 2) -> nn.Module:
        return LISTA.from_dictionary(D, self.l1_lam, num_stages)


@dataclass(frozen=True)
class L0Regularized:
    """``min 1/2 ||x - D a||^2 + lam ||a||_0``; optimal codes start from l1 at the same lam."""

    lam: float = 0.5
    tol: float = 1e-5
    max_iter: int = 5_000

    key = "l0"
    name = "l0-regularized"

    @property
    def formula(self) -> str:
        return f"1/2 ||x - D a||^2 + {self.lam} ||a||_0"

    def learn(self, x: Tensor, p: int, **options: Any) -> DictionaryResult:
        return learn_dictionary(x, p, lam=self.lam, **options)

    def l1(self, x: Tensor, D: Tensor) -> Tensor:
        return fista(x, D, self.lam, tol=self.tol, max_iter=self.max_iter, history=False).dense

    def optimal(self, x: Tensor, D: Tensor) -> SolverResult:
        """l1 first, then hard thresholding from there until it stands still."""
        options: dict[str, Any] = dict(tol=self.tol, max_iter=self.max_iter, history=False)
        return iht(x, D, self.lam, init="l1", **options)

    def iterate(
        self,
        x: Tensor,
        D: Tensor,
        k: int,
        start: Tensor | None = None,
        step: str | float = "lipschitz",
    ) -> Tensor:
        """The code after k iterations from ``start`` (zero)."""
        init: str | Tensor = "zero" if start is None else start
        return iht(
            x, D, self.lam, init=init, step=step, tol=_NEVER, max_iter=k, history=False
        ).dense

    def encoder(self, D: Tensor, num_stages: int = 2, tied: bool = True) -> nn.Module:
        return DeepL0Encoder.from_dictionary(D, self.lam, num_stages, tied)

    def lista(self, D: Tensor, num_stages: int = 2) -> nn.Module:
        return LISTA.from_dictionary(D, self.lam, num_stages)


Problem = MSparse | L0Regularized
