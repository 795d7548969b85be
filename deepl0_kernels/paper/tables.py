"""The tables of a run: text, CSV, figures of error against code size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._files import write_atomically
from . import pareto
from .figure import BLUE, GREEN, GREY, RED, save, tidy
from .regression import BASELINE, DEEP
from .reproduce import SIZES, TABLES, means

_PAPER = "{} (paper)"
_UNLEARNED = "†"


def frame(results: dict[str, Any], name: str):
    """A table as a pandas frame of strings: methods by code size, the paper's values below."""
    import pandas

    table, sizes = TABLES[name], results["sizes"]
    several = len(results["seeds"]) > 1
    bad = {(c["problem"], c["p"], row["method"]) for c, row in unlearned(results)}

    def entry(mean: float, spread: float) -> str:
        value = f"{mean:.2f}" + (f" ± {spread:.2f}" if several else "")
        # The paper does not say whether a position that moved counts once or twice.
        return value + (f" ({mean / 2:.2f})" if table.metric == "support_error" else "")

    columns = {
        f"p = {p}": {
            method: entry(*value) + (f" {_UNLEARNED}" if (table.problem, p, method) in bad else "")
            for method, value in means(results["cells"], table, p).items()
        }
        for p in sizes
    }
    # Methods in the order of the size that has all of them.
    order = sorted(columns.values(), key=len)[-1]
    frame = pandas.DataFrame(columns).reindex(order).fillna("")
    for method, values in table.paper.items():
        frame.loc[_PAPER.format(method)] = {
            f"p = {p}": f"{values[SIZES.index(p)]:g}" if p in SIZES else "" for p in sizes
        }
    frame.index.name = f"{table.title}, {table.unit}"
    return frame


def markdown(frame) -> str:
    """A pandas frame with its entries as they are: 1.70 stays 1.70."""
    return frame.to_markdown(disable_numparse=True)


def write(results: dict[str, Any], out: Path) -> None:
    """``tables.md``, ``results.csv`` and one figure a table, each whole or not at all.

    The times in ``tables.md`` are those that ``out`` has.
    """
    import pandas

    rows = [
        {"problem": c["problem"], "p": c["p"], "seed": c["seed"], **row}
        for c in results["cells"]
        for row in c["rows"]
    ]
    write_atomically(out / "results.csv", pandas.DataFrame(rows).to_csv(index=False).encode())
    write_atomically(out / "tables.md", text(results, pareto.read(out)).encode())
    for name in results["tables"]:
        for file, content in draw(results, name).items():
            write_atomically(out / file, content)


def text(results: dict[str, Any], times: Sequence[dict[str, Any]] = ()) -> str:
    """Markdown: tables, claims, times, protocol."""
    lines = []
    for name in results["tables"]:
        lines += [f"## {name}", "", markdown(frame(results, name)), ""]
    if note := unlearned_note(results):
        lines += [note, ""]
    lines += ["## Claims, judged by the means", ""]
    lines += [markdown(claims(results))]
    lines += ["", "## Rows ahead of the K = 2 encoder", "", ahead(results)]
    lines += ["", "## Problems", "", markdown(problems(results).set_index("problem")), ""]
    if times:
        lines += ["## Times", "", *map(time_of_codes, times), ""]
    lines += ["## Protocol", ""]
    lines += [
        protocol(results),
        "",
        f"* seeds: {results['seeds']}",
        *(f"* cells: {line}" for line in machines(results)),
        "",
        "Values marked (paper) are those of Wang, Ling, Huang 2016, whose protocol is partly open; "
        "they are a reference, not a target that these rows were tuned to.",
    ]
    return "\n".join(lines) + "\n"


