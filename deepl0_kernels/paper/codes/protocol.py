"""Every choice of an experiment in one place: data, problems, dictionary, training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...datasets import mnist, mnist_subset, preprocess, random_shifts
from ...nn.unrolled import INSIDE
from ...solvers import DictionaryResult, learn_dictionary
from ...training import L0Regularized, MSparse, Problem, fit_to_codes
from ..settings import Settings, count, number, one_of

# "Iterative k": after how many iterations the solver is stopped.
ITERATIONS = (2, 5, 10)
# All of MNIST from $DEEPL0_DATA, or the part that the package ships.
DATA = ("mnist", "subset")


@dataclass(frozen=True)
class Protocol(Settings):
    """The choices; a run stores them beside its results.

    Signals have variance 1, thresholds follow eq. 1 (``theta = sqrt(2 lam mu)``), the loss is the
    squared error a signal, encoders share their weights over the stages (tied) but in the rows that
    say untied. Every network is trained for as many epochs.
    """

    data: str = one_of("mnist", DATA)
    digits: int = count(60_000)
    held_out: int = count(10_000)
    copies: int = count(3)  # of the training digits, all but the first shifted at random
    shift: int = count(1, 0, 27, "the side of a digit - 1")
    min_std: float = number(0.1, above=0)
    m: int = count(32)
    lam: float = number(0.5, above=0)
    m_sparse_l1_lam: float = number(0.1, above=0)
    tol: float = number(1e-5, above=0)
    max_iter: int = count(5_000)
    # "unrolled": under ||D||_2 <= 1 through iterations of the problem itself; "l1" and "mod" have
    # atoms of unit norm, at the problem's l1 penalty and at m.
    dictionary: str = one_of("unrolled", ("unrolled", "l1", "mod"))
    dictionary_epochs: int = count(6)
    dictionary_lr: float = number(1e-2, above=0)
    num_stages: int = count(2)
    # Thresholds of all stages but the last of the deep encoder of num_stages.
    inside: str = one_of("hard", INSIDE)
    # Depth, tying and the baseline's readout are varied up to this p.
    further_p: int = count(128, least=0)
    epochs: int = count(10)
    batch_size: int = count(256)
    m_sparse_lr: float = number(1e-2, above=0)
    l0_lr: float = number(3e-3, above=0)
    lista_lr: float = number(1e-3, above=0)
    baseline_lr: float = number(1e-3, above=0)
    clip: float = number(1.0, above=0)
    sigma_factor: float = number(0.1, above=0, most=1)
    sigma_floor: float = number(0.05, above=0, most=0.2)  # the schedule starts at 0.2

    def quickened(self) -> Protocol:
        """A run of a few minutes that exercises everything; its errors say little."""
        return replace(self, data="subset", digits=6_000, held_out=1_000, copies=1, epochs=8)

    def problem(self, key: str) -> Problem:
        """The problem called ``"m_sparse"`` or ``"l0"``."""
        options: dict[str, Any] = dict(tol=self.tol, max_iter=self.max_iter)
        if key == MSparse.key:
            return MSparse(m=self.m, l1_lam=self.m_sparse_l1_lam, **options)
        return L0Regularized(lam=self.lam, **options)

    def encoder(self, problem: Problem, D: Tensor) -> nn.Module:
        """The deep encoder of num_stages that starts from D."""
        tied = self.inside == "hard"
        return problem.encoder(D, self.num_stages, tied, self.inside)

    def encoder_lr(self, problem: Problem) -> float:
        return self.m_sparse_lr if isinstance(problem, MSparse) else self.l0_lr

    def learn(
        self,
        problem: Problem,
        x: Tensor,
        p: int,
        seed: int,
        progress: bool,
        checkpoint: Path | None = None,
    ) -> DictionaryResult:
        """The dictionary of p atoms; goes on from ``checkpoint`` if that exists."""
        sparsity: dict[str, Any] = problem.sparsity
        if self.dictionary != "unrolled":
            sparsity = {"lam": problem.l1_penalty} if self.dictionary == "l1" else {"m": self.m}
        return learn_dictionary(
            x,
            p,
            method=self.dictionary,
            **sparsity,
            epochs=self.dictionary_epochs,
            batch_size=self.batch_size,
            lr=self.dictionary_lr,
            seed=seed,
            checkpoint=checkpoint,
            progress=progress,
        )

    def fit(
        self,
        network: nn.Module,
        x: Tensor,
        codes: Tensor,
        lr: float,
        seed: int,
        progress: bool,
        description: str,
    ) -> list[float]:
        """Train ``network`` to predict ``codes``; the loss of each epoch."""
        return fit_to_codes(
            network,
            x,
            codes,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=lr,
            clip=self.clip,
            seed=seed,
            sigma_factor=self.sigma_factor,
            sigma_floor=self.sigma_floor,
            progress=progress,
            description=description,
        )


@dataclass(frozen=True)
class Signals:
    """Training and test signals [N, n] of mean 0 and variance 1, and what was left out."""

    train: Tensor
    test: Tensor
    discarded_train: int
    discarded_test: int

    def counts(self) -> dict[str, int]:
        return {
            "training_signals": len(self.train),
            "held_out_signals": len(self.test),
            "discarded_training": self.discarded_train,
            "discarded_held_out": self.discarded_test,
        }


def signals(protocol: Protocol, seed: int) -> Signals:
    """The data set of the protocol; ``seed`` moves the shifted copies."""
    digits = mnist() if protocol.data == "mnist" else mnist_subset()
    images = digits.x[: protocol.digits]
    train, discarded = [], 0
    for copy in range(protocol.copies):
        moved = random_shifts(images, protocol.shift, seed * 1000 + copy) if copy else images
        patches = preprocess(moved, min_std=protocol.min_std)
        train.append(patches.x)
        discarded += patches.discarded
    test = preprocess(digits.x_test[: protocol.held_out], min_std=protocol.min_std)
    return Signals(torch.cat(train), test.x, discarded, test.discarded)


def describe(learned: DictionaryResult) -> dict[str, Any]:
    """What a record says of a dictionary."""
    return {
        "loss": list(learned.loss),
        "squared_norm": learned.squared_norm,
        "coherence": learned.coherence,
        "usage": [learned.usage.min().item(), learned.usage.max().item()],
        "dead_atoms": learned.dead_atoms,
        "replaced": learned.replaced,
        "atom_norms": list(learned.atom_norms),
    }
