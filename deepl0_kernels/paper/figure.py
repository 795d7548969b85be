"""Figures: the demo's, drawn from its record alone, and what all figures share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

BLUE, GREY, RED, GREEN = "#2b6cb0", "#8a8f98", "#c53030", "#2f855a"
# Of Okabe and Ito (2008): told apart with any colour vision.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def draw(result: dict[str, Any]) -> dict[str, bytes]:
    """Error against time for both problems: ``figure.png`` and ``figure.svg``."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    panels = figure.subplots(1, len(result["problems"]), sharex=True, sharey=True)
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    for axes, problem in zip(panels, result["problems"].values(), strict=True):
        rows = {row["method"]: row for row in problem["rows"]}
        for start, color in (("zero", BLUE), ("l1", GREY)):
            points = [
                (row["microseconds"], row["prediction_error"], name.split()[1])
                for name, row in rows.items()
                if name.startswith("iterative") and name.endswith(start)
            ]
            axes.plot(*zip(*[p[:2] for p in points], strict=True), "o-", color=color, ms=6, lw=1.6)
            for x, y, k in points:
                _note(axes, x, y, k, color, (7, 3), "left", bold=False)
            x, y, _ = points[0]
            _note(axes, x, y, f"iterative k\nfrom {start}", color, (-8, 17), "left")
        for name, row in rows.items():
            x, y = row["microseconds"], row["prediction_error"]
            if name.startswith("encoder"):
                axes.plot(x, y, "*", color=RED, ms=17, zorder=5)
                _note(axes, x, y, f"learned {name}\n{y:.2f} %", RED, (-8, -12), "left", top=True)
            elif name.startswith("OMP"):
                axes.plot(x, y, "D", color=GREEN, ms=7)
                _note(axes, x, y, name.replace(" (", "\n("), GREEN, (0, 9), "center")
        axes.axhline(problem["iterative_error"], color=BLUE, lw=0.8, ls=":", zorder=1)
        axes.set(xscale="log", yscale="log", title=problem["name"])
        axes.set_xlabel("microseconds per sample, one thread")
        axes.margins(x=0.18, y=0.22)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(plain)
            axis.set_minor_formatter(NullFormatter())
        axes.set_axisbelow(True)
        tidy(axes)
    panels[0].set_ylabel("prediction error on held-out digits, %")
    config, environment = result["config"], result["environment"]
    figure.supxlabel(
        f"p = {config['p']}, M = {config['m']}, lam = {config['lam']}, "
        f"{result['data']['held_out_signals']} digits; {environment['machine']}, "
        f"batch {config['timing_batch']}. Times from l1 include the l1 solution. "
        "Dotted: ten iterations from zero.",
        fontsize=8,
        color="#555b66",
    )
    return save(figure, "figure")


def tidy(axes) -> None:
    """Light lines of a grid, no frame on the right and above."""
    axes.grid(True, which="major", color="#e3e6ea", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure, name: str, kinds: Sequence[str] = ("png", "svg")) -> dict[str, bytes]:
    """``<name>.png`` and ``<name>.svg``; the same figure gives the same bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    files = {}
    for kind in kinds:
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else None
        with rc_context({"svg.hashsalt": name}):  # else the ids of its parts are random
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
        files[f"{name}.{kind}"] = buffer.getvalue()
    return files


def embedded(svg: bytes) -> str:
    """An SVG file as a part of an HTML page."""
    text = svg.decode()
    return f"<figure>{text[text.index('<svg') :]}</figure>"


def _note(axes, x, y, text, color, offset, ha, *, top: bool = False, bold: bool = True) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=offset,
        textcoords="offset points",
        ha=ha,
        va="top" if top else "bottom",
        color=color,
        fontsize=9,
        fontweight="bold" if bold else "normal",
    )
