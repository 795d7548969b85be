"""encode_dataset on Ray: the same codes, a lost worker, bad rows, data sets of Ray."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

import deepl0_kernels as dk
from deepl0_kernels import sae

pytestmark = pytest.mark.scale
N, P, M = 16, 300, 4


@pytest.fixture(scope="module", autouse=True)
def cluster():
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture
def x():
    return torch.randn(2000, N)


@pytest.fixture
def model():
    return sae.SparseAutoencoder(N, P, M)


class Mortal:
    """A model whose first worker is lost while it codes."""

    def __init__(self, model, flag):
        self.model, self.flag, self.m = model, Path(flag), M

    def encode(self, x):
        if not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.model.encode(x)


def test_a_lost_worker_is_made_up_for(x, model, tmp_path):
    np.save(tmp_path / "x.npy", x.numpy())
    mortal = Mortal(model, tmp_path / "died")
    told = dk.encode_dataset(
        tmp_path / "x.npy", mortal, tmp_path / "out", rows=300, engine="ray", workers=2
    )
    assert (tmp_path / "died").exists()
    assert told == {"rows": 2000, "parts": 7, "rows_coded": 2000, "parts_coded": 7}
    found, one = dk.SparseCode.from_parquet(tmp_path / "out"), model.encode(x)
    assert torch.equal(found.indices, one.indices)
    torch.testing.assert_close(found.values, one.values.detach())
    told = dk.encode_dataset(tmp_path / "x.npy", mortal, tmp_path / "out", rows=300, engine="ray")
    assert told["parts_coded"] == 0


def test_bad_rows_are_named(x, model, tmp_path):
    x[1234, 3] = torch.inf
    np.save(tmp_path / "x.npy", x.numpy())
    with pytest.raises(ValueError, match=r"x\.npy: row 1234 must be finite"):
        dk.encode_dataset(tmp_path / "x.npy", model, tmp_path / "out", rows=500, engine="ray")


@pytest.mark.parametrize("kind", ["tensors", "lists"])
def test_data_sets_of_ray(kind, x, model, tmp_path):
    if kind == "tensors":
        source, column = ray.data.from_numpy(x.numpy()), None
    else:
        rows = [{"id": i, "x": row.tolist()} for i, row in enumerate(x[:200])]
        source, column, x = ray.data.from_items(rows), "x", x[:200]
    told = dk.encode_dataset(source, model, tmp_path / "out", column=column, batch=150)
    assert told["rows"] == len(x)
    found, one = dk.SparseCode.from_parquet(tmp_path / "out"), model.encode(x)
    order, expected = (c.indices.tolist() for c in (found, one))
    assert sorted(order) == sorted(expected)
    with pytest.raises(ValueError, match="must be empty"):
        dk.encode_dataset(source, model, tmp_path / "out", column=column)
