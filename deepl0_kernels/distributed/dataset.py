"""Codes of data sets that are larger than memory, or than a host: parquet in parts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from .._files import replacing
from .._isolation import isolated
from .._optional import progress_bar, require
from ..ops import SparseCode, checks
from ..ops.sparse_code import DATASET, SIZE
from .identity import agree, digest_of, sample_of
from .ranks import Ranks
from .sources import Source, numbers_of, open_sources

_DTYPES = {"float32": torch.float32, "float16": torch.float16}
_COMMAND = "deepl0 encode"
# Of a part's schema: a digest of the rows it was made of.
_SAMPLE = "deepl0_kernels.sample"


@dataclass(frozen=True)
class Part:
    """A part of the result: rows [begin, end) of a file of the source, as a file."""

    name: str
    source: Source
    begin: int
    end: int

    def sample(self) -> str:
        """A digest of its rows, by some of them."""
        return sample_of(self.source.path, *self.source.place(self.begin, self.end))

    def is_in(self, folder: Path) -> bool:
        """It is written.

        Raises:
            ValueError: from rows that are not those of the source any more.
        """
        path = folder / self.name
        if not path.exists():
            return False
        pq = require("pyarrow.parquet", _COMMAND, extra="parquet")
        told = pq.read_schema(path).metadata or {}
        if told.get(_SAMPLE.encode()) != self.sample().encode():
            raise ValueError(
                f"{path} holds codes of rows [{self.begin}, {self.end}) of {self.source.path}, "
                f"which has other rows there now: give another folder, or delete {self.name} to "
                "have them coded again"
            )
        return True


def encode_dataset(
    source: Any,
    model: Any,
    out: str | PathLike[str],
    *,
    column: str | None = None,
    values: str = "float32",
    rows: int = 1 << 20,
    batch: int | None = None,
    memory: int = 1 << 28,
    engine: str | None = None,
    workers: int | None = None,
    ranks: Ranks | None = None,
    progress: bool = False,
) -> dict[str, int]:
    """Code vectors that need not fit into memory, and write the codes as parquet.

    Args:
        source: a file (.npy, .safetensors, .parquet), a folder of such files, or several of these;
            or a ``ray.data.Dataset``.
        model: has ``encode(x) -> SparseCode`` of x [B, n], as a
            :class:`deepl0_kernels.sae.SparseAutoencoder` with "top_m" and
            :class:`deepl0_kernels.nn.DeepMSparseEncoder` do; or a function without arguments that
            gives one, which every worker calls once, as ``partial(sae.load, path)``.
        out: the folder to write to. What it holds of the same data set is not computed again.
            Rows are compared by 64 KiB of each part; models by their weights, and by attributes
            that are numbers, words or sequences of such.
        column: name of the tensor or column, where a file has several.
        values: "float32" or "float16", of the values that are written.
        rows: > 0, of the source in a file of the result.
        batch: > 0, rows at a time; None: as ``memory`` allows, at most 65,536.
        memory: > 0, bytes that a worker may use for the rows it works on.
        engine: "loop": this process; "ray": a pool of actors; None: Ray for its own data sets.
        workers: > 0, actors of Ray; None: one for each CPU that Ray has.
        ranks: of torchrun: every one takes its parts. None: this process takes all.
        progress: show a progress bar.

    Returns:
        "rows" and "parts" of the data set, and how many of each were "coded" now, of ``ranks`` by
        this one; others may still be at theirs.

    The columns are ``row`` (int64, in its file or, of a data set of Ray, in its part), ``indices``
    (int32) and ``values``, lists of fixed size m; ``size`` is in the schema's metadata.
    :meth:`deepl0_kernels.SparseCode.from_parquet` reads them. A part is written whole or not at
    all; so is what a lost worker of Ray was at, which is coded again.

    Raises:
        TypeError, ValueError: an argument that does not fit, rows that are not finite (with their
            place), values beyond float16; a folder that holds codes of something else: of another
            model, of this one with another m, of rows that have changed. From a data set of Ray,
            Ray's own error with that text.
        ModuleNotFoundError: pyarrow or Ray is missing; says what to install.

    Example:
        >>> import tempfile, numpy as np
        >>> encoder = dk.nn.DeepMSparseEncoder(16, 64, m=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/X.npy", np.random.randn(1000, 16).astype("float32"))
        ...     dk.encode_dataset(f"{folder}/X.npy", encoder, f"{folder}/codes", rows=512)
        ...     code = dk.SparseCode.from_parquet(f"{folder}/codes")
        {'rows': 1000, 'parts': 2, 'rows_coded': 1000, 'parts_coded': 2}
        >>> code.values.shape
        torch.Size([1000, 4])
    """
    require("pyarrow", _COMMAND, extra="parquet")
    checks.one_of("values", values, tuple(_DTYPES))
    rows = checks.integer("rows", rows, 1)
    memory = checks.integer("memory", memory, 1)
    batch = None if batch is None else checks.integer("batch", batch, 1)
    workers = None if workers is None else checks.integer("workers", workers, 1)
    if engine is not None:
        checks.one_of("engine", engine, ("loop", "ray"))
    folder = checks.path("out", out)
    checks.instance("column", column, (str, NoneType), "a name or None")
    checks.instance("ranks", ranks, (Ranks, NoneType), "Ranks or None")
    checks.boolean("progress", progress)
    ranks = ranks or Ranks()
    coder = Coder(model, values, batch, memory)
    if not isinstance(source, (str, PathLike, list, tuple)):
        return _dataset_of_ray(source, coder, folder, column, workers)
    sources = open_sources(source, column)
    parts = _parts(sources, rows)

    def begin() -> list[str]:
        """The names of the parts that are to be written."""
        identity = {
            "files": [
                {"name": Path(s.path).name, "bytes": Path(s.path).stat().st_size, "rows": s.rows}
                for s in sources
            ],
            "n": sources[0].width,
            "column": column,
            "rows": rows,
            "values": values,
            "model": digest_of(coder.model),
        }
        agree(folder / DATASET, identity, _COMMAND)
        return [part.name for part in parts if not part.is_in(folder)]

    # Asked once: the parts of the first rank to begin are there when the last one looks.
    missing = set(ranks.once(begin))
    left = [part for part in parts if part.name in missing]
    if ranks.mesh is not None:
        left = left[torch.distributed.get_rank() :: torch.distributed.get_world_size()]
    total = sum(part.end - part.begin for part in left)
    if engine == "ray":
        _by_ray(left, coder, folder, workers, progress)
    else:
        bar = progress_bar(None, "encoding", show=progress, total=total)
        for part in left:
            for done in coder.write(part, folder):
                if progress:
                    bar.update(done)
    every = sum(part.end - part.begin for part in parts)
    return {"rows": every, "parts": len(parts), "rows_coded": total, "parts_coded": len(left)}


def _parts(sources: Sequence[Source], rows: int) -> list[Part]:
    """In the order of their names."""
    cuts = [(i, s, cut) for i, s in enumerate(sources) for cut in s.cuts(rows)]
    if not cuts:
        raise ValueError(f"the source must hold rows, got none in {len(sources)} files")
    return [
        Part(f"part-{i:09d}-{begin:012d}.parquet", s, begin, end) for i, s, (begin, end) in cuts
    ]


class Coder:
    """Codes rows and writes them; loads its model at first use, in every process once."""

    def __init__(self, model: Any, values: str, batch: int | None, memory: int) -> None:
        if not hasattr(model, "encode") and not callable(model):
            raise TypeError(
                f"model must have encode(x), or be a function that gives one, got "
                f"{type(model).__name__}"
            )
        self._given, self._model = model, model if hasattr(model, "encode") else None
        self.values, self._batch, self._memory = values, batch, memory

    def __getstate__(self) -> dict[str, Any]:
        given = self._given
        own = given if hasattr(given, "encode") else None
        return {**self.__dict__, "_model": own}

    @property
    def model(self) -> Any:
        if self._model is None:
            self._model = self._given()
        if isinstance(self._model, nn.Module):
            self._model.eval()
        return self._model

    def rows(self, width: int) -> int:
        """At a time: x as stored and in float32, the code, and what is written of it."""
        if self._batch is not None:
            return self._batch
        m = getattr(self.model, "m", None) or 64
        m = max(m) if isinstance(m, Sequence) else m
        return min(max(self._memory // (16 * width + 40 * m), 1), 65_536)

    @isolated(grad=False)
    def code(self, x: Tensor, place: str, first: int) -> SparseCode:
        """Of rows x, float32; ``first`` is the number of the first one in ``place``."""
        # A sum is finite only where all its terms are; where it is not, they are looked at.
        if not x.sum(1).isfinite().all() and not (finite := x.isfinite().all(1)).all():
            row = int((~finite).nonzero()[0])
            raise ValueError(f"{place}: row {first + row} must be finite")
        weight = next(iter(self.model.parameters()), x) if hasattr(self.model, "parameters") else x
        code = self.model.encode(x.to(weight.device, weight.dtype))
        if not isinstance(code, SparseCode):
            raise ValueError(
                f"model must give a SparseCode [B, m], as 'top_m' does, got {type(code).__name__}"
            )
        kept = code.values.to("cpu", _DTYPES[self.values])
        if not kept.isfinite().all():
            row = int((~kept.isfinite().all(1)).nonzero()[0])
            raise ValueError(
                f"{place}: row {first + row} has the value {code.values[row].abs().max().item():g},"
                f" which {self.values} cannot hold"
            )
        return SparseCode(kept, code.indices.cpu(), code.size)

    def table(self, code: SparseCode, first: int, **told: str) -> Any:
        """Of Arrow; ``told`` in its schema's metadata."""
        pa = require("pyarrow", _COMMAND, extra="parquet")
        batch, m = code.values.shape

        def lists(t: Tensor) -> Any:
            return pa.FixedSizeListArray.from_arrays(pa.array(t.reshape(-1).numpy()), m)

        row = torch.arange(first, first + batch)
        columns = [pa.array(row.numpy()), lists(code.indices.int()), lists(code.values)]
        told[SIZE] = str(code.size)
        return pa.table(columns, names=["row", "indices", "values"]).replace_schema_metadata(told)

    def write(self, part: Part, folder: Path) -> Iterator[int]:
        """The file of a part, batch by batch; gives the rows that each had."""
        pq = require("pyarrow.parquet", _COMMAND, extra="parquet")
        first, writer = part.begin, None
        rows, told = self.rows(part.source.width), {_SAMPLE: part.sample()}
        with replacing(folder / part.name) as new:
            try:
                for x in part.source.batches(part.begin, part.end, rows):
                    table = self.table(self.code(x, part.source.path, first), first, **told)
                    writer = writer or pq.ParquetWriter(new, table.schema, compression="zstd")
                    writer.write_table(table)
                    first += len(x)
                    yield len(x)
            finally:
                if writer is not None:
                    writer.close()


# -- Ray


class _Actor:
    """A worker of Ray: holds a coder, and with it the model."""

    def __init__(self, coder: Coder, parts: Sequence[Part] = (), folder: str = "") -> None:
        torch.set_num_threads(1)  # there are as many workers as CPUs
        self.coder, self.parts, self.folder = coder, parts, Path(folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Code the parts of these numbers; those that another one has written are there. What is
        wrong with rows is told: Ray would wrap it, and try again what is lost."""
        refused = ""
        for part in (self.parts[int(i)] for i in batch["item"]):
            try:
                if not (self.folder / part.name).exists():
                    for _ in self.coder.write(part, self.folder):
                        pass
            except (TypeError, ValueError) as error:
                refused = str(error)
        return {"refused": [refused]}


class _TableActor(_Actor):
    """The same of rows that Ray has read."""

    def __init__(self, coder: Coder, column: str | None) -> None:
        super().__init__(coder)
        self.column = column

    def __call__(self, table: Any) -> Any:
        name = self.column or next(iter(table.column_names))
        column = table.column(name)
        if hasattr(column.type, "storage_type"):  # a tensor of Ray
            chunks = [chunk.storage for chunk in column.chunks]
            column = require("pyarrow", _COMMAND, extra="ray").chunked_array(chunks)
        return self.coder.table(self.coder.code(numbers_of(column, name), name, 0), 0)


def _pool(workers: int | None) -> tuple[Any, int]:
    ray = require("ray", "engine='ray'", extra="ray")
    require("ray.data", "engine='ray'", extra="ray")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    cpus = int(ray.cluster_resources().get("CPU", 1))
    return ray, min(workers or cpus, cpus)


def _by_ray(
    parts: list[Part], coder: Coder, folder: Path, workers: int | None, progress: bool
) -> None:
    if not parts:
        return
    ray, pool = _pool(workers)
    ray.data.DataContext.get_current().enable_progress_bars = progress
    numbers = ray.data.from_items(list(range(len(parts))), override_num_blocks=len(parts))
    coded = numbers.map_batches(
        _Actor,
        fn_constructor_args=(coder, parts, os.fspath(folder.resolve())),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(pool, len(parts))),
    )
    for told in coded.iter_batches(batch_size=None):
        if refused := [word for word in told["refused"] if word]:
            raise ValueError(refused[0])


def _dataset_of_ray(
    source: Any, coder: Coder, folder: Path, column: str | None, workers: int | None
) -> dict[str, int]:
    if type(source).__module__.split(".")[0] != "ray" or not hasattr(source, "map_batches"):
        raise TypeError(
            "source must be a file, a folder, several of these, or a ray.data.Dataset, got "
            f"{type(source).__name__}"
        )
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} must be empty for a data set of Ray, which has no parts to keep"
        )
    ray, pool = _pool(workers)
    batch = coder.rows(_width(source, column))
    coded = source.map_batches(
        _TableActor,
        fn_constructor_args=(coder, column),
        batch_size=batch,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pool),
    )
    coded.write_parquet(os.fspath(folder.resolve()))
    parts = sorted(folder.glob("*.parquet"))
    pq = require("pyarrow.parquet", _COMMAND, extra="ray")
    rows = sum(pq.read_metadata(part).num_rows for part in parts)
    return {"rows": rows, "parts": len(parts), "rows_coded": rows, "parts_coded": len(parts)}


def _width(source: Any, column: str | None) -> int:
    table = source.limit(1).take_batch(1, batch_format="numpy")
    name = column or next(iter(table))
    return len(table[name][0])
