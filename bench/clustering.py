"""docs/clustering.md from records.

``python -m bench.clustering RUN ...`` takes the record of each run of ``deepl0 reproduce table6
table7`` into bench/records, by the clustering that its systems start from, and draws; without
arguments it only draws.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepl0_kernels._files import write_atomically
from deepl0_kernels.experiments import grid, record
from deepl0_kernels.experiments.clustering import cells, tables
from deepl0_kernels.experiments.clustering.protocol import STARTS
from deepl0_kernels.experiments.tables import machines, markdown

from . import records, reproduction

RECORD = records.FOLDER / "clustering"
PAGE = reproduction.DOCS / "clustering.md"


def take(run: Path) -> None:
    """The record of a run into bench/records: what the page is drawn from.

    Raises:
        ValueError: its tables start from different clusterings.
    """
    results = cells.read(run)
    starts = {protocol["start"] for protocol in results["protocols"].values()}
    if len(starts) > 1:
        raise ValueError(f"{run}: the tables must share their start, got {sorted(starts)}")
    drop = ("labels", "classes", "embedding")
    results["cells"] = [grid.short(cell, drop) for cell in results["cells"]]
    record.write_json(RECORD / f"{starts.pop()}.json", results)


def page(text: str) -> str:
    """``text`` with the part of every start drawn from its record anew."""
    parts = {}
    for start in STARTS:
        path = RECORD / f"{start}.json"
        parts[start] = part(grid.read(path)) if path.exists() else "Not on record yet."
    return reproduction.fill(text, parts)


def part(results: dict[str, Any]) -> str:
    """The tables of one record with their claims, seeds and machines."""
    lines = []
    for table in results["tables"]:
        lines += [f"### {table}: {tables.TITLES[table]}", ""]
        lines += [markdown(tables.errors(results, table)), ""]
        lines += [markdown(tables.further(results, table)), ""]
    lines += [f"* {line}" for line in tables.verdicts(results)]
    lines += ["", f"Computed over {len(results['seeds'])} seeds, {seconds(results)} Machines:", ""]
    lines += [f"* {line}" for line in machines(results)]
    return "\n".join(lines)


def seconds(results: dict[str, Any]) -> str:
    """What a cell took, in a sentence."""
    taken = [sum(cell["seconds"].values()) for cell in results["cells"]]
    return f"the longest cell in {max(taken):.0f} s, a seed of all in {_a_seed(results):.0f} s."


def _a_seed(results: dict[str, Any]) -> float:
    return sum(sum(c["seconds"].values()) for c in results["cells"]) / len(results["seeds"])


def main(arguments: Sequence[str]) -> None:
    for run in arguments:
        take(Path(run))
    write_atomically(PAGE, page(PAGE.read_text()).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
