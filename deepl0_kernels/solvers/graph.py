"""Graphs of signals, their spectrum, and sparse codes that vary slowly along them."""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from .._isolation import isolated
from .._optional import require
from ..ops import checks
from . import step as steps
from .precision import in_range
from .result import SolverResult


@isolated(False)
def knn_affinity(x: Tensor, neighbours: int = 5, width: float | None = None) -> Tensor:
    """Gaussian affinity of every signal to its nearest ones.

    ``exp(-||x_i - x_j||^2 / (2 width^2))`` where j is among the ``neighbours`` nearest of i or i
    among those of j, else 0; nothing on the diagonal.

    Args:
        x: [N, n], finite, float32 or float64.
        neighbours: 1 to N - 1.
        width: > 0; None: the root of the median squared distance to a neighbour.

    Returns:
        Symmetric sparse COO [N, N], coalesced, in x's dtype.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
        ValueError: an argument out of range, named with its value; all neighbours coincide, which
            leaves no width to choose.

    O(N^2 n). Source: Belkin and Niyogi 2003.

    Example:
        >>> dk.solvers.knn_affinity(torch.randn(20, 4), neighbours=3).shape
        torch.Size([20, 20])
    """
    checks.floating("x", x)
    if x.dim() != 2 or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x must be float32 or float64 [N, n], got {x.dtype} {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise ValueError("x must be finite")
    N = len(x)
    neighbours = checks.integer("neighbours", neighbours, 1, N - 1, "N - 1")
    if width is not None:
        width = checks.positive("width", width)
    search = require("sklearn.neighbors", "nearest neighbours", extra="sklearn")
    # By the largest entry: no square leaves the range of float64.
    scale = x.abs().max().item() if N and x.any() else 1.0
    wide = x.detach().cpu().double() / scale
    found = search.NearestNeighbors(n_neighbors=neighbours).fit(wide.numpy())
    indices = torch.from_numpy(found.kneighbors(return_distance=False)).long()
    apart = torch.stack([(wide - wide[to]).norm(dim=1) for to in indices.T], 1).flatten()
    if width is None:
        width = apart.square().median().sqrt().item()
    else:
        width = max(width / scale, sys.float_info.min)
    if not width > 0:
        raise ValueError("give width: at least half of the signals coincide with a neighbour")
    weights = torch.exp(-0.5 * (apart / width).square())
    rows = torch.arange(N).repeat_interleave(neighbours)
    one_way = torch.stack((rows, indices.flatten()))
    # Found from both ends a pair is one edge.
    both = torch.cat((one_way, one_way.flip(0)), 1)
    keys, place = torch.unique(both[0] * N + both[1], return_inverse=True)
    values = torch.zeros(len(keys), dtype=torch.float64)
    values.scatter_reduce_(0, place, weights.repeat(2), "amax")
    at = torch.stack((keys // N, keys % N)).to(x.device)
    return torch.sparse_coo_tensor(at, values.to(x), (N, N), check_invariants=True).coalesce()


@isolated(False)
def graph_laplacian(affinity: Tensor, normalized: bool = True) -> Tensor:
    """Laplacian of a graph: ``I - T^(-1/2) V T^(-1/2)``, or ``T - V``, T the degrees of V.

    Args:
        affinity: V, symmetric sparse COO [N, N] with entries >= 0, as of :func:`knn_affinity`.
        normalized: the first form, whose eigenvalues are in [0, 2].

    Returns:
        Symmetric sparse COO [N, N], coalesced. A signal without neighbours has a row of zeros.

    Raises:
        ValueError: affinity is no such matrix.

    O(edges). Source: Chung 1997.

    Example:
        >>> affinity = torch.tensor([[0.0, 2.0], [2.0, 0.0]]).to_sparse_coo()
        >>> dk.solvers.graph_laplacian(affinity, normalized=False).to_dense()
        tensor([[ 2., -2.],
                [-2.,  2.]])
    """
    V = _symmetric("affinity", affinity)
    if V.values().numel() and V.values().min() < 0:
        raise ValueError(f"affinity must be >= 0, got {V.values().min().item()}")
    N, (rows, columns), values = len(V), V.indices(), V.values().double()
    degrees = values.new_zeros(N).index_add_(0, rows, values)
    diagonal = degrees
    if checks.boolean("normalized", normalized):
        root = torch.where(degrees > 0, degrees, 1.0).rsqrt()
        values = values * root[rows] * root[columns]
        diagonal = (degrees > 0).to(values.dtype)
    every = torch.arange(N, device=V.device)
    at = torch.cat((V.indices(), torch.stack((every, every))), 1)
    both = torch.cat((-values, diagonal)).to(V.dtype)
    if not torch.isfinite(both).all():
        raise ValueError(f"affinity must have degrees within {V.dtype}, got {degrees.max().item()}")
    return torch.sparse_coo_tensor(at, both, (N, N), check_invariants=True).coalesce()


@isolated(False)
def eigengap(laplacian: Tensor, clusters: int) -> float:
    """How clearly a graph falls into that many parts, by its spectrum: no label is needed.

    ``1 - lambda_c / lambda_(c+1)``, of the eigenvalues in ascending order, c = ``clusters``: 1 if
    the graph is c connected components, near 0 if another number of parts is as natural, 0 if it
    has more components than c. The ratio compares graphs of different density.

    Args:
        laplacian: L, symmetric positive semidefinite sparse COO [N, N], as of
            :func:`graph_laplacian`, normalised for spectral clustering by normalised cuts.
        clusters: 1 to N - 1.

    Returns:
        In [0, 1].

    Raises:
        ValueError: an argument out of range or of another shape, named with its value.

    O(N^3) time and 8 N^2 bytes: all eigenvalues, dense in float64. Eigenvalues below 8 eps
    lambda_N, eps that of L's dtype, are taken for 0, since L's entries are rounded. Source: the
    eigengap heuristic, von Luxburg 2007, section 8.3.

    Example:
        >>> x = torch.cat([torch.randn(20, 2), torch.randn(20, 2) + 100])  # two far groups
        >>> laplacian = dk.solvers.graph_laplacian(dk.solvers.knn_affinity(x, neighbours=10))
        >>> dk.solvers.eigengap(laplacian, clusters=2) > 0.9
        True
    """
    L = _symmetric("laplacian", laplacian)
    clusters = checks.integer("clusters", clusters, 1, len(L) - 1, "N - 1")
    values = torch.linalg.eigvalsh(L.to_dense().double())
    if values[0] < -1e-3 * values[-1]:
        raise ValueError(
            f"laplacian must be positive semidefinite, has an eigenvalue {values[0].item()}"
        )
    values = values.where(values > 8 * torch.finfo(L.dtype).eps * values[-1], 0.0)
    below, above = values[clusters - 1 : clusters + 1].tolist()
    return 1 - below / above if above > 0 else 0.0


def _symmetric(name: str, matrix: Tensor) -> Tensor:
    if not (isinstance(matrix, Tensor) and matrix.layout == torch.sparse_coo):
        raise TypeError(f"{name} must be a sparse COO tensor, got {type(matrix).__name__}")
    checks.floating(f"the values of {name}", matrix.coalesce().values())
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be [N, N], got shape {tuple(matrix.shape)}")
    matrix = matrix.coalesce()
    if not torch.isfinite(matrix.values()).all():
        raise ValueError(f"{name} must be finite")
    turned = matrix.t().coalesce()
    scale = matrix.values().abs().max().item() if matrix.values().numel() else 0.0
    if not torch.equal(turned.indices(), matrix.indices()) or not torch.allclose(
        turned.values(), matrix.values(), rtol=0, atol=1e-5 * scale
    ):
        raise ValueError(f"{name} must be symmetric")
    return matrix


def check_laplacian(laplacian: Tensor, x: Tensor) -> Tensor:
    """The coalesced Laplacian, if it is symmetric, fits the rows of x [N, n] and has its dtype."""
    L = laplacian_like("x", x, laplacian)
    if len(L) != len(x):
        raise ValueError(f"laplacian must be [N, N] with N = {len(x)}, got {tuple(L.shape)}")
    return L


def laplacian_like(name: str, other: Tensor, laplacian: Tensor) -> Tensor:
    """The coalesced Laplacian, if it is symmetric and has the dtype of ``other``."""
    L = _symmetric("laplacian", laplacian)
    if L.dtype != other.dtype:
        raise ValueError(f"laplacian must have the dtype of {name} ({other.dtype}), got {L.dtype}")
    return L


def largest_row(L: Tensor) -> float:
    """Largest sum of |entries| of a row: at least the largest eigenvalue of L (Gershgorin)."""
    sums = torch.zeros(len(L), dtype=torch.float64, device=L.device)
    return sums.index_add_(0, L.indices()[0], L.values().double().abs()).max().item()


@isolated(False)
@in_range("lam", "alpha", "lam2", "laplacian", together=True)
def graph_sparse_code(
    x: Tensor,
    D: Tensor,
    laplacian: Tensor,
    lam: float,
    alpha: float,
    lam2: float = 0.0,
    *,
    init: Tensor | None = None,
    tol: float = 1e-5,
    max_iter: int = 1000,
) -> SolverResult[Tensor]:
    """Codes of all signals together, close where the graph says that signals are.

    Minimises ``1/2 ||X - A D'||^2 + lam ||A||_1 + lam2/2 ||A||^2 + alpha/2 tr(A' L A)`` over A, a
    row a code.

    Args:
        x: X [N, n], float32 or float64. D: [n, p], same dtype.
        laplacian: L, symmetric positive semidefinite sparse COO [N, N], as of
            :func:`graph_laplacian`.
        lam: > 0. alpha, lam2: >= 0.
        init: [N, p] finite; None: zero.
        tol: the codes have converged when their last step is at most ``tol ||A||``, all together.
        max_iter: iterations at most.

    Returns:
        :class:`SolverResult` with dense codes [N, p]. ``converged`` and ``iterations`` are the same
        for all; ``objective`` [2, N], at the start and at the end, divides the graph's term equally
        among the signals: its parts ``alpha/2 a_i' (L A)_i`` can be negative.

    Raises:
        ValueError: an argument out of range or of another shape, named with its value.

    FISTA with restarts at step ``1 / (||D||_2^2 + lam2 + alpha max_i sum_j |L_ij|)``; 4 N n p +
    2 edges p flops an iteration. Sources: Zheng et al. 2011 (graph-regularised sparse coding), Beck
    and Teboulle 2009.

    Example:
        >>> x = torch.randn(20, 8)
        >>> D = torch.nn.functional.normalize(torch.randn(8, 12), dim=0)
        >>> laplacian = dk.solvers.graph_laplacian(dk.solvers.knn_affinity(x))
        >>> dk.solvers.graph_sparse_code(x, D, laplacian, lam=0.1, alpha=0.5).code.shape
        torch.Size([20, 12])
    """
    rows = steps.signals(x, D)
    if x.dim() != 2:
        raise ValueError(f"x must be [N, n], got {tuple(x.shape)}")
    L = check_laplacian(laplacian, x)
    D = D.detach()
    lam, tol = steps.weight("lam", lam), checks.positive("tol", tol)
    alpha, lam2 = steps.weight_or_zero("alpha", alpha), steps.weight_or_zero("lam2", lam2)
    max_iter = checks.integer("max_iter", max_iter, 1)
    shape = (len(x), D.shape[1])
    a = x.new_zeros(shape) if init is None else _init(init, x, D, shape)
    bound = largest_row(L)
    if bound:
        steps.weight("the largest sum of |entries| of a row of laplacian", bound)
    mu = 1 / (steps.squared_norm(D) + lam2 + alpha * bound)
    first = _objective(rows, D, L, a, lam, alpha, lam2)
    z, t, done, count = a, 1.0, False, 0
    # The cheaper of two forms of the gradient of the fit.
    by_gram = D.shape[1] <= 2 * D.shape[0]
    gram, target = (D.T @ D if by_gram else D), rows @ D
    while not done and count < max_iter:
        fit = (z @ gram if by_gram else (z @ D.T) @ D) - target
        slope = fit + lam2 * z + alpha * (L @ z) if alpha else fit + lam2 * z
        u = z - mu * slope
        new = u - u.clamp(-mu * lam, mu * lam)
        move = new - a
        if torch.sum((z - new) * move) > 0:
            t = 1.0
        later = (1 + math.sqrt(1 + 4 * t * t)) / 2
        z = new + (t - 1) / later * move
        a, t, count = new, later, count + 1
        done = bool(move.norm() <= tol * a.norm())
    last = _objective(rows, D, L, a, lam, alpha, lam2)
    return SolverResult(
        a,
        torch.full(shape[:1], count, dtype=torch.int64, device=x.device),
        torch.full(shape[:1], done, device=x.device),
        torch.stack((first, last)),
    )


def _init(init: Tensor, x: Tensor, D: Tensor, shape: tuple[int, int]) -> Tensor:
    checks.like("init", init, "x", x)
    checks.has_shape("init", init, shape, "[N, p]")
    return steps.codes("init", init, x, D)


def _objective(x, D, L, a, lam: float, alpha: float, lam2: float) -> Tensor:
    fit = (x - a @ D.T).square().sum(1) / 2
    # L is positive semidefinite; below 0 the sum is rounding.
    graph = alpha / 2 * (a * (L @ a)).sum().clamp_min(0) / max(len(x), 1)
    return fit + lam * a.abs().sum(1) + lam2 / 2 * a.square().sum(1) + graph
