"""Hyperspectral scenes whose pixels are signals: AVIRIS Indian Pines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ._optional import require
from .ops import checks

WHERE = (
    "Indian Pines (M. Baumgardner, L. Biehl, D. Landgrebe, 2015, Purdue University) is distributed "
    "as Indian_pines_corrected.mat and Indian_pines_gt.mat by the Universidad del Pais Vasco"
)
NAMES = (
    "Alfalfa", "Corn-notill", "Corn-mintill", "Corn", "Grass-pasture", "Grass-trees",
    "Grass-pasture-mowed", "Hay-windrowed", "Oats", "Soybean-notill", "Soybean-mintill",
    "Soybean-clean", "Wheat", "Woods", "Buildings-Grass-Trees-Drives", "Stone-Steel-Towers",
)  # fmt: skip
# Pixels of the background and of each class; a file that disagrees is another scene, or damaged.
_COUNTS = (
    10776, 46, 1428, 830, 237, 483, 730, 28, 478, 20, 972, 2455, 593, 205, 1265, 386, 93,
)  # fmt: skip
_SHAPE = (145, 145, 200)


class Scene(NamedTuple):
    """A scene and its classes.

    Attributes:
        x: [h, w, bands] float32, radiance as distributed.
        y: [h, w] int64, 0 for the background, classes from 1.
    """

    x: Tensor
    y: Tensor


class Pixels(NamedTuple):
    """Labelled pixels of a scene.

    Attributes:
        x: [N, bands], or [N, 2 bands] with the mean of the surroundings.
        y: [N] int64, classes from 0.
    """

    x: Tensor
    y: Tensor


def indian_pines(folder: str | Path | None = None) -> Scene:
    """Indian Pines, 145 x 145 pixels of 200 bands (water absorption removed), 16 classes.

    Args:
        folder: holds indian_pines.npz (x, y), or the two .mat files (which need SciPy); by default
            ``$DEEPL0_DATA``.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: the file is not Indian Pines.
    """
    folder = folder if folder is not None else os.environ.get("DEEPL0_DATA")
    if not folder:
        raise FileNotFoundError(f"set DEEPL0_DATA to a folder that holds indian_pines.npz. {WHERE}")
    folder = Path(folder)
    np = require("numpy", "reading a data set")
    npz, mat = folder / "indian_pines.npz", folder / "Indian_pines_corrected.mat"
    truth = folder / "Indian_pines_gt.mat"
    source = npz if npz.is_file() else mat
    if not source.is_file():
        raise FileNotFoundError(f"{folder} holds no indian_pines.npz. {WHERE}")
    if source == mat and not truth.is_file():
        raise FileNotFoundError(f"{folder} holds {mat.name} but no {truth.name}. {WHERE}")
    try:
        if source == npz:
            with np.load(npz, allow_pickle=False) as file:
                x, y = file["x"], file["y"]
        else:
            io = require("scipy.io", "reading a .mat file", extra="sklearn")
            x = io.loadmat(mat)["indian_pines_corrected"]
            y = io.loadmat(truth)["indian_pines_gt"]
    except ModuleNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{source} cannot be read as Indian Pines: {error!r}") from error
    if x.shape != _SHAPE or y.shape != _SHAPE[:2]:
        raise ValueError(
            f"{source}: x and y must have shapes {_SHAPE} and {_SHAPE[:2]}, got {x.shape} "
            f"and {y.shape}"
        )
    labels = torch.from_numpy(y.astype(np.int64))
    seen = tuple(torch.bincount(labels.flatten().clamp(0, 99)).tolist())
    if seen != _COUNTS:
        raise ValueError(f"{source} is not Indian Pines: label counts {seen}, not {_COUNTS}")
    return Scene(torch.from_numpy(x.astype(np.float32)), labels)


def labelled_pixels(scene: Scene, context: int = 0) -> Pixels:
    """The pixels that have a class; the background is left out.

    Args:
        context: radius r > 0 appends the mean spectrum of the (2 r + 1)^2 pixels around (those
            beyond the border left out): no label is used, but a test pixel's surroundings may hold
            training pixels.

    Raises:
        ValueError: context < 0.
    """
    context = checks.integer("context", context, 0)
    x = scene.x
    if context:
        bands = x.permute(2, 0, 1)[None]
        mean = torch.nn.functional.avg_pool2d(
            bands, 2 * context + 1, stride=1, padding=context, count_include_pad=False
        )
        x = torch.cat((x, mean[0].permute(1, 2, 0)), -1)
    kept = scene.y > 0
    return Pixels(x[kept], scene.y[kept] - 1)


def stratified_split(
    y: Tensor, fraction: float, seed: int, least: int = 3
) -> tuple[Tensor, Tensor]:
    """Indices of training and test samples: of each class ``fraction`` at random, rounded.

    Args:
        y: [N] int64. fraction: in (0, 1).
        least: training samples of a class at least; a class has more than that.

    Raises:
        ValueError: a fraction out of range, or a class too small to be tested.
    """
    fraction = checks.number("fraction", fraction)
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be in (0, 1), got {fraction}")
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for label in y.unique():
        members = (y == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        count = max(least, round(fraction * len(members)))
        if count >= len(members):
            raise ValueError(
                f"class {label.item()} has {len(members)} samples: none is left to test beside "
                f"{count} for training"
            )
        train.append(members[:count])
        test.append(members[count:])
    return torch.cat(train).sort().values, torch.cat(test).sort().values
