"""``deepl0 reproduce``: the paper's tables, cell by cell, into a folder that can be resumed.

run.json            the protocol
cells/*.json, *.pt  one problem, code size and seed: rows, machine, versions, commit; the dictionary
                    and the K = 2 encoder
pareto-*.json       errors and times of every method at one size
results.json        all of it; results.csv, tables.md, report.html, *.svg, *.png: drawn from it
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .._optional import require
from ..training import L0Regularized, MSparse
from . import record
from .protocol import Protocol, signals
from .regression import BASELINE, DEEP, cell, rows_file


@dataclass(frozen=True)
class Table:
    """What a table of the paper shows, and its values where the text gives them, by code size."""

    title: str
    problem: str
    metric: str
    unit: str
    paper: dict[str, tuple[float, float, float]]


RESULTS = "results.json"
SIZES = (128, 256, 512)
_DEEP2 = DEEP.format(k=2)
TABLES = {
    "table1": Table(
        "Prediction error, l0-regularized",
        L0Regularized.key,
        "prediction_error",
        "%",
        {
            "Iterative-10": (3.55, 4.33, 4.08),
            BASELINE: (8.94, 8.76, 10.17),
            _DEEP2: (0.92, 0.91, 0.81),
        },
    ),
    "table2": Table(
        "Prediction error, M-sparse",
        MSparse.key,
        "prediction_error",
        "%",
        {
            "Iterative-10": (5.67, 5.44, 5.20),
            BASELINE: (14.04, 16.76, 12.86),
            _DEEP2: (2.94, 2.87, 3.29),
        },
    ),
    "table3": Table(
        "Support error (and half of it), M-sparse",
        MSparse.key,
        "support_error",
        "positions",
        {"Iterative-10": (4.6, 5.6, 5.3), _DEEP2: (2.2, 2.7, 2.7)},
    ),
}


def run(
    tables: Sequence[str],
    protocol: Protocol,
    sizes: Sequence[int],
    seeds: Sequence[int],
    out: Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Compute what ``out`` lacks, then write the tables and figures. Returns the results.

    Raises:
        ValueError: an unknown table or a size that does not fit; or ``out`` holds a run of another
            protocol.
        FileNotFoundError: the data set is not where the protocol looks for it.
    """
    check(tables, protocol, sizes, seeds)
    for module in ("matplotlib", "pandas", "tabulate", *(("tqdm",) if progress else ())):
        require(module, "deepl0 reproduce")
    record.claim(out / "run.json", {"protocol": protocol})
    keys = sorted({TABLES[name].problem for name in tables})
    cells, data, of_seed = [], None, None
    for seed in seeds:
        for key in keys:
            for p in sizes:
                path = out / "cells" / f"{key}-p{p}-seed{seed}.json"
                if not path.exists():
                    if data is None or of_seed != seed:
                        data, of_seed = signals(protocol, seed), seed
                    found = cell(protocol, key, p, seed, data, path.parent, progress)
                    record.write_json(path, found)
                    rows_file(path.parent, key, p, seed).unlink(missing_ok=True)
                cells.append(json.loads(path.read_text()))
    results = {
        "tables": list(tables),
        "protocol": asdict(protocol),
        "sizes": list(sizes),
        "seeds": list(seeds),
        "environment": record.environment(),
        "cells": cells,
        "claims": claims(tables, cells, sizes),
    }
    record.write_json(out / RESULTS, results)
    return results


def read(out: Path) -> dict[str, Any]:
    """The results of a run.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: they cannot be read, or are none.
    """
    keys = ("tables", "protocol", "sizes", "seeds", "cells", "claims")
    return record.read_json(out / RESULTS, keys, "deepl0 reproduce")


def check(
    tables: Sequence[str], protocol: Protocol, sizes: Sequence[int], seeds: Sequence[int]
) -> None:
    """Everything that can be wrong with the arguments, before any work."""
    if not tables:
        raise ValueError(f"tables must name at least one of {', '.join(TABLES)}")
    for name in tables:
        if name not in TABLES:
            raise ValueError(f"tables must be among {', '.join(TABLES)}, got {name!r}")
    for p in sizes:
        if not protocol.m <= p <= protocol.digits:
            raise ValueError(f"p must be in [{protocol.m}, {protocol.digits}], got {p}")
    if not seeds:
        raise ValueError("seeds must not be empty")


def claims(
    tables: Sequence[str], cells: list[dict[str, Any]], sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """The orderings that the paper claims, judged by the mean over seeds."""
    rivals = {
        "table1": ("Iterative-10 from zero", BASELINE),
        "table2": ("Iterative-10 from zero", BASELINE),
        "table3": ("Iterative-10 from zero",),
    }
    found = []
    for name in tables:
        table = TABLES[name]
        for p in sizes:
            mean = means(cells, table, p)
            for rival in rivals[name]:
                found.append(
                    {
                        "table": name,
                        "p": p,
                        "encoder": mean[_DEEP2][0],
                        "rival": rival,
                        "rival_value": mean[rival][0],
                        "holds": mean[_DEEP2][0] < mean[rival][0],
                    }
                )
    return found


def means(cells: list[dict[str, Any]], table: Table, p: int) -> dict[str, tuple[float, float]]:
    """Method -> mean and standard deviation over seeds (0 for one seed)."""
    import statistics

    values: dict[str, list[float]] = {}
    for found in cells:
        if found["problem"] == table.problem and found["p"] == p:
            for row in found["rows"]:
                values.setdefault(row["method"], []).append(row[table.metric])
    return {
        name: (statistics.mean(v), statistics.stdev(v) if len(v) > 1 else 0.0)
        for name, v in values.items()
    }
