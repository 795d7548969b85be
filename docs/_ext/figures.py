"""Figures of the pages on concepts and choices, drawn once for light pages, once for dark ones."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from sphinx.application import Sphinx

import deepl0_kernels as dk

ROOT = Path(__file__).parents[2]
# Ink, lines, and colours told apart with any colour vision, for either background.
MODES = {
    "light": {
        "ink": "#1a202c",
        "faint": "#a0a6b0",
        "colors": ["#0072b2", "#d55e00", "#009e73", "#cc79a7"],
    },
    "dark": {
        "ink": "#e6e9ee",
        "faint": "#6b727d",
        "colors": ["#56b4e9", "#e69f00", "#2fd0a0", "#f0a8d0"],
    },
}


def style(mode: dict[str, Any]) -> dict[str, Any]:
    ink = mode["ink"]
    return {
        "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
        "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": mode["faint"],
        "xtick.color": ink, "ytick.color": ink, "legend.frameon": False, "font.size": 10,
        "axes.prop_cycle": matplotlib.cycler(color=mode["colors"]), "axes.spines.top": False,
        "axes.spines.right": False, "svg.hashsalt": "deepl0", "svg.fonttype": "path",
    }  # fmt: skip


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A dictionary of bumps, a code of three atoms and its signal."""
    n, p = 64, 28
    at, centre, width = torch.arange(n)[:, None], torch.linspace(2, n - 3, p), 1.5
    D = torch.exp(-((at - centre) ** 2) / (2 * width**2))
    D = torch.nn.functional.normalize(D, dim=0)
    a = torch.zeros(p)
    a[[4, 14, 21]] = torch.tensor([1.2, -0.9, 1.6])
    return D, a, D @ a


def code(mode: dict[str, Any]):
    D, a, x = problem()
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
    left.plot(x, lw=2.4, color=mode["ink"], label="signal x")
    for i in a.nonzero()[:, 0]:
        left.plot(D[:, i] * a[i], lw=1.4, label=f"{a[i]:.1f} · atom {int(i)}")
    left.set(xlabel="position", title="a signal is a few atoms ...")
    left.legend(fontsize=8)
    kept = a.nonzero()[:, 0]
    right.vlines(kept, 0, a[kept], lw=2)
    right.plot(kept, a[kept], "o")
    right.axhline(0, color=mode["faint"], lw=0.8)
    right.set(xlabel="unit", xlim=(0, len(a)), title="... so its code is mostly zeros")
    return figure


def iht(mode: dict[str, Any]):
    D, _, x = problem()
    noisy = x + 0.05 * torch.randn(64, generator=torch.Generator().manual_seed(0))
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
    result = dk.solvers.iht_m(noisy, D, m=3, tol=1e-9, max_iter=20)
    left.plot(result.objective, lw=2)
    left.set(xlabel="iteration", title="1/2 ||x - D a||² never rises")
    for k in (1, 3, 20):
        a = dk.solvers.iht_m(noisy, D, m=3, tol=1e-9, max_iter=k).dense
        right.plot(D @ a, lw=1.5, label=f"after {k}")
    right.plot(noisy, ".", ms=3, color=mode["ink"], label="signal")
    right.set(xlabel="position", title="what three atoms say after k iterations")
    right.legend(fontsize=8)
    return figure


def unrolled(mode: dict[str, Any]):
    figure, axes = plt.subplots(figsize=(8, 2.1), layout="constrained")
    axes.set(xlim=(0, 12.4), ylim=(0, 3.2))
    axes.axis("off")

    def box(x: float, y: float, text: str, color: str) -> None:
        patch = matplotlib.patches.FancyBboxPatch(
            (x, y), 1.1, 0.8, boxstyle="round,pad=0.05", fill=False, ec=color, lw=1.8
        )
        axes.add_patch(patch)
        axes.text(x + 0.55, y + 0.4, text, ha="center", va="center", fontsize=12)

    def arrow(a: tuple[float, float], b: tuple[float, float]) -> None:
        axes.annotate("", b, a, arrowprops=dict(arrowstyle="->", color=mode["ink"], lw=1.2))

    blue, orange, green, _ = mode["colors"]
    axes.text(0.1, 0.7, "x", fontsize=14)
    box(1.0, 0.4, "W", blue)
    arrow((0.4, 0.8), (0.9, 0.8))
    axes.plot([2.2, 10.45], [0.8, 0.8], color=mode["ink"], lw=1.2)
    for stage, x in enumerate((2.9, 6.4, 9.9), 1):
        box(x, 2.0, "h", green)
        axes.text(x + 0.55, 3.0, f"stage {stage}", ha="center", fontsize=9)
        arrow((x + 0.55, 0.8), (x + 0.55, 1.9))
        if stage < 3:
            box(x + 1.75, 2.0, "S", orange)
            arrow((x + 1.2, 2.4), (x + 1.7, 2.4))
            arrow((x + 2.95, 2.4), (x + 3.4, 2.4))
    arrow((11.1, 2.4), (11.7, 2.4))
    axes.text(11.8, 2.3, "z", fontsize=14)
    return figure


