"""Tables 6 and 7, cell by cell: clusters, scores, seconds, machine.

``clustering.json`` holds all of a run (see :mod:`..grid`); ``clustering.csv``, ``clustering.md``,
``figures/*.svg`` and ``report.html`` are drawn from it. No label is read before a system has
assigned its clusters.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._optional import require
from .. import grid, record
from ..grid import Problems, values
from ..scores import clustering
from . import systems
from .data import CLASSES, classes, signals
from .protocol import PROTOCOLS, Protocol
from .systems import DEEP_L0, DEEP_M, K_MEANS, LEARNED, METHODS, SOFT_MAX, SPARSITIES, TAGNET

RESULTS = "clustering.json"
# Whose features the report draws, of the first seed.
EMBEDDED = (K_MEANS, TAGNET, DEEP_L0, DEEP_M.format(10))
# Percentage points of error within which an encoder is called close to a rival.
CLOSE = 1.0


def assign(
    table: str, method: str, p: int, x: Tensor, problems: Problems
) -> tuple[systems.Assigned, dict[str, float]]:
    """The clusters of signals x, and the seconds of dictionary and clustering."""
    protocol, seed = problems.protocol, problems.seed
    clusters = CLASSES[protocol.data]
    start = time.perf_counter()
    torch.manual_seed(seed)
    if method not in LEARNED:
        simple = systems.k_means if method == K_MEANS else systems.spectral
        labels = simple(x, clusters, protocol, seed)
        seconds = {"dictionary": 0.0, "clustering": time.perf_counter() - start}
        return systems.Assigned(labels, None, x, []), seconds
    D = problems.dictionary(x, p, **systems.sparsity(method, protocol))
    learned = time.perf_counter()
    description = f"{table}, {method}, p = {p}, seed {seed}"
    # The dictionary consumed random numbers, unless it was there already.
    torch.manual_seed(seed)
    found = systems.fit(method, protocol, D, x, clusters, seed, problems.progress, description)
    return found, {"dictionary": learned - start, "clustering": time.perf_counter() - learned}


def cell(table: str, method: str, p: int, problems: Problems) -> dict[str, Any]:
    """One method, trained and scored.

    Raises:
        RuntimeError: training diverged.
    """
    x = signals(problems.protocol)
    found, seconds = assign(table, method, p, x, problems)
    embedding = None
    if method in EMBEDDED and problems.seed == 0:
        manifold = require("sklearn.manifold", "the embedding", extra="sklearn")
        tsne = manifold.TSNE(init="pca", random_state=0)
        embedding = tsne.fit_transform(found.features.numpy()).round(2).tolist()
    used = found.features != 0
    learned = method in LEARNED
    # From here on, and nowhere before, classes are known.
    y = classes(problems.protocol)
    start = clustering(y, found.start)["error"] if found.start is not None else None
    return {
        "table": table,
        "method": method,
        "p": p,
        "seed": problems.seed,
        **clustering(y, found.labels),
        "start_error": start,
        "nonzeros": used.sum(1).double().mean().item() if learned else None,
        "dead_units": int((~used.any(0)).sum()) if learned else None,
        "loss": found.losses,
        "labels": found.labels.tolist(),
        "classes": y.tolist() if embedding else None,
        "embedding": embedding,
        "seconds": seconds,
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
    require("sklearn", "deepl0 reproduce")
    return grid.run(RESULTS, protocols, METHODS, sizes, seeds, out, progress, cell, claims)


def read(out: Path) -> dict[str, Any]:
    """The results of a run; errors are those of :func:`grid.read`."""
    return grid.read(out / RESULTS)


def significance(first: Sequence[float], second: Sequence[float]) -> float | None:
    """p of the two-sided Wilcoxon signed-rank test over paired seeds; None if none differ.

    Exact without ties of the differences; with fewer than 6 seeds it cannot be below 0.05.
    """
    stats = require("scipy.stats", "the test over seeds", extra="sklearn")
    if all(a == b for a, b in zip(first, second, strict=True)):
        return None
    return float(stats.wilcoxon(first, second).pvalue)


def claims(
    tables: Sequence[str], cells: list[dict[str, Any]], sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """What the paper claims: means, over how many seeds it holds, and the test over seeds."""
    found = []

    def add(table: str, claim: str, better: list[float], worse: list[float], slack: float) -> None:
        found.append(
            {
                "table": table,
                "claim": claim,
                "better": statistics.mean(better),
                "worse": statistics.mean(worse),
                "seeds_holding": sum(b < w + slack for b, w in zip(better, worse, strict=True)),
                "seeds": len(better),
                "significance": significance(better, worse),
                "holds": statistics.mean(better) < statistics.mean(worse) + slack,
            }
        )

    def errors(method: str, p: int) -> list[float]:
        return values(cells, table, method, p, "error")

    for table in tables:
        for p in sizes:
            best = min((DEEP_M.format(m) for m in SPARSITIES), key=lambda m: sum(errors(m, p)))
            for encoder in (DEEP_L0, best):
                text = f"p = {p}: {encoder} below {TAGNET} or within {CLOSE:g} point of it"
                add(table, text, errors(encoder, p), errors(TAGNET, p), CLOSE)
                text = f"p = {p}: {encoder} below {SOFT_MAX}"
                add(table, text, errors(encoder, p), errors(SOFT_MAX, p), 0)
        low, high = min(sizes), max(sizes)
        if low < high:
            for method in LEARNED:
                text = f"{method}: p = {high} below p = {low}"
                add(table, text, errors(method, high), errors(method, low), 0)
    return found
