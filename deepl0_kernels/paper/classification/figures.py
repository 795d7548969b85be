"""Figures of classifiers, each from data alone: confusion, class map, filters, theta, training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._report.drawing import PALETTE, sheet, tidy

# Sixteen of Paul Tol's discrete rainbow: of so long a list no more than neighbours are alike.
CLASSES = (
    "#d9cce3", "#caaccb", "#ae76a3", "#882e72", "#1965b0", "#5289c7", "#7bafde", "#4eb265",
    "#90c987", "#cae0ab", "#f7f056", "#f6c141", "#f1932d", "#e8601c", "#dc050c", "#72190e",
)  # fmt: skip
BACKGROUND = "#ffffff"
# What an errors' map holds, by its values from 1.
JUDGED = {
    "training, right": "#bbbbbb",
    "training, wrong": "#000000",
    "test, right": "#56b4e9",
    "test, wrong": "#d55e00",
}
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
MOSAIC = 8  # filters in a row and a column


def confusion(cells: Sequence[Mapping[str, Any]], names: Sequence[str]):
    """One heat map a cell: shares of a class in percent by colour, signals in figures.

    Args:
        cells: each with method, error and confusion [classes][classes]. names: of the classes.
    """
    figure, panels = sheet(1, len(cells), (0.4 * len(names) + 1.2, 0.34 * len(names) + 1.6))
    for axes, cell in zip(panels, cells, strict=True):
        matrix = torch.tensor(cell["confusion"])
        share = 100 * matrix / matrix.sum(1, keepdim=True).clamp_min(1)
        image = axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=100, interpolation="none")
        for row, column in matrix.nonzero().tolist():
            axes.text(
                column, row, str(int(matrix[row, column])), ha="center", va="center", fontsize=6,
                color="white" if share[row, column] > 55 else "black",
            )  # fmt: skip
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_title(f"{cell['method']}: {cell['error']:.2f} % wrong", fontsize=9)
        axes.set_xlabel("predicted class", fontsize=8)
    panels[0].set_ylabel("true class", fontsize=8)
    bar = figure.colorbar(image, ax=panels, shrink=0.7, pad=0.01)
    bar.set_label("share of the true class, %", fontsize=8)
    return figure


def judged(truth: Tensor, predicted: Tensor, tested: Tensor) -> Tensor:
    """[h, w] uint8: 0 for no signal, else 1 + the index in ``JUDGED``."""
    wrong = (truth != predicted).to(torch.uint8)
    return torch.where(truth > 0, 1 + 2 * tested.to(torch.uint8) + wrong, 0).to(torch.uint8)


def class_map(method: str, arrays: Mapping[str, Tensor], names: Sequence[str]):
    """A scene's classes, those that ``method`` predicts, and where it errs.

    Args:
        arrays: truth and predicted [h, w] uint8, classes from 1, 0 where no signal is; tested
            [h, w] bool. names: of the classes.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    figure, panels = sheet(1, 3, (4.2, 5.4))
    figure.get_layout_engine().set(h_pad=0.15)  # legends outside take some of what titles need
    errors = judged(arrays["truth"], arrays["predicted"], arrays["tested"])
    classes = CLASSES[: len(names)]
    for axes, title, image, colors in (
        (panels[0], "true class", arrays["truth"], classes),
        (panels[1], f"predicted by {method}", arrays["predicted"], classes),
        (panels[2], "errors", errors, tuple(JUDGED.values())),
    ):
        palette = ListedColormap((BACKGROUND, *colors))
        axes.imshow(image.numpy(), cmap=palette, vmin=0, vmax=len(colors), interpolation="none")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("column, pixels")
    panels[0].set_ylabel("row, pixels")
    found = [
        Patch(color=color, label=f"{name}: {int((errors == i).sum()):,}")
        for i, (name, color) in enumerate(JUDGED.items(), 1)
    ]
    figure.legend(handles=found, loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    figure.legend(
        handles=[Patch(color=c, label=name) for c, name in zip(classes, names, strict=True)],
        loc="outside lower left", ncols=6, fontsize=8, frameon=False,
    )  # fmt: skip
    return figure


def mosaic(filters: Tensor, side: int) -> Tensor:
    """The filters [p, side * side] of largest norm as one picture, a NaN pixel between them.

    At most ``MOSAIC`` squared, row by row by their norm; each divided by its largest entry.
    """
    count = min(len(filters), MOSAIC**2)
    chosen = filters[filters.norm(dim=1).argsort(descending=True, stable=True)[:count]]
    columns, rows = min(count, MOSAIC), -(-count // MOSAIC)
    picture = torch.full((rows * (side + 1) - 1, columns * (side + 1) - 1), float("nan"))
    for i, one in enumerate(_scaled(chosen)):
        top, left = (side + 1) * (i // MOSAIC), (side + 1) * (i % MOSAIC)
        picture[top : top + side, left : left + side] = one.reshape(side, side)
    return picture


def spectra(filters: Tensor) -> Tensor:
    """Filters [p, n], each divided by its largest entry, in the order of where that is."""
    return _scaled(filters)[filters.abs().argmax(1).argsort(stable=True)]


def _scaled(filters: Tensor) -> Tensor:
    largest = filters.abs().amax(1, keepdim=True)
    return filters / largest.clamp_min(torch.finfo(filters.dtype).tiny)


def filters(found: Mapping[str, Tensor], images: bool):
    """The filters [p, n] of each method: of square ``images`` as pictures, else as spectra."""
    figure, panels = _grid(len(found), (3.6, 3.7))
    for axes, (method, rows) in zip(panels, found.items(), strict=False):
        rows = rows.float()
        if images:
            picture = mosaic(rows, round(rows.shape[1] ** 0.5))
            shown = min(len(rows), MOSAIC**2)
            title = f"{method}\n{shown} of {len(rows)} filters, the largest by norm"
            axes.set_axis_off()
        else:
            picture, title = spectra(rows), method
            axes.set_xlabel("band", fontsize=8)
            axes.set_ylabel("filter, by its largest weight's band", fontsize=8)
        image = axes.imshow(
            picture.numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="none",
            aspect="equal" if images else "auto",
        )  # fmt: skip
        axes.set_title(title, fontsize=8)
    figure.colorbar(image, ax=panels, shrink=0.6).set_label(
        "weight, over the filter's largest", fontsize=8
    )
    return figure


def thresholds(found: Mapping[str, Mapping[str, Tensor]]):
    """How the trained theta [p] of each method are distributed, and where theta_start was."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, panels = sheet(1, len(found), (4.6, 3.6))
    for axes, (method, arrays) in zip(panels, found.items(), strict=True):
        theta, start = arrays["theta"], arrays["theta_start"]
        both = torch.cat((theta, start)).double().log10()
        edges = torch.logspace(both.min().item() - 0.05, both.max().item() + 0.05, 41)
        axes.hist(theta.numpy(), bins=edges.tolist(), color=PALETTE[0], label="trained")
        for i, value in enumerate(start.unique().tolist()):
            label = "start" if i == 0 else None
            axes.axvline(value, color=PALETTE[1], ls="--", label=label)
        axes.set(xscale="log", title=method, xlabel="threshold theta, on the scale of W x")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=8)
        tidy(axes)
    panels[0].set_ylabel(f"units, of p = {len(theta)}")
    return figure


def course(found: Mapping[str, Mapping[str, Tensor]], p: int, signals: int):
    """Mean nonzeros and dead units of each method before the first and after each epoch.

    Args:
        found: of each method nonzeros and dead_units [epochs + 1].
        p, signals: code size, and how many training signals were looked at.
    """
    figure, panels = sheet(1, 2, (5.2, 4.2))
    for i, (method, arrays) in enumerate(found.items()):
        style = dict(color=PALETTE[i % len(PALETTE)], ls=_STYLES[i % len(_STYLES)], lw=1.4)
        for axes, key in zip(panels, ("nonzeros", "dead_units"), strict=True):
            axes.plot(arrays[key].tolist(), label=method, **style)
    panels[0].set_ylabel(f"nonzeros of a code (mean), of p = {p}")
    panels[1].set_ylabel(f"dead units, of p = {p}")
    for axes in panels:
        axes.set(xlabel="epochs", ylim=(0, None))
        tidy(axes)
    figure.suptitle(f"codes of the same {signals} training signals", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _grid(count: int, size: tuple[float, float]):
    """At most three panels in a row; those beyond ``count`` are left out."""
    columns = min(count, 3)
    figure, panels = sheet(-(-count // columns), columns, size)
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]
