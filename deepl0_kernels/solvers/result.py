"""What every solver returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic

from torch import Tensor

from ..ops import SparseCode

# So a type checker knows which of the two a solver gives; without a parameter it is either.
if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Code = TypeVar("Code", bound=Tensor | SparseCode, default=Tensor | SparseCode, covariant=True)
else:
    from typing import TypeVar

    Code = TypeVar("Code")


@dataclass(frozen=True)
class SolverResult(Generic[Code]):
    """Codes and how they came about.

    Attributes:
        code: dense [..., p] of the penalised problems, :class:`SparseCode` with exactly m entries
            of the m-sparse ones.
        iterations: [...] int64, iterations each sample took.
        converged: [...] bool, whether it met ``tol`` before ``max_iter``.
        objective: [T + 1, ...] of each sample before the first and after each of the T iterations;
            a sample that has converged repeats its last value. Only the first and the last row when
            the solver was called with ``history=False``.

    Example:
        >>> D = torch.nn.functional.normalize(torch.randn(16, 32), dim=0)
        >>> result = dk.solvers.iht_m(torch.randn(8, 16), D, m=3, max_iter=10)
        >>> result.dense.shape, result.converged.shape, len(result.objective) <= 11
        (torch.Size([8, 32]), torch.Size([8]), True)
    """

    code: Code
    iterations: Tensor
    converged: Tensor
    objective: Tensor

    @property
    def dense(self) -> Tensor:
        """The code as a dense tensor [..., p]."""
        return self.code.to_dense() if isinstance(self.code, SparseCode) else self.code
