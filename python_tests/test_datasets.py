"""The embedded digits, the loader of MNIST, and the preprocessing."""

from __future__ import annotations

import gzip
import hashlib

import numpy as np
import pytest
import torch

from deepl0_kernels import datasets


def test_the_embedded_subset():
    digits = datasets.mnist_subset()
    assert digits.x.shape == (12_000, 28, 28)
    assert digits.x_test.shape == (2_000, 28, 28)
    assert digits.x.dtype == torch.uint8
    assert digits.y.dtype == torch.int64
    assert torch.bincount(digits.y).min() > 1_000
    assert digits.y.shape == (12_000,)
    # The pixels are the originals: pinned, since no test without the full data could tell.
    h = hashlib.sha256()
    for array in digits:
        h.update(array.to(torch.uint8).numpy().tobytes())
    assert h.hexdigest() == "36ab3cd94f234d26d2adc95031336a35f519967ada3e113eebbcf31a0ed61f0c"
    train = {row.tobytes() for row in digits.x.numpy()}
    assert not any(row.tobytes() in train for row in digits.x_test.numpy())
    assert datasets.EMBEDDED.stat().st_size < 3_000_000
    readme = (datasets.EMBEDDED.parent / "README.md").read_text()
    for word in ("CC BY-SA 3.0", "LeCun", "Cortes", "Burges"):
        assert word in readme


def test_the_subset_is_the_beginning_of_mnist(data_dir):
    whole, part = datasets.mnist(data_dir), datasets.mnist_subset()
    assert whole.x.shape == (60_000, 28, 28)
    assert torch.equal(whole.x[:12_000], part.x)
    assert torch.equal(whole.y[:12_000], part.y)
    assert torch.equal(whole.x_test[:2_000], part.x_test)
    assert torch.equal(whole.y_test[:2_000], part.y_test)


def test_idx_files_and_keras_names_are_read_too(data_dir, tmp_path):
    whole = datasets.mnist(data_dir)
    for (key, name), rank in zip(datasets._IDX.items(), (3, 1, 3, 1), strict=True):
        array = getattr(whole, key).to(torch.uint8).numpy()
        data = bytes((0, 0, 8, rank)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
        if rank == 1:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (tmp_path / name).write_bytes(data)
    for a, b in zip(datasets.mnist(tmp_path), whole, strict=True):
        assert torch.equal(a, b)
    (tmp_path / "keras").mkdir()
    np.savez(
        tmp_path / "keras" / "mnist.npz",
        x_train=whole.x.numpy(),
        y_train=whole.y.numpy(),
        x_test=whole.x_test.numpy(),
        y_test=whole.y_test.numpy(),
    )
    assert torch.equal(datasets.mnist(tmp_path / "keras").x, whole.x)
    (tmp_path / datasets._IDX["x"]).write_bytes(b"not an idx file")
    with pytest.raises(ValueError, match="is not an idx file"):
        datasets.mnist(tmp_path)


def test_missing_data_says_what_and_where(tmp_path, monkeypatch):
    monkeypatch.delenv("DEEPL0_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"set DEEPL0_DATA .*mnist\.npz.*LeCun"):
        datasets.mnist()
    monkeypatch.setenv("DEEPL0_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no mnist\.npz.*train-images-idx3-ubyte.*OpenML"):
        datasets.mnist()


def test_what_is_not_mnist_is_refused(tmp_path):
    path = tmp_path / "mnist.npz"
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be read"):
        datasets.mnist(tmp_path)
    np.savez(path, x=np.zeros((3, 28, 28), np.uint8))
    with pytest.raises(ValueError, match="lacks y, x_test, y_test"):
        datasets.mnist(tmp_path)
    images, labels = np.zeros((3, 28, 28), np.uint8), np.zeros(3, np.int64)
    np.savez(path, x=images, y=labels, x_test=images, y_test=labels)
    with pytest.raises(ValueError, match="label counts"):
        datasets.mnist(tmp_path)
    np.savez(path, x=images[:, 1:], y=labels, x_test=images, y_test=labels)
    with pytest.raises(ValueError, match=r"x must be uint8 \[N, 28, 28\]"):
        datasets.mnist(tmp_path)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    def write(key, values, damage=lambda data: data):
        head = bytes((0, 0, 8, values.ndim)) + b"".join(n.to_bytes(4, "big") for n in values.shape)
        path = tmp_path / f"{datasets._IDX[key]}.gz"
        path.write_bytes(damage(gzip.compress(head + values.tobytes(), 1)))

    images, labels = np.zeros((3, 28, 28), np.uint8), np.zeros(3, np.uint8)
    for key in datasets._IDX:
        write(key, images if key.startswith("x") else labels)
    with pytest.raises(ValueError, match="label counts"):
        datasets.mnist(tmp_path)
    write("y", labels + 10)
    with pytest.raises(ValueError, match=r"y must be in 0\.\.9, got 10 to 10"):
        datasets.mnist(tmp_path)
    write("y", labels[:2])
    with pytest.raises(ValueError, match=r"3 images in x, labels of shape \(2,\)"):
        datasets.mnist(tmp_path)
    write("x", images[:, 1:])
    with pytest.raises(ValueError, match=r"x must be uint8 \[N, 28, 28\], got .* \(3, 27, 28\)"):
        datasets.mnist(tmp_path)
    for damage in (lambda data: data[:-9], lambda data: b"no gzip"):
        write("x", images, damage)
        with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is damaged"):
            datasets.mnist(tmp_path)
    for bad, words in (
        (labels + 0.5, "y must hold integers, got float64"),
        (labels.astype(np.int8) - 1, r"y must be in 0\.\.9, got -1 to -1"),
        (labels.astype(str), "y must hold integers, got <U"),
    ):
        np.savez(tmp_path / "mnist.npz", x=images, y=bad, x_test=images, y_test=labels)
        with pytest.raises(ValueError, match=words):
            datasets.mnist(tmp_path)


def test_the_order_of_bytes_is_the_files_and_nothing_is_named(tmp_path):
    images, labels = np.zeros((3, 28, 28), np.uint8), np.zeros(3, ">i8")
    np.savez(tmp_path / "mnist.npz", x=images, y=labels, x_test=images, y_test=labels)
    with pytest.raises(ValueError, match=r"mnist\.npz: y is not MNIST's: label counts \(3, 0"):
        datasets.mnist(tmp_path)
    np.savez(tmp_path / "mnist.npz", x=images[:0], y=labels[:0], x_test=images, y_test=labels)
    with pytest.raises(ValueError, match=r"mnist\.npz: y is not MNIST's: label counts \(0, 0"):
        datasets.mnist(tmp_path)
    (tmp_path / "mnist.npz").unlink()
    for key, rank in zip(datasets._IDX, (3, 1, 3, 1), strict=True):
        head = bytes((0, 0, 8, rank)) + bytes(4 * rank)  # of nothing
        (tmp_path / datasets._IDX[key]).write_bytes(head)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte should hold \[0, 0, 0\]"):
        datasets.mnist(tmp_path)


def test_a_truncated_archive_is_refused(tmp_path):
    whole = datasets.EMBEDDED.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 30):
        (tmp_path / "mnist.npz").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"mnist\.npz cannot be read as an npz archive"):
            datasets.mnist(tmp_path)


