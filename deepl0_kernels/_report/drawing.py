"""What all figures share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

BLUE, GREY, RED, GREEN = "#2b6cb0", "#8a8f98", "#c53030", "#2f855a"
# Of Okabe and Ito (2008): told apart with any colour vision.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


class Heading(NamedTuple):
    """Of a part of the report."""

    text: str


class Drawn(NamedTuple):
    """Figures of a table.

    Attributes:
        files: content by path in the folder of the run. note: what they show.
        lacking: what could not be drawn, since the run did not store it.
    """

    files: dict[str, bytes]
    note: str = ""
    lacking: Sequence[str] = ()


def sheet(rows: int, columns: int, size: tuple[float, float], **shared: Any):
    """A figure and its panels in a list; ``size`` of each, in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **shared).flat)


def label(axes, text: str, at: tuple[float, float], color: str, offset=(8, -3), **more) -> None:
    """A word beside a point; ``offset`` in points of type."""
    options = {"fontsize": 9, **more}
    axes.annotate(text, at, xytext=offset, textcoords="offset points", color=color, **options)


def tidy(axes) -> None:
    """Light lines of a grid, no frame on the right and above."""
    axes.grid(True, which="major", color="#e3e6ea", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def save(
    figure, name: str, kinds: Sequence[str] = ("png", "svg"), folder: str = ""
) -> dict[str, bytes]:
    """``<folder><name>.png`` and ``.svg``; the same figure gives the same bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    files = {}
    for kind in kinds:
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else None
        with rc_context({"svg.hashsalt": name}):  # else the ids of its parts are random
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
        files[f"{folder}{name}.{kind}"] = buffer.getvalue()
    return files


def embedded(svg: bytes) -> str:
    """An SVG file as a part of an HTML page."""
    text = svg.decode()
    return f"<figure>{text[text.index('<svg') :]}</figure>"
