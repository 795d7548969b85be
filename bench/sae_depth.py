"""What stages do to autoencoders of real activations: ``python -m bench.sae_depth`` trains all
that is not on record yet, and draws docs/sae.md from the record; ``--draw`` draws alone.

Activations are those of ``minilm_activations.npz`` in ``DEEPL0_DATA``. A run that was interrupted
goes on; every finished training is on record at once.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from deepl0_kernels._files import fill, write_atomically
from deepl0_kernels._report import record
from deepl0_kernels._report.drawing import PALETTE, save, sheet, tidy
from deepl0_kernels._sources import folder_of
from deepl0_kernels.sae import study
from deepl0_kernels.sae.activations import Activations

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).parent / "records" / "sae-depth.json"
PAGE, FIGURE = ROOT / "docs" / "sae.md", ROOT / "docs" / "figures" / "sae-depth.svg"
RUNS = ROOT / "build" / "sae-depth"

BASE = study.Settings(p=1536, m=32, stages=(1, 2, 3), steps=1000, batch=256, lr=2e-3, pursuits=True)
# A step of three stages took 2.1 times as long as one of one: one stage, given the time of three.
LONG = replace(BASE, stages=(1,), steps=3200, pursuits=False)
HELD_OUT = 4096
WHERE = "residual-stream vectors after layer 3 of all-MiniLM-L6-v2; see the data's README"
WORDS = {True: "positive (TopK)", False: "signed (AbsTopK)"}
SHOWN = ("time", "machine", "threads", "torch", "deepl0_kernels", "commit")


def plan() -> Iterator[study.Settings]:
    """All trainings; the first ones say most."""
    for base in (BASE, LONG):
        for m in (32, 16):
            for seed in (0, 1):
                for positive in (True, False):
                    yield replace(base, m=m, seed=seed, positive=positive)


def main(arguments: list[str]) -> None:
    if unknown := set(arguments) - {"--draw"}:
        raise SystemExit(f"an option must be --draw, got {sorted(unknown)}")
    if "--draw" not in arguments:
        measure()
    draw()


def measure() -> None:
    torch.set_num_threads(1)
    path = folder_of(None, "minilm_activations.npz", WHERE) / "minilm_activations.npz"
    train = Activations.open(path, "train")
    test = Activations.open(path, "test").part(slice(0, HELD_OUT))
    for settings in plan():
        runs = record.read_json(RECORD)["runs"] if RECORD.exists() else []
        chosen = json.loads(json.dumps(asdict(settings)))
        if any(chosen.items() <= run["settings"].items() for run in runs):
            continue
        name = f"m{settings.m}-{'positive' if settings.positive else 'signed'}-{settings.seed}"
        name += "-long" if settings.stages == LONG.stages else ""
        found = study.train(train, settings, RUNS / name, held_out=test, progress=True)
        rows = [{k: v for k, v in row.items() if k != "firing"} for row in found["evaluations"]]
        environment = {key: found["environment"][key] for key in SHOWN}
        run = {"settings": found["settings"], "environment": environment, "evaluations": rows}
        record.write_json(RECORD, {"data": WHERE, "runs": [*runs, run]})


def draw() -> None:
    """The part of docs/sae.md, and its figure."""
    found = record.read_json(RECORD)
    fill(PAGE, {"depth": section(found)})
    write_atomically(FIGURE, figure(found))


Cells = dict[str, dict[tuple[bool, int], list[dict[str, Any]]]]


def cells(found: dict[str, Any]) -> Cells:
    """Method -> (positive, m) -> evaluations at the m of the training, one a seed."""
    out: Cells = {}
    for run in found["runs"]:
        key = run["settings"]["positive"], run["settings"]["m"]
        alone = run["settings"]["stages"] == list(LONG.stages)
        for row in run["evaluations"]:
            if row["trained_m"]:
                method = f"K = 1, {LONG.steps} steps at once" if alone else row["method"]
                out.setdefault(method, {}).setdefault(key, []).append(row)
    return out


def section(found: dict[str, Any]) -> str:
    """Settings, table, what changed with K, and the figure's place."""
    first = found["runs"][0]["settings"]
    by_method = cells(found)
    keys = sorted(next(iter(by_method.values())), key=lambda key: (not key[0], key[1]))
    seeds = sorted({run["settings"]["seed"] for run in found["runs"]})
    (rows, n), held_out = first["activations"]["shape"], first["held_out"]["shape"][0]
    lines = [
        f"Fraction of variance unexplained on {held_out} held-out vectors, mean over the seeds "
        f"{', '.join(map(str, seeds))} and in brackets half of their range: n = {n}, "
        f"p = {first['p']}, {rows} vectors, {first['steps']} steps of {first['batch']} vectors at "
        f"lr = {first['lr']:g}, and as many again for every tuning, K = 1 too. A step of three "
        f"stages takes a little over twice as long as one of one: {LONG.steps} steps of one stage "
        "are at least the time of K = 3.",
        "",
        "| code | " + " | ".join(f"{WORDS[positive]}, m = {m}" for positive, m in keys) + " |",
        "|---" * (len(keys) + 1) + "|",
    ]
    for method, columns in by_method.items():
        lines.append(f"| {method} | " + " | ".join(_cell(columns[key]) for key in keys) + " |")
    lines += ["", "What depth changes in it, at equal m:", ""]
    pairs = [("K = 2, untuned", "K = 1"), ("K = 3, untuned", "K = 1"),
             ("K = 2, tuned", "K = 1, tuned"), ("K = 3, tuned", "K = 1, tuned"),
             ("K = 3, tuned", f"K = 1, {LONG.steps} steps at once")]  # fmt: skip
    for method, against in pairs:
        changes = [_change(by_method, method, against, key) for key in keys]
        lines.append(f"* {method}, against {against}: {'; '.join(changes)}")
    machines = sorted({_machine(run) for run in found["runs"]})
    lines += [
        "",
        "L0 is m where no other is given. The pursuits code over the atoms of K = 1, tuned: "
        "matching pursuit as SAELens ends it (`max_iterations=m`; a step that chooses an atom "
        "again ends it; of signed entries the largest by magnitude), the same until it has m "
        "atoms, and `deepl0_kernels.solvers.omp`.",
        "",
        "![FVU against L0](figures/sae-depth.svg)",
        "",
        *(f"Record: `bench/records/sae-depth.json`; {machine}." for machine in machines),
    ]
    return "\n".join(lines) + "\n"


