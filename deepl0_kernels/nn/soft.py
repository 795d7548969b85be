"""Stages with soft thresholds: all of LISTA's, and all but the last of what is soft inside."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..ops import checks, placements, soft_threshold
from ..reference.precision import accumulation_dtype
from ..solvers import step as steps_of_solvers
from .unrolled import Encoder, Thresholded


def last_activation(
    encoder: Encoder,
    x: Tensor,
    theta: Tensor,
    coupled: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The pre-activations [..., p] of an encoder's last stage, all stages before it being soft.

    Args:
        encoder: its W and S, or atoms and steps, and bias, as it has them.
        x: [..., n]. theta: [p], or a row for each stage that is soft.
        coupled: ``coupled(z)`` of the codes of a stage [B, p] is added in the next.

    Returns:
        In the accumulation dtype; products and roundings are those of :func:`encode_l0`.
    """
    placements.refuse(f"{type(encoder).__name__} with soft thresholds", x, encoder.W)
    device, low = x.device.type, checks.dtype_of_products(x)
    wide, autocast = accumulation_dtype(low), checks.autocast_is_on(device)

    def operand(t: Any) -> Any:
        return t.to(low).to(wide) if t is not None and (autocast or low != wide) else t

    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        rows, W, bias = operand(checks.rows(x)), operand(encoder.W), operand(encoder.bias)
        S, atoms, step = operand(encoder.S), operand(encoder.atoms), encoder.step
        first = u = linear(rows if step is None else step[0] * rows, W, bias)
        # Not one at a time: of each the gradient would be that of all, and zero but for one.
        matrices = () if S is None else S.unbind() if S.dim() == 3 else (S,) * encoder.num_stages
        for k in range(1, encoder.num_stages):
            level = theta if theta.dim() == 1 else theta[k - 1]
            z = operand(soft_threshold(u, level, positive=encoder.positive))
            if S is not None:
                u = torch.addmm(first, z, matrices[k - 1].t())
            else:
                r = torch.addmm(rows, z, atoms, alpha=-1)
                r = r if step is None else step[k] * r
                u = torch.addmm(z if bias is None else z + bias, r, W.t())
            if coupled is not None:
                u = u + coupled(z)
    return u if x.dim() == 2 else u.reshape(*x.shape[:-1], u.shape[-1])


class LISTA(Thresholded):
    """Learned ISTA (Gregor and LeCun 2010): the same network with the soft threshold.

    Arguments, initialisation and errors are those of :class:`DeepL0Encoder`; theta starts at
    lam mu. ``encoder(x)``: [..., n] -> dense codes [..., p]. 2 B p (n + (K - 1) p) flops, made of
    PyTorch's products and :func:`soft_threshold`; sums of half types are those of the others.

    Example:
        >>> D = torch.nn.functional.normalize(torch.randn(16, 32), dim=0)
        >>> encoder = dk.nn.LISTA.from_dictionary(D, lam=0.1, num_stages=3)
        >>> encoder(torch.randn(8, 16)).shape
        torch.Size([8, 32])
    """

    def __init__(
        self,
        in_features: int,
        code_size: int,
        num_stages: int = 2,
        tied: bool = True,
        *,
        bias: bool = False,
        positive: bool = False,
    ) -> None:
        super().__init__(in_features, code_size, num_stages, tied, bias=bias, positive=positive)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A random dictionary, and theta of lam = 0.5."""
        super().reset_parameters()
        self._set_log_theta(math.log(0.5 * 0.99))

    @classmethod
    def from_dictionary(
        cls,
        D: Tensor,
        lam: float,
        num_stages: int = 2,
        tied: bool = True,
        step: float | None = None,
        *,
        bias: bool = False,
        positive: bool = False,
    ) -> LISTA:
        """The encoder that is K iterations of ISTA from zero, on ``1/2||x-Da||^2 + lam||a||_1``.

        Arguments and errors are those of :meth:`DeepL0Encoder.from_dictionary`; theta = lam mu.
        """
        steps_of_solvers.dictionary("D", D)
        lam = checks.positive("lam", lam)
        self = cls(D.shape[0], D.shape[1], num_stages, tied, bias=bias, positive=positive)
        self.to(device=D.device, dtype=D.dtype)
        mu = self._set_dictionary(D, step)
        self._set_log_theta(math.log(lam * mu))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Dense codes [..., p] of x [..., n]."""
        self._check(x)
        return self._stages(x)

    def _stages(self, x: Tensor, coupled: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The codes of x; ``coupled`` as in :func:`last_activation`."""
        theta = self.theta
        u = last_activation(self, x, theta, coupled)
        z = soft_threshold(u, theta if self.tied else theta[-1], positive=self.positive)
        return z.to(checks.dtype_of_products(x))
