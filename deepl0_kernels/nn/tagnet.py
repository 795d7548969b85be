"""Unrolled sparse coding on a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.precision import accumulation_dtype
from ..solvers import step as steps
from ..solvers.graph import check_laplacian, laplacian_like, largest_row
from .soft import LISTA


class TAGNet(LISTA):
    """K stages of graph-regularised sparse coding with learned weights.

    ``z <- soft(W x + S z - gamma L z)``, over all signals together: row i of L z is what the
    code of signal i differs by from its neighbours'. gamma = mu alpha stays as it is; W, S and the
    thresholds are learned. With gamma = 0 it is :class:`LISTA`.

    Args:
        gamma: >= 0. The others are those of :class:`LISTA`.

    ``encoder(x, laplacian)``: signals [N, n] and symmetric sparse COO [N, N], as of
    :func:`deepl0_kernels.solvers.graph_laplacian` -> dense codes [N, p]. Rows are no batch that
    could be cut: the graph ties them.

    Raises:
        ValueError: an argument out of range, or x and laplacian that do not fit, with the value.

    2 N p (n + (K - 1) p) + 2 (K - 1) edges p flops. A reading of the abstract of Wang, Chang, Zhou,
    Wang, Huang, "Learning a task-specific deep architecture for clustering" (TAGnet), SDM 2016.

    Example:
        >>> x = torch.randn(20, 8)
        >>> laplacian = dk.solvers.graph_laplacian(dk.solvers.knn_affinity(x))
        >>> dk.nn.TAGNet(8, 12, gamma=0.1)(x, laplacian).shape
        torch.Size([20, 12])
    """

    def __init__(
        self,
        in_features: int,
        code_size: int,
        num_stages: int = 2,
        tied: bool = True,
        *,
        gamma: float = 0.0,
        bias: bool = False,
        positive: bool = False,
    ) -> None:
        super().__init__(in_features, code_size, num_stages, tied, bias=bias, positive=positive)
        self.gamma = steps.weight_or_zero("gamma", gamma)

    @classmethod
    def from_graph(
        cls,
        D: Tensor,
        laplacian: Tensor,
        lam: float,
        alpha: float,
        num_stages: int = 2,
        tied: bool = True,
        *,
        bias: bool = False,
        positive: bool = False,
    ) -> TAGNet:
        """The encoder that is K plain steps of :func:`deepl0_kernels.solvers.graph_sparse_code`.

        Args:
            D: [n, p], finite. laplacian: as in the call; only its size of entries is used here.
            lam: > 0. alpha: >= 0.
            num_stages, tied, bias, positive: as in the class.

        The step mu is ``0.99 / (||D||_2^2 + alpha max_i sum_j |L_ij|)``.

        Raises:
            ValueError: an argument out of range, named with its value.
        """
        steps.dictionary("D", D)
        alpha = steps.weight_or_zero("alpha", alpha)
        L = laplacian_like("D", D, laplacian)
        mu = 0.99 / (steps.squared_norm(D) + alpha * largest_row(L))
        self = cls.from_dictionary(D, lam, num_stages, tied, mu, bias=bias, positive=positive)
        assert isinstance(self, TAGNet)
        self.gamma = mu * alpha
        return self

    def forward(self, x: Tensor, laplacian: Tensor) -> Tensor:  # type: ignore[override]
        """Dense codes [N, p] of x [N, n], over the graph of ``laplacian`` [N, N]."""
        self._check(x)
        if x.dim() != 2:
            raise ValueError(f"x must be [N, n], got {tuple(x.shape)}")
        L = check_laplacian(laplacian, x)
        L = L.to(accumulation_dtype(L.dtype))
        return self._stages(x, lambda z: -self.gamma * torch.sparse.mm(L, z))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gamma={self.gamma:g}"
