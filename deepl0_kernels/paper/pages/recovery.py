"""docs/recovery.md: ``python -m deepl0_kernels.paper.pages.recovery RUN ...``.

The record of a run has its times, too: those of ``deepl0 timing``, if that came after it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..._files import fill
from ..._report import record
from ..._report.page import items, markdown
from ..claims import verdicts
from ..recovery.protocol import PROTOCOLS
from ..recovery.study import METHODS, Recovered, metric, sentence, times_of
from ..rendering import errors, machines
from ..study import Cell
from . import DOCS, RECORDS, of_table, serve, write_figures

STUDY = Recovered()
RECORD = RECORDS / "recovery"
PAGE = DOCS / "recovery.md"
NONE = ["none on record"]


def take(run: Path) -> None:
    """The record of each table of a run: scores, losses' ends, times."""
    results = STUDY.read(run)
    for table, protocol in results["protocols"].items():
        flat = {metric(k) for k in range(1, protocol["stages"] + 1)}
        found = of_table(STUDY, results, table, flat)
        if (path := RECORD / f"{table}.json").exists():
            found = joined(STUDY.read(RECORD, table), found)
        record.write_json(path, found)
        if times_of(run, table).exists():
            record.write_json(times_of(RECORD, table), record.read_json(times_of(run, table)))


def joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A record and what a run adds to it: sizes are not run with as many seeds. Of another protocol
    nothing is kept."""
    if old["protocols"] != new["protocols"]:
        return new

    def place(cell: Cell) -> tuple[int, int, int]:
        return cell["seed"], cell["p"], METHODS.index(cell["method"])

    by_place = {place(cell): cell for cell in (*old["cells"], *new["cells"])}
    cells = [by_place[key] for key in sorted(by_place)]
    sizes, seeds = (sorted({cell[key] for cell in cells}) for key in ("p", "seed"))
    claims = STUDY.claims(new["tables"], cells, sizes)
    return new | {"sizes": sizes, "seeds": seeds, "cells": cells, "claims": claims}


def recorded() -> dict[str, dict[str, Any]]:
    """The results of each table that is on record."""
    there = [table for table in STUDY.tables if (RECORD / f"{table}.json").exists()]
    return {table: STUDY.read(RECORD, table) for table in there}


def parts() -> dict[str, str]:
    """What stands between the page's comments, from the record."""
    found = recorded()
    return {
        "tables": "\n\n".join(shown(table, results) for table, results in found.items())
        or "No run is on record yet.",
        "claims": items([line for results in found.values() for line in verdicts(results)] or NONE),
        "times": items(
            [
                sentence(record.read_json(times_of(RECORD, table)))
                for table in found
                if times_of(RECORD, table).exists()
            ]
            or NONE
        ),
        "not run": items(missing(found) or ["nothing: all tables, all methods, three seeds"]),
        "machines": items(
            list(dict.fromkeys(m for r in found.values() for m in machines(r))) or NONE
        ),
    }


def shown(table: str, results: dict[str, Any]) -> str:
    """A table and its figure."""
    figure = f"![{table}: NMSE by stage and by time](figures/recovery-{table}.svg)"
    return f"{markdown(errors(STUDY, results, table))}\n\n{figure}"


def missing(found: dict[str, dict[str, Any]]) -> list[str]:
    """What the record lacks of all tables, methods and three seeds, and what it ran otherwise."""
    lines = [f"{table}: no run" for table in STUDY.tables if table not in found]
    for table, results in found.items():
        there = {cell["method"] for cell in results["cells"]}
        if absent := [method for method in METHODS if method not in there]:
            lines.append(f"{table}: {', '.join(absent)}")
        if sizes := {500, 1000, 2000} - set(results["sizes"]):
            lines.append(f"{table}: p = {', '.join(map(str, sorted(sizes)))}")
        for p in results["sizes"]:
            of_size = [cell for cell in results["cells"] if cell["p"] == p]
            by_seeds: dict[tuple[int, ...], list[str]] = {}
            for method in (m for m in METHODS if m in there):
                seeds = sorted(cell["seed"] for cell in of_size if cell["method"] == method)
                by_seeds.setdefault(tuple(seeds), []).append(method)
            for few, methods in by_seeds.items():
                if len(few) < 3:
                    some = f", {', '.join(methods)}" if len(by_seeds) > 1 else ""
                    lines.append(f"{table}, p = {p}{some}: seeds beyond {', '.join(map(str, few))}")
        base = asdict(PROTOCOLS[table])
        ran = results["protocols"][table]
        if other := [f"{key} = {ran[key]}" for key in ran if ran[key] != base[key]]:
            lines.append(f"{table}: the whole protocol; it was run with {', '.join(other)}")
    return lines


def draw() -> None:
    """The page and its figures."""
    for table, results in recorded().items():
        write_figures(STUDY.figures(results, table, RECORD).files, "recovery")
    fill(PAGE, parts())


def main(arguments: Sequence[str]) -> None:
    serve(arguments, {}, take, draw)


if __name__ == "__main__":
    main(sys.argv[1:])
