"""Codes in the plane: PCA or t-SNE, coloured by label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._optional import require
from ..ops import checks
from .figure import PALETTE

METHODS = ("PCA", "t-SNE")
_MARKERS = "osD^v"


def embed(codes: Tensor, method: str, seed: int = 0) -> Tensor:
    """Codes [N, p] as points [N, 2] float32.

    Args:
        method: "PCA": the two directions of most variance. "t-SNE": neighbours stay neighbours,
            distances mean little (perplexity 30, less for fewer than 91 codes; starts from PCA).

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
        ValueError: an unknown method, codes of another shape, fewer than 3, or not finite.
    """
    checks.one_of("method", method, METHODS)
    if codes.dim() != 2 or len(codes) < 3 or codes.shape[1] < 2:
        raise ValueError(f"codes must be [N >= 3, p >= 2], got shape {tuple(codes.shape)}")
    array = codes.numpy(force=True)
    if method == "PCA":
        model = require("sklearn.decomposition", "PCA").PCA(2, random_state=seed)
    else:
        manifold = require("sklearn.manifold", "t-SNE")
        perplexity = min(30.0, (len(codes) - 1) / 3)
        model = manifold.TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    return torch.from_numpy(model.fit_transform(array)).float()


def draw(codes: Tensor, labels: Tensor, names: Sequence[str], title: str = "", seed: int = 0):
    """Two panels, PCA and t-SNE, of codes [N, p]; a colour and marker for each label.

    Args:
        labels: [N] int64, from 0. names: of the labels, in the legend. title: above the panels.

    Raises:
        ValueError: labels that do not fit the codes or the names; others are those of
            :func:`embed`.
    """
    from matplotlib.figure import Figure

    if labels.shape != codes.shape[:1]:
        raise ValueError(
            f"labels must be [N] for codes {tuple(codes.shape)}, got shape {tuple(labels.shape)}"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise ValueError(
            f"labels must be in [0, {len(names) - 1}] for {len(names)} names, "
            f"got {labels.min()} to {labels.max()}"
        )
    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    panels = figure.subplots(1, len(METHODS))
    for axes, method in zip(panels, METHODS, strict=True):
        points = embed(codes, method, seed)
        for label in labels.unique().tolist():
            axes.scatter(
                *points[labels == label].T.numpy(),
                s=9,
                color=PALETTE[label % len(PALETTE)],
                marker=_MARKERS[label // len(PALETTE) % len(_MARKERS)],
                linewidths=0,
                rasterized=True,
                label=names[label],
            )
        axes.set(title=method, xticks=[], yticks=[])
        axes.set(xlabel=f"{method}, first axis", ylabel=f"{method}, second axis")
    figure.suptitle(title, fontsize=10)
    handles, shown = panels[0].get_legend_handles_labels()
    figure.legend(handles, shown, loc="outside lower center", ncols=10, fontsize=7, frameon=False)
    return figure
