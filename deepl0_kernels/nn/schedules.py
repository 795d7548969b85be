"""The width of HELU's ramp over a training."""

from __future__ import annotations

from typing import Any

from ..ops import checks
from .unrolled import Ramped

_STATE = ("initial", "factor", "floor", "epoch")


class SigmaSchedule:
    """Sets ``encoder.sigma`` to ``max(initial * factor**epoch, floor)``; :meth:`step` each epoch.

    Args:
        encoder: a :class:`DeepL0Encoder` or :class:`DeepHTPEncoder`; its sigma is set at once.
        initial: width in the first epoch, in (0, 1]. factor: in (0, 1].
        floor: in (0, initial]. The paper lets sigma vanish; the slope 1/sigma on the ramp then
            grows without bound, while fewer and fewer entries lie on it, and training diverges.

    Raises:
        TypeError: the encoder is none that has a sigma.
        ValueError: a number outside its interval.

    Source: Wang, Ling, Huang 2016 (0.2, divided by 10 after each epoch); the floor is ours.

    Example:
        >>> encoder = dk.nn.DeepL0Encoder(16, 32)
        >>> schedule = dk.nn.SigmaSchedule(encoder, initial=0.2, factor=0.5)
        >>> schedule.step()  # after an epoch
        >>> encoder.sigma
        0.1
    """

    def __init__(
        self,
        encoder: Ramped,
        initial: float = 0.2,
        factor: float = 0.1,
        floor: float = 0.05,
    ) -> None:
        if not isinstance(encoder, Ramped):
            raise TypeError(
                f"encoder must be a DeepL0Encoder or a DeepHTPEncoder, got {type(encoder).__name__}"
            )
        self.encoder = encoder
        self._set(initial, factor, floor, 0)

    @property
    def sigma(self) -> float:
        """Width of the current epoch."""
        return max(self.initial * self.factor**self.epoch, self.floor)

    def step(self) -> None:
        """Begin the next epoch."""
        self.epoch += 1
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Numbers alone: what :meth:`load_state_dict` takes."""
        return {key: getattr(self, key) for key in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state, and set the encoder's sigma to it.

        Raises:
            TypeError, ValueError: no dict, or an entry that is missing or out of range; nothing has
                changed then.
        """
        checks.instance("state", state, dict, "a dict")
        if missing := [key for key in _STATE if key not in state]:
            raise ValueError(f"state lacks {', '.join(missing)}; it has {', '.join(state)}")
        self._set(*(state[key] for key in _STATE))

    def _set(self, initial: float, factor: float, floor: float, epoch: int) -> None:
        initial = checks.number("initial", initial)
        factor, floor = checks.number("factor", factor), checks.number("floor", floor)
        for name, value, high in (
            ("initial", initial, 1.0),
            ("factor", factor, 1.0),
            ("floor", floor, initial),
        ):
            if not 0 < value <= high:
                raise ValueError(f"{name} must be in (0, {high}], got {value}")
        self.epoch = checks.integer("epoch", epoch, 0)
        self.initial, self.factor, self.floor = initial, factor, floor
        self._apply()

    def _apply(self) -> None:
        self.encoder.sigma = self.sigma
