"""What the unrolled encoders share: their parameters, and where these start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import checks
from ..ops.plan import Planned
from ..solvers import step as steps_of_solvers
from . import initial

# exp stays finite and > 0 between these in float32; beyond them the value rests while its logarithm
# is still moved by the gradient, so that it can come back.
LOG_RANGE = 80.0
# Thresholds of all stages but the last, where an encoder has the choice.
INSIDE = ("hard", "soft")


def exponential(log: Tensor) -> Tensor:
    """exp(log) > 0 of a parameter; float32 where that is of half precision."""
    wide = log.double() if log.dtype == torch.float64 else log.float()
    # Clamped in value only: the gradient reaches a parameter that has left the range.
    return torch.exp(wide + (wide.clamp(-LOG_RANGE, LOG_RANGE) - wide).detach())


class Encoder(Planned):
    """W, what stands between the stages (S, or the atoms of D), bias, steps.

    Parameters are contiguous, as sharding and safetensors ask for: of a factored encoder D' [p, n]
    is the parameter, ``atoms``, and D a view by columns, which the operators read without a copy.
    """

    def __init__(
        self,
        in_features: int,
        code_size: int,
        num_stages: int,
        tied: bool,
        *,
        bias: bool,
        positive: bool,
        factored: bool = False,
        steps: float | Sequence[float] | None = None,
        inside: str = "hard",
    ) -> None:
        super().__init__()
        self.in_features = n = checks.integer("in_features", in_features, 1)
        self.code_size = p = checks.integer("code_size", code_size, 1)
        self.num_stages = K = checks.integer("num_stages", num_stages, 1)
        self.tied = checks.boolean("tied", tied)
        self.positive = checks.boolean("positive", positive)
        self.factored = checks.boolean("factored", factored)
        self._first_steps = self._check_steps(steps)
        checks.one_of("inside", inside, INSIDE)
        self.inside = inside
        between: dict[str, tuple[int, ...] | None] = {"S": None, "atoms": None}
        if K > 1 and factored:
            between["atoms"] = (p, n)
        elif K > 1:
            between["S"] = (p, p) if tied else (K - 1, p, p)
        shapes: dict[str, tuple[int, ...] | None] = {
            "W": (p, n),
            **between,
            "bias": (p,) if checks.boolean("bias", bias) else None,
            "log_step": None if self._first_steps is None else (K,),
        }
        for name, shape in shapes.items():
            self.register_parameter(
                name, None if shape is None else nn.Parameter(torch.empty(shape))
            )

    W: nn.Parameter
    S: nn.Parameter | None
    atoms: nn.Parameter | None
    bias: nn.Parameter | None
    log_step: nn.Parameter | None
    log_theta: nn.Parameter | None

    def _check_steps(self, steps: float | Sequence[float] | None) -> tuple[float, ...] | None:
        if steps is None:
            return None
        if not self.factored or self.num_stages == 1:
            raise ValueError(
                f"steps must be None but for a factored encoder of 2 stages or more, got {steps!r}"
            )
        every = checks.of_stages("steps", steps, self.num_stages)
        return tuple(checks.positive("steps", step) for step in every)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Modules that were pickled before they had these have none of them."""
        super().__setstate__(state)
        old = {"positive": False, "factored": False, "_first_steps": None, "inside": "hard"}
        for name, value in old.items():
            self.__dict__.setdefault(name, value)
        for name in ("atoms", "bias", "log_step", "log_theta"):
            self._parameters.setdefault(name, None)

    @property
    def D(self) -> Tensor | None:  # noqa: N802
        """Of a factored encoder of 2 stages or more the dictionary [n, p], a view of ``atoms``."""
        return None if self.atoms is None else self.atoms.t()

    @property
    def step(self) -> Tensor | None:
        """Factors [num_stages] of W, > 0; float32 for half-precision modules."""
        return None if self.log_step is None else exponential(self.log_step)

    @property
    def _soft(self) -> bool:
        """Whether there are stages with soft thresholds before the last."""
        return self.inside == "soft" and self.num_stages > 1

    def reset_parameters(self) -> None:
        """Start from a random dictionary: unit-norm Gaussian atoms, scaled to ``||D||_2 = 1``."""
        shape, device = (self.in_features, self.code_size), initial.device_of_draws(self.W)
        D = torch.randn(shape, dtype=torch.float64, device=device)
        D /= D.norm(dim=0)
        # The norm is known, so that nothing is computed of values: meta tensors have none.
        self._unroll(D / torch.linalg.matrix_norm(D, 2), 0.99)

    def _set_dictionary(self, D: Tensor, step: float | None) -> float:
        """The weights of the step mu, by default 0.99 / ||D||_2^2. Returns mu."""
        bound = 1 / steps_of_solvers.squared_norm(D)
        mu = 0.99 * bound if step is None else checks.positive("step", step)
        if mu > bound * (1 + 1e-6):
            raise ValueError(
                f"step must be at most 1 / ||D||_2^2 = {bound:.6g} for the stages to converge, "
                f"got {step}"
            )
        self._unroll(D, mu)
        weights = (self.W, self.S, self.atoms)
        if not all(torch.isfinite(t).all() for t in weights if t is not None):
            raise ValueError(
                f"D has ||D||_2^2 = {1 / bound:.3g}, for which {self.W.dtype} cannot hold the "
                "weights; scale it"
            )
        return mu

    def _unroll(self, D: Tensor, mu: float) -> None:
        """W = mu D', S = I - mu D'D or D itself, in float64 and rounded once; no bias."""
        D = D.detach().double()
        initial.assign(self, "W", mu * D.T)
        if self.S is not None:
            eye = torch.eye(self.code_size, dtype=D.dtype, device=D.device)
            initial.assign(self, "S", (eye - mu * (D.T @ D)).expand(self.S.shape))
        if self.atoms is not None:
            initial.assign(self, "atoms", D.T)
        if self.bias is not None:
            initial.assign(self, "bias", D.new_zeros(self.code_size))
        if self._first_steps is not None:
            initial.assign(self, "log_step", D.new_tensor(self._first_steps).log())

    def _set_log_theta(self, value: float, inside: float | None = None) -> None:
        """All thresholds to one value, or those of stages before the last to another."""
        assert self.log_theta is not None
        device = initial.device_of_draws(self.log_theta)
        full = torch.full(self.log_theta.shape, value, dtype=torch.float64, device=device)
        if inside is not None:
            full[:-1] = inside
        initial.assign(self, "log_theta", full)

    def _l1_lam(self, l1_lam: float | None, default: float) -> float:
        """The penalty that soft thresholds inside start from."""
        if l1_lam is None:
            return default
        if self.inside != "soft":
            raise ValueError(f"l1_lam must be None unless inside='soft', got {l1_lam!r}")
        return checks.positive("l1_lam", l1_lam)

    def _options(self) -> dict[str, Any]:
        """What the operators of both encoders take by name."""
        return {
            "num_stages": self.num_stages,
            "bias": self.bias,
            "positive": self.positive,
            "D": self.D,
            "step": self.step,
            "plan": self._plan(),
        }

    def _check(self, x: Tensor) -> None:
        """x is [..., in_features] in the weights' dtype and on their device."""
        checks.floating("x", x)
        checks.like("x", x, "the weights", self.W)
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"x must have shape [..., in_features] = [..., {self.in_features}], "
                f"got {checks.shape(x)}"
            )

    def extra_repr(self) -> str:
        text = (
            f"in_features={self.in_features}, code_size={self.code_size}, "
            f"num_stages={self.num_stages}, tied={self.tied}"
        )
        chosen = {
            "bias": self.bias is not None,
            "positive": self.positive,
            "factored": self.factored,
            "steps": self._first_steps,
            "inside": None if self.inside == "hard" else self.inside,
        }
        return text + "".join(f", {name}={value}" for name, value in chosen.items() if value)


