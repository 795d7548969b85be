"""Tables 4 and 5 of a run: text, CSV, the part of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..._files import write_atomically
from .. import grid
from . import figures
from .systems import DEEP_L0, DEEP_M, METHODS, TDSC, TUNED_LISTA

TITLES = {"table4": "Classification of MNIST", "table5": "Classification of Indian Pines"}
# Errors in percent at p of SIZES, where the text of the paper gives them.
PUBLISHED = {
    "table4": {
        TDSC: (0.71, 0.55, 0.53),
        TUNED_LISTA: (0.74, 0.62, 0.57),
        DEEP_L0: (0.72, 0.58, 0.52),
        DEEP_M.format(10): (0.69, 0.54, 0.51),
    },
    "table5": {
        TDSC: (15.55, 15.27, 15.21),
        TUNED_LISTA: (16.12, 16.05, 15.97),
        DEEP_L0: (15.20, 15.07, 15.01),
        DEEP_M.format(10): (13.77, 13.56, 13.52),
    },
}
# What a row says beside its error, and with how many digits.
_SCORES = {
    "average_accuracy": 2,
    "kappa": 4,
    "training_error": 2,
    "nonzeros": 1,
    "dead_units": 1,
}
_COLUMNS = ["table", "method", "p", "seed", "error", "overall_accuracy", *_SCORES]


def frames(results: dict[str, Any], table: str) -> list[Any]:
    """A table and the further scores, pandas frames of strings."""
    return [errors(results, table), further(results, table)]


def errors(results: dict[str, Any], table: str):
    """A table as a pandas frame of strings: methods by code size, the paper's values below."""
    return grid.errors(results, table, METHODS, PUBLISHED[table])


def further(results: dict[str, Any], table: str):
    """The other scores at the largest code size, as a pandas frame of strings."""
    return grid.further(results, table, METHODS, _SCORES)


def write(results: dict[str, Any], out: Path) -> None:
    """``classification.csv`` and ``classification.md``, each whole or not at all."""
    import pandas

    cells = pandas.DataFrame(results["cells"])[_COLUMNS]
    write_atomically(out / "classification.csv", cells.to_csv(index=False).encode())
    write_atomically(out / "classification.md", text(results).encode())


def text(results: dict[str, Any]) -> str:
    """Markdown: tables beside the paper's values, claims, protocols."""
    return grid.text(results, TITLES, lambda table: frames(results, table))


def page(results: dict[str, Any], drawn: dict[str, figures.Drawn]) -> list[str]:
    """The part of the report, in HTML; ``drawn`` are the figures of each table."""
    return grid.page(
        results,
        "Deep l0 encoders as classifiers",
        TITLES,
        lambda table: frames(results, table),
        lambda table: figures.page(results, drawn[table]),
    )
