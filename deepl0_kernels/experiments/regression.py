"""Tables 1 to 3: how well encoders and truncated iterations predict optimal codes.

One cell is a problem, a code size p and a seed: its dictionary, the optimal codes of all signals,
every row of the table, and the row's errors on the test set. Protocol: :class:`Protocol`.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..datasets import mnist, mnist_subset, preprocess, random_shifts
from ..nn import BaselineEncoder
from ..solvers.step import safe_step
from . import record
from .metrics import prediction_error, reconstruction_error, support_error
from .problems import L0Regularized, MSparse, Problem
from .training import fit_to_codes

ITERATIONS = (2, 5, 10)


@dataclass(frozen=True)
class Protocol:
    """Every choice of a run; stored beside its tables.

    The dictionary is learned under ``||D||_2 <= 1`` through unrolled iterations, signals have
    variance 1, thresholds follow eq. 1 (``theta = sqrt(2 lam mu)``), the loss is the squared error
    a signal, encoders share their weights over the stages (tied) but in the rows that say untied.
    """

    data: str = "mnist"  # all of MNIST from $DEEPL0_DATA; or "subset", which the package ships
    digits: int = 60_000
    held_out: int = 10_000
    copies: int = 3  # of the training digits, all but the first shifted at random
    shift: int = 1
    min_std: float = 0.1
    m: int = 32
    lam: float = 0.5
    m_sparse_l1_lam: float = 0.1
    tol: float = 1e-5
    max_iter: int = 5_000
    dictionary_epochs: int = 6
    dictionary_lr: float = 1e-2
    num_stages: int = 2
    epochs: int = 30
    batch_size: int = 256
    m_sparse_lr: float = 1e-2
    l0_lr: float = 3e-3
    lista_lr: float = 1e-3
    baseline_lr: float = 1e-3
    clip: float = 1.0
    sigma_factor: float = 0.1
    sigma_floor: float = 0.05

    def quickened(self) -> Protocol:
        """A run of a few minutes that exercises everything; its errors say little."""
        return replace(
            self,
            data="subset",
            digits=6_000,
            held_out=1_000,
            copies=1,
            dictionary_epochs=6,
            epochs=8,
        )

    def problem(self, key: str) -> Problem:
        options: dict[str, Any] = dict(tol=self.tol, max_iter=self.max_iter)
        if key == MSparse.key:
            return MSparse(self.m, self.m_sparse_l1_lam, **options)
        return L0Regularized(self.lam, **options)


@dataclass(frozen=True)
class Signals:
    """Training and test signals [N, n] of mean 0 and variance 1, and what was left out."""

    train: Tensor
    test: Tensor
    discarded_train: int
    discarded_test: int


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


@dataclass(frozen=True)
class Row:
    """One method: errors on the test set, and the training error where there was training."""

    method: str
    prediction_error: float  # percent
    support_error: float  # mismatched positions per code
    reconstruction_error: float  # percent
    training_error: float | None = None  # percent
    seconds: float = 0.0  # of training


def cell(
    protocol: Protocol, key: str, p: int, seed: int, data: Signals, folder: Path, progress: bool
) -> dict[str, Any]:
    """All rows of one problem, code size and seed."""
    problem = protocol.problem(key)
    m_sparse = key == MSparse.key
    clock = _Clock()
    learned = problem.learn(
        data.train,
        p,
        epochs=protocol.dictionary_epochs,
        batch_size=protocol.batch_size,
        lr=protocol.dictionary_lr,
        seed=seed,
        progress=progress,
    )
    D = learned.D
    clock.lap("dictionary")
    targets, _ = optimal_codes(problem, data.train, D, folder)
    best, course = optimal_codes(problem, data.test, D, folder)
    clock.lap("optimal_codes")
    mu = safe_step(D)
    rows: list[Row] = []

    def add(name: str, code: Tensor, **more: Any) -> None:
        rows.append(
            Row(
                name,
                prediction_error(best, code),
                support_error(best, code),
                reconstruction_error(data.test, D, code),
                **more,
            )
        )

    l1 = problem.l1(data.test, D)
    for k in ITERATIONS:
        add(f"Iterative-{k} from zero", problem.iterate(data.test, D, k, step=mu))
    for k in ITERATIONS:
        add(f"Iterative-{k} from l1", problem.iterate(data.test, D, k, l1, step=mu))
    for k in ITERATIONS:
        add(f"NIHT-{k} from zero", problem.iterate(data.test, D, k, step="normalized"))
    clock.lap("iterations")

    def train(name: str, network: nn.Module, lr: float) -> None:
        start = time.perf_counter()
        torch.manual_seed(seed)
        losses = fit_to_codes(
            network,
            data.train,
            targets,
            epochs=protocol.epochs,
            batch_size=protocol.batch_size,
            lr=lr,
            clip=protocol.clip,
            seed=seed,
            sigma_factor=protocol.sigma_factor,
            sigma_floor=protocol.sigma_floor,
            progress=progress,
            description=f"{problem.name}, p = {p}, seed {seed}: {name}",
        )
        seconds = time.perf_counter() - start
        some = slice(0, len(data.test))
        with torch.no_grad():
            training_error = prediction_error(targets[some], network(data.train[some]))
            add(name, network(data.test), training_error=training_error, seconds=seconds)
        if name == DEEP.format(k=protocol.num_stages):
            _save(folder / f"{key}-p{p}-seed{seed}.pt", D, network)
        if not losses[-1] < losses[0]:
            raise RuntimeError(f"{name} did not learn: loss {losses[0]:.4g} to {losses[-1]:.4g}")

    n = data.train.shape[1]
    deep_lr = protocol.m_sparse_lr if m_sparse else protocol.l0_lr
    for name, network, lr in _networks(protocol, problem, D, n, deep_lr):
        torch.manual_seed(seed)
        train(name, network(), lr)
    clock.lap("training")
    return {
        "problem": key,
        "p": p,
        "seed": seed,
        "rows": [asdict(row) for row in rows],
        "optimal": course,
        "dictionary": {
            "loss": list(learned.loss),
            "squared_norm": learned.squared_norm,
            "coherence": learned.coherence,
            "dead_atoms": learned.dead_atoms,
            "atom_norms": list(learned.atom_norms),
        },
        "signals": {
            "train": len(data.train),
            "test": len(data.test),
            "discarded_train": data.discarded_train,
            "discarded_test": data.discarded_test,
        },
        "seconds": clock.laps,
    }


BASELINE = "Baseline encoder"
DEEP = "Deep encoder, K = {k}"


def _networks(
    protocol: Protocol, problem: Problem, D: Tensor, n: int, lr: float
) -> list[tuple[str, Callable[[], nn.Module], float]]:
    p, K = D.shape[1], protocol.num_stages
    rows: list[tuple[str, Callable[[], nn.Module], float]] = [
        (BASELINE, lambda: BaselineEncoder(n, p), protocol.baseline_lr),
        (
            f"{BASELINE} with linear readout",
            lambda: BaselineEncoder(n, p, readout=True),
            protocol.baseline_lr,
        ),
        (f"LISTA, K = {K}", lambda: problem.lista(D, K), protocol.lista_lr),
        (DEEP.format(k=K), lambda: problem.encoder(D, K), lr),
    ]
    # One S serves K = 2; untied, only the thresholds of the stages differ.
    untied = (K, K + 1, K + 2) if problem.key == L0Regularized.key or K > 2 else (K + 1, K + 2)
    further = [(k, True) for k in (K + 1, K + 2)] + [(k, False) for k in untied]
    for k, tied in further:
        name = DEEP.format(k=k) + ("" if tied else ", untied")
        rows.append((name, partial(problem.encoder, D, k, tied), lr))
    return rows


def optimal_codes(
    problem: Problem, x: Tensor, D: Tensor, folder: Path
) -> tuple[Tensor, dict[str, float]]:
    """Optimal codes of x, dense, from the cache in ``folder`` or computed and stored there.

    The name of the file is a hash of everything that the codes depend on.
    """
    content = hashlib.sha256(json.dumps(asdict(problem), sort_keys=True).encode())
    for t in (x, D):
        content.update(repr(tuple(t.shape)).encode())
        content.update(t.contiguous().numpy().tobytes())
    path = folder / "cache" / f"{problem.key}-{content.hexdigest()[:24]}.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        return saved["code"].to_dense(), saved["course"]
    start = time.perf_counter()
    found = problem.optimal(x, D)
    code = found.dense
    course = {
        "seconds": time.perf_counter() - start,
        "nonzeros": (code != 0).sum(1).double().mean().item(),
        "converged": found.converged.double().mean().item(),
        "mean_iterations": found.iterations.double().mean().item(),
        "objective": found.objective[-1].double().mean().item(),
        "reconstruction_error": reconstruction_error(x, D, code),
    }
    buffer = io.BytesIO()
    torch.save({"code": code.to_sparse(), "course": course}, buffer)
    record.write_atomically(path, buffer.getvalue())
    return code, course


def _save(path: Path, D: Tensor, network: nn.Module) -> None:
    buffer = io.BytesIO()
    torch.save({"D": D, "encoder": network.state_dict()}, buffer)
    record.write_atomically(path, buffer.getvalue())


class _Clock:
    """Seconds of the parts of a run."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
