"""encode_dataset in one process: formats in, parquet out, resumed, in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import deepl0_kernels as dk
from deepl0_kernels import sae
from deepl0_kernels.distributed.dataset import _parts
from deepl0_kernels.distributed.identity import sample_of
from deepl0_kernels.distributed.sources import Raw

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

N, P, M = 6, 40, 4


@pytest.fixture
def model():
    return sae.SparseAutoencoder(N, P, M)


@pytest.fixture
def x():
    return torch.randn(101, N)


def parquet_of(x, path, kind="fixed", rows=20):
    flat = pa.array(x.reshape(-1).numpy())
    if kind == "fixed":
        lists = pa.FixedSizeListArray.from_arrays(flat, x.shape[1])
    else:
        lists = pa.ListArray.from_arrays(np.arange(0, x.numel() + 1, x.shape[1], np.int32), flat)
    pq.write_table(pa.table({"id": pa.array(range(len(x))), "x": lists}), path, row_group_size=rows)
    return path


def write(kind, x, folder):
    path = folder / f"x.{kind.partition('-')[0]}"
    if kind.startswith("npy"):
        np.save(path, x.numpy().astype(kind.partition("-")[2] or "float32"))
    elif kind.startswith("safetensors"):
        dtype = torch.bfloat16 if kind.endswith("bf16") else torch.float32
        save_file({"x": x.to(dtype), "bias": torch.ones(3)}, path)
    else:
        parquet_of(x, path, kind.partition("-")[2])
    return path


@pytest.mark.parametrize(
    "kind",
    ["npy", "npy-float16", "npy-float64", "safetensors", "safetensors-bf16", "parquet-fixed",
     "parquet-list"],
)  # fmt: skip
@pytest.mark.parametrize("batch", [None, 7])
def test_codes_are_those_of_the_model(kind, batch, x, model, tmp_path):
    path = write(kind, x, tmp_path)
    told = dk.encode_dataset(path, model, tmp_path / "out", batch=batch, rows=30)
    parts = 5 if kind.startswith("parquet") else 4  # at the borders of groups of 20
    assert told == {"rows": 101, "parts": parts, "rows_coded": 101, "parts_coded": parts}
    rounded = {"npy-float16": x.half(), "safetensors-bf16": x.bfloat16()}.get(kind, x).float()
    one, found = model.encode(rounded), dk.SparseCode.from_parquet(tmp_path / "out")
    assert torch.equal(found.indices, one.indices)
    torch.testing.assert_close(found.values, one.values.detach())
    assert found.size == P


def test_files_are_those_that_others_read(x, model, tmp_path):
    dk.encode_dataset(write("npy", x, tmp_path), model, tmp_path / "out", values="float16")
    (path,) = (tmp_path / "out").glob("*.parquet")
    table = pq.read_table(path)
    assert table.schema.field("indices").type == pa.list_(pa.int32(), M)
    assert table.schema.field("values").type == pa.list_(pa.float16(), M)
    assert table["row"].to_pylist() == list(range(101))
    assert dk.SparseCode.from_parquet(path).values.dtype == torch.float16
    with pytest.raises(ValueError, match="must hold codes, got the columns"):
        dk.SparseCode.from_parquet(parquet_of(x, tmp_path / "other.parquet"))
    with pytest.raises(FileNotFoundError):
        dk.SparseCode.from_parquet(tmp_path / "none.parquet")


def test_resumed_by_parts(x, model, tmp_path):
    """What is there is not computed again; half a part is not there."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    np.save(folder / "a.npy", x.numpy())
    bad = x.clone()
    bad[77, 2] = torch.nan
    np.save(folder / "b.npy", bad.numpy())
    with pytest.raises(ValueError, match=r"b\.npy: row 77 must be finite"):
        dk.encode_dataset(folder, model, out, rows=40, batch=8)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert len(before) == 4
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    np.save(folder / "b.npy", x.numpy())
    told = dk.encode_dataset(folder, partial(lambda m: m, model), out, rows=40)
    assert told == {"rows": 202, "parts": 6, "rows_coded": 61, "parts_coded": 2}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    found = dk.SparseCode.from_parquet(out)
    assert torch.equal(found.indices, model.encode(torch.cat([x, x])).indices)
    for change in (dict(values="float16"), dict(rows=41)):
        with pytest.raises(ValueError, match=f"holds codes with {next(iter(change))} = "):
            dk.encode_dataset(folder, model, out, **{"rows": 40, **change})
    with pytest.raises(ValueError, match="holds codes with model = "):
        dk.encode_dataset(folder, sae.SparseAutoencoder(N, P, M), out, rows=40)


class Wrapped:
    """A model that is no module, and holds one, or a matrix."""

    def __init__(self, model, scale, m=M):
        self.inner, self.scale, self._m = model, scale, m

    def encode(self, x):
        code = self.inner.encode(x * torch.as_tensor(self.scale))
        return dk.SparseCode(*dk.top_m(code.to_dense(), self._m), P)


