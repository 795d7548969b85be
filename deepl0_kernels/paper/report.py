"""``deepl0 report``: a run folder as one HTML page that needs nothing beside it."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from .._files import write_atomically
from . import classification, clustering, pareto, reproduce, tables
from .figure import embedded

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a202c; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .25rem .8rem; border-bottom: 1px solid #e3e6ea; text-align: right; }
td:first-child, th:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
.note { color: #555b66; }
"""


def write(folder: Path) -> Path:
    """Write ``report.html`` into the folder of a run and return its path.

    Raises:
        FileNotFoundError: the folder holds no results.
        ValueError: its results cannot be read.
    """
    parts = []
    classes = (folder / classification.RESULTS).exists()
    clusters = (folder / clustering.RESULTS).exists()
    if (folder / reproduce.RESULTS).exists() or not (classes or clusters):
        drawn = sorted(folder.glob("*.svg"))
        parts += _codes(reproduce.read(folder), drawn, pareto.read(folder))
    if classes:
        results = classification.read(folder)
        parts += classification.page(results, classification.figures.write(results, folder))
    if clusters:
        parts += clustering.page(clustering.read(folder))
    title = "Deep l0 encoders"
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "</html>\n"
    )
    out = folder / "report.html"
    write_atomically(out, page.encode())
    return out


def _codes(results: dict[str, Any], figures: list[Path], times: list[dict[str, Any]]) -> list[str]:
    """Tables 1 to 3."""
    parts = ["<h1>Deep l0 encoders: how well codes are predicted</h1>"]
    parts += [
        f"<p class=note>{html.escape(line)}; seeds {results['seeds']}</p>"
        for line in tables.machines(results)
    ]
    for name in results["tables"]:
        parts.append(f"<h2>{name}: {html.escape(reproduce.TABLES[name].title)}</h2>")
        parts.append(tables.frame(results, name).to_html(border=0))
    parts.append(f"<p class=note>{html.escape(tables.unlearned_note(results))}</p>")
    parts.append("<h2>Claims, judged by the means over seeds</h2>")
    parts.append(tables.claims(results).to_html(border=0))
    parts.append("<h2>Figures</h2>")
    parts += [embedded(path.read_bytes()) for path in figures]
    parts.append("<h2>Problems</h2>")
    parts.append(tables.problems(results).to_html(border=0, index=False))
    if times:
        parts.append("<h2>Times</h2><ul>")
        parts += [f"<li>{html.escape(tables.time_of_codes(t)[2:])}" for t in times]
        parts.append("</ul>")
    parts.append("<h2>Protocol</h2><table>")
    for key, value in results["protocol"].items():
        parts.append(f"<tr><td>{html.escape(key)}<td>{html.escape(str(value))}")
    parts.append("</table>")
    return parts
