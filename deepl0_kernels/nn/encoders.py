"""Unrolled encoders: K stages ``z <- h(x W' + z S')`` with learned W, S and thresholds."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..ops import SparseCode, checks, encode_l0, encode_top_m, soft_threshold
from ..ops.thresholds import GRADS
from ..solvers import step as steps
from . import initial

# exp stays finite and > 0 between these in float32; beyond them theta rests while its parameter is
# still moved by the gradient, so that it can come back.
_LOG_RANGE = 80.0


class _Encoder(nn.Module):
    """W, S and stages: what all encoders share."""

    def __init__(self, in_features: int, code_size: int, num_stages: int, tied: bool) -> None:
        super().__init__()
        self.in_features = checks.integer("in_features", in_features, 1)
        self.code_size = checks.integer("code_size", code_size, 1)
        self.num_stages = checks.integer("num_stages", num_stages, 1)
        self.tied = bool(tied)
        self.W = nn.Parameter(torch.empty(code_size, in_features))
        self.S: nn.Parameter | None
        if num_stages == 1:
            self.register_parameter("S", None)
        else:
            shape = (code_size, code_size)
            self.S = nn.Parameter(torch.empty(shape if tied else (num_stages - 1, *shape)))

    def reset_parameters(self) -> None:
        """Start from a random dictionary: unit-norm Gaussian atoms, scaled to ``||D||_2 = 1``."""
        shape, device = (self.in_features, self.code_size), initial.device_of_draws(self.W)
        D = torch.randn(shape, dtype=torch.float64, device=device)
        D /= D.norm(dim=0)
        # The norm is known, so that nothing is computed of values: meta tensors have none.
        self._unroll(D / torch.linalg.matrix_norm(D, 2), 0.99)

    def _set_dictionary(self, D: Tensor, step: float | None) -> float:
        """W and S of the step mu, by default 0.99 / ||D||_2^2. Returns mu."""
        bound = 1 / steps.squared_norm(D)
        mu = 0.99 * bound if step is None else checks.positive("step", step)
        if mu > bound * (1 + 1e-6):
            raise ValueError(
                f"step must be at most 1 / ||D||_2^2 = {bound:.6g} for the stages to converge, "
                f"got {step}"
            )
        self._unroll(D, mu)
        if not all(torch.isfinite(t).all() for t in (self.W, self.S) if t is not None):
            raise ValueError(
                f"D has ||D||_2^2 = {1 / bound:.3g}, for which {self.W.dtype} cannot hold the "
                "weights; scale it"
            )
        return mu

    def _unroll(self, D: Tensor, mu: float) -> None:
        """W = mu D', S = I - mu D'D, in float64 and rounded once."""
        D = D.detach().double()
        initial.assign(self, "W", mu * D.T)
        if self.S is not None:
            eye = torch.eye(self.code_size, dtype=D.dtype, device=D.device)
            initial.assign(self, "S", (eye - mu * (D.T @ D)).expand(self.S.shape))

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
        return (
            f"in_features={self.in_features}, code_size={self.code_size}, "
            f"num_stages={self.num_stages}, tied={self.tied}"
        )


class _Thresholded(_Encoder):
    """An encoder with thresholds theta > 0, held as their logarithm.

    ``log_theta`` is the parameter, [p] or, untied, [K, p]: no optimiser step can make
    theta = exp(log_theta) negative or 0, and a step is a relative change.
    """

    def __init__(self, in_features: int, code_size: int, num_stages: int, tied: bool) -> None:
        super().__init__(in_features, code_size, num_stages, tied)
        self.log_theta = nn.Parameter(
            torch.empty((code_size,) if tied else (num_stages, code_size))
        )

    def _set_log_theta(self, value: float) -> None:
        device = initial.device_of_draws(self.log_theta)
        full = torch.full(self.log_theta.shape, value, dtype=torch.float64, device=device)
        initial.assign(self, "log_theta", full)

    @property
    def theta(self) -> Tensor:
        """Thresholds [p] or [K, p], > 0; float32 for half-precision modules."""
        wide = (
            self.log_theta.double()
            if self.log_theta.dtype == torch.float64
            else (self.log_theta.float())
        )
        # Clamped in value only: the gradient reaches a parameter that has left the range.
        return torch.exp(wide + (wide.clamp(-_LOG_RANGE, _LOG_RANGE) - wide).detach())


class DeepL0Encoder(_Thresholded):
    """Deep l0-regularized encoder: hard thresholds, trained through the ramp of HELU_sigma.

    Args:
        in_features: n, length of a signal.
        code_size: p, length of a code.
        num_stages: K >= 1.
        tied: one S [p, p] and one theta [p] for all stages; else S [K - 1, p, p], theta [K, p].
        grad: derivative mode of the threshold, see :func:`deepl0_kernels.helu`.

    Attributes:
        sigma: ramp width in training mode (0.2 to start with; :class:`SigmaSchedule` lowers it).
            Evaluation mode uses 0. At sigma = 0 theta gets a gradient of 0. Outside of [0, 1] a
            ValueError. Not part of the state dict.

    Without a dictionary the weights come from a random one (unit-norm Gaussian atoms, scaled to
    ``||D||_2 = 1``), theta from lam = 0.5. Use :meth:`from_dictionary` when there is one.

    ``encoder(x)``: [..., n] -> dense codes [..., p], of the weights' dtype. Costs, derivatives and
    errors are those of :func:`deepl0_kernels.encode_l0`; an x that does not fit the weights is a
    ValueError. Source: Wang, Ling, Huang 2016, eq. 6 and 9.
    """

    def __init__(
        self,
        in_features: int,
        code_size: int,
        num_stages: int = 2,
        tied: bool = True,
        *,
        grad: str = "helu",
    ) -> None:
        super().__init__(in_features, code_size, num_stages, tied)
        checks.one_of("grad", grad, tuple(GRADS))
        self.grad = grad
        self.sigma = 0.2
        self.reset_parameters()

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

    def reset_parameters(self) -> None:
        """A random dictionary, and theta of lam = 0.5."""
        super().reset_parameters()
        self._set_log_theta(0.5 * math.log(2 * 0.5 * 0.99))

    @classmethod
    def from_dictionary(
        cls,
        D: Tensor,
        lam: float,
        num_stages: int = 2,
        tied: bool = True,
        step: float | None = None,
        convention: str = "eq1",
        *,
        grad: str = "helu",
    ) -> DeepL0Encoder:
        """The encoder that is K iterations of :func:`deepl0_kernels.solvers.iht` from zero.

        Args:
            D: [n, p], finite. Gives dtype and device.
            lam: > 0.
            num_stages, tied, grad: as in the class.
            step: mu, at most 1 / ||D||_2^2; None: 0.99 of that. W = mu D', S = I - mu D'D.
            convention: "eq1": theta = sqrt(2 lam mu), of ``1/2 ||x - D a||^2 + lam ||a||_0``;
                "paper": theta = sqrt(lam mu), of the same without the 1/2.

        Raises:
            ValueError: an argument out of range, named with its value.
        """
        steps.dictionary("D", D)
        lam = checks.positive("lam", lam)
        checks.one_of("convention", convention, ("eq1", "paper"))
        self = cls(D.shape[0], D.shape[1], num_stages, tied, grad=grad)
        self.to(device=D.device, dtype=D.dtype)
        mu = self._set_dictionary(D, step)
        factor = 2 if convention == "eq1" else 1
        self._set_log_theta(0.5 * math.log(factor * lam * mu))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Codes [..., p] of x [..., n]; through the ramp of width sigma in training mode."""
        self._check(x)
        sigma: float | Tensor = 0.0
        if self.training:
            # A graph reads the tensor when it is run: one serves a whole schedule.
            sigma = self._ramp.squeeze() if torch.compiler.is_compiling() else self.sigma
        return encode_l0(
            x, self.W, self.S, self.theta, num_stages=self.num_stages, sigma=sigma, grad=self.grad
        )


