"""Tables 4 and 5, cell by cell: scores, confusion matrix, seconds, machine.

``classification.json`` holds all of a run (see :mod:`..grid`); ``classification.csv``,
``classification.md`` and ``report.html`` are drawn from it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import grid, record
from ..grid import Problems, values
from ..scores import confusion, scores
from . import systems
from .data import labelled
from .protocol import PROTOCOLS, Protocol
from .systems import DEEP_L0, DEEP_M, METHODS, SPARSITIES, TUNED_LISTA

RESULTS = "classification.json"


def cell(table: str, method: str, p: int, problems: Problems) -> dict[str, Any]:
    """One method trained and scored.

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
    losses, predict, encode = systems.fit(
        method, protocol, D, data, seed, problems.progress, description
    )
    trained = time.perf_counter()
    if not losses[-1] < math.log(data.classes):
        raise RuntimeError(f"{description} learned nothing: loss {losses[-1]:.4g}, as of a guess")
    with torch.no_grad():
        matrix = confusion(data.y_test, predict(data.x_test), data.classes)
        training = confusion(data.y, predict(data.x), data.classes)
        used = encode(data.x_test) != 0
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
    }


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
    """The orderings that the paper claims: means, and on how many seeds each holds."""
    found = []

    def add(table: str, claim: str, better: list[float], worse: list[float]) -> None:
        found.append(
            {
                "table": table,
                "claim": claim,
                "better": sum(better) / len(better),
                "worse": sum(worse) / len(worse),
                "seeds_holding": sum(b < w for b, w in zip(better, worse, strict=True)),
                "seeds": len(better),
                "holds": sum(better) < sum(worse),
            }
        )

    def errors(method: str, p: int) -> list[float]:
        return values(cells, table, method, p, "error")

    for table in tables:
        for p in sizes:
            lista, l0 = errors(TUNED_LISTA, p), errors(DEEP_L0, p)
            sparse = [errors(DEEP_M.format(m), p) for m in SPARSITIES]
            best = min(sparse, key=sum)
            add(table, f"p = {p}: {DEEP_L0} below {TUNED_LISTA}", l0, lista)
            add(table, f"p = {p}: best Deep M-Sparse below {TUNED_LISTA}", best, lista)
            if table == "table5":
                add(table, f"p = {p}: best Deep M-Sparse below {DEEP_L0}", best, l0)
        low, high = min(sizes), max(sizes)
        if low < high:
            for method in METHODS:
                text = f"{method}: p = {high} below p = {low}"
                add(table, text, errors(method, high), errors(method, low))
    return found