def _cell(rows: list[dict[str, Any]]) -> str:
    seen, l0 = [row["fvu"] for row in rows], statistics.mean(row["l0"] for row in rows)
    text = f"{statistics.mean(seen):.4f} ({(max(seen) - min(seen)) / 2:.4f})"
    return text if l0 > 0.999 * rows[0]["m"] else f"{text} at L0 = {l0:.1f}"


def _change(by_method: Cells, method: str, against: str, key: tuple[bool, int]) -> str:
    """Of the mean FVU, in percent."""
    new, old = (
        statistics.mean(row["fvu"] for row in by_method[name][key]) for name in (method, against)
    )
    positive, m = key
    return f"{100 * (new / old - 1):+.1f} % ({WORDS[positive].split()[0]}, m = {m})"


def _machine(run: dict[str, Any]) -> str:
    e = run["environment"]
    return (
        f"{e['machine']}, {e['threads']} thread, torch {e['torch']}, "
        f"deepl0_kernels {e['deepl0_kernels']}"
    )


def figure(found: dict[str, Any]) -> bytes:
    """FVU against L0: a line each method through the means at the m of the trainings, a point each
    seed."""
    by_method = cells(found)
    drawn, panels = sheet(1, 2, (4.6, 4.2), sharey=True)
    for axes, positive in zip(panels, (True, False), strict=True):
        for method, columns in by_method.items():
            color, style = _look(method)
            by_m = [rows for key, rows in sorted(columns.items()) if key[0] == positive]
            means = [
                [statistics.mean(row[key] for row in rows) for rows in by_m]
                for key in ("l0", "fvu")
            ]
            axes.plot(*means, style, color=color, lw=1.5, label=method)
            for rows in by_m:
                axes.plot([r["l0"] for r in rows], [r["fvu"] for r in rows], ".", color=color, ms=4)
        axes.set(xscale="log", yscale="log", xlabel="L0", title=WORDS[positive])
        ticks = sorted({m for columns in by_method.values() for _, m in columns})
        axes.set_xticks(ticks, [str(m) for m in ticks])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_yticks([0.1, 0.15, 0.2, 0.25, 0.3])
        tidy(axes)
    panels[0].set_ylabel("held-out FVU")
    handles, labels = panels[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return save(drawn, "sae-depth", kinds=("svg",))["sae-depth.svg"]


def _look(method: str) -> tuple[str, str]:
    """Colour by the number of stages, or of a pursuit; line by how it was trained."""
    if method.startswith("K = "):
        style = "-" if method.endswith(", tuned") else "-." if "at once" in method else "--"
        return PALETTE[int(method[4]) - 1], style
    return {"matching pursuit": PALETTE[4], "OMP": PALETTE[6]}.get(method, PALETTE[3]), ":"


if __name__ == "__main__":
    main(sys.argv[1:])
