"""Tables of methods by code size and seed, cell by cell, into a folder that can be resumed.

run.json                the protocol of each table
cells/table*-*.json     one method, code size and seed
cells/table*-*.npz      arrays that it has beside, if any
figures/table*.svg      those of the report
<results>.json          all of it

One cell is computed from its seed alone, so a run can be interrupted anywhere between two cells.
"""

from __future__ import annotations

import html
import json
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from .._optional import require
from ..solvers import learn_dictionary
from . import record
from .claims import judged, verdicts
from .reproduce import SIZES
from .tables import machines, markdown

Cell = dict[str, Any]

FIGURES = "figures"  # the folder of a run that they are drawn into


class Problems:
    """The dictionaries of one table and seed, made when a cell asks for them.

    ``protocol`` is that of the table; it has ``dictionary_epochs`` and ``dictionary_lr``.
    """

    def __init__(self, protocol: Any, seed: int, progress: bool) -> None:
        self.protocol, self.seed, self.progress = protocol, seed, progress
        self._dictionaries: dict[tuple[Any, ...], Tensor] = {}

    def dictionary(self, x: Tensor, p: int, **sparsity: Any) -> Tensor:
        """D [n, p] of x [N, n]; ``sparsity`` is m or lam."""
        key = (p, *sparsity.items())
        if key not in self._dictionaries:
            self._dictionaries[key] = learn_dictionary(
                x,
                p,
                **sparsity,
                epochs=self.protocol.dictionary_epochs,
                batch_size=min(256, len(x)),
                lr=self.protocol.dictionary_lr,
                seed=self.seed,
                progress=self.progress,
            ).D
        return self._dictionaries[key]


def check(
    tables: Sequence[str],
    known: Collection[str],
    sizes: Sequence[int],
    seeds: Sequence[int],
    largest_m: int,
) -> None:
    """Everything that can be wrong with the arguments of a run, before any work."""
    for name in tables:
        if name not in known:
            raise ValueError(f"tables must be among {', '.join(known)}, got {name!r}")
    for name, given in (("tables", tables), ("sizes", sizes), ("seeds", seeds)):
        if not given:
            raise ValueError(f"{name} must not be empty")
    for p in sizes:
        if p < largest_m:
            raise ValueError(f"p must be at least M = {largest_m}, got {p}")


def path_of(out: Path, table: str, method: int, p: int, seed: int) -> Path:
    """The JSON of the cell of the method of that number."""
    return out / "cells" / f"{table}-{method}-p{p}-seed{seed}.json"


def run(
    results: str,
    protocols: dict[str, Any],
    methods: Sequence[str],
    sizes: Sequence[int],
    seeds: Sequence[int],
    out: Path,
    progress: bool,
    cell: Callable[[str, str, int, Problems], Cell],
    claims: Callable[[Sequence[str], list[Cell], Sequence[int]], list[Cell]],
) -> dict[str, Any]:
    """Compute what ``out`` lacks of the tables that ``protocols`` names; write ``results``.

    What a cell holds as ``arrays`` is stored beside its JSON.

    Raises:
        ValueError: ``out`` holds a run of another protocol.
    """
    for module in ("matplotlib", "pandas", "scipy", "tabulate", *(("tqdm",) if progress else ())):
        require(module, "deepl0 reproduce")
    record.claim(out / "run.json", protocols)
    cells = []
    for table, protocol in protocols.items():
        for seed in seeds:
            problems = Problems(protocol, seed, progress)
            for p in sizes:
                for i, method in enumerate(methods):
                    path = path_of(out, table, i, p, seed)
                    if not path.exists():
                        found = cell(table, method, p, problems)
                        if arrays := found.pop("arrays", None):
                            record.write_arrays(path.with_suffix(".npz"), arrays)
                        record.write_json(path, found)
                    cells.append(json.loads(path.read_text()))
    table_of_cells = {
        "tables": list(protocols),
        "protocols": {name: asdict(protocol) for name, protocol in protocols.items()},
        "sizes": list(sizes),
        "seeds": list(seeds),
        "cells": cells,
        "claims": claims(list(protocols), cells, sizes),
    }
    record.write_json(out / results, table_of_cells)
    return table_of_cells


def read(path: Path) -> dict[str, Any]:
    """The results of a run; errors are those of :func:`record.read_json`."""
    keys = ("tables", "protocols", "sizes", "seeds", "cells", "claims")
    return record.read_json(path, keys, "deepl0 reproduce")


def values(cells: list[Cell], table: str, method: str, p: int, key: str) -> list[Any]:
    """The figure ``key`` of each seed, in the order of the seeds."""
    found = [c for c in cells if (c["table"], c["method"], c["p"]) == (table, method, p)]
    return [c[key] for c in sorted(found, key=lambda c: c["seed"])]


def falling(
    table: str, methods: Sequence[str], cells: list[Cell], sizes: Sequence[int]
) -> list[Cell]:
    """The claim that every method errs less with the largest code than with the smallest."""
    low, high = min(sizes), max(sizes)
    if low == high:
        return []
    return [
        judged(
            table,
            f"{method}: p = {high} below p = {low}",
            values(cells, table, method, high, "error"),
            values(cells, table, method, low, "error"),
        )
        for method in methods
    ]


