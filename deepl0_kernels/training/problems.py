"""The two problems, each with its dictionary, optimal codes, encoder and iterations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import NoneType
from typing import Any, ClassVar

from torch import Tensor, nn

from ..nn import LISTA, DeepL0Encoder, DeepMSparseEncoder
from ..ops import checks
from ..solvers import SolverResult, fista, iht, iht_m

# A tolerance that nothing meets: exactly so many iterations are wanted.
_NEVER = 1e-300


@dataclass(frozen=True, kw_only=True)
class Problem(ABC):
    """What a code minimises.

    Args:
        positive: over a >= 0.
        tol, max_iter: of the iterations after which a code counts as optimal, as in
            :func:`deepl0_kernels.solvers.iht`.

    Raises:
        TypeError, ValueError: an argument of another kind or out of range, named with its value.

    Signals x are [..., n], dictionaries D [n, p], codes [..., p].

    Example:
        >>> from deepl0_kernels import training
        >>> isinstance(training.MSparse(m=3), training.Problem)
        True
    """

    positive: bool = False
    tol: float = 1e-5
    max_iter: int = 5_000

    key: ClassVar[str]
    name: ClassVar[str]

    def __post_init__(self) -> None:
        checks.boolean("positive", self.positive)
        checks.positive("tol", self.tol)
        checks.integer("max_iter", self.max_iter, 1)

    @property
    @abstractmethod
    def formula(self) -> str:
        """The problem in one line."""

    @property
    def _domain(self) -> str:
        """The end of the formula."""
        return ", a >= 0" if self.positive else ""

    @property
    @abstractmethod
    def l1_penalty(self) -> float:
        """Penalty of the l1 solution that optimal codes start from."""

    @property
    @abstractmethod
    def sparsity(self) -> dict[str, Any]:
        """The argument of the solvers that bounds or weighs the nonzeros: m or lam."""

    @abstractmethod
    def encoder(
        self, D: Tensor, num_stages: int = 2, tied: bool = True, inside: str = "hard"
    ) -> nn.Module:
        """The encoder that is ``num_stages`` iterations over D [n, p] from zero.

        ``tied``: with one S and one theta for all of them. ``inside``: "soft" for soft thresholds
        in all but the last, which start at :attr:`l1_penalty`.
        """

    def _inside(self, inside: str) -> dict[str, Any]:
        """Options of an encoder's ``from_dictionary``."""
        l1_lam = self.l1_penalty if inside == "soft" else None
        return {"positive": self.positive, "inside": inside, "l1_lam": l1_lam}

    @abstractmethod
    def _descend(self, x: Tensor, D: Tensor, **options: Any) -> SolverResult:
        """Iterative hard thresholding."""

    def optimal(self, x: Tensor, D: Tensor) -> SolverResult:
        """Of x [..., n]: l1 first, then hard thresholding over D until it stands still."""
        return self._descend(x, D, init="l1", tol=self.tol, max_iter=self.max_iter)

    def iterate(
        self,
        x: Tensor,
        D: Tensor,
        k: int,
        start: Tensor | None = None,
        step: str | float = "lipschitz",
    ) -> Tensor:
        """The code of x [..., n] over D [n, p] after k iterations.

        ``start``: codes [..., p]; None: zero. ``step``: as in :func:`deepl0_kernels.solvers.iht`.
        """
        k = checks.integer("k", k, 1)
        checks.instance("start", start, (Tensor, NoneType), "a tensor or None")
        init = "zero" if start is None else start
        return self._descend(x, D, init=init, step=step, tol=_NEVER, max_iter=k).dense

    def l1(self, x: Tensor, D: Tensor) -> Tensor:
        """The l1 solution of x [..., n] over D [n, p] that optimal codes start from."""
        options: dict[str, Any] = dict(tol=self.tol, max_iter=self.max_iter, history=False)
        options["positive"] = self.positive
        return fista(x, D, self.l1_penalty, **options).dense

    def lista(self, D: Tensor, num_stages: int = 2) -> nn.Module:
        """LISTA that is ``num_stages`` iterations towards :meth:`l1` over D [n, p]."""
        return LISTA.from_dictionary(D, self.l1_penalty, num_stages, positive=self.positive)


@dataclass(frozen=True, kw_only=True)
class MSparse(Problem):
    """``min ||x - D a||^2  s.t. ||a||_0 <= m``.

    Args:
        m: >= 1. l1_lam: > 0, penalty of the l1 solution.
        positive, tol, max_iter: as in :class:`Problem`.

    The l1 penalty is so small that its solution has m nonzeros: at the other problem's lam many
    have fewer, and the first gradient step would choose the rest.

    Example:
        >>> from deepl0_kernels import training
        >>> D = torch.nn.functional.normalize(torch.randn(16, 32), dim=0)
        >>> problem = training.MSparse(m=3)
        >>> problem.optimal(torch.randn(8, 16), D).code.indices.shape
        torch.Size([8, 3])
    """

    m: int = 32
    l1_lam: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.integer("m", self.m, 1)
        checks.positive("l1_lam", self.l1_lam)

    key = "m_sparse"
    name = "M-sparse"

    @property
    def formula(self) -> str:
        return f"exactly {self.m} nonzeros{self._domain}"

    @property
    def l1_penalty(self) -> float:
        return self.l1_lam

    @property
    def sparsity(self) -> dict[str, Any]:
        return {"m": self.m}

    def encoder(
        self, D: Tensor, num_stages: int = 2, tied: bool = True, inside: str = "hard"
    ) -> DeepMSparseEncoder:
        options = self._inside(inside)
        return DeepMSparseEncoder.from_dictionary(D, self.m, num_stages, tied, **options)

    def _descend(self, x: Tensor, D: Tensor, **options: Any) -> SolverResult:
        options |= dict(history=False, positive=self.positive)
        return iht_m(x, D, self.m, l1_lam=self.l1_lam, **options)


@dataclass(frozen=True, kw_only=True)
class L0Regularized(Problem):
    """``min 1/2 ||x - D a||^2 + lam ||a||_0``; optimal codes start from l1 at the same lam.

    Args:
        lam: > 0.
        positive, tol, max_iter: as in :class:`Problem`.

    Example:
        >>> from deepl0_kernels import training
        >>> D = torch.nn.functional.normalize(torch.randn(16, 32), dim=0)
        >>> problem = training.L0Regularized(lam=0.1)
        >>> problem.optimal(torch.randn(8, 16), D).code.shape, type(problem.encoder(D)).__name__
        (torch.Size([8, 32]), 'DeepL0Encoder')
    """

    lam: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive("lam", self.lam)

    key = "l0"
    name = "l0-regularized"

    @property
    def formula(self) -> str:
        return f"1/2 ||x - D a||^2 + {self.lam} ||a||_0{self._domain}"

    @property
    def l1_penalty(self) -> float:
        return self.lam

    @property
    def sparsity(self) -> dict[str, Any]:
        return {"lam": self.lam}

    def encoder(
        self, D: Tensor, num_stages: int = 2, tied: bool = True, inside: str = "hard"
    ) -> DeepL0Encoder:
        options = self._inside(inside)
        return DeepL0Encoder.from_dictionary(D, self.lam, num_stages, tied, **options)

    def _descend(self, x: Tensor, D: Tensor, **options: Any) -> SolverResult:
        return iht(x, D, self.lam, history=False, positive=self.positive, **options)
