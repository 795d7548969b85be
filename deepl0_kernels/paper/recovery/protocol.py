"""Every choice of the recovery tables in one place, and the signals that they are about."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...ops import checks
from ...ops.thresholds import GRADS
from ..settings import Settings, count, number, one_of

# The stages that tables show.
SHOWN = (4, 8, 12, 16)
# What is drawn from a seed, each by a generator of its own; training has one an epoch.
_MATRIX, _TEST, _CALIBRATION, _TRAINING = range(4)
_STREAMS = 10_000


@dataclass(frozen=True)
class Protocol(Settings):
    """The choices of one table; a run stores them beside its results.

    p unknowns, each nonzero with probability ``nonzeros / p`` and then standard normal, measured by
    a Gaussian matrix with columns of norm 1, plus Gaussian noise. The size p is that of a run.
    """

    measurements: int = count(250)
    nonzeros: int = count(50)  # of a signal, expected
    noise: float = number(1e-4)  # its power over that of the measurements: 1e-4 is SNR 40 dB
    test: int = count(10_000)  # signals
    stages: int = count(16, least=max(SHOWN))
    calibration: int = count(1000)  # signals that thresholds, m and lam are chosen on
    trained: int = count(1, least=0, most=1)  # 0: without the networks that a gradient trains
    training: int = count(50_000)  # signals, drawn anew in each epoch
    batch_size: int = count(256)
    epochs: int = count(4)  # of networks that learn matrices
    number_epochs: int = count(2)  # of those that learn numbers alone
    lr: float = number(5e-4, above=0)  # of matrices of l1 networks
    deep_lr: float = number(5e-5, above=0)  # of those of ours, which are good to begin with
    number_lr: float = number(2e-2, above=0)  # of steps and thresholds
    l0_number_lr: float = number(5e-3, above=0)  # of those of Deep l0, whose stages jump
    # Of the gradient. The few signals that diverge have the longest, and must be heard.
    clip: float = number(1000.0, above=0)
    l0_grad: str = one_of("ste_theta", tuple(GRADS))  # see deepl0_kernels.helu
    selected: float = number(1.2)  # entries that l1 leaves as they are in the end, over nonzeros
    htp_m: int = count(64)  # entries of the solver's supports
    refit_m: int = count(70)  # entries of the refitting encoder's supports, at most
    refit_grown: int = count(10)  # stages in which its supports may grow to that, if that errs less
    refit_sigma: float = number(0.0, most=1)  # its ramp

    def quickened(self) -> Protocol:
        """A run of a minute that exercises everything; its errors say little."""
        return replace(
            self, test=200, calibration=100, training=512, batch_size=64, epochs=1, number_epochs=1
        )

    def check(self) -> None:
        super().check()
        checks.integer("batch_size", self.batch_size, 1, self.training, "training")
        for name in ("htp_m", "refit_m", "nonzeros"):
            checks.integer(name, getattr(self, name), 1, self.measurements, "measurements")


@dataclass(frozen=True)
class Recovery:
    """The matrix of a size and a seed, and what is drawn with it."""

    protocol: Protocol
    p: int
    seed: int

    @property
    def matrix(self) -> Tensor:
        """[measurements, p], columns of norm 1."""
        shape = self.protocol.measurements, self.p
        return normalize(torch.randn(shape, generator=self._generator(_MATRIX)), dim=0)

    def test(self) -> tuple[Tensor, Tensor]:
        """Measurements [N, n] and signals [N, p]."""
        return self._draw(self.protocol.test, _TEST)

    def calibration(self) -> tuple[Tensor, Tensor]:
        return self._draw(self.protocol.calibration, _CALIBRATION)

    def training(self, epoch: int) -> tuple[Tensor, Tensor]:
        return self._draw(self.protocol.training, _TRAINING + epoch)

    def _draw(self, rows: int, stream: int) -> tuple[Tensor, Tensor]:
        generator, protocol = self._generator(stream), self.protocol
        on = torch.rand(rows, self.p, generator=generator) < protocol.nonzeros / self.p
        a = torch.randn(rows, self.p, generator=generator) * on
        y = a @ self.matrix.T
        power = protocol.noise * y.square().mean(1, keepdim=True)
        return y + power.sqrt() * torch.randn(y.shape, generator=generator), a

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(_STREAMS * self.seed + stream)


PROTOCOLS = {
    "nmse": Protocol(),
    "nmse20": Protocol(noise=1e-2, refit_sigma=0.4),
    # No signal of 10,000 has as many nonzeros: without noise all can be found.
    "nmse-noiseless": Protocol(noise=0.0, refit_m=90),
}
