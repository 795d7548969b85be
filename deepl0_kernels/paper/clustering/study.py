"""Tables 6 and 7: encoders and their rivals as clusterers of COIL-20 and CMU PIE.

A cell holds clusters, scores, seconds and the machine. No label is read before a system has
assigned its clusters.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..._optional import require
from ..._report import record
from ..._report.drawing import Drawn, save, sheet
from ...ops import checks
from ..claims import judged
from ..deep import DEEP_L0, DEEP_M, SPARSITIES, sparsity
from ..scores import clustering
from ..study import Cell, Job, Study, Table, falling, values
from . import data, systems
from .protocol import PROTOCOLS, Protocol
from .systems import JOINT, K_MEANS, LEARNED, METHODS, SOFT_MAX, TAGNET

# Whose features the report draws, of the first seed.
EMBEDDED = (K_MEANS, TAGNET, DEEP_L0, DEEP_M.format(10))
# Percentage points of error within which an encoder is called close to a rival.
CLOSE = 1.0


class Clustering(Study):
    name = "clustering"
    text_file = "clustering.md"
    title = "Deep l0 encoders as clusterers"
    # Of the joint rival the paper does not name the loss.
    tables: ClassVar = {
        "table6": Table(
            "Clustering of COIL-20",
            PROTOCOLS["table6"],
            {
                JOINT: (17.75, 17.14, 17.15),
                TAGNET: (14.47, 14.17, 14.08),
                DEEP_L0: (14.52, 14.27, 14.06),
                DEEP_M.format(10): (14.59, 14.25, 14.03),
            },
        ),
        "table7": Table(
            "Clustering of CMU PIE, pose 27",
            PROTOCOLS["table7"],
            {
                JOINT: (17.50, 17.26, 17.20),
                TAGNET: (16.14, 15.58, 15.09),
                DEEP_L0: (16.08, 15.72, 15.41),
                DEEP_M.format(10): (16.77, 16.46, 16.02),
            },
        ),
    }
    methods = METHODS
    scores: ClassVar = {
        "nmi": 4, "ari": 4, "clusters": 1, "start_error": 2, "nonzeros": 1, "dead_units": 1
    }  # fmt: skip
    columns = ("table", "method", "p", "seed", "error", *scores)
    needs = (*Study.needs, "sklearn")

    def signals(self, protocol: Protocol, seed: int) -> Tensor:
        return data.signals(protocol)

    def fits(self, protocol: Protocol, x: Tensor) -> None:
        clusters = data.CLASSES[protocol.data]
        if len(x) < clusters:
            raise ValueError(
                f"every must leave an image a cluster, {clusters} at least, "
                f"got {protocol.every}, which leaves {len(x)}"
            )
        checks.integer("neighbours", protocol.neighbours, 1, len(x) - 1, "N - 1")
        checks.integer("whiten", protocol.whiten, 0, len(x) - 1, "N - 1")

    def cell(self, part: str, method: str, p: int, job: Job) -> Cell:
        x = data.signals(job.protocol)
        found, seconds = assign(part, method, p, x, job)
        embedding = None
        if method in EMBEDDED and job.seed == 0:
            embedding = t_sne(found.features).tolist()
        used = found.features != 0
        learned = method in LEARNED
        # From here on, and nowhere before, classes are known.
        y = data.classes(job.protocol)
        start = clustering(y, found.start)["error"] if found.start is not None else None
        return {
            "table": part,
            "method": method,
            "p": p,
            "seed": job.seed,
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

    def claims(self, tables: Sequence[str], cells: list[Cell], sizes: Sequence[int]) -> list[Cell]:
        found = []
        for table in tables:
            rows = self.rows(cells, table)
            for p in sizes:
                sparse = (DEEP_M.format(m) for m in SPARSITIES)
                best = min(sparse, key=lambda method: sum(values(rows, method, p)))
                tagnet, joint = values(rows, TAGNET, p), values(rows, SOFT_MAX, p)
                for encoder in (DEEP_L0, best):
                    ours, text = values(rows, encoder, p), f"p = {p}: {encoder} below"
                    near = f"{text} {TAGNET} or within {CLOSE:g} point of it"
                    found.append(judged(table, near, ours, tagnet, CLOSE))
                    found.append(judged(table, f"{text} {SOFT_MAX}", ours, joint))
            found += falling(table, LEARNED, rows, sizes)
        return found

    def figures(self, results: dict[str, Any], table: str, out: Path) -> Drawn:
        """t-SNE of what was clustered at the largest code size, coloured by class.

        Empty without a first seed.
        """
        p = max(results["sizes"])
        rows = self.rows(results["cells"], table)
        shown = {cell["method"]: cell for cell in rows if cell["p"] == p and cell["embedding"]}
        if not shown:
            return Drawn({})
        figure, panels = sheet(2, 2, (4.5, 4.5))
        for axes, method in zip(panels, EMBEDDED, strict=True):
            cell = shown[method]
            axes.scatter(
                *zip(*cell["embedding"], strict=True),
                c=cell["classes"],
                cmap="tab20",
                s=4,
                lw=0,
                rasterized=True,
            )
            axes.set_title(f"{method}: error {cell['error']:.1f} %", fontsize=9)
            axes.set(xticks=[], yticks=[])
        title = f"{self.tables[table].title}, p = {p}, seed 0: t-SNE, a colour a class"
        figure.suptitle(title, fontsize=10)
        return Drawn(save(figure, f"{table}-embedding", ("svg",), "figures/"))


def assign(
    table: str, method: str, p: int, x: Tensor, job: Job
) -> tuple[systems.Assigned, dict[str, float]]:
    """The clusters of signals x, and the seconds of dictionary and clustering."""
    protocol, seed = job.protocol, job.seed
    clusters = data.CLASSES[protocol.data]
    start = time.perf_counter()
    torch.manual_seed(seed)
    if method not in LEARNED:
        simple = systems.k_means if method == K_MEANS else systems.spectral
        labels = simple(x, clusters, protocol, seed)
        seconds = {"dictionary": 0.0, "clustering": time.perf_counter() - start}
        return systems.Assigned(labels, None, x, []), seconds
    D = job.dictionary(x, p, **sparsity(method, protocol))
    learned = time.perf_counter()
    description = f"{table}, {method}, p = {p}, seed {seed}"
    # The dictionary consumed random numbers, unless it was there already.
    torch.manual_seed(seed)
    found = systems.fit(method, protocol, D, x, clusters, seed, job.progress, description)
    return found, {"dictionary": learned - start, "clustering": time.perf_counter() - learned}


def t_sne(features: Tensor) -> Tensor:
    """t-SNE [N, 2] of features [N, .], to hundredths; one point if they are all the same."""
    manifold = require("sklearn.manifold", "the embedding", extra="sklearn")
    if (features == features[0]).all():
        return torch.zeros(len(features), 2)
    tsne = manifold.TSNE(init="pca", random_state=0)
    return torch.from_numpy(tsne.fit_transform(features.numpy()).round(2))
