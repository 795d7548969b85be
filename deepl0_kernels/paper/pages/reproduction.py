"""docs/reproduction.md, and the variations of the protocol of Tables 1 to 3.

``--variations`` computes those that are not on record yet, on the digits in the package. The record
of a run has its times, too: those of ``deepl0 timing``, if that came after it.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..._files import fill
from ..._report import record
from ..._report.page import items, markdown
from ..codes import race
from ..codes.cells import BASELINE, LISTA_ROW, POLISHED
from ..codes.protocol import Protocol
from ..codes.study import DEEP2, ITERATIVE, Codes, claims_frame, problems, unlearned_note
from ..rendering import errors, machines
from . import DOCS, RECORDS, serve, write_figures

STUDY = Codes()
RECORD = RECORDS / "reproduction"
VARIED = RECORD / "variations.json"
# Of a run with soft thresholds inside.
SOFT = "soft"
PAGE = DOCS / "reproduction.md"

# What every variation has in common; and what each changes, for which of the problems.
COMMON = ("data=subset", "digits=12000", "copies=2", "held_out=2000", "epochs=10", "further_p=0")
M_SPARSE, L0 = "m_sparse", "l0"
VARIATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "none": ((), (L0, M_SPARSE)),
    "dictionary: l1, atoms of unit norm": (("dictionary=l1",), (L0, M_SPARSE)),
    "M = 10": (("m=10",), (M_SPARSE,)),
    "lam = 0.1": (("lam=0.1",), (L0,)),
    "gradient not clipped": (("clip=1e9",), (L0, M_SPARSE)),
    "sigma not below 0.2": (("sigma_floor=0.2",), (L0,)),
    "sigma down to 0.01": (("sigma_floor=0.01",), (L0,)),
    "rate 0.001": (("l0_lr=0.001",), (L0,)),
    "soft thresholds inside": (("inside=soft",), (L0, M_SPARSE)),
    "soft thresholds inside, rate 0.001": (
        ("inside=soft", "l0_lr=0.001", "m_sparse_lr=0.001"),
        (L0, M_SPARSE),
    ),
    "soft thresholds inside, rate 0.01": (("inside=soft", "l0_lr=0.01"), (L0,)),
    "LISTA's rate 0.003": (("lista_lr=0.003",), (L0, M_SPARSE)),
    "LISTA's rate 0.01": (("lista_lr=0.01",), (L0, M_SPARSE)),
    "three times as many epochs": (("epochs=30",), (L0, M_SPARSE)),
    "no shifted copies": (("copies=1",), (L0, M_SPARSE)),
    "optimal codes from l1 at 0.5": (("m_sparse_l1_lam=0.5",), (M_SPARSE,)),
    "dictionary: MOD, atoms of unit norm": (("dictionary=mod",), (L0, M_SPARSE)),
}
LISTA2 = LISTA_ROW.format(k=2)
POLISHED2 = f"{LISTA2}, {POLISHED}"
SHOWN = (ITERATIVE, BASELINE, LISTA2, DEEP2)


def vary(path: Path, progress: bool) -> None:
    """Both problems at p = 128 under every variation that ``path`` lacks, into ``path`` one by one.

    A network that diverges is a result, too.
    """
    base = Protocol().changed(COMMON)
    found: dict[str, Any] = {"protocol": asdict(base), "variations": []}
    if path.exists():
        before = record.read_json(path)
        if before["protocol"] == found["protocol"]:
            found = before
    done = {entry["name"] for entry in found["variations"]}
    for name, (settings, keys) in VARIATIONS.items():
        if name in done:
            continue
        entry = {
            "name": name,
            "settings": settings,
            "environment": record.environment(),
            "problems": {key: _varied(base.changed(settings), key, progress) for key in keys},
        }
        found["variations"].append(entry)
        record.write_json(path, found)


def _varied(protocol: Protocol, problem: str, progress: bool) -> dict[str, Any]:
    table = "table1" if problem == L0 else "table2"
    with tempfile.TemporaryDirectory() as out:
        try:
            run = STUDY.run({table: protocol}, [128], [0], Path(out), progress)
        except RuntimeError as error:
            return {"error": str(error)}
    (cell,) = run["cells"]
    return {
        "nonzeros": cell["optimal"]["nonzeros"],
        "squared_norm": cell["dictionary"]["squared_norm"],
        "prediction_error": {row["method"]: row["prediction_error"] for row in cell["rows"]},
    }


def take(run: Path) -> None:
    """The record of a run into bench/records: its results and its times."""
    results = STUDY.read(run)
    name = SOFT if results["protocol"]["inside"] == "soft" else STUDY.name
    record.write_json(RECORD / f"{name}.json", results)
    for found in race.read(run):
        record.write_json(RECORD / f"{race.name_of(found['problem'], found['p'])}.json", found)


def parts() -> dict[str, str]:
    """What stands between the page's comments, from the record."""
    results = STUDY.read(RECORD)
    chosen = " ".join(f"{key}={value}" for key, value in results["protocol"].items())
    return {
        **{table: markdown(errors(STUDY, results, table)) for table in results["tables"]},
        "claims": markdown(claims_frame(results)),
        "ahead": items(STUDY.ahead(results)),
        "unlearned": unlearned_note(results),
        "cost": cost(results),
        "problems": markdown(problems(results)),
        "times": items([race.time_of_codes(found) for found in race.read(RECORD)]),
        "machines": items(machines(results)),
        "protocol": f"`{chosen}`",
        "variations": variations(record.read_json(VARIED)),
        "soft": soft(results, STUDY.read(RECORD, SOFT)),
    }


