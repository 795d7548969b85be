"""Task heads on top of codes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .._isolation import isolated
from ..ops import checks
from . import initial


class _Scores(torch.autograd.Function):
    """``-a W'``: sums of p products decide between clusters, not under autocast's half precision,
    forward or backward."""

    generate_vmap_rule = True

    @staticmethod
    @isolated()
    def forward(a: Tensor, weight: Tensor) -> Tensor:
        return -(a.to(weight.dtype) @ weight.T)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @isolated()
    def backward(ctx, grad):
        a, weight = ctx.saved_tensors
        grad_a = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_a = -(grad @ weight).to(a.dtype)
        if ctx.needs_input_grad[1]:
            rows = a.to(weight.dtype).reshape(-1, a.shape[-1])
            grad_weight = -(grad.reshape(-1, grad.shape[-1]).T @ rows)
        return grad_a, grad_weight


class ClusterHead(nn.Module):
    """Soft assignment of codes to clusters, ``p_j = exp(-w_j' a) / sum_l exp(-w_l' a)`` (eq. 12).

    The minus is the paper's sign convention: a cluster's w_j points *away* from its codes, and a
    multinomial logistic regression with coefficients c is loaded as ``w = -c``. No bias.

    Args:
        code_size: p. clusters: number of clusters.

    ``head(a)``: dense codes [..., p] in the weight's dtype -> probabilities [..., clusters].

    Raises:
        ValueError: a size < 1; codes of another length, dtype or device than the weight's.

    2 p flops a sample and cluster. Source: Wang, Ling, Huang 2016, eq. 12.

    Example:
        >>> head = dk.nn.ClusterHead(code_size=32, clusters=4)
        >>> probabilities = head(torch.randn(8, 32))
        >>> probabilities.shape, torch.allclose(probabilities.sum(1), torch.ones(8))
        (torch.Size([8, 4]), True)
    """

    def __init__(self, code_size: int, clusters: int) -> None:
        super().__init__()
        self.code_size = checks.integer("code_size", code_size, 1)
        self.clusters = checks.integer("clusters", clusters, 1)
        self.weight = nn.Parameter(torch.empty(clusters, code_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gaussian weights, of norm 1 a cluster on average."""
        draws = torch.empty(
            self.weight.shape,
            dtype=self.weight.dtype,
            device=initial.device_of_draws(self.weight),
        )
        initial.assign(self, "weight", draws.normal_(std=self.code_size**-0.5))

    def logits(self, a: Tensor) -> Tensor:
        """``-w_j' a`` [..., clusters] of codes a [..., p]."""
        checks.floating("a", a)
        checks.like("a", a, "the weight", self.weight)
        if a.shape[-1] != self.code_size:
            raise ValueError(
                f"a must have shape [..., code_size] = [..., {self.code_size}], "
                f"got {checks.shape(a)}"
            )
        return _Scores.apply(a, self.weight)

    def forward(self, a: Tensor) -> Tensor:
        """Probabilities [..., clusters] of codes a [..., p]; a row sums to 1."""
        return self.logits(a).softmax(-1)

    def predict(self, a: Tensor) -> Tensor:
        """Cluster [...] int64 of the largest probability, of codes a [..., p]."""
        return self.logits(a).argmax(-1)

    def entropy(self, a: Tensor, balance: float = 0.0) -> Tensor:
        """Mean entropy of the assignments of codes a [..., p], minus ``balance`` >= 0 times the
        entropy of their mean.

        The first term alone is smallest when everything is in one cluster, so start the head from a
        clustering; the second, off by default, pays for using all clusters. NaN without any code.
        """
        balance = checks.number("balance", balance)
        if not 0 <= balance < math.inf:
            raise ValueError(f"balance must be a finite number >= 0, got {balance}")
        log_p = self.logits(a).log_softmax(-1).reshape(-1, self.clusters)
        loss = -(log_p.exp() * log_p).sum(1).mean()
        if balance:
            mean = log_p.exp().mean(0)
            loss = loss + balance * torch.xlogy(mean, mean).sum()
        return loss

    def extra_repr(self) -> str:
        return f"code_size={self.code_size}, clusters={self.clusters}"
