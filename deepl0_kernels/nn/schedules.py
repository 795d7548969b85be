"""The width of HELU's ramp over a training."""

from __future__ import annotations

from typing import Any

from .encoders import DeepL0Encoder


class SigmaSchedule:
    """Sets ``encoder.sigma`` to ``max(initial * factor**epoch, floor)``; :meth:`step` each epoch.

    Args:
        encoder: a :class:`DeepL0Encoder`; its sigma is set at once.
        initial: width in the first epoch, in (0, 1]. factor: in (0, 1].
        floor: in (0, initial]. The paper lets sigma vanish; the slope 1/sigma on the ramp then
            grows without bound, while fewer and fewer entries lie on it, and training diverges.
    """

    def __init__(
        self,
        encoder: DeepL0Encoder,
        initial: float = 0.2,
        factor: float = 0.1,
        floor: float = 0.05,
    ) -> None:
        if not isinstance(encoder, DeepL0Encoder):
            raise TypeError(f"encoder must be a DeepL0Encoder, got {type(encoder).__name__}")
        for name, value, high in (
            ("initial", initial, 1.0),
            ("factor", factor, 1.0),
            ("floor", floor, initial),
        ):
            if not 0 < value <= high:
                raise ValueError(f"{name} must be in (0, {high}], got {value}")
        self.encoder = encoder
        self.initial, self.factor, self.floor = float(initial), float(factor), float(floor)
        self.epoch = 0
        self._apply()

    @property
    def sigma(self) -> float:
        """Width of the current epoch."""
        return max(self.initial * self.factor**self.epoch, self.floor)

    def step(self) -> None:
        """Begin the next epoch."""
        self.epoch += 1
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("initial", "factor", "floor", "epoch")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state, and set the encoder's sigma to it."""
        for key in ("initial", "factor", "floor", "epoch"):
            setattr(self, key, state[key])
        self._apply()

    def _apply(self) -> None:
        self.encoder.sigma = self.sigma
