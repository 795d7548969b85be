"""docs/classification.md, and the tuning of Table 5's systems.

``--tune`` trains every trial below that the record lacks, on a part of the training pixels, and
scores it on the rest of them: no test pixel is looked at. What it found is written into
``PROTOCOLS`` by hand. ``--figures`` takes what the page's figures are drawn from, of runs of one
seed, in place of their scores.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..._files import fill
from ..._report import record
from ..._report.page import items, markdown
from ..claims import verdicts
from ..classification.protocol import PROTOCOLS, Protocol
from ..classification.study import Classification
from ..classification.systems import TDSC, TUNED_LISTA
from ..deep import DEEP_L0, DEEP_M
from ..rendering import errors, further, machines
from ..study import Job, values
from . import DOCS, RECORDS, serve, short, take, write_figures

STUDY = Classification()
RECORD = RECORDS / "classification"
TRIED = RECORD / "tuning.json"
FIGURES = RECORD / "figures"
# Those that the page shows, and what they are drawn from beside the scores.
DRAWN = ("table5-confusion.svg", "table5-map.svg", "table5-training.svg")
ARRAYS = ("truth", "predicted", "tested", "nonzeros", "dead_units")
PAGE = DOCS / "classification.md"

# The records of the page, and what their runs set.
SHOWN: dict[str, dict[str, dict[str, Any]]] = {
    "table4": {"table4": {}, "table4-soft": {"inside": "soft"}},
    "table5": {
        "table5": {},
        "table5-context": {"context": 1},
        "table5-soft": {"inside": "soft"},
        "table5-dropout": {"inside": "soft", "dropout": 0.1},
    },
}

# What the page says of a trial.
_SHOWN = {
    "error": "validation error, %",
    "training_error": "training error, %",
    "nonzeros": "nonzeros",
    "dead_units": "dead units",
}

P, SEEDS, VALIDATION = 128, (0, 1), 0.25
# Where tuning starts: what a trial does not set. Not the tuned values, so that trials stay what
# they were when those change.
START: dict[str, Any] = dict(
    validation=VALIDATION,
    lam=0.5,
    l0_lam=0.5,
    l0_lr=1e-3,
    l0_grad="helu",
    m_sparse_lr=1e-3,
    lista_lr=1e-3,
    tdsc_lr=0.3,
    tdsc_lam=0.1,
)
TRIALS: dict[str, list[dict[str, Any]]] = {
    DEEP_L0: [
        dict(l0_grad="helu", l0_lr=1e-3, l0_lam=0.5),
        dict(l0_grad="helu", l0_lr=3e-3, l0_lam=0.5),
        dict(l0_grad="ste_theta", l0_lr=3e-3, l0_lam=0.5),
        dict(l0_grad="ste_theta", l0_lr=1e-2, l0_lam=0.5),
        dict(l0_grad="ste_theta", l0_lr=3e-2, l0_lam=0.5),
        dict(l0_grad="ste_theta", l0_lr=3e-3, l0_lam=5.0),
        dict(l0_grad="ste_theta", l0_lr=1e-2, l0_lam=5.0),
    ],
    TUNED_LISTA: [
        dict(lista_lr=1e-3, lam=0.5),
        dict(lista_lr=3e-3, lam=0.5),
        dict(lista_lr=1e-2, lam=0.5),
        dict(lista_lr=3e-2, lam=0.5),
        dict(lista_lr=3e-3, lam=5.0),
    ],
    DEEP_M.format(30): [
        dict(m_sparse_lr=1e-3),
        dict(m_sparse_lr=3e-3),
        dict(m_sparse_lr=1e-2),
        dict(m_sparse_lr=3e-2),
    ],
    TDSC: [
        dict(tdsc_lr=0.3, tdsc_lam=0.1),
        dict(tdsc_lr=1.0, tdsc_lam=0.1),
        dict(tdsc_lr=1.0, tdsc_lam=0.03),
        dict(tdsc_lr=3.0, tdsc_lam=0.03),
        dict(tdsc_lr=0.3, tdsc_lam=0.03),
        dict(tdsc_lr=0.3, tdsc_lam=0.01),
    ],
}


def tune(progress: bool) -> None:
    """Train the trials that the record lacks; it is written after each."""
    tried = record.read_json(TRIED)["trials"] if TRIED.exists() else []
    for method, trials in TRIALS.items():
        for settings in trials:
            base = replace(PROTOCOLS["table5"], **(START | settings))
            # (Protocol: choices that came later were their defaults.)
            if any((t["method"], Protocol(**t["protocol"])) == (method, base) for t in tried):
                continue
            trial: dict[str, Any] = {"method": method, "settings": settings}
            trial["protocol"] = asdict(base)
            try:
                jobs = [Job(base, seed, progress) for seed in SEEDS]
                found = [STUDY.cell("table5", method, P, job) for job in jobs]
            except RuntimeError as error:
                trial["failed"] = str(error)
            else:
                for key in ("error", "training_error", "nonzeros", "dead_units"):
                    trial[key] = [cell[key] for cell in found]
            tried.append(trial)
            record.write_json(TRIED, {"trials": tried, "environment": record.environment()})


def take_figures(run: Path) -> None:
    """The record of a run into bench/records: what the page's figures are drawn from."""
    results = STUDY.read(run)
    results["cells"] = [short(cell, ()) for cell in results["cells"]]
    record.write_json(FIGURES / "classification.json", results)
    for path in sorted((run / "cells").glob("*.npz")):
        arrays = record.read_arrays(path)
        record.write_arrays(FIGURES / "cells" / path.name, {key: arrays[key] for key in ARRAYS})


