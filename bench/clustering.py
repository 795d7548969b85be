"""docs/clustering.md from records.

``python -m bench.clustering RUN ...`` takes the record of each run of ``deepl0 reproduce table6
table7`` into bench/records, a file for each table and each clustering that its systems start from,
and draws; without arguments it only draws.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepl0_kernels._files import write_atomically
from deepl0_kernels.experiments import grid, record
from deepl0_kernels.experiments.clustering import PROTOCOLS, cells, tables
from deepl0_kernels.experiments.clustering.protocol import STARTS
from deepl0_kernels.experiments.tables import machines, markdown

from . import records, reproduction

RECORD = records.FOLDER / "clustering"
PAGE = reproduction.DOCS / "clustering.md"


def take(run: Path) -> None:
    """The record of a run into bench/records, a file for each table."""
    results = cells.read(run)
    drop = ("labels", "classes", "embedding")
    for table, protocol in results["protocols"].items():
        only = grid.part(results, table, drop)
        record.write_json(RECORD / f"{table}-{protocol['start']}.json", only)


def page(text: str) -> str:
    """``text`` with the part of every table and start drawn from its record anew."""
    parts = {}
    for name in (f"{table}-{start}" for start in STARTS for table in PROTOCOLS):
        path = RECORD / f"{name}.json"
        parts[name] = part(grid.read(path)) if path.exists() else "Not on record yet."
    return reproduction.fill(text, parts)


def part(results: dict[str, Any]) -> str:
    """The table of one record with its claims, seeds, times and machines."""
    (table,) = results["tables"]
    taken = [sum(cell["seconds"].values()) for cell in results["cells"]]
    seeds = len(results["seeds"])
    return "\n".join(
        [
            markdown(tables.errors(results, table)),
            "",
            markdown(tables.further(results, table)),
            "",
            *(f"* {line}" for line in tables.verdicts(results)),
            "",
            f"Seeds: {seeds}; the longest cell took {max(taken):.0f} s, all cells of a seed "
            f"{sum(taken) / seeds:.0f} s on a machine that did other work beside. Computed on:",
            "",
            *(f"* {line}" for line in machines(results)),
        ]
    )


def main(arguments: Sequence[str]) -> None:
    for run in arguments:
        take(Path(run))
    write_atomically(PAGE, page(PAGE.read_text()).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
