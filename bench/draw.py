"""Figures and tables from the committed record; nothing here is measured."""

from __future__ import annotations

from pathlib import Path

from . import records
from .conftest import FLOOR, OURS

DOCS = Path(__file__).parents[1] / "docs"

INTRODUCTION = """# Benchmarks

Drawn from `bench/records/cpu.csv` by `make bench`; every row was measured there, none is left out.
Times are medians in microseconds per call, the providers interleaved round by round in one process.
`x` is the median of the provider compared against (torch eager; for omp and fista SPAMS) over ours;
below 1 we lose. `floor` is the time of the product W x alone over ours: 100 % would mean that
everything but that product is free. scikit-learn was given 16 signals and its time scaled to the
batch.
"""


def all_figures(record: Path) -> None:
    """Draw docs/figures/speedup.svg and .png and write docs/benchmarks.md from the record."""
    rows = records.read(record)
    (DOCS / "figures").mkdir(parents=True, exist_ok=True)
    (DOCS / "benchmarks.md").write_text(table(rows))
    speedups([r for r in rows if r.threads == 1 and r.provider == OURS])


def table(rows: list[records.Row]) -> str:
    """One line per operator, shape and number of threads."""
    races: dict[tuple[str, int], dict[str, dict[str, records.Row]]] = {}
    for r in rows:
        races.setdefault((r.operator, r.threads), {}).setdefault(r.shape, {})[r.provider] = r
    machines = sorted({f"{r.machine}; {r.isa}; torch {r.torch}; {r.time[:10]}" for r in rows})
    lines = [INTRODUCTION, *(f"* {m}" for m in machines)]
    for (operator, threads), shapes in sorted(races.items()):
        rivals = sorted({p for found in shapes.values() for p in found} - {OURS, FLOOR})
        lines += [
            "",
            f"## {operator}, {threads} thread{'s' if threads > 1 else ''}",
            "",
            f"| | {OURS} | {' | '.join(rivals)} | x | floor |",
            "|---" * (len(rivals) + 4) + "|",
        ]
        for shape, found in shapes.items():
            cells = [f"{found[p].p50:.4g}" if p in found else "" for p in (OURS, *rivals)]
            floor = f"{found[FLOOR].p50 / found[OURS].p50:.0%}" if FLOOR in found else ""
            lines.append(f"| {shape} | {' | '.join(cells)} | {found[OURS].speedup:.2f} | {floor} |")
    return "\n".join(lines) + "\n"


def speedups(rows: list[records.Row]) -> None:
    """One bar per operator and shape, one thread."""
    import matplotlib

    matplotlib.use("Agg")
    # The same record gives the same file, byte for byte.
    matplotlib.rcParams["svg.hashsalt"] = "deepl0"
    import matplotlib.pyplot as plt

    operators = list(dict.fromkeys(r.operator for r in rows))
    rows = sorted(rows, key=lambda r: operators.index(r.operator))
    palette = plt.get_cmap("tab10").colors
    figure, axes = plt.subplots(figsize=(8, 0.16 * len(rows) + 1.2), layout="constrained")
    positions = range(len(rows))
    axes.barh(
        positions,
        [r.speedup for r in rows],
        color=[palette[operators.index(r.operator) % 10] for r in rows],
    )
    axes.set_yticks(positions, [f"{r.operator}  {r.shape}" for r in rows], fontsize=6)
    axes.invert_yaxis()
    axes.margins(y=0.005)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    for y, row in zip(positions, rows, strict=True):
        axes.text(row.speedup * 1.03, y, f"{row.speedup:.1f}", va="center", fontsize=6)
    axes.set_xlabel("times faster than torch eager; omp, fista: than SPAMS (one thread, medians)")
    axes.set_title(f"{rows[0].machine}, torch {rows[0].torch}", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        figure.savefig(DOCS / "figures" / f"speedup.{kind}", dpi=150, metadata=metadata)
    plt.close(figure)