def cost(results: dict[str, Any]) -> str:
    """What the cells took, in a sentence."""
    seconds = sum(sum(cell["cpu_seconds"].values()) for cell in results["cells"])
    threads = sorted({cell["environment"]["threads"] for cell in results["cells"]})
    return (
        f"The {len(results['cells'])} cells took {seconds / 60:.0f} minutes of processor time in "
        f"all, with {' or '.join(map(str, threads))} thread(s)."
    )


def soft(hard: dict[str, Any], soft: dict[str, Any]) -> str:
    """Prediction errors in percent and, in brackets, support errors: means over the seeds, of the
    sizes that the soft run has."""
    import pandas

    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for run in (hard, soft):
        chosen = run["protocol"]
        for cell in run["cells"]:
            for row in cell["rows"]:
                if not (row["method"] == DEEP2 or row["method"].startswith(LISTA2)):
                    continue
                what = f"{chosen['inside']} inside"
                if row["method"].startswith(LISTA2):
                    what = f"rate {chosen['lista_lr']}"
                key = f"{row['method']}, {what}", f"{cell['problem']}, p = {cell['p']}"
                errors_of = row["prediction_error"], row["support_error"]
                found.setdefault(key, []).append(errors_of)
    frame = pandas.DataFrame()
    for p in soft["sizes"]:
        for problem in (L0, M_SPARSE):
            column = f"{problem}, p = {p}"
            for (name, of), figures in found.items():
                if of == column:
                    error, support = map(statistics.mean, zip(*figures, strict=True))
                    frame.loc[name, column] = f"{error:.2f} ({support:.2f})"
    return markdown(frame.fillna("").rename_axis("error, % (support error, positions)"))


def variations(found: dict[str, Any]) -> str:
    """The variations as a table in Markdown: one line a variation and problem."""
    import pandas

    rows = []
    for entry in found["variations"]:
        for problem, cell in entry["problems"].items():
            row = {"change": entry["name"], "problem": problem}
            if "error" in cell:
                rows.append({**row, SHOWN[-1]: cell["error"]})
                continue
            errors = cell["prediction_error"]
            row |= {"nonzeros": f"{cell['nonzeros']:.1f}", "‖D‖²": f"{cell['squared_norm']:.1f}"}
            rows.append(row | {name: f"{errors[name]:.2f}" for name in SHOWN})
    table = markdown(pandas.DataFrame(rows).fillna("").set_index("change"))
    done = {entry["name"] for entry in found["variations"]}
    missing = [name for name in VARIATIONS if name not in done]
    return table + (f"\n\nNot run: {'; '.join(missing)}." if missing else "")


def draw() -> None:
    """The page and its figures."""
    results = STUDY.read(RECORD)
    for found in race.read(RECORD):
        write_figures(race.draw(found), "reproduction")
    for table in results["tables"]:
        write_figures(STUDY.figures(results, table, RECORD).files, "reproduction")
    fill(PAGE, parts())


def main(arguments: Sequence[str]) -> None:
    options = {"--variations": lambda: vary(VARIED, progress=sys.stderr.isatty())}
    serve(arguments, options, take, draw)


if __name__ == "__main__":
    main(sys.argv[1:])
