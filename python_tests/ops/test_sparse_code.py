"""SparseCode travels: files, loaders, other types, and what it is worth as a value."""

from __future__ import annotations

import io

import pytest
import torch
from torch.utils import _pytree
from torch.utils.data import DataLoader, default_collate

import deepl0_kernels as dk


def code(*lead: int, m: int = 3, p: int = 8) -> dk.SparseCode:
    values, indices = dk.top_m(torch.randn(*lead, p), m)
    return dk.SparseCode(values, indices, p)


def test_saved_and_loaded_with_weights_only():
    made, buffer = code(4), io.BytesIO()
    torch.save({"code": made}, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)["code"] == made


def test_a_loader_stacks_codes_with_and_without_workers():
    rows = [code() for _ in range(6)]
    assert default_collate(rows) == dk.SparseCode(
        torch.stack([c.values for c in rows]), torch.stack([c.indices for c in rows]), 8
    )
    for workers in (0, 2):
        loader = DataLoader(rows, batch_size=3, num_workers=workers)
        batches = list(loader)
        assert [len(b) for b in batches] == [3, 3]
        assert batches[1] == default_collate(rows[3:])
    with pytest.raises(ValueError, match="one size"):
        default_collate([code(), code(p=9)])


def test_vmap_returns_it():
    x, W = torch.randn(3, 4, 5), torch.randn(8, 5)
    got = torch.func.vmap(lambda r: dk.encode_top_m(r, W, None, 2, num_stages=1))(x)
    assert isinstance(got, dk.SparseCode)
    assert got == dk.encode_top_m(x, W, None, 2, num_stages=1)


def test_a_pytree_of_two_leaves_with_a_serialised_name():
    made = code(4)
    leaves, spec = _pytree.tree_flatten(made)
    assert len(leaves) == 2
    again = _pytree.treespec_loads(_pytree.treespec_dumps(spec))
    assert _pytree.tree_unflatten(leaves, again) == made


def test_rows():
    made = code(5, 4)
    assert len(made) == 5
    assert made[1] == dk.SparseCode(made.values[1], made.indices[1], 8)
    assert made[1:3, 0] == dk.SparseCode(made.values[1:3, 0], made.indices[1:3, 0], 8)
    keep = torch.tensor([True, False, True, False, True])
    assert made[keep] == made[torch.tensor([0, 2, 4])]
    assert made[..., 2] == dk.SparseCode(made.values[:, 2], made.indices[:, 2], 8)
    with pytest.raises(IndexError):
        made[0, 0, 0]
    for rows in ((0, 0, 0), (..., 0, 0, 0)):
        with pytest.raises(IndexError):
            made[rows]
    with pytest.raises(TypeError, match="a code of a single signal has no rows"):
        len(made[0, 0])
    with pytest.raises(IndexError, match="a code of a single signal has no rows"):
        made[0, 0][0]


def test_what_is_shown_names_all_there_is():
    made = code()
    assert repr(made) == f"SparseCode(values={made.values}, indices={made.indices}, size=8)"
    leaves, _ = _pytree.tree_flatten_with_path({"code": made})
    assert [_pytree.keystr(at) for at, _ in leaves] == ["['code'].values", "['code'].indices"]


def test_equality_is_by_value():
    made = code(4)
    assert made == dk.SparseCode(made.values.clone(), made.indices.clone(), 8)
    assert made != dk.SparseCode(made.values, made.indices, 9)
    assert made != dk.SparseCode(made.values + 1, made.indices, 8)
    assert made != made.to(torch.float64)
    assert made != made[:2]
    assert made != 3


def test_to():
    made = code(4)
    assert made.to(torch.float64).values.dtype == torch.float64
    assert made.to(torch.float64).indices.dtype == torch.int64
    assert made.to("meta").indices.device.type == "meta"
    assert made.cpu() == made


@pytest.mark.parametrize(
    ("size", "error"), [(24.0, TypeError), ("8", TypeError), (True, TypeError), (-1, ValueError)]
)
def test_size_is_checked(size, error):
    with pytest.raises(error, match="size must be"):
        dk.SparseCode(torch.zeros(2), torch.zeros(2, dtype=torch.int64), size)


@pytest.mark.parametrize("shape", [(2, 3), (5, 3), (3,)])
def test_a_code_does_not_unpack(shape):
    code = dk.SparseCode(torch.zeros(shape), torch.arange(3).expand(shape), 4)
    with pytest.raises(TypeError, match=r"\.values and \.indices"):
        _values, _indices = code
