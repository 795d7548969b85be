"""Indian Pines: reading, refusing, pixels and splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepl0_kernels import scenes


def test_the_scene_and_its_pixels(data_dir):
    scene = scenes.indian_pines(data_dir)
    assert scene.x.shape == (145, 145, 200)
    assert scene.x.min() > 900
    pixels = scenes.labelled_pixels(scene)
    assert pixels.x.shape == (10249, 200)
    assert torch.bincount(pixels.y).tolist()[:3] == [46, 1428, 830]
    assert len(scenes.NAMES) == pixels.y.max() + 1 == 16
    wide = scenes.labelled_pixels(scene, context=1)
    torch.testing.assert_close(wide.x[:, :200], pixels.x)
    where = (scene.y > 0).nonzero()
    inner = ((where > 0) & (where < 144)).all(1).nonzero()[7, 0]
    i, j = where[inner].tolist()
    mean = scene.x[i - 1 : i + 2, j - 1 : j + 2].mean((0, 1))
    torch.testing.assert_close(wide.x[inner, 200:], mean)


def test_a_corner_averages_what_there_is():
    x = torch.arange(4.0).reshape(2, 2, 1)
    scene = scenes.Scene(x, torch.ones(2, 2, dtype=torch.int64))
    wide = scenes.labelled_pixels(scene, context=1).x
    torch.testing.assert_close(wide[:, 1], torch.full((4,), 1.5))
    with pytest.raises(ValueError, match="context must be >= 0, got -1"):
        scenes.labelled_pixels(scene, -1)


def test_other_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("DEEPL0_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="set DEEPL0_DATA"):
        scenes.indian_pines()
    with pytest.raises(FileNotFoundError, match=r"no indian_pines\.npz.*Purdue"):
        scenes.indian_pines(tmp_path)
    path = tmp_path / "indian_pines.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        scenes.indian_pines(tmp_path)
    np.savez(path, x=np.zeros((3, 3, 2)), y=np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"got \(3, 3, 2\)"):
        scenes.indian_pines(tmp_path)
    np.savez(path, x=np.zeros((145, 145, 200), np.uint16), y=np.zeros((145, 145), np.uint8))
    with pytest.raises(ValueError, match="not Indian Pines: label counts"):
        scenes.indian_pines(tmp_path)


def test_the_published_files_are_read_too(data_dir, tmp_path):
    io = pytest.importorskip("scipy.io")
    with np.load(data_dir / "indian_pines.npz") as file:
        x, y = file["x"], file["y"]
    io.savemat(tmp_path / "Indian_pines_corrected.mat", {"indian_pines_corrected": x})
    io.savemat(tmp_path / "Indian_pines_gt.mat", {"indian_pines_gt": y})
    ours, theirs = scenes.indian_pines(tmp_path), scenes.indian_pines(data_dir)
    assert torch.equal(ours.x, theirs.x)
    assert torch.equal(ours.y, theirs.y)
    io.savemat(tmp_path / "Indian_pines_gt.mat", {"labels": y})
    with pytest.raises(ValueError, match=r"cannot be read as Indian Pines.*indian_pines_gt"):
        scenes.indian_pines(tmp_path)
    (tmp_path / "Indian_pines_gt.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"Indian_pines_gt\.mat"):
        scenes.indian_pines(tmp_path)


def test_a_split_is_stratified_disjoint_and_repeatable():
    y = torch.tensor([0] * 100 + [1] * 40 + [2] * 6)
    train, test = scenes.stratified_split(y, 0.1, seed=3)
    assert torch.bincount(y[train]).tolist() == [10, 4, 3]
    assert torch.equal(torch.cat((train, test)).sort().values, torch.arange(146))
    again, _ = scenes.stratified_split(y, 0.1, seed=3)
    other, _ = scenes.stratified_split(y, 0.1, seed=4)
    assert torch.equal(train, again)
    assert not torch.equal(train, other)
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\), got 1"):
        scenes.stratified_split(y, 1, seed=0)
    with pytest.raises(ValueError, match="class 2 has 6 samples"):
        scenes.stratified_split(y, 0.1, seed=0, least=6)


@pytest.mark.parametrize("mat", [False, True], ids=["npz", "mat"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("x", np.nan, np.float32), "must be finite, has 200 others"),
        (("x", -np.inf, float), "must be finite"),
        (("x", -1, np.int32), "must be in 0..65535, got -1"),
        (("x", 1e39, float), "to 1e.39"),
        (("x", 1j, complex), "must hold numbers, got complex128"),
        (("y", np.nan, float), "must be finite"),
        (("y", -1, np.int16), "must be in 0..16, got -1"),
        (("y", 0.25, float), "must hold integers"),
        (("y", 256, np.int16), "must be in 0..16, got 0 to 256"),
    ],
)
def test_entries_that_a_cast_would_change_are_refused(change, words, mat, data_dir, tmp_path):
    io = pytest.importorskip("scipy.io")
    key, value, dtype = change
    with np.load(data_dir / "indian_pines.npz") as file:
        arrays = {name: file[name] for name in ("x", "y")}
    arrays[key] = arrays[key].astype(dtype)
    # A pixel of the background: clamped or cut off, no count would tell.
    at = tuple(np.argwhere(arrays["y"] == 0)[3])
    arrays[key][at] = value
    source = "indian_pines.npz"
    if mat:
        source = "Indian_pines_gt.mat" if key == "y" else "Indian_pines_corrected.mat"
        stored = {"indian_pines_corrected": arrays["x"]}
        io.savemat(tmp_path / "Indian_pines_corrected.mat", stored)
        io.savemat(tmp_path / "Indian_pines_gt.mat", {"indian_pines_gt": arrays["y"]})
    else:
        np.savez(tmp_path / source, **arrays)
    with pytest.raises(ValueError, match=rf"{source}: .*{words}"):
        scenes.indian_pines(tmp_path)


def test_the_order_of_bytes_is_the_files(data_dir, tmp_path):
    with np.load(data_dir / "indian_pines.npz") as file:
        np.savez(
            tmp_path / "indian_pines.npz", x=file["x"].astype(">u2"), y=file["y"].astype(">i4")
        )
    ours, theirs = scenes.indian_pines(tmp_path), scenes.indian_pines(data_dir)
    assert torch.equal(ours.x, theirs.x)
    assert torch.equal(ours.y, theirs.y)