class DeepMSparseEncoder(_Encoder):
    """Deep M-sparse encoder: every stage keeps the m entries of largest magnitude.

    Args:
        m: entries that are kept, 1 <= m <= p: those of largest magnitude, zeros among them where
            fewer are nonzero. The others are those of :class:`DeepL0Encoder`.

    ``encoder(x)`` is a dense tensor [..., p], as a next layer or a loss expects it;
    :meth:`encode` gives the same as a :class:`deepl0_kernels.SparseCode`, without its zeros.
    One stage is a TopK sparse autoencoder's encoder that ranks by magnitude. Costs, derivatives and
    errors are those of :func:`deepl0_kernels.encode_top_m`. Source: Wang, Ling, Huang 2016, eq. 10.
    """

    def __init__(
        self, in_features: int, code_size: int, m: int, num_stages: int = 2, tied: bool = True
    ) -> None:
        super().__init__(in_features, code_size, num_stages, tied)
        self.m = checks.integer("m", m, 1, code_size, "code_size")
        self.reset_parameters()

    @classmethod
    def from_dictionary(
        cls, D: Tensor, m: int, num_stages: int = 2, tied: bool = True, step: float | None = None
    ) -> DeepMSparseEncoder:
        """The encoder that is K iterations of :func:`deepl0_kernels.solvers.iht_m` from zero.

        ``m`` is as in the class; the other arguments and errors are those of
        :meth:`DeepL0Encoder.from_dictionary`.
        """
        steps.dictionary("D", D)
        self = cls(D.shape[0], D.shape[1], m, num_stages, tied)
        self.to(device=D.device, dtype=D.dtype)
        self._set_dictionary(D, step)
        return self

    def encode(self, x: Tensor) -> SparseCode:
        """Codes of x [..., n] with values and indices [..., m]."""
        self._check(x)
        return encode_top_m(x, self.W, self.S, self.m, num_stages=self.num_stages)

    def forward(self, x: Tensor) -> Tensor:
        """Dense codes [..., p] of x [..., n], at most m entries of each nonzero."""
        return self.encode(x).to_dense()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, m={self.m}"


