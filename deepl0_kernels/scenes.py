"""Hyperspectral scenes whose pixels are signals: AVIRIS Indian Pines."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ._sources import folder_of, integers, numbers, pick, read
from .ops import checks

__all__ = ["Pixels", "Scene", "indian_pines", "labelled_pixels", "stratified_split"]

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
_WHAT = "Indian Pines"
_SHAPE = (145, 145, 200)


class Scene(NamedTuple):
    """A scene and its classes.

    Attributes:
        x: [h, w, bands] float32, radiance as distributed.
        y: [h, w] int64, 0 for the background, classes from 1.

    Example:
        >>> from deepl0_kernels import scenes
        >>> scene = scenes.Scene(torch.rand(4, 5, 200), torch.randint(0, 3, (4, 5)))
        >>> scene.x.reshape(-1, 200).shape  # a row a pixel
        torch.Size([20, 200])
    """

    x: Tensor
    y: Tensor


class Pixels(NamedTuple):
    """Labelled pixels of a scene.

    Attributes:
        x: [N, bands], or [N, 2 bands] with the mean of the surroundings.
        y: [N] int64, classes from 0.

    Example:
        >>> from deepl0_kernels import scenes
        >>> pixels = scenes.Pixels(torch.rand(20, 200), torch.arange(20) % 2)
        >>> pixels.x[pixels.y == 0].shape
        torch.Size([10, 200])
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

    Example:
        >>> from deepl0_kernels import scenes
        >>> try:
        ...     scene = scenes.indian_pines("a/folder")
        ... except FileNotFoundError as error:
        ...     print(str(error).partition(".npz")[0])
        a/folder holds no indian_pines
    """
    folder = folder_of(folder, "indian_pines.npz", WHERE)
    npz, mat = folder / "indian_pines.npz", folder / "Indian_pines_corrected.mat"
    if npz.is_file():
        files = ((npz, "x"), (npz, "y"))
    else:
        truth = folder / "Indian_pines_gt.mat"
        files = ((mat, "indian_pines_corrected"), (truth, "indian_pines_gt"))
        if not mat.is_file():
            raise FileNotFoundError(f"{folder} holds no indian_pines.npz. {WHERE}")
        if not truth.is_file():
            raise FileNotFoundError(f"{folder} holds {mat.name} but no {truth.name}. {WHERE}")
    (x,), (y,) = (pick(file, _WHAT, read(file, _WHAT), [name]) for file, name in files)
    for (file, name), array, shape in zip(files, (x, y), (_SHAPE, _SHAPE[:2]), strict=True):
        if array.shape != shape:
            raise ValueError(f"{file}: {name} must have shape {shape}, got {array.shape}")
    labels = integers(*files[1], y, 0, len(NAMES))
    seen = tuple(torch.bincount(labels.flatten()).tolist())
    if seen != _COUNTS:
        raise ValueError(f"{files[1][0]} is not {_WHAT}: label counts {seen}, not {_COUNTS}")
    # Radiance is distributed as 16 bits.
    return Scene(torch.from_numpy(numbers(*files[0], x, 0, 2**16 - 1)).float(), labels)


def labelled_pixels(scene: Scene, context: int = 0) -> Pixels:
    """The pixels that have a class; the background is left out.

    Args:
        scene: as :func:`indian_pines` gives it.
        context: radius r > 0 appends the mean spectrum of the (2 r + 1)^2 pixels around (those
            beyond the border left out): no label is used, but a test pixel's surroundings may hold
            training pixels.

    Raises:
        ValueError: context < 0.

    Example:
        >>> from deepl0_kernels import scenes
        >>> scene = scenes.Scene(torch.rand(2, 2, 200), torch.tensor([[0, 1], [2, 0]]))
        >>> pixels = scenes.labelled_pixels(scene, context=1)
        >>> pixels.x.shape, pixels.y
        (torch.Size([2, 400]), tensor([0, 1]))
    """
    checks.instance("scene", scene, Scene, "a Scene")
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
        seed: of the choice. least: training samples of a class at least; a class has more than
            that.

    Raises:
        ValueError: a fraction out of range, or a class too small to be tested.

    Example:
        >>> from deepl0_kernels import scenes
        >>> train, test = scenes.stratified_split(torch.arange(100) % 2, fraction=0.1, seed=0)
        >>> len(train), len(test)
        (10, 90)
    """
    checks.instance("y", y, Tensor, "a tensor")
    if y.dim() != 1:
        raise ValueError(f"y must have shape [N], got {checks.shape(y)}")
    fraction = checks.number("fraction", fraction)
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be in (0, 1), got {fraction}")
    least = checks.integer("least", least, 0)
    generator = torch.Generator().manual_seed(checks.seed("seed", seed))
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
