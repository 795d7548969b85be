"""Unrolled encoders: K stages ``z <- h(x W' + z S')`` with learned W, S and thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops import SparseCode, checks, encode_l0, encode_top_m, helu, top_m
from ..ops.encode_factored import entries_of_stages
from ..ops.thresholds import GRADS
from ..solvers import step as steps_of_solvers
from .soft import LISTA as LISTA  # modules were pickled by this place
from .soft import last_activation
from .unrolled import Encoder, Ramped, exponential

# Of M-sparse encoders that are soft inside: small enough that m entries are left.
_L1_LAM = 0.1


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
        inside: thresholds of all stages but the last: "hard", the paper's; "soft", of LISTA.
            Trained, the latter predict and classify better at the same sparsity (docs/choose.md).
            Thresholds are [K, p] then, whether tied or not. With one stage there is no difference.

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
    as :func:`deepl0_kernels.prepare` says; ``train()`` gives that memory back. Soft inside, the
    products are PyTorch's, dense, which need nothing ready, and double backward is right. Source:
    Wang, Ling, Huang 2016, eq. 6 and 9.

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
        inside: str = "hard",
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
            inside=inside,
        )
        checks.one_of("grad", grad, tuple(GRADS))
        self.grad = grad
        self.sigma = 0.2
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A random dictionary, and theta of lam = 0.5."""
        super().reset_parameters()
        soft = math.log(0.5 * 0.99) if self._soft else None
        self._set_log_theta(0.5 * math.log(2 * 0.5 * 0.99), soft)

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
        inside: str = "hard",
        l1_lam: float | None = None,
    ) -> DeepL0Encoder:
        """The encoder that is K iterations of :func:`deepl0_kernels.solvers.iht` from zero; soft
        inside, K - 1 of ISTA and one of that.

        Args:
            D: [n, p], finite. Gives dtype and device.
            lam: > 0.
            num_stages, tied, grad, bias, positive, factored, steps, inside: as in the class.
                Factored or not, the codes are the same at the start.
            step: mu, at most 1 / ||D||_2^2; None: 0.99 of that. W = mu D', S = I - mu D'D.
            convention: "eq1": theta = sqrt(2 lam mu), of ``1/2 ||x - D a||^2 + lam ||a||_0``;
                "paper": theta = sqrt(lam mu), of the same without the 1/2.
            l1_lam: with inside="soft": soft thresholds start at l1_lam mu, of
                ``1/2 ||x - D a||^2 + l1_lam ||a||_1``. > 0; None: lam.

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
            inside=inside,
        )
        self.to(device=D.device, dtype=D.dtype)
        mu = self._set_dictionary(D, step)
        factor = 2 if convention == "eq1" else 1
        soft = math.log(self._l1_lam(l1_lam, lam) * mu)
        self._set_log_theta(0.5 * math.log(factor * lam * mu), soft if self._soft else None)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Codes [..., p] of x [..., n]; through the ramp of width sigma in training mode."""
        self._check(x)
        theta, sigma = self.theta, self._width()
        if not self._soft:
            return encode_l0(
                x, self.W, self.S, theta, sigma=sigma, grad=self.grad, **self._options()
            )
        u = last_activation(self, x, theta)
        z = helu(u, theta[-1], sigma, self.grad, positive=self.positive)
        return z.to(checks.dtype_of_products(x))


class DeepMSparseEncoder(Encoder):
    """Deep M-sparse encoder: stages keep the m entries of largest magnitude.

    Args:
        m: entries that are kept, 1 <= m <= p: those of largest magnitude, zeros among them where
            fewer are nonzero. Factored, also num_stages such numbers, one for each stage.
        positive: nonnegative codes: the m largest of ``max(u, 0)``.
        factored: as in :class:`DeepL0Encoder`; there is nothing to untie then.
        inside: "hard": every stage keeps m entries, as in the paper. "soft": the last alone, and
            the others have soft thresholds, as in :class:`DeepL0Encoder`, [K - 1, p].
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
        inside: str = "hard",
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
            inside=inside,
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
        if self._soft and not isinstance(self.m, int):
            raise ValueError(f"m must be one number where inside='soft', got {m!r}")
        theta = nn.Parameter(torch.empty(num_stages - 1, code_size)) if self._soft else None
        self.register_parameter("log_theta", theta)
        self.reset_parameters()

    @property
    def theta(self) -> Tensor | None:
        """Soft thresholds [K - 1, p], > 0, float32 for half-precision modules; None without."""
        return None if self.log_theta is None else exponential(self.log_theta)

    def reset_parameters(self) -> None:
        """A random dictionary, and soft thresholds, if any, of l1_lam = 0.1."""
        super().reset_parameters()
        if self._soft:
            self._set_log_theta(math.log(_L1_LAM * 0.99))

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
        inside: str = "hard",
        l1_lam: float | None = None,
    ) -> DeepMSparseEncoder:
        """The encoder that is K iterations of :func:`deepl0_kernels.solvers.iht_m` from zero; soft
        inside, K - 1 of ISTA and one of that.

        ``m`` is as in the class; the other arguments and errors are those of
        :meth:`DeepL0Encoder.from_dictionary`, but that an l1_lam of None is 0.1, as of iht_m.
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
            inside=inside,
        )
        self.to(device=D.device, dtype=D.dtype)
        mu, l1_lam = self._set_dictionary(D, step), self._l1_lam(l1_lam, _L1_LAM)
        if self._soft:
            self._set_log_theta(math.log(l1_lam * mu))
        return self

    def encode(self, x: Tensor) -> SparseCode:
        """Codes of x [..., n] with values and indices [..., m], of several m the last."""
        self._check(x)
        if not self._soft:
            return encode_top_m(x, self.W, self.S, self.m, **self._options())
        theta = self.theta
        assert theta is not None
        assert isinstance(self.m, int)
        u = last_activation(self, x, theta)
        values, indices = top_m(u, self.m, positive=self.positive)
        return SparseCode(values.to(checks.dtype_of_products(x)), indices, self.code_size)

    def forward(self, x: Tensor) -> Tensor:
        """Dense codes [..., p] of x [..., n], at most m entries of each nonzero."""
        return self.encode(x).to_dense()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, m={self.m}"
