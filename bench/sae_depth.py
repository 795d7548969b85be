"""What stages do to autoencoders of real activations: ``python -m bench.sae_depth`` trains all
that is not on record yet, ``--times`` takes the times of coding (one thread, an idle machine), and
both draw docs/sae.md from the record; ``--draw`` draws alone.

Activations are those of ``minilm_activations.npz`` in ``DEEPL0_DATA``. A run that was interrupted
goes on; every finished training is on record at once.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepl0_kernels import sae
from deepl0_kernels._files import fill, write_atomically
from deepl0_kernels._report import record
from deepl0_kernels._report.drawing import PALETTE, save, sheet, tidy
from deepl0_kernels._sources import folder_of
from deepl0_kernels.sae import study
from deepl0_kernels.sae.activations import Activations

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).parent / "records" / "sae-depth.json"
PAGE, FIGURE = ROOT / "docs" / "sae.md", ROOT / "docs" / "figures" / "sae-depth.svg"
README = ROOT / "README.md"
RUNS = ROOT / "build" / "sae-depth"

BASE = study.Settings(
    p=4096, m=32, stages=(1, 2, 3, 4), steps=1000, batch=256, lr=2e-3, grown=False
)
# What has several stages, with entries that grow to m over them.
GROWN = replace(BASE, stages=BASE.stages[1:], grown=True)
WIDE = 16_384  # units
# One stage, given more than the flops of four: their products with W are four times its own.
LONG = replace(BASE, stages=(1,), steps=BASE.steps * 5)
AT_ONCE = f"K = 1, {LONG.steps} steps at once"
GROWING = ", growing"
HELD_OUT, TIMED = 4096, 1024
WHERE = "residual-stream vectors after layer 3 of all-MiniLM-L6-v2; see the data's README"
WORDS = {True: "positive (TopK)", False: "signed (AbsTopK)"}
SHOWN = ("time", "machine", "threads", "torch", "deepl0_kernels", "commit")


def plan() -> Iterator[study.Settings]:
    """All trainings; the first ones say most, and each four, of entries that grow each two, make a
    column. Columns of more units that came later are last."""
    first = [(0, BASE.p, m) for m in (32, 16, 64)] + [(0, WIDE, BASE.m)]
    first += [(seed, BASE.p, m) for seed in (1, 2) for m in (32, 16, 64)]
    for columns in (first, [(0, WIDE, 16)], [(0, WIDE, 64)]):
        for seed, p, m in columns:
            for base in (BASE, LONG):
                for positive in (True, False):
                    yield replace(base, p=p, m=m, seed=seed, positive=positive)
        for seed, p, m in sorted(columns, key=lambda column: column[1]):
            for positive in (True, False):
                yield replace(GROWN, p=p, m=m, seed=seed, positive=positive)


def main(arguments: list[str]) -> None:
    if unknown := set(arguments) - {"--draw", "--times"}:
        raise SystemExit(f"an option must be --draw or --times, got {sorted(unknown)}")
    torch.set_num_threads(1)
    if "--times" in arguments:
        take_times()
    elif "--draw" not in arguments:
        measure()
    draw()


def data() -> tuple[Activations, Activations]:
    """What to train on, and what is held out."""
    path = folder_of(None, "minilm_activations.npz", WHERE) / "minilm_activations.npz"
    test = Activations.open(path, "test").part(slice(0, HELD_OUT))
    return Activations.open(path, "train"), test


def folder(settings: study.Settings) -> Path:
    name = f"p{settings.p}-m{settings.m}-{'positive' if settings.positive else 'signed'}"
    kind = "-long" if settings.stages == LONG.stages else "-grown" if settings.grown else ""
    return RUNS / f"{name}-{settings.seed}{kind}"


def measure() -> None:
    train, test = data()
    for settings in plan():
        found = record.read_json(RECORD) if RECORD.exists() else {"data": WHERE, "runs": []}
        chosen = json.loads(json.dumps(asdict(settings)))
        if any(chosen.items() <= run["settings"].items() for run in found["runs"]):
            continue
        done = study.train(train, settings, folder(settings), held_out=test, progress=True)
        rows = done["evaluations"]
        if settings.stages == BASE.stages:  # over the atoms of one stage, trained as long
            first = sae.load(folder(settings) / "stages-1.safetensors").eval()
            rows += study.pursued(first, [settings.m], test, True)
        rows = [{k: v for k, v in row.items() if k != "firing"} for row in rows]
        environment = {key: done["environment"][key] for key in SHOWN}
        run = {"settings": done["settings"], "environment": environment, "evaluations": rows}
        record.write_json(RECORD, found | {"runs": [*found["runs"], run]})


def take_times() -> None:
    """Of the models that :func:`measure` has left, a seed of each size, method by method in turns.
    What is on record of others stays, if this machine is the same."""
    x = next(data()[1].batches(TIMED)).float()
    coders: dict[Timed, dict[str, Callable[[Tensor], Any]]] = {}
    for settings in plan():
        key = settings.p, settings.positive, settings.m
        if settings.stages != LONG.stages and folder(settings).exists():
            coders[key] = _coders(settings) | coders.get(key, {})
    rows: list[dict[str, Any]] = []
    for key, of_size in coders.items():
        taken: dict[str, list[float]] = {method: [] for method in of_size}
        for _ in range(4):  # the first one counts for nothing
            for method, coder in of_size.items():
                clock = time.perf_counter()
                coder(x)
                taken[method].append((time.perf_counter() - clock) / len(x) * 1e6)
        told = dict(zip(("p", "positive", "m"), key, strict=True))
        rows += [
            told | {"method": method, "us": statistics.median(took[1:])}
            for method, took in taken.items()
        ]
    environment = {key: record.environment()[key] for key in SHOWN}
    found = record.read_json(RECORD)
    before = found.get("times", {"environment": environment, "rows": []})
    if _machine(before["environment"]) == _machine(environment):
        seen = {_place(row) for row in rows}
        rows = [row for row in before["rows"] if _place(row) not in seen] + rows
    times = {"environment": environment, "vectors": TIMED, "rows": rows}
    record.write_json(RECORD, found | {"times": times})


Timed = tuple[int, bool, int]  # p, positive, m


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["method"], row["p"], row["positive"], row["m"]


def _coders(settings: study.Settings) -> dict[str, Callable[[Tensor], Any]]:
    models = {
        k: sae.load(folder(settings) / f"stages-{k}.safetensors").eval() for k in settings.stages
    }
    end = GROWING if settings.grown else ""
    coders: dict[str, Callable[[Tensor], Any]] = {
        f"K = {k}, tuned{end}": torch.no_grad()(model.encode) for k, model in models.items()
    }
    if settings.grown:
        return coders
    return coders | {what: make(models[1], settings.m) for what, make in study.CODERS.items()}


def draw() -> None:
    """The part of docs/sae.md, and its figure."""
    found = record.read_json(RECORD)
    fill(PAGE, {"depth": section(found)})
    fill(README, {"sae depth": headline(found)})
    write_atomically(FIGURE, figure(found))


Cells = dict[str, dict[tuple[bool, int], list[dict[str, Any]]]]


def cells(found: dict[str, Any], p: int = BASE.p) -> Cells:
    """Method -> (positive, m) -> evaluations of p units at the m of the training, one a seed."""
    out: Cells = {}
    for run in found["runs"]:
        if run["settings"]["p"] != p:
            continue
        key = run["settings"]["positive"], run["settings"]["m"]
        for row in run["evaluations"]:
            if row["trained_m"] and (method := _method(run["settings"], row["method"])):
                out.setdefault(method, {}).setdefault(key, []).append(row)
    return out


def _method(settings: dict[str, Any], method: str) -> str:
    """What the page calls a method of a run; "" for one stage trained as in another run."""
    if settings["stages"] == list(LONG.stages):
        return AT_ONCE
    if not settings["grown"]:
        return method
    return "" if method == "K = 1" else method + GROWING


def headline(found: dict[str, Any]) -> str:
    """What stages bring at the m of most columns, for the README."""
    by_method, most = cells(found), max(BASE.stages)

    def left(method: str) -> str:
        rows = (by_method[method][positive, BASE.m] for positive in (True, False))
        return " and ".join(f"{statistics.mean(row['fvu'] for row in r):.3f}" for r in rows)

    return (
        f"On activations of a sentence transformer {most} stages of {BASE.p} units, whose entries "
        f"grow to {BASE.m}, leave {left(f'K = {most}, tuned' + GROWING)} of the variance "
        f"(nonnegative and signed codes), one stage that was given more flops {left(AT_ONCE)} "
        "([docs/sae.md](docs/sae.md#depth-on-real-activations)).\n"
    )


def section(found: dict[str, Any]) -> str:
    """Settings, a table for each p, what changed with K, and the figure's place."""
    first = found["runs"][0]["settings"]
    (rows, n), held_out = first["activations"]["shape"], first["held_out"]["shape"][0]
    lines = [
        f"Fraction of variance unexplained on {held_out} held-out vectors, mean over the seeds "
        f"and in brackets half of their range: n = {n}, "
        f"{rows} vectors, {first['steps']} steps of {first['batch']} vectors at "
        f"lr = {first['lr']:g}, and as many again for every tuning, K = 1 too. K = 4 multiplies "
        f"by W four times in a step: {LONG.steps} steps of one stage are more than its flops.",
        "",
    ]
    for p in sizes(found):
        lines += [*_errors(cells(found, p), p), ""]
    lines += [
        "L0 is m where no other is given. The pursuits code over the atoms of K = 1, tuned: "
        "matching pursuit as SAELens ends it (`max_iterations=m`; a step that chooses an atom "
        "again ends it; of signed entries the largest by magnitude), the same until it has m "
        "atoms, 100 iterations of `deepl0_kernels.solvers.iht_m` with normalised steps (NIHT), and "
        "`deepl0_kernels.solvers.omp`.",
        "",
    ]
    if "times" in found:
        lines += [*_times(found["times"]), ""]
    machines = sorted({_machine(run["environment"]) for run in found["runs"]})
    lines += [
        "![FVU against L0, and against the time of a vector](figures/sae-depth.svg)",
        "",
        *(f"Record: `bench/records/sae-depth.json`; {machine}." for machine in machines),
    ]
    return "\n".join(lines) + "\n"


