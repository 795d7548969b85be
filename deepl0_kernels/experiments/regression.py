"""Tables 1 to 3: how well encoders and truncated iterations predict optimal codes.

One cell is a problem, a code size p and a seed: its dictionary, the optimal codes of all signals,
every row of the table, and the row's errors on the test set.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._files import write_atomically
from ..nn import BaselineEncoder
from ..solvers.step import safe_step
from ..version import __version__
from .metrics import prediction_error, reconstruction_error, support_error
from .problems import L0Regularized, Problem
from .protocol import ITERATIONS, Protocol, Signals, describe


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
    clock = _Clock()
    learned = protocol.learn(problem, data.train, p, seed, progress)
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
        description = f"{problem.name}, p = {p}, seed {seed}: {name}"
        losses = protocol.fit(network, data.train, targets, lr, seed, progress, description)
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
    for name, network, lr in _networks(protocol, problem, D, n):
        torch.manual_seed(seed)
        train(name, network(), lr)
    clock.lap("training")
    return {
        "problem": key,
        "p": p,
        "seed": seed,
        "rows": [asdict(row) for row in rows],
        "optimal": course,
        "dictionary": describe(learned),
        "signals": data.counts(),
        "seconds": clock.laps,
    }


BASELINE = "Baseline encoder"
DEEP = "Deep encoder, K = {k}"


def _networks(
    protocol: Protocol, problem: Problem, D: Tensor, n: int
) -> list[tuple[str, Callable[[], nn.Module], float]]:
    p, K, lr = D.shape[1], protocol.num_stages, protocol.encoder_lr(problem)
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
    content = hashlib.sha256(json.dumps([__version__, asdict(problem)], sort_keys=True).encode())
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
    write_atomically(path, buffer.getvalue())
    return code, course


def _save(path: Path, D: Tensor, network: nn.Module) -> None:
    buffer = io.BytesIO()
    torch.save({"D": D, "encoder": network.state_dict()}, buffer)
    write_atomically(path, buffer.getvalue())


class _Clock:
    """Seconds of the parts of a run."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
