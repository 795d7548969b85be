"""Figures and tables from the committed record; nothing here is measured."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from . import records

FIGURES = Path(__file__).parents[1] / "docs" / "figures"


def all_figures(record: Path) -> None:
    """Draw docs/figures/speedup.svg and .png from the record."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in records.read(record) if r.threads == 1 and r.provider == "deepl0"]
    by_operator: dict[str, list[records.Row]] = defaultdict(list)
    for row in rows:
        by_operator[row.operator].append(row)
    labels, speedups, colors = [], [], []
    palette = plt.get_cmap("tab10").colors
    for i, (operator, found) in enumerate(by_operator.items()):
        for row in found:
            labels.append(f"{operator}  {row.shape}")
            speedups.append(row.speedup)
            colors.append(palette[i % 10])
    figure, axes = plt.subplots(figsize=(8, 0.22 * len(labels) + 1.2), layout="constrained")
    positions = range(len(labels))
    axes.barh(positions, speedups, color=colors)
    axes.set_yticks(positions, labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    for y, value in zip(positions, speedups, strict=True):
        axes.text(value * 1.03, y, f"{value:.1f}", va="center", fontsize=7)
    axes.set_xlabel("times faster than torch eager (one thread, medians, log scale)")
    axes.set_title(f"{rows[0].machine}, torch {rows[0].torch}", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    FIGURES.mkdir(parents=True, exist_ok=True)
    for kind in ("svg", "png"):
        figure.savefig(FIGURES / f"speedup.{kind}", dpi=150)
    plt.close(figure)