def sizes(found: dict[str, Any]) -> list[int]:
    """The p on record."""
    return sorted({run["settings"]["p"] for run in found["runs"]})


def _errors(by_method: Cells, p: int) -> list[str]:
    """The table of p units, and what depth changes in it."""
    keys = sorted(next(iter(by_method.values())), key=lambda key: (not key[0], key[1]))
    lines = _heading(f"p = {p:,}", (_column(*key) for key in keys))
    for method, columns in by_method.items():
        found = (_cell(columns[key]) if key in columns else "" for key in keys)
        lines.append(f"| {method} | " + " | ".join(found) + " |")
    tuned = [f"K = {k}, tuned" for k in BASE.stages]
    for method in tuned:
        dead = (statistics.mean(row["dead"] for row in by_method[method][key]) for key in keys)
        lines.append(f"| dead units of {method} | " + " | ".join(f"{n:.0f}" for n in dead) + " |")
    seeds = [str(len(by_method["K = 1"][key])) for key in keys]
    lines += ["| seeds | " + " | ".join(seeds) + " |"]
    lines += ["", f"What depth changes at p = {p:,}, at equal m:", ""]
    pairs = [("K = 2, untuned", "K = 1"), *((method, tuned[0]) for method in tuned[1:]),
             (tuned[-1], AT_ONCE), *((method + GROWING, method) for method in tuned[1:]),
             (tuned[-1] + GROWING, AT_ONCE)]  # fmt: skip
    for method, against in pairs:
        if changes := [
            _change(by_method, method, against, key)
            for key in keys
            if key in by_method.get(method, {})
        ]:
            lines.append(f"* {method}, against {against}: {'; '.join(changes)}")
    return lines