def other_models():
    """By name: two models that code differently, of equal weights."""
    m_sparse = dk.nn.DeepMSparseEncoder(N, P, M)
    sae_of = sae.SparseAutoencoder(N, P, M)
    signed = sae.SparseAutoencoder.from_weights(
        **dict(sae_of.named_parameters()), **(sae_of.options() | {"positive": False})
    )
    fewer = dk.nn.DeepMSparseEncoder(N, P, M - 1)
    fewer.load_state_dict(m_sparse.state_dict())
    return {
        "m": (m_sparse, fewer),
        "sign": (sae_of, signed),
        "m of a stage": (sae_of.deepen(2), sae_of.deepen(2, M)),
        "array": (Wrapped(sae_of, np.ones(N, "f")), Wrapped(sae_of, np.full(N, 2, "f"))),
        "number": (Wrapped(sae_of, 1.0), Wrapped(sae_of, 1.0, M - 1)),
        "module inside": (Wrapped(sae_of, 1.0), Wrapped(signed, 1.0)),
    }


@pytest.mark.parametrize("kind", list(other_models()))
def test_codes_of_another_model_are_refused(kind, x, tmp_path):
    """Also where it differs in a setting alone: a folder with some codes of each is no data set."""
    np.save(tmp_path / "x.npy", x.numpy())
    one, other = other_models()[kind]
    dk.encode_dataset(tmp_path / "x.npy", one, tmp_path / "out", rows=40)
    with pytest.raises(ValueError, match="holds codes with model = "):
        dk.encode_dataset(tmp_path / "x.npy", other, tmp_path / "out", rows=40)
    told = dk.encode_dataset(tmp_path / "x.npy", one, tmp_path / "out", rows=40)
    assert told["parts_coded"] == 0


def test_a_model_is_the_same_from_another_file(x, model, tmp_path):
    np.save(tmp_path / "x.npy", x.numpy())
    for name in ("a", "b"):
        sae.save(model, tmp_path / f"{name}.safetensors", "deepl0")
        same = sae.load(tmp_path / f"{name}.safetensors").train(name == "a")
        told = dk.encode_dataset(tmp_path / "x.npy", same, tmp_path / "out", rows=40)
        assert told["parts_coded"] == (3 if name == "a" else 0)


@pytest.mark.parametrize("kind", ["npy", "safetensors", "parquet-fixed"])
def test_rows_that_have_changed_are_refused(kind, x, model, tmp_path):
    """In a file of as many bytes, whose name is the same; a file that was copied has not."""
    path = write(kind, x, tmp_path)
    dk.encode_dataset(path, model, tmp_path / "out", rows=40)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    assert dk.encode_dataset(path, model, tmp_path / "out", rows=40)["parts_coded"] == 0
    x = torch.cat([x[:80], x[80:] * 2])
    write(kind, x, tmp_path)
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    changed = parts if kind.startswith("parquet") else parts[2:]
    before = [part.read_bytes() for part in parts]
    begin = 0 if kind.startswith("parquet") else 80
    with pytest.raises(ValueError, match=rf"codes of rows \[{begin}, .*or delete part-"):
        dk.encode_dataset(path, model, tmp_path / "out", rows=40)
    assert [part.read_bytes() for part in parts] == before
    for part in changed:
        part.unlink()
    told = dk.encode_dataset(path, model, tmp_path / "out", rows=40)
    assert told["parts_coded"] == len(changed)
    found = dk.SparseCode.from_parquet(tmp_path / "out")
    torch.testing.assert_close(found.values, model.encode(x).values.detach())


def test_names_of_parts_are_in_the_order_of_the_rows():
    """Which is the order that codes are read in, of any number of files."""
    source = Raw("x.npy", 0, torch.float32, 10**7, 2)
    parts = _parts([source] * 100_001, 9 * 10**6)
    names = [part.name for part in parts]
    assert names == sorted(names)


def test_a_sample_sees_both_ends_and_between(tmp_path):
    path, content = tmp_path / "x", bytearray(1 << 20)

    def sample(changed, *where):
        path.write_bytes(content[:changed] + b"!" + content[changed + 1 :])
        return sample_of(path, *where)

    begin, end = 1000, (1 << 20) - 1000
    as_it_was = sample(0, begin, end)
    for outside in (begin - 1, end):
        assert sample(outside, begin, end) == as_it_was
    between = begin + (end - begin - 4096) * 5 // 15
    seen = {sample(inside, begin, end) for inside in (begin, begin + 4095, between, end - 1)}
    assert len(seen | {as_it_was}) == 5
    assert sample_of(path) == sample_of(path, 0, 1 << 20)