class Thresholded(Encoder):
    """An encoder with thresholds theta > 0, held as their logarithm.

    ``log_theta`` is the parameter, [p] or, untied or soft inside, [K, p]: no optimiser step can
    make theta = exp(log_theta) negative or 0, and a step is a relative change.
    """

    log_theta: nn.Parameter

    def __init__(
        self, in_features: int, code_size: int, num_stages: int, tied: bool, **options: Any
    ) -> None:
        super().__init__(in_features, code_size, num_stages, tied, **options)
        self.log_theta = nn.Parameter(
            torch.empty((code_size,) if tied and not self._soft else (num_stages, code_size))
        )

    @property
    def theta(self) -> Tensor:
        """Thresholds [p] or [K, p], > 0; float32 for half-precision modules."""
        return exponential(self.log_theta)


class Ramped(Thresholded):
    """One with hard thresholds, which are trained through the ramp of HELU_sigma."""

    @property
    def sigma(self) -> float:
        """Width of the ramp in training mode."""
        return self._sigma

    @sigma.setter
    def sigma(self, value: float) -> None:
        value = checks.number("sigma", value)
        checks.sigma(value)
        # One dimension: torch.compile gives a tensor [] in float64 a symbol for its value, finds
        # after lowering that nobody uses it, and traces the whole graph anew.
        self._ramp = torch.tensor([value], dtype=torch.float64, device="cpu")
        self._sigma = value

    def _width(self) -> float | Tensor:
        """Sigma in training mode; a graph reads it when it is run: one serves a whole schedule."""
        if not self.training:
            return 0.0
        return self._ramp.squeeze() if torch.compiler.is_compiling() else self.sigma
