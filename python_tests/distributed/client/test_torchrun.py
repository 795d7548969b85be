"""``deepl0 sae train`` and ``deepl0 encode`` under torchrun: a worker is lost, and the last
checkpoint goes on to the losses of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels import sae
from deepl0_kernels.sae import study
from python_tests.distributed import spawn

pytestmark = pytest.mark.scale
N, P, M, STEPS = 16, 96, 4, 240


def torchrun(*words, **options):
    # "--" ends torchrun's own options, which --m might be one of.
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--",
               "deepl0_kernels.cli", *words]  # fmt: skip
    command = [str(word) for word in command]
    return subprocess.Popen(
        command, env=spawn.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, **options,
    )  # fmt: skip


def children(pid):
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("units", [1, 2])
def test_a_lost_worker_ends_the_job_and_the_checkpoint_goes_on(units, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2000, 40).mul(torch.rand(2000, 40) < 0.1) @ torch.randn(40, N)
    np.save(tmp_path / "x.npy", x.numpy())
    words = ["sae", "train", "--activations", tmp_path / "x.npy", "--p", P, "--m", M, "--steps",
             STEPS, "--batch", 64, "--every", 5, "--out", tmp_path / "run", "--units", units,
             "--timeout", 60]  # fmt: skip
    job = torchrun(*words)
    kept = tmp_path / "run" / "checkpoints" / "base.pt"
    end = time.time() + 120
    while not kept.exists() and job.poll() is None and time.time() < end:
        time.sleep(0.01)
    lost = children(job.pid)[1]
    os.kill(lost, signal.SIGKILL)
    said = job.communicate(timeout=120)[0]
    assert job.returncode != 0
    assert f"Signal 9 (SIGKILL) received by PID {lost}" in said
    assert not (tmp_path / "run" / "results.json").exists()
    job = torchrun(*words)
    said = job.communicate(timeout=240)[0]
    assert job.returncode == 0, said
    found = json.loads((tmp_path / "run" / "results.json").read_text())["history"]["base"]
    held = sae.Activations.open(tmp_path / "x.npy").part(slice(0, 1800))
    one = study._first(held, study.Settings(P, M))
    history = sae.fit(one, held, steps=STEPS, batch=64)
    assert found["steps"] == STEPS
    rows = torch.tensor([row[1:] for row in found["rows"]], dtype=torch.float64)
    torch.testing.assert_close(rows[:20], history[:20], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows[:, 0].mean(), history[:, 0].mean(), rtol=1e-2, atol=0)


def test_encode(tmp_path):
    torch.manual_seed(0)
    x, model = torch.randn(500, N), sae.SparseAutoencoder(N, P, M)
    np.save(tmp_path / "x.npy", x.numpy())
    sae.save(model, tmp_path / "m.safetensors", "deepl0")
    words = ["encode", tmp_path / "m.safetensors", "--source", tmp_path / "x.npy", "--rows", 90]
    job = torchrun(*words, "--out", tmp_path / "out")
    said = job.communicate(timeout=240)[0]
    assert job.returncode == 0, said
    assert said.count("rows coded in 3 of 6 parts") == 2, said
    found = dk.SparseCode.from_parquet(tmp_path / "out")
    assert torch.equal(found.indices, model.encode(x).indices)
