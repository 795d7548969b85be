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
