"""Tables 6 and 7, cell by cell: clusters, scores, seconds, machine.

``clustering.json`` holds all of a run (see :mod:`..grid`); ``clustering.csv``, ``clustering.md``,
``figures/*.svg`` and ``report.html`` are drawn from it. No label is read before a system has
assigned its clusters.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._optional import require
from .. import grid, record
from ..claims import judged
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


def t_sne(features: Tensor) -> Tensor:
    """t-SNE [N, 2] of features [N, .], to hundredths; one point if they are all the same."""
    manifold = require("sklearn.manifold", "the embedding", extra="sklearn")
    if (features == features[0]).all():
        return torch.zeros(len(features), 2)
    tsne = manifold.TSNE(init="pca", random_state=0)
    return torch.from_numpy(tsne.fit_transform(features.numpy()).round(2))


def cell(table: str, method: str, p: int, problems: Problems) -> dict[str, Any]:
    """One method, trained and scored.

    Raises:
        RuntimeError: training diverged.
    """
    x = signals(problems.protocol)
    found, seconds = assign(table, method, p, x, problems)
    embedding = None
    if method in EMBEDDED and problems.seed == 0:
        embedding = t_sne(found.features).tolist()
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


def claims(
    tables: Sequence[str], cells: list[dict[str, Any]], sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """What the paper claims, each as :func:`claims.judged` says."""
    found = []

    def errors(table: str, method: str, p: int) -> list[float]:
        return values(cells, table, method, p, "error")

    for table in tables:
        for p in sizes:
            sparse = (DEEP_M.format(m) for m in SPARSITIES)
            best = min(sparse, key=lambda method: sum(errors(table, method, p)))
            tagnet, joint = errors(table, TAGNET, p), errors(table, SOFT_MAX, p)
            for encoder in (DEEP_L0, best):
                ours, text = errors(table, encoder, p), f"p = {p}: {encoder} below"
                near = f"{text} {TAGNET} or within {CLOSE:g} point of it"
                found.append(judged(table, near, ours, tagnet, CLOSE))
                found.append(judged(table, f"{text} {SOFT_MAX}", ours, joint))
        found += grid.falling(table, LEARNED, cells, sizes)
    return found
