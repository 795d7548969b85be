"""Activations: vectors in NumPy's files, checked before they are used and read batch by batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from .._optional import progress_bar, require
from ..ops import checks
from .formats.reading import guarded

_CHUNK = 1 << 24  # bytes of a pass over everything
# Of a norm: sums of squares over a batch stay within float32.
_LARGEST = 1e15


class Activations:
    """Vectors [N, n], in memory or in a mapped file; batches of them are float32.

    Args:
        source: array or tensor [N, n], float16, float32, float64 or (a tensor) bfloat16.
        name: what error messages call it.

    Nothing is copied, converted or looked at but for shape and dtype; :meth:`check` looks at the
    numbers.

    Raises:
        TypeError, ValueError: another kind, shape or dtype, or no vector; named with what was seen.

    Example:
        >>> from deepl0_kernels import sae
        >>> vectors = sae.Activations(torch.randn(100, 16))
        >>> len(vectors), vectors.rows(slice(0, 2)).shape
        (100, torch.Size([2, 16]))
    """

    def __init__(self, source: Any, name: str = "activations") -> None:
        np = require("numpy", "activations")
        if isinstance(source, Tensor):
            wide = source.float() if source.dtype == torch.bfloat16 else source
            source = wide.detach().numpy(force=True)
        if not isinstance(source, np.ndarray):
            raise TypeError(f"{name} must be an array or a tensor, got {type(source).__name__}")
        if source.dtype.kind != "f" or source.dtype.itemsize > 8:
            raise ValueError(f"{name} must be float16, float32 or float64, got {source.dtype}")
        if source.ndim != 2 or 0 in source.shape:
            raise ValueError(
                f"{name} must have shape [N, n] with N, n >= 1, got {tuple(source.shape)}"
            )
        self._array, self.name = source, name

    @classmethod
    def of(cls, vectors: Any) -> Activations:
        """``vectors`` if they are such, else those of an array or tensor.

        Raises:
            TypeError, ValueError: as in the class.
        """
        return vectors if isinstance(vectors, cls) else cls(vectors)

    @classmethod
    def open(cls, path: str | PathLike[str], key: str | None = None) -> Activations:
        """Those in a file.

        Args:
            path: ``X.npy``, which is mapped and not read; or ``X.npz``, of which one array is read
                into memory as it is stored. ``X.npz:key`` names it.
            key: name of the array of an .npz; None: as in ``path``, or the only one of two
                dimensions.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, no file of NumPy, holds Python objects, which are never
                unpickled, or no such array; and as in the class.
        """
        file, key = _split(path, key)
        np = require("numpy", f"reading {file.name}")
        with file.open("rb") as stream:
            magic = stream.read(6)
        if magic == b"\x93NUMPY":
            if key is not None:
                raise ValueError(f"{file} is an .npy, which holds one array; got the key {key!r}")
            array = guarded(file, ".npy", lambda: np.load(file, "r", allow_pickle=False))
            return cls(array, str(file))
        if magic[:4] not in (b"PK\x03\x04", b"PK\x05\x06"):
            raise ValueError(f"{file} is no .npy or .npz: it begins with {magic!r}")
        with guarded(file, ".npz", lambda: np.load(file, allow_pickle=False)) as stored:
            headers = guarded(file, ".npz", lambda: _headers(file))
            key = _chosen(file, headers, key)
            return cls(guarded(file, f".npz ({key})", lambda: stored[key]), f"{file}:{key}")

    @property
    def width(self) -> int:
        """n."""
        return self._array.shape[1]

    @property
    def dtype(self) -> str:
        """As stored."""
        return self._array.dtype.name

    def __len__(self) -> int:
        return self._array.shape[0]

    def rows(self, index: Tensor | slice) -> Tensor:
        """float32 [k, n], a copy of some of the vectors.

        Args:
            index: int64 [k], best ascending; or a slice.
        """
        np = require("numpy", "activations")
        where = index.numpy(force=True) if isinstance(index, Tensor) else index
        with np.errstate(over="ignore"):  # infinities are found by ``check``
            return torch.from_numpy(np.array(self._array[where], dtype=np.float32, order="C"))

    def batches(self, size: int) -> Iterator[Tensor]:
        """All vectors in order, float32 [size, n] at a time.

        Args:
            size: > 0, vectors at a time; the last may be fewer.

        Raises:
            TypeError, ValueError: size is no such number.
        """
        size = checks.integer("size", size, 1)
        return (self.rows(slice(i, i + size)) for i in range(0, len(self), size))

    def part(self, rows: slice) -> Activations:
        """Some of the vectors, without a copy.

        Args:
            rows: which.
        """
        kept = self._array[rows]
        if kept.shape == self._array.shape:
            return self
        return Activations(kept, f"{self.name}[{rows.start or 0}:{rows.stop or len(self)}]")

    def check(self, progress: bool = False) -> str:
        """Look at every number once, in pieces; a digest of all of them, as they are stored.

        Args:
            progress: show a progress bar.

        Raises:
            ValueError: one is not finite, float32 cannot hold it, or a vector's norm is beyond
                1e15, where squares leave float32; the place and the value are named. Or all
                vectors are equal: there is nothing to explain then.
        """
        checks.boolean("progress", progress)
        np = require("numpy", "activations")
        digest = hashlib.blake2b(f"{self.dtype} {self._array.shape}".encode(), digest_size=16)
        rows = max(_CHUNK // (self.width * self._array.dtype.itemsize), 1)
        starts = range(0, len(self), rows)
        first, differ = self.rows(slice(0, 1)), False
        for start in progress_bar(starts, f"checking {self.name}", show=progress):
            stored = np.ascontiguousarray(self._array[start : start + rows])
            digest.update(stored)
            x = self.rows(slice(start, start + rows))
            norms = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
            if not bool((norms <= _LARGEST).all()):  # NaN included
                raise self._refusal(start, stored, x, norms)
            differ = differ or bool((x != first).any())
        if not differ:
            raise self.no_variance()
        return digest.hexdigest()

    def no_variance(self) -> ValueError:
        """The error that says so."""
        return ValueError(f"{self.name} must hold vectors that differ: they have no variance")

    def _refusal(self, start: int, stored: Any, x: Tensor, norms: Tensor) -> ValueError:
        np = require("numpy", "activations")
        if (bad := ~x.isfinite()).any():
            row, column = (int(i) for i in bad.nonzero()[0])
            value = stored[row, column]
            why = ""
            if self.dtype == "float16" and np.isinf(value):
                why = ": float16 ends at 65504; store these in float32"
            elif np.isfinite(value):
                why = ", which float32 cannot hold"
            return ValueError(
                f"{self.name}: entry [{start + row}, {column}] must be finite, got {value}{why} "
                "(docs/errors.md#an-entry-must-be-finite)"
            )
        row = int((norms > _LARGEST).nonzero()[0])
        return ValueError(
            f"{self.name}: vector {start + row} must have a norm <= {_LARGEST:g}, "
            f"got {norms[row].item():g}"
        )

    def fits(self, width: int, whose: str) -> None:
        """These vectors are as wide as something else.

        Args:
            width: n of the other. whose: what has it, in words.

        Raises:
            ValueError: they are not.
        """
        if self.width != width:
            raise ValueError(
                f"{self.name} must hold vectors of n = {width}, as {whose} does, got {self.width}"
            )


def _split(path: str | PathLike[str], key: str | None) -> tuple[Path, str | None]:
    file = checks.path("path", path)
    checks.instance("key", key, (str, NoneType), "a name or None")
    if key is None and not file.exists() and ":" in file.name:
        name, _, key = file.name.rpartition(":")
        file = file.with_name(name) if name else file
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    if file.is_dir():
        raise ValueError(f"{file} must be an .npy or .npz file, got a folder")
    return file, key


def _headers(file: Path) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of the arrays of an .npz, none of which is read."""
    import zipfile

    from numpy.lib import format as npy

    found = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            with archive.open(member) as stream:
                major, _ = npy.read_magic(stream)
                read = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
                shape, _, dtype = read(stream)
                found[member.removesuffix(".npy")] = (shape, dtype)
    return found


def _chosen(file: Path, headers: dict[str, tuple[tuple[int, ...], Any]], key: str | None) -> str:
    if key is not None:
        if key not in headers:
            raise ValueError(f"{file} has no array {key!r}; it has {', '.join(sorted(headers))}")
        return key
    matrices = [name for name, (shape, dtype) in headers.items() if len(shape) == 2]
    if len(matrices) != 1:
        raise ValueError(
            f"{file} must hold one array [N, n] where none is named, as in {file.name}:NAME; it "
            "has "
            + (", ".join(f"{name} {list(shape)}" for name, (shape, _) in headers.items()) or "none")
        )
    return matrices[0]
