"""The result of a sparse encoder."""

from __future__ import annotations

import json
from os import PathLike
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils.data._utils.collate import default_collate_fn_map

from .._optional import require
from . import checks
from .top_m import unpool

# Of parquet: what a folder of codes says of itself, and the key of p in the schema of a file.
DATASET, SIZE = "dataset.json", "deepl0_kernels.size"


class SparseCode:
    """A batch of m-sparse codes of length ``size``.

    Args:
        values: [..., m] floating.
        indices: [..., m] int64, ascending within a row.
        size: code length p.

    ``len(code)`` is the number of rows, ``code[rows]`` a code of some of them. Two codes are equal
    if all their entries are.

    It passes through ``torch.compile``, ``torch.export``, AOTInductor and ``vmap`` (a pytree whose
    leaves are values and indices), ``torch.save`` and ``torch.load(weights_only=True)``, and the
    default collation of a ``DataLoader``, which stacks codes. What reads an exported program, a
    package or a saved code imports ``deepl0_kernels`` first.

    Raises:
        TypeError, ValueError: size is not an integer >= 0.

    Example:
        >>> code = dk.SparseCode(torch.tensor([[2.0, -1.0]]), torch.tensor([[0, 3]]), size=4)
        >>> code.to_dense()
        tensor([[ 2.,  0.,  0., -1.]])
    """

    values: Tensor
    indices: Tensor
    size: int

    def __init__(self, values: Tensor, indices: Tensor, size: int) -> None:
        self.values = values
        self.indices = indices
        self.size = size if type(size) is int and size >= 0 else checks.integer("size", size, 0)

    def to_dense(self) -> Tensor:
        """Dense code [..., size], differentiable in ``values``; :func:`unpool`."""
        return unpool(self.values, self.indices, self.size)

    def to_csr(self) -> Tensor:
        """``torch.sparse_csr`` matrix [B, size] of a code of one or two dimensions. O(B m).

        Raises:
            ValueError: a code of more dimensions.
        """
        if self.values.dim() > 2:
            raise ValueError(f"to_csr needs a code [B, m] or [m], got {tuple(self.values.shape)}")
        values, indices = torch.atleast_2d(self.values), torch.atleast_2d(self.indices)
        batch, m = values.shape
        row_starts = m * torch.arange(batch + 1, device=values.device)
        return torch.sparse_csr_tensor(
            row_starts,
            indices.reshape(-1),
            values.reshape(-1),
            size=(batch, self.size),
            check_invariants=True,
        )

    @classmethod
    def from_parquet(cls, path: str | PathLike[str]) -> SparseCode:
        """The codes of a file or a folder that :func:`deepl0_kernels.encode_dataset` has written,
        in the order of its files; all of them are in memory then.

        Args:
            path: a .parquet, or a folder of them.

        Raises:
            FileNotFoundError: there is none.
            ValueError: a file of something else, codes of several sizes, or a folder that lacks
                some, whose rows would not be those of the source.
            ModuleNotFoundError: pyarrow is missing.
        """
        pq = require("pyarrow.parquet", "SparseCode.from_parquet", extra="parquet")
        at = checks.path("path", path)
        files = sorted(at.glob("*.parquet")) if at.is_dir() else [at]
        if not files or not files[0].exists():
            raise FileNotFoundError(f"{path} is no parquet file, and no folder of them")
        found = []
        for file in files:
            table = pq.read_table(file)
            told = (table.schema.metadata or {}).get(SIZE.encode())
            if told is None or not {"indices", "values"} <= set(table.column_names):
                raise ValueError(f"{file} must hold codes, got the columns {table.column_names}")
            parts = []
            for name in ("values", "indices"):
                m = table.schema.field(name).type.list_size
                flat = table.column(name).combine_chunks().flatten()
                parts.append(torch.tensor(flat.to_numpy(zero_copy_only=False)).view(-1, m))
            found.append(cls(parts[0], parts[1].long(), int(told)))
        if (note := at / DATASET).exists():
            try:
                wanted = sum(file["rows"] for file in json.loads(note.read_text())["files"])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{note} is none of encode_dataset's: {error!r}") from None
            if (held := sum(map(len, found))) != wanted:
                raise ValueError(
                    f"{path} must hold codes of {wanted} rows, as its {DATASET} says, got {held}: "
                    "encode_dataset was interrupted, and goes on when called again"
                )
        if len(kinds := {(code.size, code.values.shape[1]) for code in found}) > 1:
            raise ValueError(f"{path} must hold codes of one (size, m), got {sorted(kinds)}")
        values, indices = (torch.cat([getattr(c, k) for c in found]) for k in ("values", "indices"))
        return cls(values, indices, found[0].size)

    def to(self, *args: Any, **kwargs: Any) -> SparseCode:
        """The code on another device, its values in another dtype: arguments of ``Tensor.to``."""
        values = self.values.to(*args, **kwargs)
        later = bool(kwargs.get("non_blocking"))
        return SparseCode(values, self.indices.to(values.device, non_blocking=later), self.size)

    def cpu(self) -> SparseCode:
        """The code in the memory of the host."""
        return self.to("cpu")

    def pin_memory(self) -> SparseCode:
        """The code in page-locked memory, as a ``DataLoader(pin_memory=True)`` asks for."""
        return SparseCode(self.values.pin_memory(), self.indices.pin_memory(), self.size)

    def __len__(self) -> int:
        if self.values.dim() < 2:
            raise TypeError("a code of a single signal has no rows")
        return len(self.values)

    def __getitem__(self, rows: Any) -> SparseCode:
        """Codes of some rows: anything that indexes dimensions before the last."""
        if self.values.dim() < 2:
            raise IndexError("a code of a single signal has no rows")
        at = rows if isinstance(rows, tuple) else (rows,)
        ellipsis = any(i is Ellipsis for i in at)
        kept = (*at, slice(None)) if ellipsis else (*at, ..., slice(None))
        values = self.values[kept]
        if values.dim() == 0 or values.shape[-1] != self.values.shape[-1]:
            raise IndexError(f"rows alone are indexed, got {rows!r} for {tuple(self.values.shape)}")
        return SparseCode(values, self.indices[kept], self.size)

    def __iter__(self) -> NoReturn:
        # Else ``values, indices = code`` would give two rows of a batch of two, unsaid.
        raise TypeError("a SparseCode does not unpack: take .values and .indices; rows are code[i]")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparseCode):
            return NotImplemented
        return self.size == other.size and all(
            a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
            for a, b in ((self.values, other.values), (self.indices, other.indices))
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"SparseCode(values={self.values}, indices={self.indices}, size={self.size})"

    def __reduce__(self) -> tuple:
        return SparseCode, (self.values, self.indices, self.size)


# A size that belongs to a graph of several sizes is one of its values; else it is a constant.


def _flatten(code: SparseCode) -> tuple[list, int | None]:
    tensors = [code.values, code.indices]
    return (tensors, code.size) if isinstance(code.size, int) else ([*tensors, code.size], None)


def _flatten_with_keys(code: SparseCode) -> tuple[list, int | None]:
    leaves, size = _flatten(code)
    names = ("values", "indices", "size")
    return [(_pytree.GetAttrKey(k), v) for k, v in zip(names, leaves, strict=False)], size


def _unflatten(leaves: Any, size: int | None) -> SparseCode:
    values, indices, *rest = leaves
    code = SparseCode.__new__(SparseCode)  # the leaves may be anything that stands for them
    code.values, code.indices = values, indices
    code.size = rest[0] if size is None else size
    return code


def _collate(codes: list[SparseCode], *, collate_fn_map: Any = None) -> SparseCode:
    if len(sizes := {code.size for code in codes}) > 1:
        raise ValueError(f"codes of one batch must be of one size, got {sorted(sizes)}")
    values, indices = (torch.stack([getattr(c, k) for c in codes]) for k in ("values", "indices"))
    return SparseCode(values, indices, codes[0].size)


_pytree.register_pytree_node(
    SparseCode,
    _flatten,
    _unflatten,
    serialized_type_name="deepl0_kernels.SparseCode",
    to_dumpable_context=lambda size: size,
    from_dumpable_context=lambda size: size,
    flatten_with_keys_fn=_flatten_with_keys,
)
torch.serialization.add_safe_globals([SparseCode])
default_collate_fn_map[SparseCode] = _collate
