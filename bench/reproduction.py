"""docs/reproduction.md and its figures, from a record; and the variations of the protocol.

``python -m bench.reproduction RUN`` takes the record of a run of ``deepl0 reproduce`` (and of
``deepl0 timing``, if that came after it) into bench/records; ``--variations`` computes the
variations that are not on record yet (on the digits in the package). Both then draw; without
arguments that is all.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from deepl0_kernels._files import write_atomically
from deepl0_kernels.paper import pareto, record, reproduce, tables
from deepl0_kernels.paper.protocol import Protocol
from deepl0_kernels.paper.regression import BASELINE, DEEP

from . import records

DOCS = Path(__file__).parents[1] / "docs"
RECORD = records.FOLDER / "reproduction"
PAGE = DOCS / "reproduction.md"
BEGIN, END = "<!-- from the record: {} -->\n", "<!-- end -->"

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
    "three times as many epochs": (("epochs=30",), (L0, M_SPARSE)),
    "no shifted copies": (("copies=1",), (L0, M_SPARSE)),
    "optimal codes from l1 at 0.5": (("m_sparse_l1_lam=0.5",), (M_SPARSE,)),
    "dictionary: MOD, atoms of unit norm": (("dictionary=mod",), (L0, M_SPARSE)),
}
SHOWN = ("Iterative-10 from zero", BASELINE, "LISTA, K = 2", DEEP.format(k=2))


def vary(path: Path, progress: bool) -> None:
    """Both problems at p = 128 under every variation that ``path`` lacks, into ``path`` one by one.

    A network that diverges is a result, too.
    """
    base = Protocol().changed(COMMON)
    found: dict[str, Any] = {"protocol": asdict(base), "variations": []}
    if path.exists():
        before = json.loads(path.read_text())
        if before["protocol"] == found["protocol"]:
            found = before
    done = {entry["name"] for entry in found["variations"]}
    for name, (settings, problems) in VARIATIONS.items():
        if name in done:
            continue
        entry = {
            "name": name,
            "settings": settings,
            "environment": record.environment(),
            "problems": {key: _varied(base.changed(settings), key, progress) for key in problems},
        }
        found["variations"].append(entry)
        record.write_json(path, found)


def _varied(protocol: Protocol, problem: str, progress: bool) -> dict[str, Any]:
    table = "table1" if problem == L0 else "table2"
    with tempfile.TemporaryDirectory() as out:
        try:
            run = reproduce.run([table], protocol, [128], [0], Path(out), progress)
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
    record.write_json(RECORD / "results.json", reproduce.read(run))
    for found in pareto.read(run):
        record.write_json(RECORD / f"{pareto.name_of(found['problem'], found['p'])}.json", found)


def draw() -> None:
    """Figures and the parts of docs/reproduction.md that come from the record."""
    results = reproduce.read(RECORD)
    for found in pareto.read(RECORD):
        write_figures(pareto.draw(found), "reproduction")
    for name in results["tables"]:
        write_figures(tables.draw(results, name), "reproduction")
    write_atomically(PAGE, page(PAGE.read_text()).encode())


def page(text: str) -> str:
    """``text`` with every part between markers drawn from the record anew."""
    results, times = reproduce.read(RECORD), pareto.read(RECORD)
    parts = {name: tables.markdown(tables.frame(results, name)) for name in results["tables"]}
    parts["claims"] = tables.markdown(tables.claims(results))
    parts["ahead"] = tables.ahead(results)
    parts["unlearned"] = tables.unlearned_note(results)
    parts["cost"] = cost(results)
    parts["problems"] = tables.markdown(tables.problems(results).set_index("problem"))
    parts["times"] = "\n".join(map(tables.time_of_codes, times))
    parts["machines"] = "\n".join(f"* {line}" for line in tables.machines(results))
    parts["protocol"] = tables.protocol(results)
    parts["variations"] = variations(json.loads((RECORD / "variations.json").read_text()))
    return fill(text, parts)


def name_of(table: str, base: Any, variants: dict[str, dict[str, Any]], ran: dict[str, Any]) -> str:
    """Which of the records, a name and what its run sets beyond ``base``, a run belongs to.

    Raises:
        ValueError: none of them; a page has no place for it.
    """
    for name, settings in variants.items():
        if ran == asdict(replace(base, **settings)):
            return name
    other = {key: value for key, value in ran.items() if value != getattr(base, key)}
    raise ValueError(f"{table} was run with {other}, which is on no page")


def fill(text: str, parts: dict[str, str]) -> str:
    """``text`` with every part put between its markers."""
    for name, content in parts.items():
        before, rest = text.split(BEGIN.format(name))
        text = f"{before}{BEGIN.format(name)}{content}\n{rest[rest.index(END) :]}"
    return text


def cost(results: dict[str, Any]) -> str:
    """What the cells took, in a sentence."""
    seconds = sum(sum(cell["cpu_seconds"].values()) for cell in results["cells"])
    threads = sorted({cell["environment"]["threads"] for cell in results["cells"]})
    return (
        f"The {len(results['cells'])} cells took {seconds / 60:.0f} minutes of processor time in "
        f"all, with {' or '.join(map(str, threads))} thread(s)."
    )


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
    table = tables.markdown(pandas.DataFrame(rows).fillna("").set_index("change"))
    done = {entry["name"] for entry in found["variations"]}
    missing = [name for name in VARIATIONS if name not in done]
    return table + (f"\n\nNot run: {'; '.join(missing)}." if missing else "")


def write_figures(files: dict[str, bytes], page: str) -> None:
    """The SVG files among ``files`` into docs/figures, named after the page that shows them."""
    for name, content in files.items():
        if name.endswith(".svg"):
            write_atomically(DOCS / "figures" / f"{page}-{name}", content)


def main(arguments: Sequence[str]) -> None:
    if "--variations" in arguments:
        vary(RECORD / "variations.json", progress=sys.stderr.isatty())
    for run in (Path(a) for a in arguments if a != "--variations"):
        take(run)
    draw()


if __name__ == "__main__":
    main(sys.argv[1:])
