"""An unrolled encoder whose stages refit by least squares."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._isolation import isolated
from ..ops import SparseCode, checks, decode, hard_threshold, top_m, unpool
from ..ops.encode_factored import entries_of_stages
from ..solvers import analytic_weights
from ..solvers import step as steps_of_solvers
from ..solvers.pursuit import LeastSquares
from . import initial
from .unrolled import LOG_RANGE, Ramped


class Refitted(NamedTuple):
    """Of a code values and places [B, m]; its support: the places, -1 where nothing is; and the
    least squares' values there, of which ramps leave a part."""

    values: Tensor
    places: Tensor
    support: Tensor
    fitted: Tensor

    def dense(self, size: int) -> Tensor:
        """[B, size]."""
        return unpool(self.values, self.places, size)


class DeepHTPEncoder(Ramped):
    """Unrolled hard thresholding pursuit: thresholds choose a support, least squares its values.

    Stage k of K is ``u = z + step_k W (x - D z) + momentum_k (z - z')``, with z' the z before;
    ``z = argmin ||x - D z||`` with z on the entries of u with ``|u| >= theta_k``, of which at most
    the m largest. What depends on others of a support is 0, as in
    :func:`deepl0_kernels.solvers.htp`. Where no code reaches a threshold it is, without momentum,
    the iteration of that solver, or, with m that grow, of graded hard thresholding pursuit.

    Args:
        in_features: n, length of a signal. code_size: p, length of a code.
        m: entries of a support at most, 1 <= m <= min(n, p), or num_stages such numbers. Little
            more than a signal has: what is wrong in the first stages stays in a support with room
            for it. Numbers that grow to that recover signals which one number does not.
        num_stages: K >= 1.
        steps: where the steps of the K stages start: a number > 0, or K of them. None without.
        momentum: where the momenta of the K stages start: a number in [0, 1), or K of them, of
            which the first does nothing. None without. Codes that stay on a wrong support leave it.
        eval_sigma: width of the ramp in evaluation mode, in [0, 1]: 0 for none, so that entries are
            the least squares' own. Noise that hides entries makes a ramp err less.

    Attributes:
        atoms: the parameter D' [p, n], a row an atom.
        log_theta: logarithms of the thresholds, [K, p].
        momentum: the parameter [K], or None.
        sigma: ramp width in training mode, as of :class:`DeepL0Encoder`. On a ramp the support
            reaches down to ``(1 - sigma) theta_k``, and an entry is multiplied by its height, in
            (0, 1): so W, thresholds and steps are trained, and the gradient is that of what is
            computed. D has its gradient through the least squares too. At 0 it is the only one.

    Without a dictionary W and D come from a random one, and thresholds are out of reach.
    ``encoder(x)``: [..., n] -> dense codes [..., p], of the weights' dtype; least squares are
    solved in float64. O(n p + m^3) a signal and stage; in evaluation mode without a gradient m^3
    only where the support is another than that of the stage before. D'D, O(n p^2), once a call, in
    that mode once for the same D. An x that does not fit is a ValueError. Breaks graphs of
    torch.compile. Sources: Foucart 2011; Bouchot, Foucart, Hitczenko 2016 (m that grow);
    Khanna, Kyrillidis 2018 (momentum); Wang, Ling, Huang 2016, eq. 9.

    Example:
        >>> D = torch.nn.functional.normalize(torch.randn(32, 64), dim=0)
        >>> a = torch.zeros(1, 64).index_fill_(1, torch.tensor([5, 40]), 1.0)
        >>> encoder = dk.nn.DeepHTPEncoder.from_dictionary(D, 4, theta=0.5).eval()
        >>> torch.allclose(encoder(a @ D.T), a, atol=1e-5)
        True
    """

    atoms: nn.Parameter
    momentum: nn.Parameter | None
    m: int | tuple[int, ...]
    eval_sigma = 0.0

    def __init__(
        self,
        in_features: int,
        code_size: int,
        m: int | Sequence[int],
        num_stages: int = 2,
        *,
        steps: float | Sequence[float] | None = None,
        momentum: float | Sequence[float] | None = None,
        eval_sigma: float = 0.0,
    ) -> None:
        super().__init__(
            in_features, code_size, num_stages, False,
            bias=False, positive=False, factored=True, steps=steps,
        )  # fmt: skip
        if self._parameters["atoms"] is None:  # the first stage has a D too
            self.atoms = nn.Parameter(torch.empty(code_size, in_features))
        entries = tuple(
            checks.integer("m", each, 1, min(in_features, code_size), "min(n, p)")
            for each in entries_of_stages(m, num_stages)
        )
        self.m = entries if isinstance(m, Sequence) else entries[0]
        self._first_momentum: tuple[float, ...] | None = None
        self.register_parameter("momentum", None)
        if momentum is not None:
            every = checks.of_stages("momentum", momentum, num_stages)
            self._first_momentum = tuple(checks.momentum("momentum", each) for each in every)
            self.momentum = nn.Parameter(torch.empty(num_stages))
        self.sigma = 0.2
        self.eval_sigma = checks.number("eval_sigma", eval_sigma)
        checks.sigma(self.eval_sigma, "eval_sigma")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A random dictionary, and thresholds that are out of reach."""
        super().reset_parameters()
        self._set_log_theta(-LOG_RANGE)
        if self._first_momentum is not None:
            first = torch.tensor(self._first_momentum, dtype=torch.float64)
            initial.assign(self, "momentum", first)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_first_momentum", None)
        self._parameters.setdefault("momentum", None)

    @classmethod
    def from_dictionary(
        cls,
        D: Tensor,
        m: int | Sequence[int],
        num_stages: int = 2,
        theta: float | None = None,
        *,
        W: Tensor | None = None,
        steps: float | Sequence[float] | None = None,
        momentum: float | Sequence[float] | None = None,
        eval_sigma: float = 0.0,
    ) -> DeepHTPEncoder:
        """The encoder of a dictionary; :func:`deepl0_kernels.training.calibrate` tunes it.

        Args:
            D: [n, p], finite. Gives dtype and device.
            m, num_stages, steps, momentum, eval_sigma: as in the class.
            theta: where all thresholds start, > 0; None for none, so that m decides.
            W: [p, n]; None for :func:`deepl0_kernels.solvers.analytic_weights` of D.

        Raises:
            TypeError, ValueError: an argument out of range, named with its value.
        """
        steps_of_solvers.dictionary("D", D)
        log_theta = -LOG_RANGE if theta is None else math.log(checks.positive("theta", theta))
        if W is None:
            W = analytic_weights(D)
        checks.like("W", W, "D", D)
        checks.has_shape("W", W, (D.shape[1], D.shape[0]), "[p, n]")
        n, p = D.shape
        self = cls(n, p, m, num_stages, steps=steps, momentum=momentum, eval_sigma=eval_sigma)
        self.to(device=D.device, dtype=D.dtype)
        initial.assign(self, "W", W)
        initial.assign(self, "atoms", D.T)
        self._set_log_theta(log_theta)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Codes [..., p] of x [..., n]."""
        return self.stages(x)[-1]

    @isolated()
    def stages(self, x: Tensor) -> list[Tensor]:
        """The codes [..., p] of x [..., n] after each stage, the last those of the encoder."""
        self._check(x)
        rows = x.reshape(-1, self.in_features)
        run = self._recorded if self.training or torch.is_grad_enabled() else self._sparse
        return [z.reshape(*x.shape[:-1], self.code_size) for z in run(rows)]

    def _recorded(self, rows: Tensor) -> Iterator[Tensor]:
        """The codes [B, p] of every stage, for a gradient or by the ramps of a training."""
        theta, step, fit, b = self.theta, self.step, self._fit(), rows @ self.atoms.T
        before = z = torch.zeros_like(b)
        for k, m in enumerate(self._entries()):
            r = (rows - z @ self.atoms if k else rows) @ self.W.T
            u = z + (r if step is None else step[k].to(r.dtype) * r)
            if self.momentum is not None and k:
                u = u + self.momentum[k] * (z - before)
            height = self._height(u.abs(), theta[k].to(u.dtype))
            on = ~(height <= 0)
            size = int(on.sum(1).max()) if len(u) else 0
            if size > m:
                at = top_m(torch.where(on, u.detach(), 0.0), m)[1]
                on = on & torch.zeros_like(on).scatter_(1, at, True)
            before, z = z, height * _on_support(fit, b, on)
            yield z

    def _sparse(self, rows: Tensor) -> Iterator[Tensor]:
        """The same without either: only what has another support than before is solved."""
        theta, step, fit, b = self.theta, self.step, self._fit(), rows @ self.atoms.T
        code: Refitted | None = None
        before: Refitted | None = None
        for k, m in enumerate(self._entries()):
            r = rows
            if code is not None:
                r = r - decode(SparseCode(code.values, code.places, self.code_size), self.atoms.T)
            u = r @ self.W.T
            if step is not None:
                u *= step[k].to(u.dtype)
            if code is not None:
                momentum = 0.0 if self.momentum is None else self.momentum[k]
                u.scatter_add_(1, code.places, (1 + momentum) * code.values)
                if before is not None and self.momentum is not None:
                    u.scatter_add_(1, before.places, -momentum * before.values)
            before, code = code, self._refit(fit, b, u, theta[k], m, code)
            yield code.dense(self.code_size)

    def _refit(self, fit, b, u, theta, m: int, before: Refitted | None = None) -> Refitted:
        """The code of pre-activations u: where the support is that of ``before``, by its fit."""
        height = None if self._width() == 0.0 else self._height(u.abs(), theta.to(u.dtype))
        above = hard_threshold(u, theta) if height is None else torch.where(height <= 0, 0.0, u)
        kept, places = top_m(above, m)
        support = places.masked_fill(kept == 0, -1)
        if before is None or before.support.shape != support.shape:
            fitted = fit.values(b, support)
        else:
            new = (support != before.support).any(1).nonzero()[:, 0]
            fitted = before.fitted.index_copy(0, new, fit.values(b[new], support[new]))
        values = fitted if height is None else fitted * height.gather(1, places)
        return Refitted(values, places, support, fitted)

    def _entries(self) -> list[int]:
        """m of every stage."""
        return entries_of_stages(self.m, self.num_stages)

    def _width(self) -> float:
        return self.sigma if self.training else self.eval_sigma

    def _height(self, a: Tensor, theta: Tensor | float) -> Tensor:
        """Of entries of magnitude a on the ramp; 1 beyond, 0 before it. NaN stays."""
        sigma = self._width()
        if sigma == 0.0:
            return torch.where(a < theta, 0.0, torch.where(a >= theta, 1.0, a))
        return (1 - (theta - a).relu() / (sigma * theta)).clamp_min(0)

    def _fit(self) -> LeastSquares:
        """On D; in evaluation mode, without a gradient, kept until D is another."""
        plan = None if torch.is_grad_enabled() else self._plan()
        return steps_of_solvers.known(self.atoms.T, plan).once(LeastSquares)

    def extra_repr(self) -> str:
        chosen = {"momentum": self._first_momentum, "eval_sigma": self.eval_sigma}
        text = f"{super().extra_repr()}, m={self.m}"
        return text + "".join(f", {name}={value}" for name, value in chosen.items() if value)


def _on_support(fit: LeastSquares, b: Tensor, on: Tensor) -> Tensor:
    """The code [B, p] on the entries that are ``on``."""
    size = int(on.sum(1).max()) if len(on) else 0
    if size == 0:
        return b * 0.0
    support = top_m(on.to(b.dtype), size)[1]
    return fit(b, support, on.gather(1, support))