def _times(times: dict[str, Any]) -> list[str]:
    """A table of microseconds a vector."""
    by = {
        (row["method"], (row["p"], row["positive"], row["m"])): row["us"] for row in times["rows"]
    }
    keys = sorted({key for _, key in by}, key=lambda key: (key[0], not key[1], key[2]))
    lines = [
        f"Microseconds to code a vector, {times['vectors']} of them at once, the median of three "
        f"({_machine(times['environment'])}):",
        "",
        *_heading("code", (f"p = {p:,}, {_column(*key)}" for p, *key in keys)),
    ]
    for method in dict.fromkeys(method for method, _ in by):
        shown = (f"{by[method, key]:.3g}" if (method, key) in by else "" for key in keys)
        lines.append(f"| {method} | " + " | ".join(shown) + " |")
    return lines


def _heading(what: str, columns: Iterable[str]) -> list[str]:
    titles = [what, *columns]
    return ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]


def _column(positive: bool, m: int) -> str:
    return f"{WORDS[positive]}, m = {m}"


def _cell(rows: list[dict[str, Any]]) -> str:
    seen, l0 = [row["fvu"] for row in rows], statistics.mean(row["l0"] for row in rows)
    text = f"{statistics.mean(seen):.4f}"
    if len(seen) > 1:
        text += f" ({(max(seen) - min(seen)) / 2:.4f})"
    return text if l0 > 0.999 * rows[0]["m"] else f"{text} at L0 = {l0:.1f}"


