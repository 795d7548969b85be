"""Digits: the subset that ships with the package, the whole of MNIST, and their preprocessing.

``DEEPL0_DATA`` names the folder that :func:`mnist` reads. NumPy is needed here and nowhere below.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ._sources import folder_of, pick, read
from .ops import checks

__all__ = [
    "Digits",
    "Patches",
    "area_resize",
    "mnist",
    "mnist_subset",
    "preprocess",
    "random_shifts",
]

EMBEDDED = Path(__file__).parent / "data" / "mnist_subset.npz"

WHERE = (
    "MNIST (Y. LeCun, C. Cortes, C. J. C. Burges) is distributed as four idx files from LeCun's "
    "page, as mnist.npz by Keras, and as mnist_784 by OpenML"
)
# Of the pixels and labels as uint8, split by split: the same for every format.
_SHA256 = {
    "x": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    "y": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
}
# How often each digit occurs; a file that disagrees is not MNIST, or is damaged.
_TRAIN_COUNTS = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
_TEST_COUNTS = (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
_IDX = {
    "x": "train-images-idx3-ubyte",
    "y": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


class Digits(NamedTuple):
    """Images and labels, split.

    Attributes:
        x, x_test: [N, 28, 28] uint8, ink is high.
        y, y_test: [N] int64 in 0..9.

    Example:
        >>> digits = dk.datasets.mnist_subset()
        >>> digits.x.shape, digits.y_test.shape
        (torch.Size([12000, 28, 28]), torch.Size([2000]))
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


class Patches(NamedTuple):
    """Preprocessed signals.

    Attributes:
        x: [n, size * size] float32, every row of mean 0 and variance 1.
        kept: [N] bool, which of the N images gave a row.

    Example:
        >>> patches = dk.datasets.preprocess(dk.datasets.mnist_subset().x_test[:10])
        >>> patches.x.shape, int(patches.kept.sum())
        (torch.Size([10, 256]), 10)
    """

    x: Tensor
    kept: Tensor

    @property
    def discarded(self) -> int:
        """How many images were dropped for their low contrast."""
        return int((~self.kept).sum())


def mnist_subset() -> Digits:
    """The digits that ship with the package: the first of MNIST's training and test sets.

    12,000 and 2,000 of them. Licence CC BY-SA 3.0; provenance in ``data/README.md``. Needs no
    download.

    Raises:
        ModuleNotFoundError: NumPy is missing.

    Example:
        >>> dk.datasets.mnist_subset().y[:5]
        tensor([5, 0, 4, 1, 9])
    """
    return _read_npz(EMBEDDED)


def mnist(folder: str | os.PathLike[str] | None = None) -> Digits:
    """All of MNIST, 60,000 and 10,000 digits, from ``folder`` (default: ``$DEEPL0_DATA``).

    Accepts ``mnist.npz`` with the keys x, y, x_test, y_test (or x_train, y_train, as Keras names
    them), or the four idx files, gzipped or not. What is read is checked against the known shapes
    and label counts, and against the hashes of the originals.

    Raises:
        FileNotFoundError: no folder is named, or the files are not in it; says where they are
            published.
        ValueError: the file is not MNIST.

    Example:
        >>> try:
        ...     digits = dk.datasets.mnist("a/folder")
        ... except FileNotFoundError as error:
        ...     print(str(error).partition(",")[0])
        a/folder has no mnist.npz
    """
    folder = folder_of(folder, "mnist.npz", WHERE)
    if (folder / "mnist.npz").is_file():
        source = folder / "mnist.npz"
        digits = _read_npz(source)
    else:
        found = {key: _idx_file(folder, name) for key, name in _IDX.items()}
        paths = {key: path for key, path in found.items() if path is not None}
        missing = [name for key, name in _IDX.items() if key not in paths]
        if missing:
            raise FileNotFoundError(
                f"{folder} has no mnist.npz, and of the idx files it lacks {', '.join(missing)} "
                f"(each may end in .gz). {WHERE}"
            )
        source = folder
        arrays = {key: _read_idx(paths[key], 3 if key.startswith("x") else 1) for key in _IDX}
        digits = _digits(source, arrays)
    for name, labels, counts in (
        ("y", digits.y, _TRAIN_COUNTS),
        ("y_test", digits.y_test, _TEST_COUNTS),
    ):
        seen = tuple(torch.bincount(labels, minlength=10).tolist())
        if seen != counts:
            raise ValueError(f"{source}: {name} is not MNIST's: label counts {seen}, not {counts}")
    for name, array in zip(digits._fields, digits, strict=True):
        digest = hashlib.sha256(array.to(torch.uint8).contiguous().numpy().tobytes()).hexdigest()
        if digest != _SHA256[name]:
            raise ValueError(
                f"{source}: {name} is damaged, reordered or not MNIST's: "
                f"SHA-256 {digest[:16]}.., not {_SHA256[name][:16]}.."
            )
    return digits


def area_resize(images: Tensor, size: int = 16) -> Tensor:
    """Resize [..., h, w] to [..., size, size] by exact area averaging; float32.

    Output pixel i averages the input over [i h / size, (i + 1) h / size), a pixel that is cut
    counting with the part inside: ``R images C'`` with two banded matrices of overlaps. Values keep
    their scale, and so does the mean.

    Raises:
        TypeError: images are no tensor, or size is no integer.
        ValueError: images without height or width, or size < 1.

    Example:
        >>> dk.datasets.area_resize(torch.tensor([[0.0, 4.0], [4.0, 8.0]]), size=1)
        tensor([[4.]])
    """
    checks.integer("size", size, 1)
    _is_tensor(images)
    if images.dim() < 2 or 0 in images.shape[-2:]:
        raise ValueError(f"images must be [..., h, w], got shape {tuple(images.shape)}")
    rows, columns = (overlaps(length, size) for length in images.shape[-2:])
    return rows.to(images.device) @ images.float() @ columns.to(images.device).T


