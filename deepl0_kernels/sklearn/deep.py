"""What the estimators around an encoder share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..nn import DeepL0Encoder, DeepMSparseEncoder
from ..ops import SparseCode, checks
from ..ops.thresholds import GRADS
from .base import SparseEstimator, plain

# Gradients on HELU's ramp are multiplied by 1 / sigma.
_CLIP = 1.0
# Width of the ramp in partial_fit, which knows no epochs: the end of the schedule.
_SIGMA = 0.05


class DeepEstimator(SparseEstimator):
    """An encoder that starts from a dictionary and is trained for a task.

    Args:
        code_size: p; None: 2 n, or what the dictionary has.
        m: nonzeros of a code at most (Deep M-Sparse); None: Deep l0-Regularized with ``lam``.
        lam: of ``1/2 ||x - D a||^2 + lam ||a||_0``, without m.
        num_stages: K. tied: one S and one theta for all stages.
        grad: derivatives of the thresholds, without m: see :func:`deepl0_kernels.helu`.
        dictionary: [p, n] to start from, a row an atom; None: learned in ``fit``.
        dictionary_epochs, epochs, batch_size, lr: of the trainings (Adam, one-cycle rate).
        min_steps: little data are passed over until so many steps are made.
        sparse_output: SciPy CSR in place of dense codes.
        random_state: of everything random.
        positive_code: codes >= 0, and a dictionary that is learned for such.
    """

    def __init_subclass__(cls, **more: Any) -> None:
        """The subclass's docstring says ``{shared}`` where these parameters stand in it."""
        super().__init_subclass__(**more)
        if cls.__doc__ and DeepEstimator.__doc__:
            shared = DeepEstimator.__doc__.partition("Args:\n")[2].strip()
            cls.__doc__ = cls.__doc__.replace("{shared}", shared)

    encoder_: DeepL0Encoder | DeepMSparseEncoder
    _later: ClassVar = {"positive_code": False}

    def __init__(
        self,
        code_size: int | None = None,
        *,
        m: int | None = None,
        lam: float = 0.5,
        num_stages: int = 2,
        tied: bool = True,
        grad: str = "helu",
        dictionary: Any = None,
        dictionary_epochs: int = 6,
        epochs: int = 20,
        batch_size: int = 128,
        lr: float = 3e-3,
        min_steps: int = 300,
        sparse_output: bool = False,
        random_state: Any = None,
        positive_code: bool = False,
    ) -> None:
        self.code_size = code_size
        self.m = m
        self.lam = lam
        self.num_stages = num_stages
        self.tied = tied
        self.grad = grad
        self.dictionary = dictionary
        self.dictionary_epochs = dictionary_epochs
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.min_steps = min_steps
        self.sparse_output = sparse_output
        self.random_state = random_state
        self.positive_code = positive_code

    def _encode(self, x: Tensor) -> Tensor | SparseCode:
        if isinstance(self.encoder_, DeepMSparseEncoder):
            return self.encoder_.encode(x)
        return self.encoder_(x)

    def _shape(self) -> dict[str, Any]:
        names = [
            "code_size",
            "m",
            "num_stages",
            "tied",
            "positive_code",
            *(["lam", "grad"] if self.m is None else []),
        ]
        given = None if self.dictionary is None else "given"
        return {name: plain(getattr(self, name)) for name in names} | {"dictionary": given}

    def _check(self, x: Tensor) -> int:
        p = super()._check(x)
        checks.boolean("positive_code", plain(self.positive_code))
        checks.one_of("grad", self.grad, tuple(GRADS))
        checks.positive("lr", self.lr)
        self._course(len(x), self.epochs, "epochs")
        with torch.device("meta"):
            _fresh_encoder(x.shape[1], p, self._shape())
        return p

    def _start(self, x: Tensor, seed: int) -> tuple[Tensor, DeepL0Encoder | DeepMSparseEncoder]:
        """Dictionary [n, p] of x, and the encoder that starts from it."""
        p, positive = self._check(x), bool(self.positive_code)
        D = self._learn(x, p, seed, positive)
        K, tied = self.num_stages, self.tied
        if self.m is None:
            return D, DeepL0Encoder.from_dictionary(
                D, self.lam, K, tied, grad=self.grad, positive=positive
            )
        return D, DeepMSparseEncoder.from_dictionary(D, self.m, K, tied, positive=positive)

    def _options(self, count: int, seed: int) -> dict[str, Any]:
        """Of the training loop."""
        epochs, batch = self._course(count, self.epochs, "epochs")
        lr = checks.positive("lr", self.lr)
        return dict(epochs=epochs, batch_size=batch, lr=lr, clip=_CLIP, seed=seed)

    def _keep(self, D: Tensor, **fitted: Any) -> None:
        super()._keep(D, **fitted)
        self.__dict__.pop("_optimizer", None)  # that of an earlier partial_fit

    @contextmanager
    def _whole(self, first: bool) -> Iterator[None]:
        """A first pass that does not end leaves the estimator as it was: not fitted."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            if first:
                self.__dict__.clear()
                self.__dict__.update(before)
            raise

    def _check_unchanged(self) -> None:
        """Refuse parameters that ``partial_fit`` would have to change the fitted model for."""
        shape = self._shape()
        for name, was in self._fitted.items():
            now = shape.get(name)
            if was != now:
                break
        else:
            name, was, now = "dictionary", "the first", "another"
            if self.dictionary is None or np.array_equal(
                np.asarray(self.dictionary, self.components_.dtype), self.components_
            ):
                return
        raise ValueError(
            f"{name} was {was!r} when the model was made and is {now!r} now: partial_fit goes on "
            "with the model as it is; set it back, or call fit"
        )

    def _one_pass(self, network: nn.Module, loss: Any, count: int, seed: int) -> float:
        """One epoch with an optimiser that lives on between calls; its mean loss."""
        batch = checks.integer("batch_size", self.batch_size, 1)
        lr = checks.positive("lr", self.lr)
        if not hasattr(self, "_optimizer"):
            self._optimizer = torch.optim.Adam(network.parameters(), lr=lr)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        if isinstance(self.encoder_, DeepL0Encoder):
            self.encoder_.sigma = _SIGMA
        network.train()
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(count, generator=generator)
        total = 0.0
        for rows in order.split(batch):
            value = loss(rows)
            self._optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
            self._optimizer.step()
            total += value.item() * len(rows)
        network.eval()
        return total / count

    _module_names = ("encoder_",)

    def _fresh_modules(self) -> dict[str, nn.Module]:
        p, n = self.components_.shape
        dtype = torch.from_numpy(self.components_).dtype
        return {"encoder_": _fresh_encoder(n, p, self._fitted).to(dtype)}


def _fresh_encoder(n: int, p: int, shape: dict[str, Any]) -> DeepL0Encoder | DeepMSparseEncoder:
    """The encoder of the parameters that ``_shape`` gives, its values open."""
    K, tied, positive = shape["num_stages"], shape["tied"], shape["positive_code"]
    if shape["m"] is None:
        return DeepL0Encoder(n, p, K, tied, grad=shape["grad"], positive=positive)
    return DeepMSparseEncoder(n, p, shape["m"], K, tied, positive=positive)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A generator that is not the caller's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
