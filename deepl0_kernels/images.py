"""Sets of small images for clustering: COIL-20 and the faces of CMU PIE, pose 27."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ._optional import require

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
    """
    return _read("coil20", folder)


def cmu_pie(folder: str | Path | None = None) -> Images:
    """CMU PIE, pose 27: faces of 68 people, 42 images each under changing light.

    Args:
        folder: holds cmu_pie.npz (x [2856, 32, 32] uint8, y) or Pose27_32x32.mat; the rest and the
            errors are those of :func:`coil20`.
    """
    return _read("cmu_pie", folder)


def _read(name: str, folder: str | Path | None) -> Images:
    folder = folder if folder is not None else os.environ.get("DEEPL0_DATA")
    if not folder:
        raise FileNotFoundError(f"set DEEPL0_DATA to a folder that holds {name}.npz. {WHERE[name]}")
    np = require("numpy", "reading a data set")
    npz, mat = Path(folder) / f"{name}.npz", Path(folder) / _MAT[name]
    source = npz if npz.is_file() else mat
    if not source.is_file():
        raise FileNotFoundError(f"{folder} holds no {name}.npz. {WHERE[name]}")
    try:
        if source == npz:
            with np.load(npz, allow_pickle=False) as file:
                x, y = file["x"], file["y"]
        else:
            io = require("scipy.io", "reading a .mat file", extra="sklearn")
            stored = io.loadmat(mat)
            # Columns of an image come one after the other, and labels count from 1.
            x = stored["fea"].reshape(-1, _SIDE, _SIDE).transpose(0, 2, 1)
            x = np.rint(x * (255 if x.max() <= 1 else 1)).astype(np.uint8)
            y = stored["gnd"].reshape(-1).astype(np.int64) - 1
    except ModuleNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{source} cannot be read as {name}: {error!r}") from error
    classes, each = _COUNTS[name]
    shape = (classes * each, _SIDE, _SIDE)
    if x.shape != shape or x.dtype != np.uint8 or y.shape != shape[:1]:
        raise ValueError(
            f"{source}: x and y must be uint8 {shape} and {shape[:1]}, got {x.dtype} {x.shape} "
            f"and {y.shape}"
        )
    labels = torch.from_numpy(y.astype(np.int64))
    seen = torch.unique(labels, return_counts=True)
    if seen[0].tolist() != list(range(classes)) or (seen[1] != each).any():
        raise ValueError(
            f"{source} is not {name}: labels {seen[0].tolist()} with counts {seen[1].tolist()}, "
            f"not {each} each of 0 to {classes - 1}"
        )
    return Images(torch.from_numpy(np.ascontiguousarray(x)), labels)
