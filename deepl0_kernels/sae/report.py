"""The page of a training: figures, tables and settings, as files and as one page of HTML."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .._files import write_atomically
from .._report.drawing import PALETTE, Drawn, Heading, label, save, sheet, tidy
from .._report.page import Block, as_html, document
from .activations import Activations
from .evaluation import evaluate
from .model import SparseAutoencoder
from .training import HISTORY

TITLE = "A sparse autoencoder and its stages"


def write(
    folder: Path,
    results: dict[str, Any],
    histories: Mapping[str, Tensor],
    models: Mapping[str, SparseAutoencoder],
    held_out: Activations,
) -> Path:
    """``results.csv``, ``history.csv``, figures as SVG, and ``report.html``, which is returned."""
    import pandas

    write_atomically(folder / "results.csv", table(results).to_csv(index=False).encode())
    frames = [
        pandas.DataFrame(history.numpy(), columns=list(HISTORY)).assign(
            training=name, step=range(1, len(history) + 1)
        )
        for name, history in histories.items()
    ]
    text = io.StringIO()
    pandas.concat(frames)[["training", "step", *HISTORY]].to_csv(text, index=False)
    write_atomically(folder / "history.csv", text.getvalue().encode())

    densities = {
        name: evaluate(model, held_out).densities.clamp_min(1e-9).log10().numpy()
        for name, model in models.items()
    }
    drawn = [
        Drawn(curves(histories), "Loss, fraction of variance unexplained (FVU) and nonzeros (L0) "
              "of the batches; a line is the mean of a hundredth of the steps."),
        Drawn(against_l0(results), "Held-out FVU against L0. Every line is one set of weights, "
              "coded with m / 4, m / 2, m and 2 m entries; the ring is the m of its training."),
        Drawn(firing(densities, len(held_out)), "How many units fire on which share of the "
              "held-out vectors; those that never fired are the bar on the left."),
    ]  # fmt: skip
    for one in drawn:
        for name, content in one.files.items():
            write_atomically(folder / name, content)
    page = folder / "report.html"
    write_atomically(page, document(TITLE, [as_html(TITLE, blocks(results, drawn))]))
    return page


def blocks(results: dict[str, Any], drawn: list[Drawn]) -> list[Block]:
    """What the page shows, from above."""
    settings, environment = results["settings"], results["environment"]
    at_m = [row for row in results["evaluations"] if row["trained_m"]]
    loss, depth, units = drawn
    machine = (
        f"{environment['machine']}, {environment['threads']} thread(s), torch "
        f"{environment['torch']}, deepl0_kernels {environment['deepl0_kernels']}"
    )
    return [
        Heading("Held-out vectors"),
        shown(at_m),
        f"At m = {settings['m']}. Untuned: the first autoencoder's weights, with more stages; "
        "tuned: trained on from there.",
        depth,
        Heading("Units"),
        firing_table(at_m),
        units,
        Heading("Training"),
        loss,
        Heading("Settings"),
        [f"{key}: {value}" for key, value in settings.items()],
        [machine, f"commit {environment['commit']}", environment["time"]],
    ]


def table(results: dict[str, Any]):
    """A row each evaluation, as a pandas frame."""
    import pandas

    return pandas.DataFrame(
        [{k: v for k, v in row.items() if k != "firing"} for row in results["evaluations"]]
    )


def shown(rows: list[dict[str, Any]]):
    """FVU, L0 and dead units, as a frame of strings."""
    import pandas

    return pandas.DataFrame(
        {
            "FVU": [f"{row['fvu']:.4f}" for row in rows],
            "mse": [f"{row['mse']:.4g}" for row in rows],
            "L0": [f"{row['l0']:.2f}" for row in rows],
            "dead units": [f"{row['dead']} of {row['units']}" for row in rows],
        },
        index=pandas.Index([row["method"] for row in rows], name="code"),
    )


def firing_table(rows: list[dict[str, Any]]):
    """Units by the decade of their density, as a frame of strings."""
    import pandas

    return pandas.DataFrame(
        [[str(n) for n in row["firing"].values()] for row in rows],
        columns=[name if name == "never" else f"from {name}" for name in rows[0]["firing"]],
        index=pandas.Index([row["method"] for row in rows], name="units that fire on"),
    )


def curves(histories: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Loss, FVU and L0 by step."""
    figure, panels = sheet(1, 3, (4.2, 3.4))
    for axes, name in zip(panels, ("loss", "fvu", "l0"), strict=True):
        column = HISTORY.index(name)
        for color, (training, history) in zip(_colors(histories), histories.items(), strict=True):
            width = max(len(history) // 100, 1)
            pieces = history[:, column].split(width)
            steps = [min((i + 1) * width, len(history)) for i in range(len(pieces))]
            axes.plot(steps, [p.mean().item() for p in pieces], color=color, lw=1.4, label=training)
        axes.set(xlabel="step", title={"fvu": "FVU", "l0": "L0"}.get(name, name))
        if name == "l0":
            axes.set_ylim(bottom=0)
        else:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
        tidy(axes)
    panels[0].legend(frameon=False, fontsize=8)
    return save(figure, "training", kinds=("svg",))


def against_l0(results: dict[str, Any]) -> dict[str, bytes]:
    """FVU against L0, a line each set of weights and number of stages."""
    figure, (axes,) = sheet(1, 1, (6.4, 4.4))
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in results["evaluations"]:
        lines.setdefault(row["method"], []).append(row)
    for color, (method, rows) in zip(_colors(lines), lines.items(), strict=True):
        points = sorted((row["l0"], row["fvu"], row["trained_m"]) for row in rows)
        style = "--" if "untuned" in method else "-" if method.startswith("K") else ":"
        axes.plot(*zip(*[p[:2] for p in points], strict=True), style, color=color, marker=".",
                  lw=1.4, label=method)  # fmt: skip
        for x, y, trained in points:
            if trained:
                axes.plot(x, y, "o", color=color, ms=9, mfc="none")
    axes.set(xscale="log", yscale="log", xlabel="L0", ylabel="held-out FVU")
    axes.legend(frameon=False, fontsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    axes.tick_params(which="minor", labelsize=7)
    tidy(axes)
    return save(figure, "fvu-l0", kinds=("svg",))


def firing(densities: Mapping[str, Any], vectors: int) -> dict[str, bytes]:
    """Histograms of log10 of the firing densities."""
    import numpy as np

    figure, panels = sheet(1, len(densities), (3.6, 3.0), sharey=True)
    low = float(np.floor(np.log10(1 / vectors)))
    bins = np.linspace(low, 0, 25)
    for axes, color, (name, values) in zip(
        panels, _colors(densities), densities.items(), strict=True
    ):
        alive = values[values > -9]
        axes.hist(np.clip(alive, low, 0), bins=bins, color=color)
        dead = len(values) - len(alive)
        axes.bar(low - 0.5, dead, width=0.4, color="#8a8f98")
        label(axes, f"never: {dead}", (low - 0.5, dead), "#555b66", (-4, 3), fontsize=8)
        axes.set(xlabel="log10 of the share of vectors", title=name)
        axes.set_axisbelow(True)
        tidy(axes)
    panels[0].set_ylabel("units")
    return save(figure, "firing", kinds=("svg",))


def _colors(names: Mapping[str, Any]) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(len(names))]
