"""The pages of docs/ that are drawn from records in bench/records: both of a checkout alone.

``python -m deepl0_kernels.paper.pages.PAGE RUN ...`` takes what the page shows of runs of
``deepl0 reproduce`` into its record, and draws the page; without a run that is all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..._files import write_atomically
from ..._report import record
from ..study import Cell, Study

ROOT = Path(__file__).parents[3]
DOCS, RECORDS = ROOT / "docs", ROOT / "bench" / "records"

Variants = Mapping[str, Mapping[str, Any]]


def take(
    study: Study,
    run: Path,
    folder: Path,
    shown: Callable[[str], Variants],
    without: Collection[str],
) -> None:
    """The record of a run into ``folder``, a file for each table, cells :func:`short`.

    ``shown`` names the records of a table, and what the run of each sets beyond the protocol.
    """
    results = study.read(run)
    for table, protocol in results["protocols"].items():
        name = name_of(table, study.tables[table].protocol, shown(table), protocol)
        record.write_json(folder / f"{name}.json", of_table(study, results, table, without))


def of_table(
    study: Study, results: dict[str, Any], table: str, without: Collection[str]
) -> dict[str, Any]:
    """What the results of a run say of one table, cells :func:`short`."""
    return {
        **results,
        "tables": [table],
        "protocols": {table: results["protocols"][table]},
        "cells": [short(cell, without) for cell in study.rows(results["cells"], table)],
        "claims": [claim for claim in results["claims"] if claim["table"] == table],
    }


def short(cell: Cell, without: Collection[str]) -> Cell:
    """A cell as a record keeps it: of its losses the ends, of its environment what is shown."""
    kept = {key: value for key, value in cell.items() if key not in without}
    if len(cell["loss"]) > 2:
        kept["loss"] = [cell["loss"][0], cell["loss"][-1]]
    shown = ("time", "machine", "threads", "torch", "deepl0_kernels", "commit")
    kept["environment"] = {key: cell["environment"][key] for key in shown}
    return kept


def name_of(table: str, base: Any, variants: Variants, ran: dict[str, Any]) -> str:
    """Which of the records, a name and what its run sets beyond ``base``, a run belongs to. Choices
    that came after a run had their defaults in it.

    Raises:
        ValueError: none of them; a page has no place for it.
    """
    chosen = type(base)(**ran)
    for name, settings in variants.items():
        if chosen == replace(base, **settings):
            return name
    other = {key: value for key, value in ran.items() if value != getattr(base, key)}
    raise ValueError(f"{table} was run with {other}, which is on no page")


def write_figures(files: Mapping[str, bytes], page: str) -> None:
    """The SVG files among ``files`` into docs/figures, named after the page that shows them."""
    for name, content in files.items():
        if name.endswith(".svg"):
            write_atomically(DOCS / "figures" / f"{page}-{Path(name).name}", content)


def serve(
    arguments: Sequence[str],
    options: Mapping[str, Callable[[], object]],
    take: Callable[[Path], None],
    draw: Callable[[], None],
) -> None:
    """What a page's command does: its options, then its runs, then the page."""
    if unknown := [a for a in arguments if a.startswith("--") and a not in options]:
        raise SystemExit(f"an option must be one of {', '.join(options)}, got {unknown[0]}")
    for option, work in options.items():
        if option in arguments:
            work()
    for run in arguments:
        if not run.startswith("--"):
            take(Path(run))
    draw()
