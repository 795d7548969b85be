"""Unrolled encoders: K stages ``z <- h(x W' + z S')`` with learned W, S and thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn.functional import linear

from ..ops import SparseCode, checks, encode_l0, encode_top_m, soft_threshold
from ..ops.encode_factored import entries_of_stages
from ..ops.thresholds import GRADS
from ..solvers import step as steps_of_solvers
from .unrolled import Encoder, Ramped, Thresholded


class DeepL0Encoder(Ramped):
    """Deep l0-regularized encoder: hard thresholds, trained through the ramp of HELU_sigma.

    Args:
        in_features: n, length of a signal.
        code_size: p, length of a code.
        num_stages: K >= 1.
        tied: one S [p, p] and one theta [p] for all stages; else S [K - 1, p, p], theta [K, p].
        grad: derivative mode of the threshold, see :func:`deepl0_kernels.helu`.
        bias: learn a bias [p], which every stage adds before its threshold; it starts at 0.
        positive: nonnegative codes: one-sided thresholds.
        factored: stages ``z <- h(z + W (x - D z) + bias)``: D is learned in the place of S, which
            is ``I - W D`` then and never formed. W and D serve all stages: theta alone is untied.
        steps: factored, of 2 stages or more: learn a factor > 0 of W for each stage. Where they
            start: a number, or num_stages of them. To keep them there:
            ``encoder.log_step.requires_grad_(False)``. None: none.

    Attributes:
        sigma: ramp width in training mode (0.2 to start with; :class:`SigmaSchedule` lowers it).
            Evaluation mode uses 0. At sigma = 0 theta gets a gradient of 0. Outside of [0, 1] a
            ValueError. Not part of the state dict.
        atoms: factored, of 2 stages or more: the parameter D' [p, n], a row an atom; else None.

    Without a dictionary the weights come from a random one (unit-norm Gaussian atoms, scaled to
    ``||D||_2 = 1``), theta from lam = 0.5. Use :meth:`from_dictionary` when there is one. One stage
    with bias and positive is the encoder of a JumpReLU sparse autoencoder.

    ``encoder(x)``: [..., n] -> dense codes [..., p], of the weights' dtype. Costs, derivatives and
    errors are those of :func:`deepl0_kernels.encode_l0`; an x that does not fit the weights is a
    ValueError. In evaluation mode the weights are kept ready for the CPU from the second call on,
    as :func:`deepl0_kernels.prepare` says; ``train()`` gives that memory back. Source: Wang, Ling,
    Huang 2016, eq. 6 and 9.

    Example:
        >>> D = torch.nn.functional.normalize(torch.randn(16, 32), dim=0)
        >>> encoder = dk.nn.DeepL0Encoder.from_dictionary(D, lam=0.1, num_stages=2)
        >>> z = encoder(torch.randn(8, 16))
        >>> z.square().sum().backward()
        >>> encoder.W.grad.shape
        torch.Size([32, 16])
    """

    def __init__(
        self,
        in_features: int,
        code_size: int,
        num_stages: int = 2,
        tied: bool = True,
        *,
        grad: str = "helu",
        bias: bool = False,
        positive: bool = False,
        factored: bool = False,
        steps: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            in_features,
            code_size,
            num_stages,
            tied,
            bias=bias,
            positive=positive,
            factored=factored,
            steps=steps,
        )
        checks.one_of("grad", grad, tuple(GRADS))
        self.grad = grad
        self.sigma = 0.2
        self.reset_parameters()

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
        bias: bool = False,
        positive: bool = False,
        factored: bool = False,
        steps: float | Sequence[float] | None = None,
    ) -> DeepL0Encoder:
        """The encoder that is K iterations of :func:`deepl0_kernels.solvers.iht` from zero.

        Args:
            D: [n, p], finite. Gives dtype and device.
            lam: > 0.
            num_stages, tied, grad, bias, positive, factored, steps: as in the class. Factored or
                not, the codes are the same at the start.
            step: mu, at most 1 / ||D||_2^2; None: 0.99 of that. W = mu D', S = I - mu D'D.
            convention: "eq1": theta = sqrt(2 lam mu), of ``1/2 ||x - D a||^2 + lam ||a||_0``;
                "paper": theta = sqrt(lam mu), of the same without the 1/2.

        Raises:
            TypeError, ValueError: an argument out of range, named with its value.
        """
        steps_of_solvers.dictionary("D", D)
        lam = checks.positive("lam", lam)
        checks.one_of("convention", convention, ("eq1", "paper"))
        self = cls(
            D.shape[0],
            D.shape[1],
            num_stages,
            tied,
            grad=grad,
            bias=bias,
            positive=positive,
            factored=factored,
            steps=steps,
        )
        self.to(device=D.device, dtype=D.dtype)
        mu = self._set_dictionary(D, step)
        factor = 2 if convention == "eq1" else 1
        self._set_log_theta(0.5 * math.log(factor * lam * mu))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Codes [..., p] of x [..., n]; through the ramp of width sigma in training mode."""
        self._check(x)
        return encode_l0(
            x, self.W, self.S, self.theta, sigma=self._width(), grad=self.grad, **self._options()
        )


