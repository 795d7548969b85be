"""Tables 1 to 3: how well encoders and truncated iterations predict optimal codes.

One cell is a problem, a code size p and a seed: its dictionary, the optimal codes of all signals,
every row of the table, and the row's errors on the test set.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..._report import record
from ...nn import BaselineEncoder
from ...solvers import polish, support_margin
from ...solvers.step import safe_step
from ...training import L0Regularized, Problem
from ...version import __version__
from ..scores import prediction_error, reconstruction_error, support_error
from ..study import Job, unfinished
from .protocol import ITERATIONS, Protocol, describe, signals


@dataclass(frozen=True)
class Row:
    """One method: errors on the test set, and the training error where there was training."""

    method: str
    prediction_error: float  # percent
    support_error: float  # mismatched positions per code
    reconstruction_error: float  # percent
    training_error: float | None = None  # percent
    seconds: float = 0.0  # of training
    # The loss of the first and the last epoch, where there was training.
    losses: tuple[float, float] | None = None
    ridge: float | None = None  # of what was polished


def cell(key: str, p: int, job: Job) -> dict[str, Any]:
    """All rows of one problem, code size and seed.

    What an interruption would lose is kept in ``cache`` beside the cells: dictionary, optimal
    codes, and the rows of the networks that were trained.
    """
    protocol, seed, folder, progress = job.protocol, job.seed, job.folder, job.progress
    data = job.once("signals", lambda: signals(protocol, seed))
    problem = protocol.problem(key)
    name = f"{key}-p{p}-seed{seed}"
    cache = folder / "cache"
    clock = _Clock()
    learned = protocol.learn(
        problem, data.train, p, seed, progress, cache / f"{name}-dictionary.pt"
    )
    D = learned.D
    clock.lap("dictionary")
    targets, _ = optimal_codes(problem, data.train, D, folder)
    best, course = optimal_codes(problem, data.test, D, folder)
    if not (targets.any() and best.any()):
        raise RuntimeError(f"{name}: all optimal codes are zero, nothing is left to predict")
    clock.lap("optimal_codes")
    mu = safe_step(D)

    def row(method: str, code: Tensor, **more: Any) -> dict[str, Any]:
        return asdict(
            Row(
                method,
                prediction_error(best, code),
                support_error(best, code),
                reconstruction_error(data.test, D, code),
                **more,
            )
        )

    rows: list[dict[str, Any]] = []
    l1 = problem.l1(data.test, D)
    for k in ITERATIONS:
        rows.append(row(f"Iterative-{k} from zero", problem.iterate(data.test, D, k, step=mu)))
    for k in ITERATIONS:
        rows.append(row(f"Iterative-{k} from l1", problem.iterate(data.test, D, k, l1, step=mu)))
    for k in ITERATIONS:
        code = problem.iterate(data.test, D, k, step="normalized")
        rows.append(row(f"NIHT-{k} from zero", code))
    clock.lap("iterations")

    def keep(**networks: Any) -> None:
        path = folder / f"{name}.pt"
        before = record.read_tensors(path) if path.exists() else {}
        record.write_tensors(path, before | {"D": D} | networks)

    def train(method: str, network: nn.Module, lr: float) -> dict[str, Any]:
        start = time.perf_counter()
        description = f"{problem.name}, p = {p}, seed {seed}: {method}"
        losses = protocol.fit(network, data.train, targets, lr, seed, progress, description)
        some = slice(0, len(data.test))
        with torch.no_grad():
            training = network(data.train[some])
            code = network(data.test)
        seconds = time.perf_counter() - start
        found = row(
            method, code, training_error=prediction_error(targets[some], training),
            seconds=seconds, losses=(losses[0], losses[-1]),
        )  # fmt: skip
        if method == DEEP.format(k=protocol.num_stages):
            keep(encoder=network.state_dict())
        if method != LISTA_ROW.format(k=protocol.num_stages):
            return {method: found}
        ridge = chosen_ridge(problem, data.train[some], D, training, targets[some])
        polished = polish(data.test, D, code, ridge=ridge, **problem.sparsity)
        keep(lista=network.state_dict(), ridge=ridge)
        better = row(f"{method}, {POLISHED}", polished, ridge=ridge)
        return {method: found, better["method"]: better}

    done = unfinished(folder / f"{name}.json")
    trained = record.read_json(done) if done.exists() else {}
    for method, make, lr in _networks(protocol, problem, D, data.train.shape[1]):
        if method not in trained:
            torch.manual_seed(seed)
            network = make()
            torch.manual_seed(seed)
            trained |= train(method, network, lr)
            record.write_json(done, trained)
    rows += trained.values()
    clock.lap("training")
    margin = support_margin(data.test, D, best, **problem.sparsity)
    median = margin.median().item()
    return {
        "problem": key,
        "p": p,
        "seed": seed,
        "rows": rows,
        "optimal": course
        | {
            "stable_supports": (margin > 0).double().mean().item(),
            # Where all entries are nonzeros no other support can be near.
            "median_margin": median if math.isfinite(median) else None,
        },
        "dictionary": describe(learned),
        "signals": data.counts(),
        "seconds": clock.laps,
        "cpu_seconds": clock.cpu_laps,
        "environment": record.environment(),
    }


BASELINE = "Baseline encoder"
READOUT = f"{BASELINE} with linear readout"
DEEP = "Deep encoder, K = {k}"
LISTA_ROW = "LISTA, K = {k}"
POLISHED = "polished"
# What a prediction counts for, and the training signals that choose it.
_RIDGES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
_CHOOSING = 2_000


def chosen_ridge(problem: Problem, x: Tensor, D: Tensor, code: Tensor, best: Tensor) -> float:
    """The ridge of :func:`deepl0_kernels.solvers.polish` with the least prediction error."""
    x, code, best = (t[:_CHOOSING] for t in (x, code, best))

    def error(ridge: float) -> float:
        return prediction_error(best, polish(x, D, code, ridge=ridge, **problem.sparsity))

    return min(_RIDGES, key=error)


def _networks(
    protocol: Protocol, problem: Problem, D: Tensor, n: int
) -> list[tuple[str, Callable[[], nn.Module], float]]:
    p, K, lr = D.shape[1], protocol.num_stages, protocol.encoder_lr(problem)
    baseline_lr = protocol.baseline_lr
    rows: list[tuple[str, Callable[[], nn.Module], float]] = [
        (BASELINE, lambda: BaselineEncoder(n, p), baseline_lr),
        (LISTA_ROW.format(k=K), lambda: problem.lista(D, K), protocol.lista_lr),
        (DEEP.format(k=K), lambda: protocol.encoder(problem, D), lr),
    ]
    if p > protocol.further_p:
        return rows
    rows.append((READOUT, lambda: BaselineEncoder(n, p, readout=True), baseline_lr))
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
    content = hashlib.sha256(json.dumps([__version__, asdict(problem)], sort_keys=True).encode())
    for t in (x, D):
        content.update(repr(tuple(t.shape)).encode())
        content.update(t.contiguous().numpy().tobytes())
    path = folder / "cache" / f"{problem.key}-{content.hexdigest()[:24]}.pt"
    if path.exists():
        saved = record.read_tensors(path)
        with record.reading(path):
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
    record.write_tensors(path, {"code": code.to_sparse(), "course": course})
    return code, course


class _Clock:
    """Seconds of the parts of a run, by the clock and of the processor.

    The second are those of all threads, and hardly depend on what else the machine does.
    """

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.cpu_laps: dict[str, float] = {}
        self._last = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        now = time.perf_counter(), time.process_time()
        self.laps[name], self.cpu_laps[name] = (b - a for a, b in zip(self._last, now, strict=True))
        self._last = now
