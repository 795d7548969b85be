"""Tables 4 and 5 of a run: text, CSV, the part of the report."""

from __future__ import annotations

import html
import statistics
from pathlib import Path
from typing import Any

from ..._files import write_atomically
from ..reproduce import SIZES
from ..tables import machines
from . import figures
from .cells import values
from .systems import DEEP_L0, DEEP_M, METHODS, TDSC, TUNED_LISTA

TITLES = {"table4": "Classification of MNIST", "table5": "Classification of Indian Pines"}
# Errors in percent at p of SIZES, where the text of the paper gives them.
PUBLISHED = {
    "table4": {
        TDSC: (0.71, 0.55, 0.53),
        TUNED_LISTA: (0.74, 0.62, 0.57),
        DEEP_L0: (0.72, 0.58, 0.52),
        DEEP_M.format(10): (0.69, 0.54, 0.51),
    },
    "table5": {
        TDSC: (15.55, 15.27, 15.21),
        TUNED_LISTA: (16.12, 16.05, 15.97),
        DEEP_L0: (15.20, 15.07, 15.01),
        DEEP_M.format(10): (13.77, 13.56, 13.52),
    },
}
# What a row says beside its error, and with how many digits.
_SCORES = {
    "average_accuracy": 2,
    "kappa": 4,
    "training_error": 2,
    "nonzeros": 1,
    "dead_units": 1,
}
_COLUMNS = ["table", "method", "p", "seed", "error", "overall_accuracy", *_SCORES]


def _entry(seen: list[float], digits: int) -> str:
    shown = f"{statistics.mean(seen):.{digits}f}"
    return f"{shown} ± {statistics.stdev(seen):.{digits}f}" if len(seen) > 1 else shown


def errors(results: dict[str, Any], table: str):
    """A table as a pandas frame of strings: methods by code size, the paper's values below."""
    import pandas

    sizes, cells = results["sizes"], results["cells"]
    frame = pandas.DataFrame(
        {
            f"p = {p}": [_entry(values(cells, table, m, p, "error"), 2) for m in METHODS]
            for p in sizes
        },
        index=pandas.Index(METHODS, name="error, %"),
    )
    for method, published in PUBLISHED[table].items():
        frame.loc[f"{method} (paper)"] = {
            f"p = {p}": f"{published[SIZES.index(p)]:.2f}" if p in SIZES else "" for p in sizes
        }
    return frame


def further(results: dict[str, Any], table: str):
    """The other scores at the largest code size, as a pandas frame of strings."""
    import pandas

    p = max(results["sizes"])
    return pandas.DataFrame(
        {
            key.replace("_", " "): [
                _entry(values(results["cells"], table, m, p, key), digits) for m in METHODS
            ]
            for key, digits in _SCORES.items()
        },
        index=pandas.Index(METHODS, name=f"p = {p}"),
    )


def markdown(frame) -> str:
    """A pandas frame of strings, its entries as they are: 1.70 stays 1.70."""
    return frame.to_markdown(disable_numparse=True)


def verdicts(results: dict[str, Any]) -> list[str]:
    """What the paper claims, and whether it holds here: a line a claim."""
    return [
        f"{claim['table']}, {claim['claim']}: {claim['better']:.2f} and {claim['worse']:.2f}: "
        f"{'holds' if claim['holds'] else 'does not hold'} "
        f"({claim['seeds_holding']} of {claim['seeds']} seeds)"
        for claim in results["claims"]
    ]


def write(results: dict[str, Any], out: Path) -> None:
    """``classification.csv`` and ``classification.md``, each whole or not at all."""
    import pandas

    cells = pandas.DataFrame(results["cells"])[_COLUMNS]
    write_atomically(out / "classification.csv", cells.to_csv(index=False).encode())
    write_atomically(out / "classification.md", text(results).encode())


def text(results: dict[str, Any]) -> str:
    """Markdown: tables beside the paper's values, claims, protocols."""
    lines: list[str] = []
    for table in results["tables"]:
        lines += [f"## {table}: {TITLES[table]}", "", markdown(errors(results, table)), ""]
        lines += [markdown(further(results, table)), ""]
    lines += ["## Claims, judged by the means", "", *(f"* {v}" for v in verdicts(results))]
    for table, protocol in results["protocols"].items():
        lines += ["", f"## Protocol of {table}", ""]
        lines += [f"* {key}: {value}" for key, value in protocol.items()]
    lines += [
        "",
        f"* seeds: {results['seeds']}",
        *(f"* cells: {line}" for line in machines(results)),
        "",
        "Values marked (paper) are those of Wang, Ling, Huang 2016, whose protocol is partly open; "
        "they are a reference, not a target that these rows were tuned to.",
    ]
    return "\n".join(lines) + "\n"


def page(results: dict[str, Any], drawn: dict[str, figures.Drawn]) -> list[str]:
    """The part of the report, in HTML; ``drawn`` are the figures of each table."""
    parts = ["<h1>Deep l0 encoders as classifiers</h1>"]
    parts += [
        f"<p class=note>{html.escape(line)}; seeds {results['seeds']}</p>"
        for line in machines(results)
    ]
    for table in results["tables"]:
        parts.append(f"<h2>{table}: {TITLES[table]}</h2>")
        parts += [errors(results, table).to_html(border=0)]
        parts += [further(results, table).to_html(border=0)]
        parts += figures.page(results, drawn[table])
    parts.append("<h2>Claims, judged by the means over seeds</h2><ul>")
    parts += [f"<li>{html.escape(line)}</li>" for line in verdicts(results)]
    parts.append("</ul>")
    for table, protocol in results["protocols"].items():
        parts.append(f"<h2>Protocol of {table}</h2><table>")
        for key, value in protocol.items():
            parts.append(f"<tr><td>{html.escape(key)}<td>{html.escape(str(value))}")
        parts.append("</table>")
    return parts