class DeepMSparseEncoder(Encoder):
    """Deep M-sparse encoder: every stage keeps the m entries of largest magnitude.

    Args:
        m: entries that are kept, 1 <= m <= p: those of largest magnitude, zeros among them where
            fewer are nonzero. Factored, also num_stages such numbers, one for each stage.
        positive: nonnegative codes: the m largest of ``max(u, 0)``.
        factored: as in :class:`DeepL0Encoder`; there is nothing to untie then.
        The others are those of :class:`DeepL0Encoder`.

    ``encoder(x)`` is a dense tensor [..., p], as a next layer or a loss expects it;
    :meth:`encode` gives the same as a :class:`deepl0_kernels.SparseCode`, without its zeros.
    One stage with bias and positive is the encoder of a TopK sparse autoencoder,
    ``relu(topk(W x + b))``; with bias alone that of its signed form. Costs, derivatives and errors
    are those of :func:`deepl0_kernels.encode_top_m`; in evaluation mode the weights are kept ready
    as in :class:`DeepL0Encoder`. Source: Wang, Ling, Huang 2016, eq. 10.

    Example:
        >>> encoder = dk.nn.DeepMSparseEncoder(16, 32, m=3)
        >>> z = encoder(torch.randn(8, 16))
        >>> (z != 0).sum(1)
        tensor([3, 3, 3, 3, 3, 3, 3, 3])
    """

    m: int | tuple[int, ...]

    def __init__(
        self,
        in_features: int,
        code_size: int,
        m: int | Sequence[int],
        num_stages: int = 2,
        tied: bool = True,
        *,
        bias: bool = False,
        positive: bool = False,
        factored: bool = False,
        steps: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            in_features,
            code_size,
            num_stages,
            tied,
            bias=bias,
            positive=positive,
            factored=factored,
            steps=steps,
        )
        if factored and not tied:
            raise ValueError(
                f"tied must be True where factored, as W and D serve all stages, got {tied}"
            )
        if isinstance(m, Sequence) and not factored:
            raise ValueError(f"m must be one number unless factored, got {m!r}")
        entries = tuple(
            checks.integer("m", each, 1, code_size, "code_size")
            for each in entries_of_stages(m, num_stages)
        )
        self.m = entries if isinstance(m, Sequence) and num_stages > 1 else entries[0]
        self.reset_parameters()

    @classmethod
    def from_dictionary(
        cls,
        D: Tensor,
        m: int | Sequence[int],
        num_stages: int = 2,
        tied: bool = True,
        step: float | None = None,
        *,
        bias: bool = False,
        positive: bool = False,
        factored: bool = False,
        steps: float | Sequence[float] | None = None,
    ) -> DeepMSparseEncoder:
        """The encoder that is K iterations of :func:`deepl0_kernels.solvers.iht_m` from zero.

        ``m`` is as in the class; the other arguments and errors are those of
        :meth:`DeepL0Encoder.from_dictionary`.
        """
        steps_of_solvers.dictionary("D", D)
        self = cls(
            D.shape[0],
            D.shape[1],
            m,
            num_stages,
            tied,
            bias=bias,
            positive=positive,
            factored=factored,
            steps=steps,
        )
        self.to(device=D.device, dtype=D.dtype)
        self._set_dictionary(D, step)
        return self

    def encode(self, x: Tensor) -> SparseCode:
        """Codes of x [..., n] with values and indices [..., m], of several m the last."""
        self._check(x)
        return encode_top_m(x, self.W, self.S, self.m, **self._options())

    def forward(self, x: Tensor) -> Tensor:
        """Dense codes [..., p] of x [..., n], at most m entries of each nonzero."""
        return self.encode(x).to_dense()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, m={self.m}"


class LISTA(Thresholded):
    """Learned ISTA (Gregor and LeCun 2010): the same network with the soft threshold.

    Arguments, initialisation and errors are those of :class:`DeepL0Encoder`; theta starts at
    lam mu. ``encoder(x)``: [..., n] -> dense codes [..., p]. 2 B p (n + (K - 1) p) flops, made of
    PyTorch's products and :func:`soft_threshold`.

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
        """The codes of x; ``coupled(z)``, of the codes of a stage, goes into the next."""
        theta = self.theta
        c = linear(x, self.W, self.bias)
        z = soft_threshold(c, theta if self.tied else theta[0], positive=self.positive)
        for k in range(1, self.num_stages):
            assert self.S is not None
            S = self.S if self.tied else self.S[k - 1]
            u = c + z @ S.T
            if coupled is not None:
                u = u + coupled(z)
            z = soft_threshold(u, theta if self.tied else theta[k], positive=self.positive)
        return z