def short(cell: Cell, without: Collection[str]) -> Cell:
    """A cell as a record keeps it: of its losses the ends, of its environment what is shown."""
    kept = {key: value for key, value in cell.items() if key not in without}
    if len(cell["loss"]) > 2:
        kept["loss"] = [cell["loss"][0], cell["loss"][-1]]
    shown = ("time", "machine", "threads", "torch", "deepl0_kernels", "commit")
    kept["environment"] = {key: cell["environment"][key] for key in shown}
    return kept


def part(results: dict[str, Any], table: str, without: Collection[str]) -> dict[str, Any]:
    """One table of the results as a record keeps it, its cells :func:`short`."""
    return {
        **results,
        "tables": [table],
        "protocols": {table: results["protocols"][table]},
        "cells": [short(cell, without) for cell in results["cells"] if cell["table"] == table],
        "claims": [claim for claim in results["claims"] if claim["table"] == table],
    }


def entry(seen: Sequence[float | None], digits: int) -> str:
    """Mean and standard deviation over the seeds; nothing for what a method does not have."""
    known = [value for value in seen if value is not None]
    if not known:
        return ""
    shown = f"{statistics.mean(known):.{digits}f}"
    return f"{shown} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else shown


def errors(
    results: dict[str, Any],
    table: str,
    methods: Sequence[str],
    published: Mapping[str, Sequence[float]],
):
    """A table as a pandas frame of strings: methods by code size, the paper's values below."""
    import pandas

    sizes, cells = results["sizes"], results["cells"]
    columns = {
        f"p = {p}": [entry(values(cells, table, m, p, "error"), 2) for m in methods] for p in sizes
    }
    frame = pandas.DataFrame(columns, index=pandas.Index(methods, name="error, %"))
    for method, errors in published.items():
        frame.loc[f"{method} (paper)"] = {
            f"p = {p}": f"{errors[SIZES.index(p)]:.2f}" if p in SIZES else "" for p in sizes
        }
    return frame


def further(results: dict[str, Any], table: str, methods: Sequence[str], scores: dict[str, int]):
    """Other scores at the largest code size: a pandas frame; ``scores`` gives their digits."""
    import pandas

    p = max(results["sizes"])
    return pandas.DataFrame(
        {
            key.replace("_", " "): [
                entry(values(results["cells"], table, m, p, key), digits) for m in methods
            ]
            for key, digits in scores.items()
        },
        index=pandas.Index(methods, name=f"p = {p}"),
    )


def protocols(results: dict[str, Any]) -> list[str]:
    """Markdown: every choice, the seeds, the machines."""
    lines: list[str] = []
    for table, protocol in results["protocols"].items():
        lines += ["", f"## Protocol of {table}", ""]
        lines += [f"* {key}: {value}" for key, value in protocol.items()]
    return [
        *lines,
        "",
        f"* seeds: {results['seeds']}",
        *(f"* cells: {line}" for line in machines(results)),
        "",
        "Values marked (paper) are those of Wang, Ling, Huang 2016, whose protocol is partly open; "
        "they are a reference, not a target that these rows were tuned to.",
    ]


def text(
    results: dict[str, Any], titles: dict[str, str], frames: Callable[[str], list[Any]]
) -> str:
    """Markdown: the frames of each table, claims, protocols."""
    lines: list[str] = []
    for table in results["tables"]:
        lines += [f"## {table}: {titles[table]}", ""]
        for frame in frames(table):
            lines += [markdown(frame), ""]
    lines += ["## Claims, judged by the means", "", *(f"* {v}" for v in verdicts(results))]
    lines += protocols(results)
    return "\n".join(lines) + "\n"


def page(
    results: dict[str, Any],
    title: str,
    titles: dict[str, str],
    frames: Callable[[str], list[Any]],
    figures: Callable[[str], list[str]],
) -> list[str]:
    """The part of the report, in HTML: the frames and figures of each table, claims, protocols."""
    parts = [f"<h1>{title}</h1>"]
    parts += [
        f"<p class=note>{html.escape(line)}; seeds {results['seeds']}</p>"
        for line in machines(results)
    ]
    for table in results["tables"]:
        parts.append(f"<h2>{table}: {titles[table]}</h2>")
        parts += [frame.to_html(border=0) for frame in frames(table)]
        parts += figures(table)
    parts.append("<h2>Claims, judged by the means over seeds</h2><ul>")
    parts += [f"<li>{html.escape(line)}</li>" for line in verdicts(results)]
    parts.append("</ul>")
    for table, protocol in results["protocols"].items():
        parts.append(f"<h2>Protocol of {table}</h2><table>")
        for key, value in protocol.items():
            parts.append(f"<tr><td>{html.escape(key)}<td>{html.escape(str(value))}")
        parts.append("</table>")
    return parts
