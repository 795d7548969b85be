"""What all figures share."""

from __future__ import annotations

import io
import itertools
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


# Where else a word may stand: offsets in points, and what of it is held there.
_PLACES: list[Any] = [
    (x, y, ha, va)
    for distance in (8, 16, 28, 44)
    for x, y, ha, va in (
        (distance, 0, "left", "center"),
        (-distance, 0, "right", "center"),
        (0, distance, "center", "bottom"),
        (0, -distance, "center", "top"),
        (distance, distance, "left", "bottom"),
        (-distance, distance, "right", "bottom"),
        (distance, -distance, "left", "top"),
        (-distance, -distance, "right", "top"),
    )
]


def _around(x: float, y: float, half: float) -> tuple[float, float, float, float]:
    """Left, bottom, right, top."""
    return x - half, y - half, x + half, y + half


def spread(figure) -> None:
    """Move words of :func:`label` that would be printed over each other or over points.

    Those that were written first stay where they are as far as they can; all others go to the
    nearest place beside their point that is free, or to the one that covers least.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Annotation

    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes in figure.axes:
        for text in axes.texts:
            text.set_in_layout(False)  # else the panels move with the words
    figure.draw_without_rendering()
    for axes in figure.axes:
        taken = []
        for line in axes.lines:
            if line.get_marker() in ("", "None", None):
                continue  # rules of the panel may be crossed
            points = axes.transData.transform(line.get_xydata())
            half = line.get_markersize() * figure.dpi / 144
            taken += [_around(x, y, half) for x, y in points]
            for (x, y), (u, v) in itertools.pairwise(points):
                steps = [i / 16 for i in range(1, 16)]
                taken += [_around(x + t * (u - x), y + t * (v - y), 1.0) for t in steps]
        inside = axes.get_window_extent(renderer)

        def covered(box, taken=taken, inside=inside) -> float:
            """Pixels of others below a box, and of itself outside of the panel."""
            rests = np.array([inside.extents, *taken])
            sides = np.minimum(rests[:, 2:], box.max) - np.maximum(rests[:, :2], box.min)
            within, *others = sides.clip(0).prod(1).tolist()
            return box.width * box.height - within + sum(others)

        for text in (t for t in axes.texts if isinstance(t, Annotation)):

            def put(place, text=text):
                text.xyann = place[:2]
                text.set(ha=place[2], va=place[3])
                return text.get_window_extent(renderer)

            places = [(*text.xyann, text.get_horizontalalignment(), text.get_verticalalignment())]
            # The first of those that cover least, which is the own one where nothing is covered.
            best = min(places + _PLACES, key=lambda place: covered(put(place)))
            taken.append(tuple(put(best).extents))


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
