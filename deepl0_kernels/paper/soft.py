"""Deep encoders with soft thresholds in all stages but the last: what a hard one inside costs."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..nn.unrolled import Ramped
from ..ops import helu, soft_threshold, top_m
from ..training import L0Regularized, MSparse, Problem

# Thresholds of all stages but the last; hard is what the paper has.
INSIDE = ("hard", "soft")


class SoftInside(Ramped):
    """``z <- s(W x + S z)`` with the soft threshold s, then a last stage that is the problem's.

    The last stage is a hard threshold, trained through the ramp of HELU_sigma, or the m entries of
    largest magnitude: codes are exactly as sparse as those of the problem's own encoder. Every
    stage has thresholds of its own (of m entries the last has none).

    Args:
        problem: gives the last stage, and the l1 penalty at which the others start.
        D: [n, p], finite. num_stages: K >= 1. W and S start as in
            :meth:`deepl0_kernels.nn.DeepL0Encoder.from_dictionary`.
        grad: derivative mode of the hard threshold, see :func:`deepl0_kernels.helu`.

    ``encoder(x)``: [..., n] -> dense codes [..., p], by PyTorch's products.
    """

    def __init__(self, problem: Problem, D: Tensor, num_stages: int, grad: str = "helu") -> None:
        super().__init__(
            D.shape[0], D.shape[1], num_stages, tied=False, bias=False, positive=problem.positive
        )
        self.to(device=D.device, dtype=D.dtype)
        self.m = problem.m if isinstance(problem, MSparse) else None
        self.grad = grad
        self.sigma = 0.2
        mu = self._set_dictionary(D, None)
        self._set_log_theta(math.log(problem.l1_penalty * mu))
        if isinstance(problem, L0Regularized):
            with torch.no_grad():
                self.log_theta[-1] = 0.5 * math.log(2 * problem.lam * mu)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        c, theta = linear(x, self.W), self.theta
        u = c
        for k in range(1, self.num_stages):
            assert self.S is not None
            u = c + linear(soft_threshold(u, theta[k - 1], positive=self.positive), self.S[k - 1])
        if self.m is None:
            return helu(u, theta[-1], self._width(), grad=self.grad, positive=self.positive)
        values, indices = top_m(u, self.m, positive=self.positive)
        return torch.zeros_like(u).scatter(-1, indices, values)