def parts() -> dict[str, str]:
    """What stands between the page's comments, from the records."""
    found = {
        "tuning": tuning(record.read_json(TRIED)["trials"]),
        "shown": items(machines(STUDY.read(FIGURES))),
    }
    for table, name in ((table, name) for table, names in SHOWN.items() for name in names):
        results = STUDY.read(RECORD, name)
        found |= {
            name: markdown(errors(STUDY, results, table)),
            f"{name}: further": markdown(further(STUDY, results, table)),
            f"{name}: claims": items(verdicts(results)),
            f"{name}: machines": items(machines(results)),
        }
    found["table4: seconds"] = markdown(seconds(STUDY.read(RECORD, "table4"), "table4"))
    return found


def seconds(results: dict[str, Any], table: str):
    """Training's seconds a cell as a pandas frame of strings, and a whole epoch's beside them."""
    import pandas

    rows, protocol = STUDY.rows(results["cells"], table), results["protocols"][table]
    index = pandas.Index(STUDY.methods, name="seconds of training (of an epoch)")

    def entry(method: str, p: int) -> str:
        seen = statistics.mean(s["training"] for s in values(rows, method, p, "seconds"))
        epochs = protocol["tdsc_epochs" if method == TDSC else "epochs"]
        return f"{seen:.0f} ({seen / epochs:.1f})"

    columns = {f"p = {p}": [entry(m, p) for m in index] for p in results["sizes"]}
    return pandas.DataFrame(columns, index=index)


def tuning(trials: list[dict[str, Any]]) -> str:
    """The trials as a table in Markdown: means over the seeds."""
    import pandas

    rows = []
    # Trials of a system that came later stand by its others.
    for trial in sorted(trials, key=lambda trial: list(TRIALS).index(trial["method"])):
        row = {
            "system": trial["method"],
            "choices": ", ".join(f"{k} = {v:g}" if isinstance(v, float) else f"{k} = {v}"
                                 for k, v in trial["settings"].items()),
        }  # fmt: skip
        if "failed" in trial:
            rows.append({**row, "validation error, %": trial["failed"]})
            continue
        mean = {key: statistics.mean(v) for key, v in trial.items() if key in _SHOWN}
        rows.append(row | {shown: f"{mean[key]:.1f}" for key, shown in _SHOWN.items()})
    return markdown(pandas.DataFrame(rows).fillna("").set_index("system"))


def draw() -> None:
    """The page and its figures."""
    files = STUDY.figures(STUDY.read(FIGURES), "table5", FIGURES).files
    write_figures({name: files[f"figures/{name}"] for name in DRAWN}, "classification")
    fill(PAGE, parts())


def main(arguments: Sequence[str]) -> None:
    def taken(run: Path) -> None:
        if "--figures" in arguments:
            take_figures(run)
        else:
            take(STUDY, run, RECORD, SHOWN.__getitem__, ("confusion",))

    options = {"--tune": lambda: tune(progress=sys.stderr.isatty()), "--figures": lambda: None}
    serve(arguments, options, taken, draw)


if __name__ == "__main__":
    main(sys.argv[1:])