def unlearned(results: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Cell and row of every network whose loss ended above that of its first epoch."""
    return [
        (cell, row)
        for cell in results["cells"]
        for row in cell["rows"]
        if (losses := row.get("losses")) and not losses[1] < losses[0]
    ]


def unlearned_note(results: dict[str, Any]) -> str:
    """What the mark in the tables means, and whom it is on."""
    return "\n".join(
        f"{_UNLEARNED} The loss rose: {cell['problem']}, p = {cell['p']}, seed {cell['seed']}, "
        f"{row['method']}: a mean of {row['losses'][0]:.2f} in the first epoch, "
        f"{row['losses'][1]:.2f} in the last."
        for cell, row in unlearned(results)
    )


def claims(results: dict[str, Any]):
    """The orderings that the paper claims, as a pandas frame: the K = 2 encoder against rivals."""
    import pandas

    frame = pandas.DataFrame()
    for claim in results["claims"]:
        entry = f"{claim['encoder']:.2f} < {claim['rival_value']:.2f}"
        if not claim["holds"]:
            entry = f"{claim['encoder']:.2f} ≥ {claim['rival_value']:.2f}, does not hold"
        frame.loc[f"{claim['table']}: {claim['rival']}", f"p = {claim['p']}"] = entry
    frame.index.name = f"{DEEP.format(k=2)}, against"
    return frame.fillna("")


def ahead(results: dict[str, Any]) -> str:
    """Which rows beat the K = 2 encoder without more stages or an l1 solution, as a list."""
    lines = []
    for name in results["tables"]:
        for p in results["sizes"]:
            mean = means(results["cells"], TABLES[name], p)
            encoder = mean[DEEP.format(k=2)][0]
            better = [
                f"{method} {value:.2f}"
                for method, (value, _) in mean.items()
                if value < encoder and not method.endswith("l1") and "Deep" not in method
            ]
            found = ", ".join(better) or "none"
            lines.append(f"* {name}, p = {p} (encoder {encoder:.2f}): {found}")
    return "\n".join(lines)


def protocol(results: dict[str, Any]) -> str:
    """Every choice, as ``--set`` takes them."""
    return "`" + " ".join(f"{key}={value}" for key, value in results["protocol"].items()) + "`"


def problems(results: dict[str, Any]):
    """What the cells predict, as a pandas frame: one row a problem, code size and seed."""
    import pandas

    rows = []
    for cell in results["cells"]:
        optimal, dictionary = cell["optimal"], cell["dictionary"]
        rows.append(
            {
                "problem": cell["problem"],
                "p": cell["p"],
                "seed": cell["seed"],
                "nonzeros": f"{optimal['nonzeros']:.1f}",
                "reconstruction error %": f"{optimal['reconstruction_error']:.2f}",
                "converged %": f"{100 * optimal['converged']:.1f}",
                "stable supports %": f"{100 * optimal['stable_supports']:.1f}",
                "squared norm of D": f"{dictionary['squared_norm']:.2f}",
                "coherence": f"{dictionary['coherence']:.2f}",
                "dead atoms": dictionary["dead_atoms"],
                "processor minutes": f"{sum(cell['cpu_seconds'].values()) / 60:.1f}",
            }
        )
    return pandas.DataFrame(rows)


def time_of_codes(found: dict[str, Any]) -> str:
    """How long optimal codes take, as an item of a list."""
    optimal = found["optimal_codes"]
    ours, theirs = optimal["kernels_microseconds"], optimal["torch_microseconds"]
    return (
        f"* {found['problem']}, p = {found['p']}: optimal codes of {optimal['signals']} signals "
        f"take {ours:.0f} us each by the kernels, {theirs:.0f} us by the dense loop in torch "
        f"({theirs / ours:.1f} times as long); {100 * optimal['same_supports']:.1f} % of the "
        f"supports are the same. One thread, {found['environment']['machine']}."
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


def draw(results: dict[str, Any], name: str) -> dict[str, bytes]:
    """Error against code size for the rows that the paper has; its values in outline."""
    from matplotlib.figure import Figure

    table, sizes = TABLES[name], results["sizes"]
    figure = Figure(figsize=(6.2, 4.2), layout="constrained")
    axes = figure.subplots()
    shown = {
        **{f"Iterative-{k} from zero": (BLUE, "o-") for k in (2, 5, 10)},
        BASELINE: (GREY, "s-"),
        "LISTA, K = 2": (GREEN, "^-"),
        DEEP.format(k=2): (RED, "*-"),
    }
    found = {p: means(results["cells"], table, p) for p in sizes}
    labels: list[tuple[float, int, str, str]] = []
    for method, (color, style) in shown.items():
        at = [p for p in sizes if method in found[p]]
        if not at:
            continue
        values = [found[p][method] for p in at]
        axes.errorbar(
            at, [v[0] for v in values], yerr=[v[1] for v in values],
            fmt=style, color=color, ms=9 if "*" in style else 5, lw=1.2, capsize=2,
        )  # fmt: skip
        labels.append((values[-1][0], at[-1], method, color))
    for method, published in table.paper.items():
        known = [(p, published[SIZES.index(p)]) for p in sizes if p in SIZES]
        color = shown.get(method, shown["Iterative-10 from zero"])[0]
        if known:
            axes.plot(*zip(*known, strict=True), "D", mfc="none", color=color, ms=5)
    axes.set(xscale="log", yscale="log", xlabel="code size p")
    axes.set_ylabel(f"{table.metric.replace('_', ' ')}, {table.unit}")
    axes.set_title(f"{table.title} (outlined: the paper's values)", fontsize=10)
    axes.set_xticks(sizes, [str(p) for p in sizes])
    axes.minorticks_off()
    axes.margins(x=0.1)
    axes.set_xlim(right=sizes[-1] * (2.2 if len(sizes) > 1 else 1.5))
    low, high = axes.get_ylim()
    height = 0.0
    for value, p, method, color in sorted(labels):
        height = max(value, height * (high / low) ** 0.045)  # a line of text above the last one
        axes.annotate(
            method, (p, height), xytext=(8, -3), textcoords="offset points", color=color, fontsize=8
        )
    tidy(axes)
    return save(figure, name)
