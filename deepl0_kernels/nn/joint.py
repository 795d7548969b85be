"""Sparse codes and their clustering learned together, through the minimiser of the codes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .._isolation import isolated, refuse_inference
from .._optional import progress_bar
from ..ops import checks
from ..solvers import step as steps
from ..solvers.graph import check_laplacian, graph_sparse_code
from .heads import ClusterHead

LOSSES = ("entropy", "margin")


class _Codes(torch.autograd.Function):
    """Graph-regularised elastic-net codes, with the derivative of the minimiser in D."""

    @staticmethod
    @isolated()
    def forward(ctx, D, x, L, lam, lam2, alpha, init, tol, max_iter):
        a = graph_sparse_code(
            x, D, L, lam, alpha, lam2, init=init, tol=tol, max_iter=max_iter
        ).dense
        ctx.save_for_backward(D, x, L, a)
        ctx.lam2, ctx.alpha, ctx.tol = lam2, alpha, tol
        return a

    @staticmethod
    @torch.autograd.function.once_differentiable
    @isolated()
    def backward(ctx, grad):
        D, x, L, a = ctx.saved_tensors
        beta = _adjoint(D, L, a, grad, ctx.lam2, ctx.alpha, ctx.tol)
        grad_D = (x - a @ D.T).T @ beta - (beta @ D.T).T @ a
        return grad_D, None, None, None, None, None, None, None, None


def _adjoint(
    D: Tensor, L: Tensor, a: Tensor, grad: Tensor, lam2: float, alpha: float, tol: float
) -> Tensor:
    """beta [N, p], 0 off the active set, with ``beta (D'D + lam2 I) + alpha L beta = grad`` on it.

    Conjugate gradients over all codes at once: the graph couples them. The operator is symmetric
    positive definite as lam2 > 0.
    """
    active = a != 0
    system = D.T @ D
    system.diagonal().add_(lam2)

    def apply(b: Tensor) -> Tensor:
        image = b @ system
        if alpha:
            image = image + alpha * (L @ b)
        return torch.where(active, image, 0.0)

    residual = torch.where(active, grad, 0.0)
    beta, direction = torch.zeros_like(a), residual
    energy = residual.square().sum()
    enough = tol**2 * energy
    for _ in range(500):
        if energy <= enough:
            break
        image = apply(direction)
        length = energy / (direction * image).sum()
        beta = beta + length * direction
        residual = residual - length * image
        before, energy = energy, residual.square().sum()
        direction = residual + energy / before * direction
    return beta


class JointSparseClustering(nn.Module):
    """A dictionary and soft clusters of its graph-regularised codes, learned together.

    Below, the codes minimise ``1/2 ||X - A D'||^2 + lam ||A||_1 + lam2/2 ||A||^2 + alpha/2
    tr(A' L A)`` over the whole data; above, D and the clusters' weights w minimise a loss of these
    codes plus ``nu/2 ||w||^2``:

    * ``"entropy"``: the mean entropy of the soft assignments of :class:`ClusterHead`, minus
      ``balance`` times the entropy of their mean;
    * ``"margin"``: mean of ``max(0, 1 + f_2 - f_1)``, f_1 and f_2 the two largest scores
      ``-w_j' a`` of a code.

    The gradient in D is exact where the active set A does not change: with beta the solution of
    ``beta (D'D + lam2 I) + alpha L beta = dloss/dA`` on the active set (conjugate gradients: the
    graph couples the codes), 0 elsewhere, it is ``(X - A D')' beta - D beta' A``.

    Args:
        D: [n, p] finite, float32 or float64, to start from; atoms longer than 1 are shortened.
        head: clusters to start from, over codes of D: a head at random has nothing to sharpen.
        lam, lam2: > 0. alpha, nu, balance: >= 0.
        loss: one of the above.
        tol, max_iter: of the codes, and tol of the conjugate gradients.

    Attributes:
        D: parameter [n, p], atoms of norm <= 1. head: the given one.

    Raises:
        TypeError, ValueError: an argument of another kind or out of range, named with its value.

    Both the codes and the conjugate gradients cost O(N p min(2 n, p) + edges p) an iteration. A
    reading of the abstract of Wang, Yang, Chang, Li, Fu, Huang, "A joint optimization framework of
    sparse coding and discriminative clustering", IJCAI 2015; the gradient is that of Mairal, Bach,
    Ponce 2012 with a graph.

    Example:
        >>> x = torch.randn(40, 8)
        >>> D = torch.nn.functional.normalize(torch.randn(8, 12), dim=0)
        >>> laplacian = dk.solvers.graph_laplacian(dk.solvers.knn_affinity(x))
        >>> head = dk.nn.ClusterHead(12, clusters=3)
        >>> joint = dk.nn.JointSparseClustering(D, head, lam=0.1, alpha=0.5)
        >>> joint(x, laplacian).shape
        torch.Size([40, 3])
    """

    def __init__(
        self,
        D: Tensor,
        head: ClusterHead,
        lam: float,
        alpha: float,
        lam2: float = 1e-2,
        nu: float = 1e-3,
        *,
        loss: str = "entropy",
        balance: float = 0.0,
        tol: float = 1e-5,
        max_iter: int = 1000,
    ) -> None:
        super().__init__()
        steps.dictionary("D", D)
        if D.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"D must be float32 or float64, got {D.dtype}")
        if not isinstance(head, ClusterHead):
            raise TypeError(f"head must be a ClusterHead, got {type(head).__name__}")
        checks.like("the head's weight", head.weight, "D", D)
        if head.code_size != D.shape[1]:
            raise ValueError(
                f"head must take codes of D's size {D.shape[1]}, got code_size {head.code_size}"
            )
        checks.one_of("loss", loss, LOSSES)
        if loss == "margin" and head.clusters < 2:
            raise ValueError(f"head must have 2 clusters or more for a margin, got {head.clusters}")
        self.lam, self.lam2 = checks.positive("lam", lam), checks.positive("lam2", lam2)
        self.alpha, self.nu = steps.weight_or_zero("alpha", alpha), steps.weight_or_zero("nu", nu)
        self.balance = steps.weight_or_zero("balance", balance)
        if loss == "margin" and self.balance:
            raise ValueError(f"balance belongs to loss 'entropy', 'margin' has none, got {balance}")
        self.tol = checks.positive("tol", tol)
        self.max_iter = checks.integer("max_iter", max_iter, 1)
        self.loss_name = loss
        self.D = nn.Parameter(D.detach().clone())
        self.head = head
        self.project()

    def encode(self, x: Tensor, laplacian: Tensor, init: Tensor | None = None) -> Tensor:
        """Codes [N, p] of all signals x [N, n] of the graph, differentiable in D, once.

        ``init``, [N, p], is where the solver starts. Errors are those of
        :func:`deepl0_kernels.solvers.graph_sparse_code`.
        """
        return _Codes.apply(
            self.D, x, laplacian, self.lam, self.lam2, self.alpha, init, self.tol, self.max_iter
        )

    def forward(self, x: Tensor, laplacian: Tensor) -> Tensor:
        """Probabilities [N, clusters] of x [N, n] over the graph of ``laplacian`` [N, N]."""
        return self.head(self.encode(x, laplacian))

    def loss(self, a: Tensor) -> Tensor:
        """The upper loss of codes a [N, p]."""
        penalty = self.nu / 2 * self.head.weight.square().sum()
        if self.loss_name == "entropy":
            return self.head.entropy(a, self.balance) + penalty
        first, second = self.head.logits(a).topk(2, dim=-1).values.unbind(-1)
        return (1 + second - first).clamp_min(0).mean() + penalty

    @isolated(grad=False)
    def project(self) -> None:
        """Bring atoms longer than 1 back to the unit ball."""
        self.D.div_(self.D.norm(dim=0).clamp_min(1))

    @isolated(grad=True)
    def fit(
        self,
        x: Tensor,
        laplacian: Tensor,
        *,
        iterations: int = 30,
        lr: float = 1e-3,
        progress: bool = False,
    ) -> list[float]:
        """Projected steps of Adam on D and w, over all signals; the loss before each step.

        Args:
            x: [N, n]. laplacian: sparse COO [N, N].
            iterations: >= 1. lr: > 0.
            progress: show a bar (needs tqdm).

        Codes start where those of the last step were.

        Raises:
            ValueError: arguments that do not fit; a parameter that was made in inference mode.
            RuntimeError: the loss is not finite any more.
        """
        refuse_inference(self)
        steps.signals(x, self.D)
        L = check_laplacian(laplacian, x)
        count = checks.integer("iterations", iterations, 1)
        checks.boolean("progress", progress)
        optimizer = torch.optim.Adam(self.parameters(), lr=checks.positive("lr", lr))
        losses: list[float] = []
        a: Tensor | None = None
        for _ in progress_bar(range(count), "joint clustering", show=progress):
            a = self.encode(x, L, a)
            loss = self.loss(a)
            if not math.isfinite(loss.item()):
                raise RuntimeError(f"training diverged: loss {loss.item()} in step {len(losses)}")
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.project()
            a = a.detach()
        return losses

    def extra_repr(self) -> str:
        n, p = self.D.shape
        return (
            f"n={n}, p={p}, lam={self.lam}, lam2={self.lam2}, alpha={self.alpha}, nu={self.nu}, "
            f"loss={self.loss_name!r}"
        )