def _change(by_method: Cells, method: str, against: str, key: tuple[bool, int]) -> str:
    """Of the mean FVU, in percent."""
    new, old = (
        statistics.mean(row["fvu"] for row in by_method[name][key]) for name in (method, against)
    )
    positive, m = key
    return f"{100 * (new / old - 1):+.1f} % ({WORDS[positive].split()[0]}, m = {m})"


def _machine(e: dict[str, Any]) -> str:
    return (
        f"{e['machine']}, {e['threads']} thread, torch {e['torch']}, "
        f"deepl0_kernels {e['deepl0_kernels']}"
    )


def figure(found: dict[str, Any]) -> bytes:
    """Above FVU against L0 at the p of most columns, a line each method through the means at the m
    of the trainings, a point each seed; below against the time of a vector at the m of most, the
    frontier, hollow for more units."""
    by_method = cells(found)
    timed = "times" in found
    drawn, panels = sheet(1 + timed, 2, (4.6, 3.9), sharey=True)
    above, below = panels[:2], panels[2:]
    for axes, positive in zip(above, (True, False), strict=True):
        for method, columns in by_method.items():
            if method.endswith("untuned" + GROWING):
                continue
            color, style = _look(method)
            by_m = [rows for key, rows in sorted(columns.items()) if key[0] == positive]
            means = [
                [statistics.mean(row[key] for row in rows) for rows in by_m]
                for key in ("l0", "fvu")
            ]
            axes.plot(*means, style, color=color, lw=1.5, ms=5, mfc="none", label=method)
            for rows in by_m:
                axes.plot([r["l0"] for r in rows], [r["fvu"] for r in rows], ".", color=color, ms=4)
        axes.set(
            xscale="log", yscale="log", xlabel="L0", title=f"{WORDS[positive]}, p = {BASE.p:,}"
        )
        ticks = sorted({m for columns in by_method.values() for _, m in columns})
        axes.set_xticks(ticks, [str(m) for m in ticks])
        _finish(axes)
    of_size = {p: cells(found, p) for p in sizes(found)}
    for axes, positive in zip(below, (True, False), strict=False):
        shown = [row for row in found["times"]["rows"] if row["m"] == BASE.m]
        for row in shown:
            if row["positive"] == positive:
                rows = of_size[row["p"]][row["method"]][positive, row["m"]]
                fvu = statistics.mean(r["fvu"] for r in rows)
                fill = "full" if row["p"] == BASE.p else "none"
                mark = "D" if row["method"].endswith(GROWING) else "o"
                axes.plot(row["us"], fvu, mark, color=_look(row["method"])[0], fillstyle=fill)
        hollow = any(row["p"] == WIDE for row in shown)
        wide = f" (hollow: p = {WIDE:,})" if hollow else ""
        axes.set(xscale="log", yscale="log", xlabel=f"microseconds a vector, m = {BASE.m}{wide}")
        _finish(axes)
    for axes in panels[::2]:
        axes.set_ylabel("held-out FVU")
    handles, labels = above[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return save(drawn, "sae-depth", kinds=("svg",))["sae-depth.svg"]


def _finish(axes: Any) -> None:
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_yticks([0.05, 0.1, 0.15, 0.2, 0.25, 0.3])
    tidy(axes)


def _look(method: str) -> tuple[str, str]:
    """Colour by the number of stages, or of a pursuit; line by how it was trained."""
    if method.startswith("K = "):
        ends = {", tuned": "-", "at once": "-.", ", tuned" + GROWING: "o-"}
        style = next((line for end, line in ends.items() if method.endswith(end)), "--")
        return PALETTE[int(method[4]) - 1], style
    colors = {"matching pursuit": PALETTE[4], "NIHT": PALETTE[5], "OMP": PALETTE[6]}
    return colors.get(method, "#888888"), ":"


if __name__ == "__main__":
    main(sys.argv[1:])
