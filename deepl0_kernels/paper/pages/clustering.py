"""docs/clustering.md, and the choice of a graph without labels.

``--graphs`` judges the graphs below anew (a minute).
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..._files import fill
from ..._optional import progress_bar
from ..._report import record
from ..._report.page import items, markdown
from ...solvers import eigengap, graph_laplacian, knn_affinity
from ..clustering import data, systems
from ..clustering.protocol import PROTOCOLS, STARTS
from ..clustering.study import Clustering
from ..deep import DEEP_L0, DEEP_M, SPARSITIES
from ..rendering import machines
from ..scores import clustering
from ..study import values
from . import DOCS, RECORDS, serve, take

STUDY = Clustering()
RECORD = RECORDS / "clustering"
GRAPHS = RECORD / "graphs.json"
PAGE = DOCS / "clustering.md"

# The graphs that are judged. Of equal eigengaps the first wins: fewest components, then neighbours.
WHITEN, NEIGHBOURS = (0, 8, 16, 32, 64, 128), (3, 4, 5, 7, 10)
BALANCED, CHOSEN = "-balance", "-eigengap"
# What a record's name ends with, and how its run differs from the protocol.
VARIANTS = {"": "pixels", BALANCED: "pixels, balance = 1", CHOSEN: "chosen graph"}
# The systems at the head of the page.
SHORT = {
    systems.SPECTRAL: "spectral",
    systems.SOFT_MAX: "joint, soft-max",
    systems.TAGNET: "TAGnet",
    DEEP_L0: "Deep l0",
    **{DEEP_M.format(m): f"Deep M = {m}" for m in SPARSITIES},
}


def judge_graphs() -> None:
    """The eigengap of every graph into bench/records; then, to show beside it, the error."""
    judged = []
    for table, base in PROTOCOLS.items():
        clusters = data.CLASSES[base.data]
        every = list(itertools.product(WHITEN, NEIGHBOURS))
        shows = sys.stderr.isatty()
        for whiten, neighbours in progress_bar(every, f"graphs of {table}", show=shows):
            protocol = replace(base, whiten=whiten, neighbours=neighbours)
            x = data.signals(protocol)
            gap = eigengap(graph_laplacian(knn_affinity(x, neighbours)), clusters)
            found = systems.spectral(x, clusters, protocol, seed=0)
            error = clustering(data.classes(protocol), found)["error"]
            judged.append(dict(table=table, whiten=whiten, neighbours=neighbours,
                               eigengap=gap, error=error))  # fmt: skip
    record.write_json(GRAPHS, {"graphs": judged, "environment": record.environment()})


def graphs(table: str) -> list[dict[str, Any]]:
    """What is on record of the graphs of a table."""
    return [g for g in record.read_json(GRAPHS)["graphs"] if g["table"] == table]


def chosen(table: str) -> dict[str, int]:
    """The fields of the protocol that give the graph with the largest eigengap."""
    best = max(graphs(table), key=lambda graph: graph["eigengap"])
    return {key: best[key] for key in ("whiten", "neighbours")}


def shown(table: str) -> dict[str, dict[str, Any]]:
    """The records of a table, in the order of the page, and what their runs set."""
    sets: dict[str, dict[str, Any]] = {"": {}, BALANCED: {"balance": 1.0}, CHOSEN: chosen(table)}
    return {
        f"{table}-{start}{variant}": {"start": start, **sets[variant]}
        for variant, start in itertools.product(VARIANTS, STARTS)
    }


def parts() -> dict[str, str]:
    """What stands between the page's comments, from the records."""
    found, cells = {}, []
    for table in PROTOCOLS:
        kept = [STUDY.read(RECORD, name) for name in shown(table)]
        cells += [cell for results in kept for cell in results["cells"]]
        found[f"{table}: short"] = short_table(table, kept)
        found[f"{table}: graphs"] = graphs_table(table)
    return {**found, "machines": items(machines({"cells": cells}))}


def short_table(table: str, kept: Sequence[dict[str, Any]]) -> str:
    """Mean errors at every p: a row a record, a column a system, the paper's below."""
    import pandas

    def line(errors: Sequence[float]) -> str:
        return " / ".join(f"{error:.1f}" for error in errors)

    titles = [f"{text}; {start}" for text, start in itertools.product(VARIANTS.values(), STARTS)]
    rows = {
        title: {
            method: line([statistics.mean(values(results["cells"], method, p))
                          for p in results["sizes"]])
            for method in SHORT
        }
        for title, results in zip(titles, kept, strict=True)
    }  # fmt: skip
    published = STUDY.tables[table].published
    # Of the joint rival the paper does not name the loss.
    found = {method: published.get(method.removesuffix(", soft-max")) for method in SHORT}
    rows["paper"] = {method: line(errors) for method, errors in found.items() if errors}
    frame = pandas.DataFrame(rows).T.fillna("")
    return markdown(frame.rename(columns=SHORT).rename_axis(table))


def graphs_table(table: str) -> str:
    """Eigengap and error of every graph; the one with the largest gap in bold."""
    import pandas

    best = chosen(table)
    cells_of: dict[str, dict[str, str]] = {}
    for graph in graphs(table):
        text = f"{graph['eigengap']:.3f} ({graph['error']:.2f})"
        is_best = all(graph[key] == value for key, value in best.items())
        row = f"{graph['whiten']} components" if graph["whiten"] else "pixels"
        cells_of.setdefault(row, {})[f"{graph['neighbours']} neighbours"] = (
            f"**{text}**" if is_best else text
        )
    return markdown(pandas.DataFrame(cells_of).T)


def main(arguments: Sequence[str]) -> None:
    def taken(run: Path) -> None:
        take(STUDY, run, RECORD, shown, ("labels", "classes", "embedding"))

    serve(arguments, {"--graphs": judge_graphs}, taken, lambda: fill(PAGE, parts()))


if __name__ == "__main__":
    main(sys.argv[1:])
