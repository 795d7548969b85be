"""COIL-20 and CMU PIE: reading and refusing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepl0_kernels import images


@pytest.mark.parametrize(("read", "classes", "each"), [("coil20", 20, 72), ("cmu_pie", 68, 42)])
def test_the_images_and_their_classes(read, classes, each, data_dir, monkeypatch):
    found = getattr(images, read)(data_dir)
    assert found.x.shape == (classes * each, 32, 32)
    assert found.x.dtype == torch.uint8
    assert torch.bincount(found.y).tolist() == [each] * classes
    monkeypatch.setenv("DEEPL0_DATA", str(data_dir))
    assert torch.equal(getattr(images, read)().x, found.x)


def test_other_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("DEEPL0_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"set DEEPL0_DATA.*cmu_pie\.npz.*Carnegie"):
        images.cmu_pie()
    with pytest.raises(FileNotFoundError, match=r"no coil20\.npz.*Columbia"):
        images.coil20(tmp_path)
    path = tmp_path / "coil20.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as coil20"):
        images.coil20(tmp_path)
    np.savez(path, x=np.zeros((3, 32, 32), np.uint8), y=np.zeros(3))
    with pytest.raises(ValueError, match=r"got uint8 \(3, 32, 32\)"):
        images.coil20(tmp_path)
    np.savez(path, x=np.zeros((1440, 32, 32), np.uint8), y=np.arange(1440) % 10)
    with pytest.raises(ValueError, match=r"is not coil20.*not 72 each of 0 to 19"):
        images.coil20(tmp_path)


@pytest.mark.parametrize("scale", [1, 255])
def test_the_published_file_is_read_too(scale, data_dir, tmp_path):
    io = pytest.importorskip("scipy.io")
    ours = images.coil20(data_dir)
    columns = ours.x.numpy().transpose(0, 2, 1).reshape(1440, -1) / scale
    io.savemat(tmp_path / "COIL20.mat", {"fea": columns, "gnd": ours.y.numpy()[:, None] + 1})
    theirs = images.coil20(tmp_path)
    assert torch.equal(theirs.x, ours.x)
    assert torch.equal(theirs.y, ours.y)


def with_entry(array, value, dtype=None):
    changed = array.astype(dtype or array.dtype)
    changed.flat[7] = value
    return changed


@pytest.mark.parametrize("mat", [False, True], ids=["npz", "mat"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("x", 300, float), r"must be in 0\.\.255, got .* to 300"),
        (("x", -1, np.int16), r"must be in 0\.\.255, got -1"),
        (("x", np.nan, float), "must be finite, has 1 others"),
        (("x", np.inf, np.float32), "must be finite"),
        (("x", 1j, complex), "must hold numbers, got complex128"),
        (("y", np.nan, float), "must be finite"),
        (("y", 1.5, float), "must hold integers"),
        (("y", -7, np.int16), "got -"),
        (("y", 99, np.int16), "to (99|100)"),
    ],
)
def test_entries_that_a_cast_would_change_are_refused(change, words, mat, data_dir, tmp_path):
    io = pytest.importorskip("scipy.io")
    ours = {key: array.numpy() for key, array in images.coil20(data_dir)._asdict().items()}
    key, value, dtype = change
    ours[key] = with_entry(ours[key], value, dtype)
    if mat:
        x, y = ours["x"].reshape(1440, -1), ours["y"][:, None] + 1
        io.savemat(tmp_path / "COIL20.mat", {"fea": x, "gnd": y})
    else:
        np.savez(tmp_path / "coil20.npz", **ours)
        if key == "x":
            words = "x and y must be uint8"
    with pytest.raises(ValueError, match=rf"coil20\.npz.*{words}|COIL20\.mat.*{words}"):
        images.coil20(tmp_path)


def test_the_order_of_bytes_is_the_files(data_dir, tmp_path):
    ours = images.coil20(data_dir)
    np.savez(tmp_path / "coil20.npz", x=ours.x.numpy(), y=ours.y.numpy().astype(">f8"))
    assert torch.equal(images.coil20(tmp_path).y, ours.y)
    np.savez(tmp_path / "coil20.npz", x=ours.x.numpy()[:0], y=ours.y.numpy()[:0])
    with pytest.raises(ValueError, match=r"coil20\.npz.*got uint8 \(0, 32, 32\)"):
        images.coil20(tmp_path)
