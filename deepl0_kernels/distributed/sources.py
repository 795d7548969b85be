"""Vectors in files, read a range of rows at a time: nothing is mapped, nothing stays in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._optional import require

_SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_NUMPY = {"<f8": torch.float64, "<f4": torch.float32, "<f2": torch.float16}


@dataclass(frozen=True)
class Raw:
    """Rows [N, n] that lie one after the other in a file, from a place on."""

    path: str
    offset: int
    dtype: torch.dtype
    rows: int
    width: int

    def cuts(self, rows: int) -> list[tuple[int, int]]:
        return [(i, min(i + rows, self.rows)) for i in range(0, self.rows, rows)]

    def place(self, begin: int, end: int) -> tuple[int, int | None]:
        """The bytes of the file that hold the rows [begin, end)."""
        size = self.width * self.dtype.itemsize
        return self.offset + begin * size, self.offset + end * size

    def batches(self, begin: int, end: int, rows: int) -> Iterator[Tensor]:
        """float32 [some, n] of the rows [begin, end), in order."""
        size = self.width * self.dtype.itemsize
        with open(self.path, "rb") as file:
            file.seek(self.offset + begin * size)
            while begin < end:
                some = min(rows, end - begin)
                stored = torch.empty(some, self.width, dtype=self.dtype)
                into = stored.view(torch.uint8).view(-1).numpy().data
                if file.readinto(into) != some * size:
                    raise ValueError(f"{self.path} ends before row {begin + some}")
                yield stored.to(torch.float32)
                begin += some


@dataclass(frozen=True)
class Parquet:
    """A column of lists of n numbers each, read a group of rows of the file at a time."""

    path: str
    column: str
    groups: tuple[int, ...]  # rows of each
    width: int

    @property
    def rows(self) -> int:
        return sum(self.groups)

    def cuts(self, rows: int) -> list[tuple[int, int]]:
        """At the borders of groups: a part has no more than ``rows``, or one group."""
        found, begin, end = [], 0, 0
        for group in self.groups:
            if end > begin and end + group - begin > rows:
                found.append((begin, end))
                begin = end
            end += group
        return [*found, (begin, end)] if end > begin else found

    def place(self, begin: int, end: int) -> tuple[int, int | None]:
        """The whole file, whose end tells the least and the largest number of every group."""
        return 0, None

    def batches(self, begin: int, end: int, rows: int) -> Iterator[Tensor]:
        pq = require("pyarrow.parquet", "reading parquet", extra="parquet")
        at = 0
        with pq.ParquetFile(self.path) as file:
            for number, group in enumerate(self.groups):
                if begin <= at < end:
                    read = file.read_row_group(number, columns=[self.column]).column(0)
                    x = numbers_of(read, f"{self.path}:{self.column}")
                    if x.shape != (group, self.width):
                        raise ValueError(
                            f"{self.path}:{self.column} must hold {self.width} numbers in every "
                            f"row, got {tuple(x.shape)} in the group of rows {number}"
                        )
                    yield from x.split(rows)
                at += group


def numbers_of(column: Any, name: str) -> Tensor:
    """float32 [N, n] of a column of Arrow whose rows are lists of as many numbers each.

    Raises:
        ValueError: nulls, or rows of other lengths.
    """
    column = column.combine_chunks()
    if column.null_count:
        raise ValueError(f"{name} must have no nulls, got {column.null_count}")
    flat, rows = column.flatten(), len(column)
    if flat.null_count or (rows and len(flat) % rows):
        raise ValueError(f"{name} must be lists of as many numbers each, without nulls")
    if rows and hasattr(column, "value_lengths"):
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        if (lengths != lengths[0]).any():
            raise ValueError(
                f"{name} must be lists of one length, got {lengths.min()} to {lengths.max()}"
            )
    flat = flat.to_numpy(zero_copy_only=False)
    if flat.dtype.kind != "f":
        raise ValueError(f"{name} must hold floating numbers, got {flat.dtype}")
    return torch.tensor(flat).view(rows, -1).to(torch.float32)


Source = Raw | Parquet


def open_sources(source: Any, column: str | None) -> list[Source]:
    """The files of a source, in order: a path, a folder (its files by name), or several.

    Raises:
        FileNotFoundError: there is none. ValueError: one that is not read, or of another width.
    """
    given = [source] if isinstance(source, (str, PathLike)) else list(source)
    paths: list[Path] = []
    for path in (Path(one).resolve() for one in given):  # workers may run elsewhere
        if path.is_dir():
            inside = (p for p in path.iterdir() if p.suffix in (".npy", ".parquet", ".safetensors"))
            paths += sorted(inside)
        else:
            paths.append(path)
    if not paths:
        raise FileNotFoundError(f"{source} holds no .npy, .safetensors or .parquet")
    found = [_opened(path, column) for path in paths]
    for one in found:
        if one.width != found[0].width:
            raise ValueError(
                f"{one.path} must hold vectors of n = {found[0].width}, as {found[0].path} does, "
                f"got {one.width}"
            )
    return found


def _opened(path: Path, column: str | None) -> Source:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix == ".npy":
        return _npy(path)
    if path.suffix == ".safetensors":
        return _safetensors(path, column)
    if path.suffix == ".parquet":
        return _parquet(path, column)
    raise ValueError(f"{path} must be .npy, .safetensors or .parquet")


def _npy(path: Path) -> Raw:
    from numpy.lib import format as npy

    with path.open("rb") as stream:
        try:
            version = npy.read_magic(stream)
            read = npy.read_array_header_1_0 if version[0] == 1 else npy.read_array_header_2_0
            shape, by_columns, dtype = read(stream)
        except Exception as error:
            raise ValueError(f"{path} is no .npy: {error}") from None
        offset = stream.tell()
    if by_columns or len(shape) != 2 or dtype.str not in _NUMPY:
        raise ValueError(
            f"{path} must hold [N, n] by rows, of little-endian float16, float32 or float64, got "
            f"{shape} {dtype.str}{' by columns' if by_columns else ''}"
        )
    return _whole(Raw(str(path), offset, _NUMPY[dtype.str], *shape))


def _safetensors(path: Path, column: str | None) -> Raw:
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ValueError(f"{path} is no safetensors: {error}") from None
    header.pop("__metadata__", None)
    matrices = [name for name, of in header.items() if len(of["shape"]) == 2]
    name = column if column is not None else matrices[0] if len(matrices) == 1 else None
    if name not in matrices or header[name]["dtype"] not in _SAFETENSORS:
        held = ", ".join(f"{k} {of['dtype']} {of['shape']}" for k, of in header.items())
        raise ValueError(
            f"{path} must hold a floating matrix {'' if column is None else repr(column) + ' '}"
            f"[N, n], named by column= where there are several; it has {held or 'none'}"
        )
    of = header[name]
    begin = 8 + length + of["data_offsets"][0]
    return _whole(Raw(str(path), begin, _SAFETENSORS[of["dtype"]], *of["shape"]))


def _whole(raw: Raw) -> Raw:
    size, needed = Path(raw.path).stat().st_size, raw.rows * raw.width * raw.dtype.itemsize
    if size < raw.offset + needed or raw.width == 0:
        raise ValueError(
            f"{raw.path} must have {raw.offset + needed} bytes for [{raw.rows}, {raw.width}], "
            f"got {size}"
        )
    return raw


def _parquet(path: Path, column: str | None) -> Parquet:
    pq = require("pyarrow.parquet", "reading parquet", extra="parquet")
    with pq.ParquetFile(path) as file:
        schema, meta = file.schema_arrow, file.metadata
        lists = [f.name for f in schema if "list" in str(f.type)]
        name = column if column is not None else lists[0] if len(lists) == 1 else None
        if name not in lists:
            raise ValueError(
                f"{path} must have a column {'' if column is None else repr(column) + ' '}of lists "
                f"of numbers, named by column= where there are several; it has {schema.names}"
            )
        groups = tuple(meta.row_group(i).num_rows for i in range(meta.num_row_groups))
        first = next((i for i, rows in enumerate(groups) if rows), None)
        if first is None:
            raise ValueError(f"{path} must have rows, got none")
        width = getattr(schema.field(name).type, "list_size", None)
        if width is None:
            read = file.read_row_group(first, columns=[name]).column(0)
            width = numbers_of(read, f"{path}:{name}").shape[1]
    return Parquet(str(path), str(name), groups, width)
