"""Task-driven dictionary learning: elastic-net codes, differentiated where they are optimal."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from .._isolation import isolated
from .._optional import progress_bar
from ..ops import checks
from . import step as steps
from .fista import descend
from .precision import in_range
from .result import SolverResult


@isolated(False)
@in_range("lam", "lam2")
def elastic_net(
    x: Tensor,
    D: Tensor,
    lam: float,
    lam2: float,
    *,
    tol: float = 1e-5,
    max_iter: int = 1000,
    positive: bool = False,
) -> SolverResult[Tensor]:
    """Minimise ``1/2 ||x - D a||^2 + lam ||a||_1 + lam2/2 ||a||^2`` for every signal.

    Args:
        lam2: > 0, which makes the solution unique. The others are those of :func:`fista`, which
            solves it as an l1 problem over ``[D; sqrt(lam2) I]`` and ``[x; 0]``.

    Raises:
        ValueError, TypeError: those of :func:`fista`, or lam2 not > 0.

    O(p^2) a sample and iteration. Source: Zou and Hastie 2005.

    Example:
        >>> D = torch.nn.functional.normalize(torch.randn(16, 32), dim=0)
        >>> result = dk.solvers.elastic_net(torch.randn(8, 16), D, lam=0.5, lam2=0.01)
        >>> bool(result.converged.all()), bool((result.code == 0).any())
        (True, True)
    """
    steps.signals(x, D)
    x, D = x.detach(), D.detach()
    positive = checks.boolean("positive", positive)
    p = D.shape[1]
    lam2 = steps.weight("lam2", lam2)
    root = math.sqrt(lam2)
    lam, tol = steps.weight("lam", lam), checks.positive("tol", tol)
    max_iter = checks.integer("max_iter", max_iter, 1)
    longer = torch.cat((D, root * torch.eye(p, dtype=D.dtype, device=D.device)))
    signals = torch.cat((x, x.new_zeros(*x.shape[:-1], p)), -1)
    step = 1 / (steps.squared_norm(D) + lam2)
    return descend(signals, longer, None, lam, step, tol, max_iter, False, positive)


class _ElasticNet(torch.autograd.Function):
    """Codes, with the derivative of the minimiser in x and D.

    Nonnegative codes have the same derivative on their active set, whose signs are all +1.
    """

    @staticmethod
    def forward(ctx, x, D, lam, lam2, tol, max_iter, positive):
        options = dict(tol=tol, max_iter=max_iter, positive=positive)
        a = elastic_net(x, D, lam, lam2, **options).dense
        ctx.save_for_backward(x, D, a)
        ctx.lam2 = lam2
        return a

    @staticmethod
    @torch.autograd.function.once_differentiable
    @isolated()
    def backward(ctx, grad):
        # In float64: atoms that nearly coincide leave lam2 alone between the system and a singular
        # one.
        x, D, a = (t.double() for t in ctx.saved_tensors)
        beta = _adjoint(D, a, grad.double(), ctx.lam2)
        fit = beta @ D.T
        grad_x = fit.to(grad.dtype) if ctx.needs_input_grad[0] else None
        grad_D = None
        if ctx.needs_input_grad[1]:
            grad_D = ((x - a @ D.T).T @ beta - fit.T @ a).to(grad.dtype)
        return grad_x, grad_D, None, None, None, None, None


def _adjoint(D: Tensor, a: Tensor, grad: Tensor, lam2: float) -> Tensor:
    """beta [B, p]: ``(D_A' D_A + lam2 I)^-1 grad_A`` on the support A of each code, 0 elsewhere.

    All float64. Supports are padded to the longest; the padding's rows are those of the identity.
    """
    active = a != 0
    k = int(active.sum(1).max()) if len(a) else 0
    beta = torch.zeros_like(a)
    if k == 0:
        return beta
    # Supports first, in ascending order.
    indices = active.logical_not().sort(dim=1, stable=True).indices[:, :k]
    valid = active.gather(1, indices)
    gram = D.T @ D
    system = gram[indices[:, :, None], indices[:, None, :]]
    system = torch.where(valid[:, :, None] & valid[:, None, :], system, 0.0)
    system = system + torch.diag_embed(torch.where(valid, lam2, 1.0).to(D.dtype))
    right = torch.where(valid, grad.gather(1, indices), 0.0)[..., None]
    L, failed = torch.linalg.cholesky_ex(system)
    if (singular := failed != 0).any():
        # lam2 is below the rounding of D'D: no eigenvalue is less than it.
        L[singular] = torch.eye(k, dtype=D.dtype, device=D.device)
        solution = torch.cholesky_solve(right, L)
        values, V = torch.linalg.eigh(system[singular])
        turned = V.mT @ right[singular]
        solution[singular] = V @ (turned / values.clamp_min(lam2)[..., None])
    else:
        solution = torch.cholesky_solve(right, L)
    return beta.scatter(1, indices, solution[..., 0])


class TaskDrivenDictionary(nn.Module):
    """A dictionary and a linear classifier of its elastic-net codes, learned together.

    The loss is the softmax cross-entropy of ``codes W' + b`` with ``nu/2 ||W||^2``. Its gradient in
    D goes through the minimiser: with ``beta = (D_A'D_A + lam2 I)^-1 dloss/da_A`` on the active set
    A and 0 elsewhere it is ``(x - D a) beta' - D beta a'``.

    Args:
        D: [n, p] finite, float32 or float64, to start from; atoms longer than 1 are shortened.
        classes: number of classes.
        lam, lam2: of :func:`elastic_net`. The paper of Mairal et al. takes lam of 0.075 to 0.15 for
            signals of norm 1.
        nu: >= 0.
        tol, max_iter: of the codes. A gradient is as right as the active set is.
        positive: nonnegative codes.

    Attributes:
        D: parameter [n, p], atoms of norm <= 1 after :meth:`project` and :meth:`fit`.
        head: linear layer [classes, p] with bias.

    ``model(x)``: [..., n] -> logits [..., classes], differentiable in x, D and the head, once;
    autocast does not reach it.

    Raises:
        TypeError, ValueError: an argument out of range, named with its value.

    A training step costs the codes, O(p^2) a sample and iteration, and k^3 / 3 flops a sample with
    k active atoms. Source: Mairal, Bach, Ponce 2012.

    Example:
        >>> x, y = torch.randn(40, 8), torch.arange(40) % 2
        >>> D = torch.nn.functional.normalize(torch.randn(8, 12), dim=0)
        >>> model = dk.solvers.TaskDrivenDictionary(D, classes=2, lam=0.1)
        >>> losses = model.fit(x, y, epochs=2, batch_size=20)
        >>> model(x).shape, len(losses)
        (torch.Size([40, 2]), 2)
    """

    @isolated(True)
    def __init__(
        self,
        D: Tensor,
        classes: int,
        lam: float,
        lam2: float = 1e-2,
        nu: float = 1e-5,
        *,
        tol: float = 1e-5,
        max_iter: int = 1000,
        positive: bool = False,
    ) -> None:
        super().__init__()
        steps.dictionary("D", D)
        if D.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"D must be float32 or float64, got {D.dtype}")
        self.classes = checks.integer("classes", classes, 1)
        self.lam, self.lam2 = steps.weight("lam", lam), steps.weight("lam2", lam2)
        self.nu = checks.number("nu", nu)
        if not 0 <= self.nu < math.inf:
            raise ValueError(f"nu must be a finite number >= 0, got {nu}")
        self.tol = checks.positive("tol", tol)
        self.max_iter = checks.integer("max_iter", max_iter, 1)
        self.positive = checks.boolean("positive", positive)
        self.D = nn.Parameter(D.detach().clone())
        self.head = nn.Linear(D.shape[1], self.classes, dtype=D.dtype, device=D.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.project()

    @isolated()
    def encode(self, x: Tensor) -> Tensor:
        """Elastic-net codes [..., p] of x [..., n], differentiable in x and D."""
        steps.signals(x, self.D)
        rows = x.reshape(-1, x.shape[-1])
        options = self.lam, self.lam2, self.tol, self.max_iter, self.positive
        a = _ElasticNet.apply(rows, self.D, *options)
        return a.reshape(*x.shape[:-1], a.shape[1])

    @isolated()
    def forward(self, x: Tensor) -> Tensor:
        """Logits [..., classes] of x [..., n]."""
        return self._logits(self.encode(x))

    def _logits(self, a: Tensor) -> Tensor:
        """Of codes, in float64: a backward that the caller runs under autocast stays what it is."""
        return linear(a.double(), self.head.weight.double(), self.head.bias.double()).to(a.dtype)

    @isolated()
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of x [B, n] against y [B] int64, plus ``nu/2 ||W||^2``.

        Raises:
            ValueError: x and y do not fit.
        """
        self._check(x, y)
        return cross_entropy(self(x), y) + self._penalty()

    def _penalty(self) -> Tensor:
        return self.nu / 2 * self.head.weight.square().sum()

    def _check(self, x: Tensor, y: Tensor) -> None:
        steps.signals(x, self.D)
        if not isinstance(y, Tensor):
            raise TypeError(f"y must be a tensor, got {type(y).__name__}")
        if y.shape != x.shape[:1] or y.dtype != torch.int64 or x.dim() != 2:
            raise ValueError(
                f"x must be [N, n] and y int64 [N], got {tuple(x.shape)} and {y.dtype} "
                f"{tuple(y.shape)}"
            )
        if len(y) and not (y.min() >= 0 and y.max() < self.classes):
            raise ValueError(
                f"y must be in [0, {self.classes - 1}], got {y.min().item()} to {y.max().item()}"
            )

    @torch.no_grad()
    def project(self) -> None:
        """Bring atoms longer than 1 back to the unit ball."""
        wide = self.D.double()
        self.D.copy_(wide / wide.norm(dim=0).clamp_min(1))

    @isolated(True)
    def fit_head(self, x: Tensor, y: Tensor, *, max_iter: int = 100) -> float:
        """Fit the classifier alone to the codes of x [N, n] (L-BFGS, ``max_iter``
        iterations at most); returns :meth:`loss` there.

        The problem is convex: this is the start that Mairal et al. take.

        Raises:
            ValueError: x and y do not fit.
        """
        self._check(x, y)
        max_iter = checks.integer("max_iter", max_iter, 1)
        with torch.no_grad():
            a = torch.cat([self.encode(rows) for rows in x.split(4096)])
        optimizer = torch.optim.LBFGS(
            self.head.parameters(), max_iter=max_iter, line_search_fn="strong_wolfe"
        )

        def objective() -> Tensor:
            return cross_entropy(self._logits(a), y) + self._penalty()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = objective()
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            return objective().item()

    @isolated(True)
    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        epochs: int = 10,
        batch_size: int = 200,
        lr: float = 0.1,
        seed: int = 0,
        begin: Callable[[int], None] | None = None,
        progress: bool = False,
    ) -> list[float]:
        """Projected stochastic gradient on D and the classifier; mean loss of each epoch.

        Args:
            x: [N, n]. y: [N] int64 in 0 .. classes - 1.
            epochs: >= 1. batch_size: 1 to N.
            lr: rate rho of the first tenth of all steps T; then ``rho T / (10 t)``.
            seed: of the order of the batches. What does not fill a batch waits for the next epoch.
            begin: called with the epoch's number, from 0, before each.
            progress: show a bar (needs tqdm).

        Raises:
            TypeError, ValueError: arguments that do not fit.
            RuntimeError: the loss is not finite any more.
        """
        self._check(x, y)
        batch_size = checks.integer("batch_size", batch_size, 1, len(x), "N")
        epochs = checks.integer("epochs", epochs, 1)
        lr = checks.positive("lr", lr)
        seed = checks.seed("seed", seed)
        checks.function("begin", begin, none=True)
        checks.boolean("progress", progress)
        batches = len(x) // batch_size
        hold = max(1, epochs * batches // 10)
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(self.parameters(), lr=lr)
        losses, t = [], 0
        for epoch in range(epochs):
            if begin is not None:
                begin(epoch)
            order = torch.randperm(len(x), generator=generator)
            total = 0.0
            text = f"task-driven dictionary, epoch {epoch + 1}/{epochs}"
            for i in progress_bar(range(batches), text, show=progress):
                t += 1
                optimizer.param_groups[0]["lr"] = lr * min(1, hold / t)
                rows = order[i * batch_size : (i + 1) * batch_size]
                loss = self.loss(x[rows], y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                self.project()
                total += loss.item()
            losses.append(total / batches)
            if not math.isfinite(total):
                raise RuntimeError(f"training diverged: loss {total} in epoch {epoch + 1}")
        return losses

    def extra_repr(self) -> str:
        n, p = self.D.shape
        text = f"n={n}, p={p}, lam={self.lam}, lam2={self.lam2}, nu={self.nu}"
        return text + ", positive=True" * self.positive
