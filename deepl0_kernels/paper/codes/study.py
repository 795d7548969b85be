"""Tables 1 to 3: how well codes are predicted.

A cell is a problem, not a method: it holds a row of every method. Beside it stand the dictionary
and the K = 2 encoder, ``cells/*.pt``; ``pareto-*.json`` holds errors and times of every method at
one size (:mod:`.race`).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ..._report import record
from ..._report.drawing import BLUE, GREEN, GREY, RED, Drawn, Heading, label, save, sheet, tidy
from ..._report.page import Block
from ...ops import checks
from ...training import L0Regularized, MSparse
from ..study import CLAIMS, SIZES, Cell, Job, Study, Table, values
from . import cells, race
from .cells import BASELINE, DEEP, LISTA_ROW
from .protocol import Protocol, signals

DEEP2 = DEEP.format(k=2)
ITERATIVE = "Iterative-10 from zero"
_UNLEARNED = "†"


class Codes(Study):
    name = "results"
    text_file = "tables.md"
    title = "Deep l0 encoders: how well codes are predicted"
    tables: ClassVar = {
        "table1": Table(
            protocol=Protocol(),
            title="Prediction error, l0-regularized",
            problem=L0Regularized.key,
            metric="prediction_error",
            published={
                "Iterative-10": (3.55, 4.33, 4.08),
                BASELINE: (8.94, 8.76, 10.17),
                DEEP2: (0.92, 0.91, 0.81),
            },
        ),
        "table2": Table(
            protocol=Protocol(),
            title="Prediction error, M-sparse",
            problem=MSparse.key,
            metric="prediction_error",
            published={
                "Iterative-10": (5.67, 5.44, 5.20),
                BASELINE: (14.04, 16.76, 12.86),
                DEEP2: (2.94, 2.87, 3.29),
            },
        ),
        "table3": Table(
            protocol=Protocol(),
            title="Support error (and half of it), M-sparse",
            problem=MSparse.key,
            metric="support_error",
            unit="positions",
            digits=1,
            published={"Iterative-10": (4.6, 5.6, 5.3), DEEP2: (2.2, 2.7, 2.7)},
        ),
    }
    needs = ("matplotlib", "pandas", "tabulate")
    choices_key = "protocol"
    cell_keys = ("problem", "p", "seed", "rows", "optimal", "dictionary", "environment")

    def signals(self, protocol: Protocol, seed: int) -> Tensor:
        return signals(protocol, seed).train

    def largest_m(self, protocol: Protocol) -> int:
        return protocol.m

    def fits(self, protocol: Protocol, x: Tensor) -> None:
        checks.integer("batch_size", protocol.batch_size, 1, len(x), "the training signals")

    # One protocol for all tables, one cell for all methods

    def note(self, protocols: dict[str, Protocol]) -> dict[str, Protocol]:
        return {"protocol": next(iter(protocols.values()))}

    def header(self, protocols: dict[str, Protocol]) -> dict[str, Any]:
        (protocol,) = self.note(protocols).values()
        return {"protocol": asdict(protocol), "environment": record.environment()}

    def parts(self, protocols: dict[str, Protocol]) -> Iterator[tuple[str, Any, dict[str, str]]]:
        (protocol,) = self.note(protocols).values()
        for key in sorted({self.tables[table].problem for table in protocols}):
            yield key, protocol, {key: ""}

    def cell(self, part: str, method: str, p: int, job: Job) -> Cell:
        return cells.cell(part, p, job)

    def rows(self, cells: list[Cell], table: str) -> list[Cell]:
        return [
            {"p": cell["p"], "seed": cell["seed"], **row}
            for cell in cells
            if cell["problem"] == self.tables[table].problem
            for row in cell["rows"]
        ]

    def claims(self, tables: Sequence[str], cells: list[Cell], sizes: Sequence[int]) -> list[Cell]:
        """The K = 2 encoder errs less than each rival, by the means over the seeds."""
        found = []
        for table in tables:
            rows, metric = self.rows(cells, table), self.tables[table].metric
            for p in sizes:
                encoder = statistics.mean(values(rows, DEEP2, p, metric))
                for rival in (ITERATIVE, BASELINE)[: 1 if table == "table3" else 2]:
                    value = statistics.mean(values(rows, rival, p, metric))
                    found.append(
                        {
                            "table": table,
                            "p": p,
                            "encoder": encoder,
                            "rival": rival,
                            "rival_value": value,
                            "holds": encoder < value,
                        }
                    )
        return found

    def race(
        self, results: dict[str, Any], out: Path, seconds: float, again: bool = False
    ) -> list[tuple[dict[str, Any], str]]:
        race.write(results, out, seconds, again)
        return [(found, race.time_of_codes(found)) for found in race.read(out)]

    # What is drawn

    def order(self, rows: list[Cell]) -> Sequence[str]:
        """In the order of the size that has all methods."""
        of_size: dict[int, dict[str, None]] = {}
        for row in rows:
            of_size.setdefault(row["p"], {})[row["method"]] = None
        return max((list(methods) for methods in of_size.values()), key=len)

    def remark(self, results: dict[str, Any], table: str, method: str, p: int) -> str:
        shown, text = self.tables[table], ""
        if shown.metric == "support_error":
            # The paper does not say whether a position that moved counts once or twice.
            seen = values(self.rows(results["cells"], table), method, p, shown.metric)
            text = f" ({statistics.mean(seen) / 2:.2f})"
        bad = {(c["problem"], c["p"], row["method"]) for c, row in unlearned(results)}
        return text + (f" {_UNLEARNED}" if (shown.problem, p, method) in bad else "")

    def lines(self, results: dict[str, Any]) -> list[Cell]:
        return [
            {"problem": c["problem"], "p": c["p"], "seed": c["seed"], **row}
            for c in results["cells"]
            for row in c["rows"]
        ]

    def judgement(self, results: dict[str, Any], out: Path) -> list[Block]:
        found: list[Block] = [note] if (note := unlearned_note(results)) else []
        found += [Heading(CLAIMS), claims_frame(results)]
        found += [Heading("Rows ahead of the K = 2 encoder"), self.ahead(results)]
        found += [Heading("Problems"), problems(results)]
        if times := race.read(out):
            drawn = {name: file for found in times for name, file in race.draw(found).items()}
            found += [Heading("Times"), [race.time_of_codes(found) for found in times]]
            found.append(Drawn(drawn))
        return found

    def ahead(self, results: dict[str, Any]) -> list[str]:
        """Which rows beat the K = 2 encoder without more stages or an l1 solution."""
        lines = []
        for table in results["tables"]:
            rows, metric = self.rows(results["cells"], table), self.tables[table].metric
            for p in results["sizes"]:
                mean = {
                    method: statistics.mean(seen)
                    for method in self.order(rows)
                    if (seen := values(rows, method, p, metric))
                }
                better = [
                    f"{method} {value:.2f}"
                    for method, value in mean.items()
                    if value < mean[DEEP2] and not method.endswith("l1") and "Deep" not in method
                ]
                found = ", ".join(better) or "none"
                lines.append(f"{table}, p = {p} (encoder {mean[DEEP2]:.2f}): {found}")
        return lines

    def figures(self, results: dict[str, Any], table: str, out: Path) -> Drawn:
        """Error against code size for the rows that the paper has; its values in outline."""
        shown, sizes = self.tables[table], results["sizes"]
        rows = self.rows(results["cells"], table)
        figure, (axes,) = sheet(1, 1, (6.2, 4.2))
        styles = {
            **{f"Iterative-{k} from zero": (BLUE, "o-") for k in (2, 5, 10)},
            BASELINE: (GREY, "s-"),
            LISTA_ROW.format(k=2): (GREEN, "^-"),
            DEEP2: (RED, "*-"),
        }
        labels: list[tuple[float, int, str, str]] = []
        for method, (color, style) in styles.items():
            seen = {p: values(rows, method, p, shown.metric) for p in sizes}
            at = [p for p in sizes if seen[p]]
            if not at:
                continue
            means = [statistics.mean(seen[p]) for p in at]
            spread = [statistics.stdev(seen[p]) if len(seen[p]) > 1 else 0.0 for p in at]
            axes.errorbar(
                at, means, yerr=spread,
                fmt=style, color=color, ms=9 if "*" in style else 5, lw=1.2, capsize=2,
            )  # fmt: skip
            labels.append((means[-1], at[-1], method, color))
        for method, published in shown.published.items():
            known = [(p, published[SIZES.index(p)]) for p in sizes if p in SIZES]
            color = styles.get(method, styles[ITERATIVE])[0]
            if known:
                axes.plot(*zip(*known, strict=True), "D", mfc="none", color=color, ms=5)
        axes.set(xscale="log", yscale="log", xlabel="code size p")
        axes.set_ylabel(f"{shown.metric.replace('_', ' ')}, {shown.unit}")
        axes.set_title(f"{shown.title} (outlined: the paper's values)", fontsize=10)
        axes.set_xticks(sizes, [str(p) for p in sizes])
        axes.minorticks_off()
        axes.margins(x=0.1)
        axes.set_xlim(right=sizes[-1] * (2.2 if len(sizes) > 1 else 1.5))
        low, high = axes.get_ylim()
        height = 0.0
        for value, p, method, color in sorted(labels):
            height = max(value, height * (high / low) ** 0.045)  # a line of text above the last one
            label(axes, method, (p, height), color, fontsize=8)
        tidy(axes)
        return Drawn(save(figure, table))


def claims_frame(results: dict[str, Any]):
    """The claims as a pandas frame: the K = 2 encoder against rivals."""
    import pandas

    frame = pandas.DataFrame()
    for claim in results["claims"]:
        entry = f"{claim['encoder']:.2f} < {claim['rival_value']:.2f}"
        if not claim["holds"]:
            entry = f"{claim['encoder']:.2f} ≥ {claim['rival_value']:.2f}, does not hold"
        frame.loc[f"{claim['table']}: {claim['rival']}", f"p = {claim['p']}"] = entry
    frame.index.name = f"{DEEP2}, against"
    return frame.fillna("")


def unlearned(results: dict[str, Any]) -> list[tuple[Cell, Cell]]:
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
    return pandas.DataFrame(rows).set_index("problem")
