"""Sets of small images for clustering: COIL-20 and the faces of CMU PIE, pose 27."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ._optional import require
from ._sources import folder_of, integers, numbers, pick, read

__all__ = ["Images", "cmu_pie", "coil20"]

WHERE = {
    "coil20": "COIL-20 (S. Nene, S. Nayar, H. Murase, 1996, Columbia University), 32 x 32, is "
    "distributed as COIL20.mat by D. Cai",
    "cmu_pie": "CMU PIE (T. Sim, S. Baker, M. Bsat, 2002, Carnegie Mellon University), pose 27, "
    "32 x 32, is distributed as Pose27_32x32.mat by D. Cai",
}
_MAT = {"coil20": "COIL20.mat", "cmu_pie": "Pose27_32x32.mat"}
# Classes, and images of each.
_COUNTS = {"coil20": (20, 72), "cmu_pie": (68, 42)}
_SIDE = 32


class Images(NamedTuple):
    """Images and what they show.

    Attributes:
        x: [N, 32, 32] uint8.
        y: [N] int64, classes from 0.

    Example:
        >>> from deepl0_kernels import images
        >>> few = images.Images(torch.zeros(6, 32, 32, dtype=torch.uint8), torch.arange(6) % 3)
        >>> few.x.flatten(1).shape  # a row an image
        torch.Size([6, 1024])
    """

    x: Tensor
    y: Tensor


def coil20(folder: str | Path | None = None) -> Images:
    """COIL-20: 20 objects on a turntable, 72 grey images each.

    Args:
        folder: holds coil20.npz (x [1440, 32, 32] uint8, y) or COIL20.mat (fea, gnd; needs SciPy);
            by default ``$DEEPL0_DATA``.

    Raises:
        FileNotFoundError: no such folder or file; says where it is published.
        ValueError: the file is not COIL-20.

    Example:
        >>> from deepl0_kernels import images
        >>> try:
        ...     objects = images.coil20("a/folder")
        ... except FileNotFoundError as error:
        ...     print(str(error).partition(".npz")[0])
        a/folder holds no coil20
    """
    return _read("coil20", folder)


def cmu_pie(folder: str | Path | None = None) -> Images:
    """CMU PIE, pose 27: faces of 68 people, 42 images each under changing light.

    Args:
        folder: holds cmu_pie.npz (x [2856, 32, 32] uint8, y) or Pose27_32x32.mat; the rest and the
            errors are those of :func:`coil20`.

    Example:
        >>> from deepl0_kernels import images
        >>> try:
        ...     faces = images.cmu_pie("a/folder")
        ... except FileNotFoundError as error:
        ...     print(str(error).partition(".npz")[0])
        a/folder holds no cmu_pie
    """
    return _read("cmu_pie", folder)


def _read(name: str, folder: str | Path | None) -> Images:
    np = require("numpy", "reading a data set")
    folder = folder_of(folder, f"{name}.npz", WHERE[name])
    npz, mat = folder / f"{name}.npz", folder / _MAT[name]
    source = npz if npz.is_file() else mat
    if not source.is_file():
        raise FileNotFoundError(f"{folder} holds no {name}.npz. {WHERE[name]}")
    names = ("x", "y") if source == npz else ("fea", "gnd")
    x, y = pick(source, name, read(source, name), names)
    classes, each = _COUNTS[name]
    count = classes * each
    if source == mat:
        y = y.reshape(-1)
        if x.shape == (count, _SIDE**2):
            # Columns of an image come one after the other.
            x = x.reshape(-1, _SIDE, _SIDE).transpose(0, 2, 1)
            if x.dtype != np.uint8:
                x = numbers(source, "fea", x, 0, 255)
                x = np.rint(x * (255 if x.max() <= 1 else 1)).astype(np.uint8)
    shape = (count, _SIDE, _SIDE)
    if x.shape != shape or x.dtype != np.uint8 or y.shape != shape[:1]:
        raise ValueError(
            f"{source}: {' and '.join(names)} must be uint8 {shape} and {shape[:1]}, "
            f"got {x.dtype} {x.shape} and {y.shape}"
        )
    first = int(source == mat)  # what labels count from
    labels = integers(source, names[1], y, first, classes - 1 + first) - first
    counts = torch.bincount(labels, minlength=classes).tolist()
    if counts != [each] * classes:
        raise ValueError(
            f"{source} is not {name}: label counts {counts}, not {each} each of "
            f"{first} to {classes - 1 + first}"
        )
    return Images(torch.from_numpy(np.ascontiguousarray(x)), labels)