def preprocess(images: Tensor, size: int = 16, min_std: float = 0.1) -> Patches:
    """Images [N, h, w] uint8 to signals: resize, remove the mean, divide by the deviation.

    Args:
        images: [N, h, w] uint8.
        size: side of the patch.
        min_std: images whose resized pixels (in [0, 1]) deviate by less are discarded.

    Raises:
        TypeError: images are no tensor.
        ValueError: images of another shape or dtype, or min_std not > 0.

    Source: Wang, Ling, Huang 2016, section 4 (mean removed, variance normalised per patch).

    Example:
        >>> x, kept = dk.datasets.preprocess(dk.datasets.mnist_subset().x[:100])
        >>> x.shape, bool(x.mean(1).abs().max() < 1e-5)
        (torch.Size([100, 256]), True)
    """
    _is_tensor(images)
    if images.dim() != 3 or images.dtype != torch.uint8:
        raise ValueError(
            f"images must be uint8 [N, h, w], got {images.dtype} of shape {tuple(images.shape)}"
        )
    min_std = checks.number("min_std", min_std)
    if not min_std > 0:
        raise ValueError(f"min_std must be > 0, got {min_std}")
    return standardised(area_resize(images, size).flatten(1), min_std)


def standardised(pixels: Tensor, min_std: float) -> Patches:
    """Pixels [N, n], 0 to 255, as :func:`preprocess` leaves them."""
    x = pixels / 255
    x = x - x.mean(1, keepdim=True)
    std = x.square().mean(1).sqrt()
    kept = std >= min_std
    return Patches(x[kept] / std[kept, None], kept)


def random_shifts(images: Tensor, radius: int, seed: int) -> Tensor:
    """Every image [N, h, w] moved by its own whole number of pixels in [-radius, radius]^2.

    What leaves on one side is lost, zeros enter on the other. The same seed gives the same moves.

    Raises:
        TypeError: images are no tensor, or radius is no integer.
        ValueError: images of another shape, or a radius that moves them out of sight.

    Example:
        >>> image = torch.eye(3, dtype=torch.uint8)[None]
        >>> dk.datasets.random_shifts(image, radius=1, seed=0).shape
        torch.Size([1, 3, 3])
    """
    _is_tensor(images)
    if images.dim() != 3 or 0 in images.shape[1:]:
        raise ValueError(f"images must be [N, h, w], got shape {tuple(images.shape)}")
    radius = checks.integer("radius", radius, 0, min(images.shape[-2:]) - 1, "min(h, w) - 1")
    n, h, w = images.shape
    generator = torch.Generator().manual_seed(checks.seed("seed", seed))
    moves = torch.randint(-radius, radius + 1, (2, n), generator=generator)
    padded = torch.nn.functional.pad(images, (radius,) * 4)
    rows = torch.arange(h) + radius - moves[0, :, None]
    columns = torch.arange(w) + radius - moves[1, :, None]
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _is_tensor(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, got {type(images).__name__}")


def overlaps(length: int, size: int) -> Tensor:
    """[size, length] part of input pixel j within output pixel i, rows summing to 1."""
    edges = torch.arange(size + 1, dtype=torch.float64) * (length / size)
    left = torch.arange(length, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], left)
    high = torch.minimum(edges[1:, None], left + 1)
    return ((high - low).clamp_min(0) * (size / length)).float()


def _read_npz(path: Path) -> Digits:
    what = "an npz archive"
    arrays = {key.replace("_train", ""): a for key, a in read(path, what).items()}
    found = dict(zip(Digits._fields, pick(path, what, arrays, Digits._fields), strict=True))
    for key, array in found.items():
        if array.dtype.kind not in "iu":
            raise ValueError(f"{path}: {key} must hold integers, got {array.dtype}")
    return _digits(path, {key: torch.from_numpy(array) for key, array in found.items()})


def _digits(source: Path, arrays: dict[str, Tensor]) -> Digits:
    """The arrays of a file, whose shapes and values are those of 28 x 28 digits."""
    for key in ("x", "x_test"):
        a, name = arrays[key], key.replace("x", "y")
        labels = arrays[name] = arrays[name].long()
        if a.dtype != torch.uint8 or a.shape[1:] != (28, 28):
            raise ValueError(
                f"{source}: {key} must be uint8 [N, 28, 28], got {a.dtype} {tuple(a.shape)}"
            )
        if labels.shape != a.shape[:1]:
            raise ValueError(
                f"{source}: {len(a)} images in {key}, labels of shape {tuple(labels.shape)}"
            )
        if ((labels < 0) | (labels > 9)).any():
            raise ValueError(
                f"{source}: {name} must be in 0..9, got {labels.min()} to {labels.max()}"
            )
    return Digits(**arrays)


def _idx_file(folder: Path, name: str) -> Path | None:
    # Some copies write a dot before idx.
    for stem in (name, name.replace("-idx", ".idx")):
        for path in (folder / stem, folder / f"{stem}.gz"):
            if path.is_file():
                return path
    return None


def _read_idx(path: Path, rank: int) -> Tensor:
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    header = 4 + 4 * rank
    if data[:4] != bytes((0, 0, 8, rank)) or len(data) < header:
        raise ValueError(f"{path} is not an idx file of uint8 with {rank} dimension(s)")
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    body = data[header:]
    if len(body) != math.prod(shape) or not body:
        raise ValueError(f"{path} should hold {shape} values, has {len(body)}")
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).reshape(shape)
