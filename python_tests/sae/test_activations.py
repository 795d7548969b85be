"""Vectors in files: read as they are, and refused with file, entry and value where they are not."""

from __future__ import annotations

import io
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch

from deepl0_kernels.sae.activations import Activations

RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 12)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_files_are_read_as_they_are(tmp_path, dtype, order):
    stored = np.asarray(X, dtype=dtype, order=order)
    np.save(tmp_path / "x.npy", stored)
    np.savez_compressed(tmp_path / "x.npz", x=stored, words=np.arange(50))
    np.savez(tmp_path / "y.npz", train=stored, test=stored[:7])
    for path in ("x.npy", "x.npz", "x.npz:x", "y.npz:train"):
        found = Activations.open(tmp_path / path)
        assert (len(found), found.width) == X.shape
        want = torch.from_numpy(stored.astype(np.float32))
        assert torch.equal(found.rows(torch.tensor([3, 4, 40])), want[[3, 4, 40]])
        assert torch.equal(torch.cat(list(found.batches(16))), want)
        assert torch.equal(found.part(slice(5, 9)).rows(slice(0, 100)), want[5:9])
        assert found.check() == found.check()
    assert len(Activations.open(tmp_path / "y.npz", "test")) == 7


def test_digests_tell_numbers_shapes_and_dtypes_apart():
    other = X.copy()
    other[49, 11] += 1
    seen = {
        Activations(array).check()
        for array in (X, other, X.reshape(25, 24), X.astype(np.float64), X[:49])
    }
    assert len(seen) == 5
    assert Activations(torch.from_numpy(X)).check() == Activations(X).check()
    assert Activations(np.asfortranarray(X)).check() == Activations(X).check()


def test_an_npy_is_mapped_and_not_read(tmp_path):
    np.save(tmp_path / "x.npy", X)
    assert isinstance(Activations.open(tmp_path / "x.npy")._array, np.memmap)


def test_tensors_of_bfloat16():
    x = torch.from_numpy(X).bfloat16()
    assert torch.equal(Activations(x).rows(slice(0, 50)), x.float())


def changed(value, dtype, at=(31, 7)):
    x = X.astype(dtype)
    x[at] = value
    return x


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (changed(np.nan, "float32"), r"entry [31, 7] must be finite, got nan"),
        (changed(-np.inf, "float64"), r"entry [31, 7] must be finite, got -inf"),
        (changed(np.inf, "float16"), r"got inf: float16 ends at 65504; store these in float32"),
        (changed(1e300, "float64"), r"entry [31, 7] must be finite, got 1e+300, which float32"),
        (np.ones((9, 3)), "x.npy must hold vectors that differ: they have no variance"),
        (X[:1], "x.npy must hold vectors that differ: they have no variance"),
        (changed(3e20, "float32"), r"vector 31 must have a norm <= 1e+15, got 3e+20"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 1 << 24])
def test_numbers_that_no_training_can_take(array, message, chunk, monkeypatch):
    monkeypatch.setattr("deepl0_kernels.sae.activations._CHUNK", chunk)
    with pytest.raises(ValueError, match=re.escape(message)):
        Activations(array, "x.npy").check()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.arange(12).reshape(3, 4), "must be float16, float32 or float64, got int64"),
        (np.ones((3, 4), bool), "must be float16, float32 or float64, got bool"),
        (np.ones((3, 4), complex), "must be float16, float32 or float64, got complex128"),
        (np.ones((3, 4), np.longdouble), "must be float16, float32 or float64, got"),
        (np.array([["a"]]), "must be float16, float32 or float64, got <U1"),
        (X[0], r"must have shape [N, n] with N, n >= 1, got (12,)"),
        (X[None], r"must have shape [N, n] with N, n >= 1, got (1, 50, 12)"),
        (X[:0], r"must have shape [N, n] with N, n >= 1, got (0, 12)"),
        (X[:, :0], r"must have shape [N, n] with N, n >= 1, got (50, 0)"),
    ],
)
def test_arrays_of_another_kind(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", x=array)
    for path in (tmp_path / "x.npy", f"{tmp_path / 'x.npz'}:x"):
        with pytest.raises(ValueError, match=re.escape(f"{path} {message}")):
            Activations.open(path)


class Harmful:
    """What a pickle can do."""

    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(content: bytes, name: str = "x.npy") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


OBJECTS = np.empty((2, 2), object)
OBJECTS[:] = [[Harmful(), 1], [2, 3]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no .npy or .npz: it begins with b''"),
        (b"\x93NUMPY", "cannot be read as .npy"),
        (npy(X)[:100], "cannot be read as .npy"),
        (npy(X)[:-1], "cannot be read as .npy"),
        (npy(OBJECTS), "cannot be read as .npy"),
        (pickle.dumps(Harmful()), "is no .npy or .npz: it begins with"),
        (b'{"a": 1}', "is no .npy or .npz: it begins with"),
        (zipped(npy(X))[:-30], "cannot be read as .npz"),
        (zipped(npy(X)[:-100]), r"cannot be read as .npz \(x\)"),
        (zipped(npy(OBJECTS)), r"cannot be read as .npz \(x\)"),
        (zipped(b"text", "x.txt"), "cannot be read as .npz"),
        (zipped(npy(np.arange(3))), r"must hold one array \[N, n\] .* it has x \[3\]"),
    ],
)
def test_foreign_and_damaged_files(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} {message}"):
        Activations.open(path)


def test_a_byte_that_changed_in_an_npz_is_found(tmp_path):
    content = bytearray(zipped(npy(X)))
    content[400] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read as .npz"):
        Activations.open(tmp_path / "x.npz")


def test_names_that_are_not_there(tmp_path):
    np.savez(tmp_path / "x.npz", a=X, b=X)
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(FileNotFoundError, match=r"y.npy does not exist"):
        Activations.open(tmp_path / "y.npy")
    with pytest.raises(FileNotFoundError, match=r"y.npz does not exist"):
        Activations.open(tmp_path / "y.npz:a")
    with pytest.raises(ValueError, match=r"has no array 'c'; it has a, b"):
        Activations.open(tmp_path / "x.npz:c")
    with pytest.raises(ValueError, match=r"as in x.npz:NAME; it has a \[50, 12\], b \[50, 12\]"):
        Activations.open(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"holds one array; got the key 'a'"):
        Activations.open(tmp_path / "x.npy:a")
    with pytest.raises(ValueError, match=r"must be an .npy or .npz file, got a folder"):
        Activations.open(tmp_path)


def test_widths():
    with pytest.raises(ValueError, match=r"x must hold vectors of n = 5, as it does, got 12"):
        Activations(X, "x").fits(5, "it")


def test_what_is_no_array():
    with pytest.raises(TypeError, match="activations must be an array or a tensor, got list"):
        Activations([[1.0]])
