"""What README.md says of the paper's tables: ``python -m deepl0_kernels.paper.pages.readme``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from ..._files import fill
from ..codes.study import DEEP2
from ..deep import DEEP_L0, DEEP_M
from ..study import SIZES, Study, values
from . import ROOT, classification, clustering, reproduction

PAGE = ROOT / "README.md"
CLASSIFIED = ("LISTA, tuned", DEEP_L0, DEEP_M.format(10), "TDSC")
CLUSTERED = (DEEP_L0, DEEP_M.format(10))


def parts() -> dict[str, str]:
    rows = (
        ("[1 to 3](docs/reproduction.md)", "optimal codes predicted, MNIST", codes()),
        (
            "[4](docs/classification.md)",
            "MNIST classified",
            f"{classified('table4', 'table4')} {softened('table4')}",
        ),
        ("[5](docs/classification.md)", "Indian Pines classified", surroundings()),
        ("[6, 7](docs/clustering.md)", "COIL-20 and CMU PIE clustered", clustered()),
    )
    lines = [f"| {where} | {what} | {found} |" for where, what, found in rows]
    return {
        "the tables": "\n".join(
            ["| tables | what they are | what came out |", "|---|---|---|", *lines]
        )
    }


def codes() -> str:
    """Whether the paper's order holds, and who is ahead of the encoder all the same."""
    study = reproduction.STUDY
    results = study.read(reproduction.RECORD)
    claims = results["claims"]
    held = sum(claim["holds"] for claim in claims)
    order = (
        f"The encoder of two stages errs less than the rivals that the paper names in {held} of "
        f"{len(claims)} comparisons (means of {len(results['seeds'])} seeds)"
    )
    ahead = [line for line in study.ahead(results) if not line.endswith("none")]
    return (
        f"{order}. Rows that predict better all the same, error in %: {'; '.join(ahead)}. "
        f"{softened_codes()}"
    )


def softened_codes() -> str:
    """The errors of encoders with soft thresholds inside, of LISTA, and of what polish makes of
    it."""
    study, lines = reproduction.STUDY, []
    results = study.read(reproduction.RECORD, reproduction.SOFT)
    for table in ("table1", "table2"):
        found = [
            f"{name} {_list(_errors(study, results, table, method, 'prediction_error'), 2)}"
            for name, method in (
                ("encoder", DEEP2),
                ("LISTA", reproduction.LISTA2),
                ("LISTA polished", reproduction.POLISHED2),
            )
        ]
        lines.append(f"{table}: {', '.join(found)}")
    sizes = " / ".join(map(str, results["sizes"]))
    return (
        f'With `inside="soft"` (p = {sizes}, seeds: {len(results["seeds"])}) and with '
        f"`solvers.polish`: {'; '.join(lines)}."
    )


def _errors(
    study: Study, results: dict[str, Any], table: str, method: str, metric: str = "error"
) -> list[float]:
    rows = study.rows(results["cells"], table)
    return [statistics.mean(values(rows, method, p, metric)) for p in results["sizes"]]


def _list(errors: Sequence[float], digits: int = 1) -> str:
    return " / ".join(f"{error:.{digits}f}" for error in errors)


def _range(figures: Sequence[float]) -> str:
    ends = list(dict.fromkeys(f"{end:.1f}" for end in (min(figures), max(figures))))
    return " to ".join(ends)


def classified(name: str, table: str) -> str:
    """Errors by p, and how many times the paper's they are."""
    study = classification.STUDY
    results = study.read(classification.RECORD, name)
    published = study.tables[table].published
    seeds = len({cell["seed"] for cell in results["cells"]})
    found = []
    for method in CLASSIFIED:
        errors = _errors(study, results, table, method)
        paper = [published[method][SIZES.index(p)] for p in results["sizes"]]
        times = [ours / theirs for ours, theirs in zip(errors, paper, strict=True)]
        found.append(f"{method} {_list(errors)} ({_range(times)} times the paper's)")
    sizes = " / ".join(map(str, results["sizes"]))
    return f"Errors in % at p = {sizes}, seeds: {seeds}. {'; '.join(found)}."


def softened(table: str) -> str:
    """What soft thresholds inside change in a table."""
    study = classification.STUDY
    results = study.read(classification.RECORD, f"{table}-soft")
    found = [
        f"{method} {_list(_errors(study, results, table, method))}" for method in CLASSIFIED[1:3]
    ]
    seeds = len({cell["seed"] for cell in results["cells"]})
    sizes = " / ".join(map(str, results["sizes"]))
    return f'With `inside="soft"` (p = {sizes}, seeds: {seeds}) {", ".join(found)}.'


def surroundings() -> str:
    """Table 5, and what a pixel's surroundings change."""
    study = classification.STUDY
    results = study.read(classification.RECORD, "table5-context")
    errors = [e for m in CLASSIFIED for e in _errors(study, results, "table5", m)]
    return (
        f"{classified('table5', 'table5')} {softened('table5')} "
        f"With a pixel's surroundings {_range(errors)}; but the "
        "random split puts training pixels there, so that is no measure of a scene never seen."
    )


def clustered() -> str:
    """Errors from the graph chosen without labels, and from pixels, with the paper's beside."""
    study, lines = clustering.STUDY, []
    for table in study.tables:
        paper = [e for m in CLUSTERED for e in study.tables[table].published[m]]
        ranges = []
        for what, name in (
            (
                "from spectral clustering of a graph chosen without labels",
                f"{table}-spectral-eigengap",
            ),
            ("of pixels, from k-means of the codes", f"{table}-kmeans"),
        ):
            results = study.read(clustering.RECORD, name)
            errors = [e for m in CLUSTERED for e in _errors(study, results, table, m)]
            ranges.append(f"{what} {_range(errors)}")
        lines.append(f"{table}, error in %: {', '.join(ranges)} (paper {_range(paper)})")
    merit = "What is below the paper is so by the graph's merit, not the encoders'"
    return f"{'; '.join(lines)}. {merit}."


def main() -> None:
    fill(PAGE, parts())


if __name__ == "__main__":
    main()
