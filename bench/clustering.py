"""docs/clustering.md from records, and the choice of a graph without labels.

``python -m bench.clustering RUN ...`` takes the record of each run of ``deepl0 reproduce table6
table7`` into bench/records, a file for each table and each of the protocols that :func:`shown`
names. ``--graphs`` judges the graphs below anew (a minute). Both draw; without arguments that is
all.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deepl0_kernels._files import write_atomically
from deepl0_kernels._optional import progress_bar
from deepl0_kernels.paper import grid, record
from deepl0_kernels.paper.claims import verdicts
from deepl0_kernels.paper.clustering import PROTOCOLS, cells, data, systems, tables
from deepl0_kernels.paper.clustering.protocol import STARTS
from deepl0_kernels.paper.scores import clustering
from deepl0_kernels.paper.tables import machines, markdown
from deepl0_kernels.solvers import eigengap, graph_laplacian, knn_affinity

from . import records, reproduction

RECORD = records.FOLDER / "clustering"
GRAPHS = RECORD / "graphs.json"
PAGE = reproduction.DOCS / "clustering.md"

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
    systems.DEEP_L0: "Deep l0",
    **{systems.DEEP_M.format(m): f"Deep M = {m}" for m in systems.SPARSITIES},
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
    return [g for g in json.loads(GRAPHS.read_text())["graphs"] if g["table"] == table]


def chosen(table: str) -> dict[str, int]:
    """The fields of the protocol that give the graph with the largest eigengap."""
    best = max(graphs(table), key=lambda graph: graph["eigengap"])
    return {key: best[key] for key in ("whiten", "neighbours")}


def shown(table: str) -> dict[str, dict[str, Any]]:
    """The records of a table, in the order of the page, and what their runs set."""
    sets = {"": {}, BALANCED: {"balance": 1.0}, CHOSEN: chosen(table)}
    return {
        f"{table}-{start}{variant}": {"start": start, **sets[variant]}
        for variant, start in itertools.product(VARIANTS, STARTS)
    }


def take(run: Path) -> None:
    """The record of a run into bench/records, a file for each table."""
    results = cells.read(run)
    drop = ("labels", "classes", "embedding")
    for table, protocol in results["protocols"].items():
        name = reproduction.name_of(table, PROTOCOLS[table], shown(table), protocol)
        record.write_json(RECORD / f"{name}.json", grid.part(results, table, drop))


def page(text: str) -> str:
    """``text`` with the part of every table and start drawn from its record anew."""
    parts = {}
    for table in PROTOCOLS:
        kept = {name: grid.read(RECORD / f"{name}.json") for name in shown(table)}
        parts |= {name: part(results) for name, results in kept.items()}
        parts[f"{table}-graphs"] = graphs_table(table)
        parts[f"{table}-short"] = short_table(table, kept)
    return reproduction.fill(text, parts)


def short_table(table: str, kept: dict[str, dict[str, Any]]) -> str:
    """Mean errors at every p: a row a record, a column a system, the paper's below."""
    import pandas

    def line(errors: Sequence[float]) -> str:
        return " / ".join(f"{error:.1f}" for error in errors)

    titles = [f"{text}; {start}" for text, start in itertools.product(VARIANTS.values(), STARTS)]
    rows = {
        title: {
            method: line([statistics.mean(grid.values(results["cells"], table, method, p, "error"))
                          for p in results["sizes"]])
            for method in SHORT
        }
        for title, results in zip(titles, kept.values(), strict=True)
    }  # fmt: skip
    published = tables.PUBLISHED[table]
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


def part(results: dict[str, Any]) -> str:
    """The table of one record with its claims, seeds, times and machines."""
    (table,) = results["tables"]
    taken = [sum(cell["seconds"].values()) for cell in results["cells"]]
    seeds = len(results["seeds"])
    return "\n".join(
        [
            markdown(tables.errors(results, table)),
            "",
            "<details><summary>Other scores at the largest p; the paper's claims</summary>",
            "",
            markdown(tables.further(results, table)),
            "",
            *(f"* {line}" for line in verdicts(results)),
            "",
            f"Seeds: {seeds}; the longest cell took {max(taken):.0f} s, all cells of a seed "
            f"{sum(taken) / seeds:.0f} s on a machine that did other work beside. Computed on:",
            "",
            *(f"* {line}" for line in machines(results)),
            "",
            "</details>",
        ]
    )


def main(arguments: Sequence[str]) -> None:
    if "--graphs" in arguments:
        judge_graphs()
    for run in (a for a in arguments if not a.startswith("--")):
        take(Path(run))
    write_atomically(PAGE, page(PAGE.read_text()).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