def test_part_of_the_codes_is_no_data_set(x, model, tmp_path):
    np.save(tmp_path / "x.npy", x.numpy())
    dk.encode_dataset(tmp_path / "x.npy", model, tmp_path / "out", rows=40)
    dk.encode_dataset([tmp_path / "x.npy"] * 2, model, tmp_path / "twice")
    assert len(dk.SparseCode.from_parquet(tmp_path / "twice")) == 202
    (tmp_path / "twice" / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match=r"dataset\.json is none of encode_dataset's: KeyError"):
        dk.SparseCode.from_parquet(tmp_path / "twice")
    min((tmp_path / "out").glob("*.parquet")).unlink()
    with pytest.raises(ValueError, match=r"codes of 101 rows, as its dataset\.json says, got 61"):
        dk.SparseCode.from_parquet(tmp_path / "out")


def test_of_many_files_the_one_that_differs_is_named(x, model, tmp_path):
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", x.numpy())
    files = [tmp_path / f"{name}.npy" for name in "abc"]
    dk.encode_dataset(files, model, tmp_path / "out")
    np.save(tmp_path / "b.npy", x[1:].numpy())
    with pytest.raises(ValueError, match=r"with files = \{'name': 'b\.npy'.*'rows': 100\}: give"):
        dk.encode_dataset(files, model, tmp_path / "out")
    with pytest.raises(ValueError, match="with files = '3 of them', not '2 of them'"):
        dk.encode_dataset(files[:2], model, tmp_path / "out")


def test_what_is_refused(x, model, tmp_path):
    np.save(tmp_path / "wide.npy", torch.randn(3, N + 1).numpy())
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "columns.npy", np.asfortranarray(x.numpy()))
    np.save(tmp_path / "whole.npy", x.long().numpy())
    np.save(tmp_path / "large.npy", 1e6 * x.numpy())
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-9])
    (tmp_path / "no.safetensors").write_bytes(b"\xff" * 40)
    save_file({"a": x, "b": x.clone()}, tmp_path / "two.safetensors")
    ragged = pa.array([[1.0, 2.0], [1.0]])
    pq.write_table(pa.table({"x": ragged}), tmp_path / "ragged.parquet")
    out = tmp_path / "out"
    for source, words, options in (
        (["x.npy", "wide.npy"], "must hold vectors of n = 6", {}),
        ("columns.npy", "by columns", {}),
        ("whole.npy", "<i8", {}),
        ("cut.npy", "must have 2552 bytes", {}),
        ("no.safetensors", "is no safetensors", {}),
        ("two.safetensors", "named by column= where there are several", {}),
        ("ragged.parquet", "lists of", {}),
        ("x.npy", "values must be one of", {"values": "int8"}),
        ("x.npy", "rows must be >= 1", {"rows": 0}),
        ("x.npy", "engine must be one of", {"engine": "dask"}),
        ("large.npy", "which float16 cannot hold", {"values": "float16"}),
        ("x.csv", "does not exist", {}),
    ):
        given = [tmp_path / name for name in ([source] if isinstance(source, str) else source)]
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            dk.encode_dataset(given, model, out, **options)
    with pytest.raises(ValueError, match="must give a SparseCode"):
        dk.encode_dataset(
            tmp_path / "x.npy", sae.SparseAutoencoder(N, P, selection="relu"), out / "a"
        )
    with pytest.raises(TypeError, match="source must be a file"):
        dk.encode_dataset(3, model, out)
    with pytest.raises(TypeError, match="model must have encode"):
        dk.encode_dataset(tmp_path / "x.npy", 3, out)


def test_command(x, model, tmp_path):
    sae.save(model, tmp_path / "m.safetensors", "deepl0")
    np.save(tmp_path / "x.npy", x.numpy())
    words = ["encode", tmp_path / "m.safetensors", "--source", tmp_path / "x.npy", "--rows", "60",
             "--out", tmp_path / "out"]  # fmt: skip
    command = [sys.executable, "-m", "deepl0_kernels.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("101 of 101 rows coded in 2 of 2 parts")
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["n"] == N
    assert torch.equal(
        dk.SparseCode.from_parquet(tmp_path / "out").indices, model.encode(x).indices
    )


_PEAK = """
import resource, sys, deepl0_kernels as dk, torch
from deepl0_kernels import sae
torch.manual_seed(0)
model = sae.SparseAutoencoder(64, 256, 8)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
dk.encode_dataset(sys.argv[1], model, sys.argv[2] + "0", memory=1 << 24)
before = peak()
dk.encode_dataset(sys.argv[1:2] * 12, model, sys.argv[2], memory=1 << 24)
print(peak() - before)
"""


def test_memory_is_bounded(tmp_path):
    """Twelve times as much takes no more: 15 MB of vectors, 180 MB."""
    np.save(tmp_path / "x.npy", torch.randn(60_000, 64).numpy())
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, tmp_path / "x.npy", tmp_path / "out"],
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 24, done.stdout