class LISTA(_Thresholded):
    """Learned ISTA (Gregor and LeCun 2010): the same network with the soft threshold.

    Arguments, initialisation and errors are those of :class:`DeepL0Encoder`; theta starts at
    lam mu. ``encoder(x)``: [..., n] -> dense codes [..., p]. 2 B p (n + (K - 1) p) flops, made of
    PyTorch's products and :func:`soft_threshold`.
    """

    def __init__(
        self, in_features: int, code_size: int, num_stages: int = 2, tied: bool = True
    ) -> None:
        super().__init__(in_features, code_size, num_stages, tied)
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
    ) -> LISTA:
        """The encoder that is K iterations of ISTA from zero, on ``1/2||x-Da||^2 + lam||a||_1``.

        Arguments and errors are those of :meth:`DeepL0Encoder.from_dictionary`; theta = lam mu.
        """
        steps.dictionary("D", D)
        lam = checks.positive("lam", lam)
        self = cls(D.shape[0], D.shape[1], num_stages, tied)
        self.to(device=D.device, dtype=D.dtype)
        mu = self._set_dictionary(D, step)
        self._set_log_theta(math.log(lam * mu))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Dense codes [..., p] of x [..., n]."""
        self._check(x)
        theta = self.theta
        c = x @ self.W.T
        z = soft_threshold(c, theta if self.tied else theta[0])
        for k in range(1, self.num_stages):
            assert self.S is not None
            S = self.S if self.tied else self.S[k - 1]
            z = soft_threshold(c + z @ S.T, theta if self.tied else theta[k])
        return z
