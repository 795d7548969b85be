"""The figures of a run of Tables 4 and 5: which cells they show, files, parts of the report."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ... import scenes
from ..._files import write_atomically
from ...training import Course
from .. import grid, record
from ..figure import embedded, save
from . import drawing
from .systems import METHODS


class Drawn(NamedTuple):
    """Figures of a table.

    Attributes:
        files: SVG by file name. lacking: what could not be drawn.
    """

    files: dict[str, bytes]
    lacking: list[str]


def draw(results: dict[str, Any], table: str, out: Path) -> Drawn:
    """Every figure of ``table`` that the run in ``out`` has the data for.

    They show the largest code size and the first seed; the confusion matrix is that of the method
    with the fewest errors and of that with the most, the class map that of the first of them.

    Raises:
        ValueError: arrays beside a cell cannot be read.
    """
    p, seed = max(results["sizes"]), min(results["seeds"])
    cells = [c for c in results["cells"] if (c["table"], c["p"], c["seed"]) == (table, p, seed)]
    cells.sort(key=lambda cell: cell["error"])
    stored: dict[str, dict[str, Tensor]] = {
        cell["method"]: record.read_arrays(
            grid.path_of(out, table, METHODS.index(cell["method"]), p, seed).with_suffix(".npz")
        )
        for cell in sorted(cells, key=lambda cell: results["cells"].index(cell))
    }

    def having(key: str) -> dict[str, dict[str, Tensor]]:
        return {method: arrays for method, arrays in stored.items() if key in arrays}

    scene = results["protocols"][table]["data"] == "indian_pines"
    names = scenes.NAMES if scene else tuple(map(str, range(10)))
    figures: dict[str, Any] = {"confusion": None}
    if all("confusion" in cell for cell in cells):
        figures["confusion"] = drawing.confusion([cells[0], cells[-1]], names)
    if scene:
        mapped = having("truth")
        best = next((cell["method"] for cell in cells if cell["method"] in mapped), None)
        figures["map"] = best and drawing.class_map(best, mapped[best], names)
    filters = {method: arrays["filters"] for method, arrays in having("filters").items()}
    figures["filters"] = filters and drawing.filters(filters, images=not scene)
    theta = having("theta")
    figures["theta"] = theta and drawing.thresholds(theta)
    course = having("nonzeros")
    signals = min(Course.SIGNALS, cells[0]["signals"]["training_signals"])
    figures["training"] = course and drawing.course(course, p, signals)
    files: dict[str, bytes] = {}
    for name, figure in figures.items():
        if figure:
            files |= save(figure, f"{table}-{name}", ("svg",))
    return Drawn(files, [name for name, figure in figures.items() if not figure])


def write(results: dict[str, Any], out: Path) -> dict[str, Drawn]:
    """Draw every table of the run in ``out``, into its folder ``figures``."""
    drawn = {table: draw(results, table, out) for table in results["tables"]}
    for found in drawn.values():
        for name, content in found.files.items():
            write_atomically(out / grid.FIGURES / name, content)
    return drawn


def page(results: dict[str, Any], drawn: Drawn) -> list[str]:
    """The figures of a table as parts of the report, and what it lacks."""
    parts = [
        f"<p class=note>Figures: p = {max(results['sizes'])}, seed {min(results['seeds'])}.</p>"
    ]
    parts += map(embedded, drawn.files.values())
    if drawn.lacking:
        parts.append(
            f"<p class=note>Not drawn: {html.escape(', '.join(drawn.lacking))}. The run did not "
            "store what they show.</p>"
        )
    return parts