def test_pixels_that_are_no_numbers_are_refused(tmp_path):
    images, labels = np.zeros((3, 28, 28), np.float32), np.zeros(3, np.int64)
    images[1, 2, 3] = np.nan
    np.savez(tmp_path / "mnist.npz", x=images, y=labels, x_test=images, y_test=labels)
    with pytest.raises(ValueError, match=r"mnist\.npz: x must hold integers, got float32"):
        datasets.mnist(tmp_path)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match=r"images must be uint8 .* got torch\.float32"):
            datasets.preprocess(torch.full((2, 28, 28), bad))


def test_one_wrong_pixel_or_two_digits_that_changed_places_are_noticed(data_dir, tmp_path):
    whole = {key: a.numpy() for key, a in datasets.mnist(data_dir)._asdict().items()}
    pixel = whole["x_test"].copy()
    pixel[17, 5, 5] ^= 1
    order = np.arange(60_000)
    order[[0, 1]] = 1, 0
    moved = {"x": whole["x"][order], "y": whole["y"][order]}
    for change, name in (({"x_test": pixel}, "x_test"), (moved, "x")):
        np.savez(tmp_path / "mnist.npz", **whole | change)
        with pytest.raises(ValueError, match=rf"{name} is damaged.*SHA-256 [0-9a-f]{{16}}"):
            datasets.mnist(tmp_path)


@pytest.mark.parametrize(
    "call",
    [
        datasets.area_resize,
        datasets.preprocess,
        lambda images: datasets.random_shifts(images, 1, seed=0),
    ],
)
def test_bad_images_are_named(call):
    for images in (torch.zeros(28), torch.zeros(2, 0, 28)):
        with pytest.raises(ValueError, match=r"images must be .* got .*\(28,\)|\(2, 0, 28\)"):
            call(images)
    with pytest.raises(TypeError, match="images must be a tensor, got ndarray"):
        call(np.zeros((2, 28, 28), np.uint8))


def test_area_resize():
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 28, 28), generator=g, dtype=torch.uint8)
    small = datasets.area_resize(images, 16)
    # Fine grid: every input pixel is 4 x 4 cells, every output pixel 7 x 7 of them.
    fine = images.double().repeat_interleave(4, 1).repeat_interleave(4, 2)
    exact = fine.reshape(3, 16, 7, 16, 7).mean((2, 4))
    torch.testing.assert_close(small.double(), exact, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        datasets.area_resize(images, 14),
        torch.nn.functional.avg_pool2d(images.float(), 2),
    )
    torch.testing.assert_close(datasets.area_resize(images, 28), images.float())
    assert datasets.area_resize(images[0, :20], 16).shape == (16, 16)
    with pytest.raises(ValueError, match="size must be >= 1"):
        datasets.area_resize(images, 0)


def test_preprocess():
    images = datasets.mnist_subset().x[:50].clone()
    images[7] = 31  # no contrast at all
    images[9] = images[9] // 50
    patches = datasets.preprocess(images)
    assert patches.discarded == 2
    assert patches.kept.nonzero().flatten().tolist() == [i for i in range(50) if i not in (7, 9)]
    assert patches.x.shape == (48, 256)
    torch.testing.assert_close(patches.x.mean(1), torch.zeros(48), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches.x.var(1, unbiased=False), torch.ones(48))
    with pytest.raises(ValueError, match="images must be uint8"):
        datasets.preprocess(images.float())
    with pytest.raises(ValueError, match="min_std must be > 0"):
        datasets.preprocess(images, min_std=0)


def test_random_shifts():
    images = datasets.mnist_subset().x[:200]
    moved = datasets.random_shifts(images, 1, seed=3)
    assert torch.equal(moved, datasets.random_shifts(images, 1, seed=3))
    assert not torch.equal(moved, datasets.random_shifts(images, 1, seed=4))
    assert torch.equal(datasets.random_shifts(images, 0, seed=3), images)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    seen = set()
    for before, after in zip(padded, moved, strict=True):
        places = [
            (i, j)
            for i in range(3)
            for j in range(3)
            if torch.equal(before[i : i + 28, j : j + 28], after)
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 9
