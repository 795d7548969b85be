"""Tables 4 and 5, cell by cell, into a folder that can be resumed.

run.json               the protocol of each table
cells/table*-*.json    one method, code size and seed: scores, confusion matrix, seconds, machine
cells/table*-*.npz     what else its figures are drawn from, see :func:`arrays`
classification.json    all of it; classification.csv, classification.md, report.html: drawn from it
figures/table*.svg     those of the report

One cell is computed from its seed alone, so a run can be interrupted anywhere between two cells.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._optional import require
from ...solvers import learn_dictionary
from .. import record
from ..scores import confusion, scores
from . import systems
from .data import Labelled, labelled
from .protocol import PROTOCOLS, Protocol
from .systems import DEEP_L0, DEEP_M, METHODS, SPARSITIES, TUNED_LISTA

RESULTS = "classification.json"


class Problems:
    """The dictionaries of one table and seed, made when a cell asks for them."""

    def __init__(self, protocol: Protocol, seed: int, progress: bool) -> None:
        self.protocol, self.seed, self.progress = protocol, seed, progress
        self._dictionaries: dict[tuple[Any, ...], Tensor] = {}

    def dictionary(self, x: Tensor, p: int, method: str) -> Tensor:
        """D [n, p] that ``method`` starts from."""
        protocol = self.protocol
        sparsity = systems.sparsity(method, protocol)
        key = (p, *sparsity.items())
        if key not in self._dictionaries:
            self._dictionaries[key] = learn_dictionary(
                x,
                p,
                **sparsity,
                epochs=protocol.dictionary_epochs,
                batch_size=min(256, len(x)),
                lr=protocol.dictionary_lr,
                seed=self.seed,
                progress=self.progress,
            ).D
        return self._dictionaries[key]


def cell(table: str, method: str, p: int, problems: Problems) -> dict[str, Any]:
    """One method trained and scored; ``arrays`` of the result is no JSON.

    Raises:
        RuntimeError: training diverged, or its loss is not below that of a guess.
    """
    protocol, seed = problems.protocol, problems.seed
    # Read anew: the moves of one training are not the next one's start.
    data = labelled(protocol, seed)
    start = time.perf_counter()
    D = problems.dictionary(data.x, p, method)
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


def path_of(out: Path, table: str, method: str, p: int, seed: int) -> Path:
    """The JSON of a cell; its arrays stand beside it."""
    return out / "cells" / f"{table}-{METHODS.index(method)}-p{p}-seed{seed}.json"


def check(tables: Sequence[str], sizes: Sequence[int], seeds: Sequence[int]) -> None:
    """Everything that can be wrong with the arguments, before any work."""
    for name in tables:
        if name not in PROTOCOLS:
            raise ValueError(f"tables must be among {', '.join(PROTOCOLS)}, got {name!r}")
    for name, values in (("tables", tables), ("sizes", sizes), ("seeds", seeds)):
        if not values:
            raise ValueError(f"{name} must not be empty")
    for p in sizes:
        if p < max(SPARSITIES):
            raise ValueError(f"p must be at least M = {max(SPARSITIES)}, got {p}")


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
    for module in ("matplotlib", "pandas", "tabulate", *(("tqdm",) if progress else ())):
        require(module, "deepl0 reproduce")
    record.claim(out / "run.json", protocols)
    cells = []
    for table, protocol in protocols.items():
        for seed in seeds:
            problems = Problems(protocol, seed, progress)
            for p in sizes:
                for method in METHODS:
                    path = path_of(out, table, method, p, seed)
                    if not path.exists():
                        found = cell(table, method, p, problems)
                        record.write_arrays(path.with_suffix(".npz"), found.pop("arrays"))
                        record.write_json(path, found)
                    cells.append(json.loads(path.read_text()))
    results = {
        "tables": list(protocols),
        "protocols": {name: asdict(protocol) for name, protocol in protocols.items()},
        "sizes": list(sizes),
        "seeds": list(seeds),
        "cells": cells,
        "claims": claims(list(protocols), cells, sizes),
    }
    record.write_json(out / RESULTS, results)
    return results


def read(out: Path) -> dict[str, Any]:
    """The results of a run; errors are those of :func:`record.read_json`."""
    keys = ("tables", "protocols", "sizes", "seeds", "cells", "claims")
    return record.read_json(out / RESULTS, keys, "deepl0 reproduce")


def values(cells: list[dict[str, Any]], table: str, method: str, p: int, key: str) -> list[float]:
    """The figure ``key`` of each seed, in the order of the seeds."""
    found = [c for c in cells if (c["table"], c["method"], c["p"]) == (table, method, p)]
    return [c[key] for c in sorted(found, key=lambda c: c["seed"])]


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
