"""Tables 4 and 5, cell by cell: scores, confusion matrix, seconds, machine.

``classification.json`` holds all of a run (see :mod:`..grid`); ``classification.csv``,
``classification.md``, ``figures/table*.svg`` and ``report.html`` are drawn from it, figures also
from what stands beside each cell in ``cells/table*-*.npz`` (see :func:`arrays`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import grid, record
from ..claims import judged
from ..grid import Problems, values
from ..scores import confusion, scores
from . import systems
from .data import Labelled, labelled
from .protocol import PROTOCOLS, Protocol
from .systems import DEEP_L0, DEEP_M, METHODS, SPARSITIES, TUNED_LISTA

RESULTS = "classification.json"


def cell(table: str, method: str, p: int, problems: Problems) -> dict[str, Any]:
    """One method trained and scored; ``arrays`` of the result is no JSON.

    Raises:
        RuntimeError: training diverged, or its loss is not below that of a guess.
    """
    protocol, seed = problems.protocol, problems.seed
    # Read anew: the moves of one training are not the next one's start.
    data = labelled(protocol, seed)
    start = time.perf_counter()
    D = problems.dictionary(data.x, p, **systems.sparsity(method, protocol))
    learned = time.perf_counter()
    torch.manual_seed(seed)
    description = f"{table}, {method}, p = {p}, seed {seed}"
    fitted = systems.fit(method, protocol, D, data, seed, problems.progress, description)
    losses = fitted.losses
    trained = time.perf_counter()
    if not losses[-1] < math.log(data.classes):
        raise RuntimeError(f"{description} learned nothing: loss {losses[-1]:.4g}, as of a guess")
    with torch.no_grad():
        predicted, predicted_test = fitted.predict(data.x), fitted.predict(data.x_test)
        used = fitted.encode(data.x_test) != 0
    matrix = confusion(data.y_test, predicted_test, data.classes)
    training = confusion(data.y, predicted, data.classes)
    found = scores(matrix)
    # A digit without contrast, which is discarded, is not recognised.
    right = found["overall_accuracy"] * len(data.y_test)
    found["error"] = 100 - right / (len(data.y_test) + data.discarded_test)
    return {
        "table": table,
        "method": method,
        "p": p,
        "seed": seed,
        **found,
        "training_error": scores(training)["error"],
        "confusion": matrix.tolist(),
        "nonzeros": used.sum(1).double().mean().item(),
        "dead_units": int((~used.any(0)).sum()),
        "loss": losses,
        "signals": data.counts(),
        "seconds": {"dictionary": learned - start, "training": trained - learned},
        "environment": record.environment(),
        "arrays": arrays(fitted, data, predicted, predicted_test),
    }


def arrays(
    fitted: systems.Fitted, data: Labelled, predicted: Tensor, predicted_test: Tensor
) -> dict[str, Tensor]:
    """What the figures of a cell need beside its scores.

    filters [p, n] float16; nonzeros and dead_units [epochs + 1]: the start, then after each epoch;
    theta and theta_start [p] of an encoder with thresholds; of a scene truth and predicted
    [h, w] uint8, classes from 1, 0 where no signal is, and tested [h, w] bool.
    """
    found = {
        "filters": fitted.filters.half(),
        "nonzeros": torch.tensor(fitted.course.nonzeros),
        "dead_units": torch.tensor(fitted.course.dead_units),
    }
    if fitted.theta is not None and fitted.theta_start is not None:
        found |= {"theta": fitted.theta, "theta_start": fitted.theta_start}
    if place := data.place:
        test = torch.ones_like(data.y_test)
        found |= {
            "truth": place.map(data.y, data.y_test),
            "predicted": place.map(predicted, predicted_test),
            "tested": place.map(torch.zeros_like(data.y), test) == 2,
        }
    return found


def check(tables: Sequence[str], sizes: Sequence[int], seeds: Sequence[int]) -> None:
    """Everything that can be wrong with the arguments, before any work."""
    grid.check(tables, PROTOCOLS, sizes, seeds, max(SPARSITIES))


def run(
    protocols: dict[str, Protocol],
    sizes: Sequence[int],
    seeds: Sequence[int],
    out: Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Compute what ``out`` lacks of the tables that ``protocols`` names. Returns the results.

    Raises:
        ValueError: an unknown table, a size that does not fit, or ``out`` holds a run of another
            protocol.
        FileNotFoundError: a data set is not where the protocol looks for it.
    """
    check(list(protocols), sizes, seeds)
    return grid.run(RESULTS, protocols, METHODS, sizes, seeds, out, progress, cell, claims)


def read(out: Path) -> dict[str, Any]:
    """The results of a run; errors are those of :func:`grid.read`."""
    return grid.read(out / RESULTS)


def claims(
    tables: Sequence[str], cells: list[dict[str, Any]], sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """The orderings that the paper claims, each as :func:`claims.judged` says."""
    found = []

    def errors(table: str, method: str, p: int) -> list[float]:
        return values(cells, table, method, p, "error")

    for table in tables:
        for p in sizes:
            lista, l0 = errors(table, TUNED_LISTA, p), errors(table, DEEP_L0, p)
            best = min((errors(table, DEEP_M.format(m), p) for m in SPARSITIES), key=sum)
            sparse = f"p = {p}: best Deep M-Sparse below"
            found.append(judged(table, f"p = {p}: {DEEP_L0} below {TUNED_LISTA}", l0, lista))
            found.append(judged(table, f"{sparse} {TUNED_LISTA}", best, lista))
            if table == "table5":
                found.append(judged(table, f"{sparse} {DEEP_L0}", best, l0))
        found += grid.falling(table, METHODS, cells, sizes)
    return found