def selection(mode: dict[str, Any]):
    u = torch.randn(40, generator=torch.Generator().manual_seed(3))
    kept = dk.keep_top_m(u, 8)
    over = dk.hard_threshold(u, 1.0)
    figure, panels = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained", sharey=True)
    for axes, z, title in zip(panels, (kept, over), ("top_m: the 8 largest", "threshold: |u| ≥ 1"),
                              strict=True):  # fmt: skip
        axes.vlines(range(40), 0, u, color=mode["faint"], lw=2)
        on = z.nonzero()[:, 0]
        axes.vlines(on, 0, z[on], color=mode["colors"][0], lw=2.6)
        axes.set(title=title, xlabel="unit")
        axes.axhline(0, color=mode["faint"], lw=0.8)
    for y in (-1, 1):
        panels[1].axhline(y, ls="--", color=mode["colors"][1], lw=1)
    return figure


def ramp(mode: dict[str, Any]):
    u = torch.linspace(-2, 2, 801)
    figure, panels = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
    for sigma in (0.6, 0.2, 0.0):
        panels[0].plot(u, dk.helu(u, 1.0, sigma), lw=1.8, label=f"sigma = {sigma:g}")
        v = u.clone().requires_grad_()
        dk.helu(v, 1.0, sigma).sum().backward()
        panels[1].plot(u, v.grad, lw=1.8)
    panels[0].legend(fontsize=8)
    panels[0].set(title="value", xlabel="u / theta")
    panels[1].set(title="derivative in u", xlabel="u / theta")
    return figure


TIMED = (  # operator, shape, provider, what it is called here
    ("encode_top_m", "B=4096 p=512 m=32 K=2", "deepl0", "encoder, K = 2"),
    ("iht_m 10 iterations", "B=4096 p=512 m=32", "deepl0", "iht_m, 10 iterations"),
    ("omp", "B=4096 p=512 m=32", "deepl0", "omp"),
    ("omp", "B=4096 p=512 m=32", "SPAMS omp", "SPAMS omp"),
    ("fista", "B=4096 p=512 lam=0.2", "deepl0", "fista"),
    ("fista", "B=4096 p=512 lam=0.2", "SPAMS lasso", "SPAMS lasso"),
    ("omp", "B=4096 p=512 m=32", "scikit-learn omp", "scikit-learn omp"),
    ("fista", "B=4096 p=512 lam=0.2", "scikit-learn lasso_cd", "scikit-learn lasso_cd"),
)


def times(mode: dict[str, Any]):
    """Of coders at one size, one thread, from the record."""
    with (ROOT / "bench/records/cpu.csv").open() as file:
        found = {
            (row["operator"], row["shape"], row["provider"]): float(row["p50"]) / 4096
            for row in csv.DictReader(file)
            if row["threads"] == "1"
        }
    blue, orange, *_ = mode["colors"]
    bars = sorted((found[key[:3]], key[3], key[2] == "deepl0") for key in TIMED)[::-1]
    figure, axes = plt.subplots(figsize=(8, 2.8), layout="constrained")
    seconds, names, ours = zip(*bars, strict=True)
    drawn = axes.barh(names, seconds, color=[blue if own else orange for own in ours])
    axes.bar_label(drawn, [f"{value:.3g}" for value in seconds], padding=3)
    axes.set(xscale="log", xlabel="microseconds a signal (log scale)", xlim=(1, 5000))
    return figure


DRAWN = (code, iht, unrolled, selection, ramp, times)


def write(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    for name, mode in MODES.items():
        with matplotlib.rc_context(style(mode)):
            for draw in DRAWN:
                figure = draw(mode)
                target = folder / f"{draw.__name__}-{name}.svg"
                figure.savefig(target, metadata={"Date": None})
                plt.close(figure)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
