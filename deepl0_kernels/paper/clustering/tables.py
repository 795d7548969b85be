"""Tables 6 and 7 of a run: text, CSV, figures of embedded codes, the part of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..._files import write_atomically
from .. import grid
from ..figure import embedded, save
from .cells import EMBEDDED
from .systems import DEEP_L0, DEEP_M, JOINT, METHODS, TAGNET

TITLES = {"table6": "Clustering of COIL-20", "table7": "Clustering of CMU PIE, pose 27"}
# Errors in percent at p of SIZES, where the text of the paper gives them; of the joint rival it
# does not name the loss.
PUBLISHED = {
    "table6": {
        JOINT: (17.75, 17.14, 17.15),
        TAGNET: (14.47, 14.17, 14.08),
        DEEP_L0: (14.52, 14.27, 14.06),
        DEEP_M.format(10): (14.59, 14.25, 14.03),
    },
    "table7": {
        JOINT: (17.50, 17.26, 17.20),
        TAGNET: (16.14, 15.58, 15.09),
        DEEP_L0: (16.08, 15.72, 15.41),
        DEEP_M.format(10): (16.77, 16.46, 16.02),
    },
}
# What a row says beside its error, and with how many digits.
_SCORES = {"nmi": 4, "ari": 4, "clusters": 1, "start_error": 2, "nonzeros": 1, "dead_units": 1}
_COLUMNS = ["table", "method", "p", "seed", "error", *_SCORES]


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
    """``clustering.csv``, ``clustering.md``, ``figures/*.svg``, each whole or not at all."""
    import pandas

    cells = pandas.DataFrame(results["cells"])[_COLUMNS]
    write_atomically(out / "clustering.csv", cells.to_csv(index=False).encode())
    write_atomically(out / "clustering.md", text(results).encode())
    for table in results["tables"]:
        for file, content in draw(results, table).items():
            write_atomically(out / grid.FIGURES / file, content)


def text(results: dict[str, Any]) -> str:
    """Markdown: tables beside the paper's values, claims, protocols."""
    return grid.text(results, TITLES, lambda table: frames(results, table))


def draw(results: dict[str, Any], table: str) -> dict[str, bytes]:
    """t-SNE of what was clustered at the largest code size, coloured by class.

    Empty without a first seed.
    """
    from matplotlib.figure import Figure

    p = max(results["sizes"])
    shown = {
        cell["method"]: cell
        for cell in results["cells"]
        if cell["table"] == table and cell["p"] == p and cell["embedding"]
    }
    if not shown:
        return {}
    figure = Figure(figsize=(9.0, 9.0), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, method in zip(panels, EMBEDDED, strict=True):
        cell = shown[method]
        axes.scatter(
            *zip(*cell["embedding"], strict=True),
            c=cell["classes"],
            cmap="tab20",
            s=4,
            lw=0,
            rasterized=True,
        )
        axes.set_title(f"{method}: error {cell['error']:.1f} %", fontsize=9)
        axes.set(xticks=[], yticks=[])
    figure.suptitle(f"{TITLES[table]}, p = {p}, seed 0: t-SNE, a colour a class", fontsize=10)
    return save(figure, f"{table}-embedding", ("svg",))


def page(results: dict[str, Any]) -> list[str]:
    """The part of the report, in HTML."""
    return grid.page(
        results,
        "Deep l0 encoders as clusterers",
        TITLES,
        lambda table: frames(results, table),
        lambda table: [embedded(svg) for svg in draw(results, table).values()],
    )
