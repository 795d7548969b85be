"""What a run is shown as: frames of a table, and all of it as blocks of a page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._report.drawing import Heading
from .._report.page import Block
from .study import Study, values


def entry(seen: Sequence[float | None], digits: int = 2) -> str:
    """Mean and standard deviation over the seeds; nothing for what a method does not have."""
    known = [value for value in seen if value is not None]
    if not known:
        return ""
    shown = f"{statistics.mean(known):.{digits}f}"
    return f"{shown} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else shown


def errors(study: Study, results: dict[str, Any], table: str):
    """A table as a pandas frame of strings: methods by code size, the published values below."""
    import pandas

    shown = study.tables[table]
    rows, wanted = study.rows(results["cells"], table), shown.columns(results["sizes"])
    methods = study.order(rows)

    def cell(method: str, p: int, metric: str) -> str:
        seen = values(rows, method, p, metric)
        return entry(seen) + study.remark(results, table, method, p) if seen else ""

    columns = {c.title: [cell(method, c.p, c.metric) for method in methods] for c in wanted}
    frame = pandas.DataFrame(columns, index=pandas.Index(methods, name=shown.heading))
    for method, published in shown.published.items():
        frame.loc[f"{method} ({study.mark})"] = {
            c.title: "" if c.at is None else f"{published[c.at]:.{shown.digits}f}" for c in wanted
        }
    return frame


def further(study: Study, results: dict[str, Any], table: str):
    """The other scores at the largest code size, as a pandas frame of strings."""
    import pandas

    p, rows = max(results["sizes"]), study.rows(results["cells"], table)
    return pandas.DataFrame(
        {
            key.replace("_", " "): [entry(values(rows, m, p, key), digits) for m in study.methods]
            for key, digits in study.scores.items()
        },
        index=pandas.Index(study.methods, name=f"p = {p}"),
    )


def machines(results: dict[str, Any]) -> list[str]:
    """Machine and versions that the cells were computed with, each once."""
    seen: dict[str, None] = {}
    for cell in results["cells"]:
        e = cell["environment"]
        line = (
            f"{e['machine']}, {e['threads']} thread(s), torch {e['torch']}, "
            f"deepl0_kernels {e['deepl0_kernels']}, commit {e['commit']}"
        )
        seen[line] = None
    return list(seen)


def blocks(study: Study, results: dict[str, Any], out: Path) -> list[Block]:
    """Tables with their figures, claims, choices, seeds and machines of the run in ``out``."""
    found: list[Block] = []
    for table in results["tables"]:
        found += [
            Heading(f"{table}: {study.tables[table].title}"),
            errors(study, results, table),
            *([further(study, results, table)] if study.scores else []),
            study.figures(results, table, out),
        ]
    found += study.judgement(results, out)
    choices = results[study.choices_key]
    if study.choices_key == "protocol":  # that of all tables
        choices = {"all tables": choices}
    for name, protocol in choices.items():
        found.append(Heading(f"Protocol of {name}"))
        found.append([f"{key}: {value}" for key, value in protocol.items()])
    run = [f"seeds: {results['seeds']}", *(f"cells: {line}" for line in machines(results))]
    return [*found, run, study.source]
