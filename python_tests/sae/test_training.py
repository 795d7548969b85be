"""The loop: it learns, stops at nothing that it should refuse, and resumes to the same bits."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from deepl0_kernels.sae import Activations, SparseAutoencoder, evaluate, fit
from deepl0_kernels.sae.training import Shuffled, schedule
from python_tests.sae.samples import numbers

N, P, M = 16, 48, 4


def planted(rows=600, seed=0):
    """Sparse sums of atoms, off the origin."""
    atoms = numbers(P, N, seed=1)
    atoms /= atoms.norm(dim=1, keepdim=True)
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(rows, P, generator=generator).topk(M, dim=1).indices
    z = torch.zeros(rows, P).scatter_(1, active, 1 + torch.rand(rows, M, generator=generator))
    return z @ atoms + 0.5


def autoencoder(**options):
    torch.manual_seed(3)
    return SparseAutoencoder(N, P, **({"m": M} | options))


def test_it_learns():
    model, x = autoencoder(), Activations(planted())
    before = evaluate(model, x).fvu
    history = fit(model, x, steps=300, batch=64, lr=5e-3)
    assert history.shape == (300, 6)
    after = evaluate(model, x).fvu
    assert after < 0.3 * before
    assert history[-20:, 2].mean() == pytest.approx(after, rel=0.3)
    torch.testing.assert_close(model.D.norm(dim=0), torch.ones(P))


@pytest.mark.parametrize("options", [dict(num_stages=2, positive=False), dict(flatten_heads=True)])
def test_other_forms_train_too(options):
    model, x = autoencoder(**options), Activations(planted())
    before = evaluate(model, x).fvu
    fit(model, x, steps=100, batch=64, lr=5e-3)
    assert evaluate(model, x).fvu < before


def test_thresholds_train_too():
    model = autoencoder(m=None, selection="threshold")
    x, theta = Activations(planted()), model.theta.detach().clone()
    before = evaluate(model, x)
    fit(model, x, steps=100, batch=64, lr=5e-3, l0_coefficient=0.1)
    assert evaluate(model, x).fvu < before.fvu
    assert not torch.equal(model.theta, theta)


def test_every_pass_is_a_permutation_and_none_the_same():
    sampler = Shuffled(10, 4, seed=5)
    drawn = [sampler.draw() for _ in range(5)]
    assert all(len(index) == 4 for index in drawn)
    assert all((index.diff() >= 0).all() for index in drawn)
    assert torch.equal(torch.cat(drawn).bincount(minlength=10), torch.full((10,), 2))
    resumed = Shuffled(10, 4, seed=5)
    resumed.drawn = 8
    assert torch.equal(resumed.draw(), drawn[2])
    others = [Shuffled(1000, 500, seed).draw() for seed in (5, 6)]
    assert not torch.equal(*others)
    assert not torch.equal(sampler._pass(0), sampler._pass(1))


def test_batches_may_be_larger_than_everything():
    assert Shuffled(3, 7, 0).draw().bincount().sort().values.tolist() == [2, 2, 3]


def test_the_learning_rate_rises_and_falls():
    seen = [schedule(step, 100) for step in range(100)]
    assert seen[0] == pytest.approx(0.2)
    assert seen[4:80] == [1.0] * 76
    assert seen[-1] == pytest.approx(0.05)
    assert all(0 < schedule(step, n) <= 1 for n in (1, 2, 3) for step in range(n))


def long_training(folder):
    """Units die and are asked for within it."""
    model = autoencoder(num_stages=2)
    history = fit(
        model,
        Activations.open(folder / "x.npy"),
        steps=40,
        batch=96,
        lr=5e-3,
        seed=7,
        dead_after=300,
        checkpoint=folder / "training.pt",
        every=6,
    )
    return model, history


# Dies between two steps, as a machine does: nothing is cleaned up.
KILLED = """
import os, signal, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from deepl0_kernels.sae import DeadUnits
from python_tests.sae import test_training
left = int(sys.argv[2])
true = DeadUnits.update
def counted(self, code, data):
    global left
    true(self, code)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
DeadUnits.update = counted
test_training.long_training(Path(sys.argv[1]))
"""


def test_killed_between_steps_it_resumes_to_the_same_bits(tmp_path):
    """Killed twice, the second time after it had been resumed."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", planted().numpy().astype(np.float16))
    whole, want = long_training(tmp_path / "whole")
    folder = tmp_path / "killed"
    for steps, kept in ((16, 12), (15, 24)):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder), str(steps)], capture_output=True, text=True
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert sorted(f.name for f in folder.iterdir()) == ["training.pt", "x.npy"]
        assert torch.load(folder / "training.pt", weights_only=True)["step"] == kept
    killed, found = long_training(folder)
    assert torch.equal(want, found)
    assert want[:, 3].any()  # dead units took part
    for (key, value), other in zip(
        whole.state_dict().items(), killed.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), key


def finished(tmp_path, **options):
    path = tmp_path / "training.pt"
    model = autoencoder()
    fit(model, Activations(planted()), **(dict(steps=4, batch=32, checkpoint=path) | options))
    return path, model


def test_a_finished_one_is_read_again_and_not_trained(tmp_path):
    _, model = finished(tmp_path)
    again = autoencoder()
    fit(again, Activations(planted()), steps=4, batch=32, checkpoint=tmp_path / "training.pt")
    assert torch.equal(model.W, again.W)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(lr=2e-3), "lr = 0.001, not 0.002"),
        (dict(steps=5), "steps = 4, not 5"),
        (dict(batch=31), "batch = 32, not 31"),
        (dict(seed=1), "seed = 0, not 1"),
        (dict(aux_coefficient=0.5), "aux_coefficient = 0.03125, not 0.5"),
        (dict(dead_after=10), "dead_after = 600, not 10"),
    ],
)
def test_other_settings_do_not_resume(tmp_path, change, named):
    path, _ = finished(tmp_path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"training.pt holds a training with {named}: give"):
        finished(tmp_path, **change)
    assert path.read_bytes() == before


def test_other_data_weights_and_forms_do_not_resume(tmp_path):
    path, model = finished(tmp_path)
    options = dict(steps=4, batch=32, checkpoint=path)
    with pytest.raises(ValueError, match="activations = "):
        fit(autoencoder(), Activations(planted(seed=1)), **options)
    with pytest.raises(ValueError, match="weights = "):
        fit(model, Activations(planted()), **options)
    with pytest.raises(ValueError, match=r"model = .*'m': 4.* not .*'m': 3"):
        fit(autoencoder(m=3), Activations(planted()), **options)


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_damaged_checkpoints(tmp_path, content):
    path, _ = finished(tmp_path)
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(ValueError, match=r"training.pt cannot be read"):
        finished(tmp_path)


def test_a_checkpoint_of_something_else(tmp_path):
    path = tmp_path / "training.pt"
    torch.save({"W": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"training.pt cannot be read: KeyError"):
        finished(tmp_path)


def test_arguments_and_activations_that_cannot_be_trained_on():
    x = planted()
    x[3, 2] = float("nan")
    with pytest.raises(ValueError, match=r"entry \[3, 2\] must be finite, got nan"):
        fit(autoencoder(), Activations(x), steps=3)
    x = Activations(planted())
    for name, value in (("steps", 0), ("batch", 0), ("every", 0), ("seed", -1), ("dead_after", 0)):
        with pytest.raises(ValueError, match=f"{name} must be >= . got|{name} must be >= ., got"):
            fit(autoencoder(), x, **({"steps": 3} | {name: value}))
    with pytest.raises(ValueError, match="lr must be a finite number > 0, got inf"):
        fit(autoencoder(), x, steps=3, lr=float("inf"))
    with pytest.raises(ValueError, match="model must be float32 or float64 to be trained, got"):
        fit(autoencoder().half(), x, steps=3)
    with pytest.raises(ValueError, match="n = 16, as the autoencoder does, got 3"):
        fit(autoencoder(), Activations(numbers(4, 3)), steps=3)


def test_tensors_arrays_and_paths_in_words_do(tmp_path):
    want = autoencoder()
    fit(want, Activations(planted()), steps=3, batch=32)
    evaluated = evaluate(want, Activations(planted()))
    for vectors in (planted(), planted().numpy()):
        model = autoencoder()
        fit(model, vectors, steps=3, batch=32, checkpoint=str(tmp_path / "run.pt"))
        assert torch.equal(model.W, want.W)
        assert evaluate(model, vectors).fvu == evaluated.fvu
        assert (tmp_path / "run.pt").exists()


def test_a_loss_that_leaves_the_numbers_is_said():
    with pytest.raises(ValueError, match=r"the loss is (inf|nan) in step \d+: lr = 1e\+30 may be"):
        fit(autoencoder(), Activations(planted()), steps=50, batch=32, lr=1e30)


def test_in_inference_mode_and_under_autocast():
    x = Activations(planted())
    want = autoencoder()
    fit(want, x, steps=3, batch=32)
    for context in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        model = autoencoder()
        with context:
            fit(model, x, steps=3, batch=32)
        assert torch.equal(model.W, want.W)


MEMORY = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from deepl0_kernels.sae import Activations, SparseAutoencoder, fit
def anonymous():
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in l)
    return int(line.split()[1]) // 1024
most = 0
true = SparseAutoencoder.normalize_atoms
def seen(self):
    global most
    true(self)
    most = max(most, anonymous())
SparseAutoencoder.normalize_atoms = seen
model = SparseAutoencoder(64, 256, m=4)
fit(model, Activations(torch.randn(1000, 64)), steps=3, batch=256)
before = anonymous()
fit(model, Activations.open(sys.argv[1]), steps=3, batch=256)
print(most - before)
"""


def test_a_mapped_file_is_not_loaded_whole(tmp_path):
    """256 MB of float16, 512 as float32; the shuffle of 2 million vectors is 16."""
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float16, (2_000_000, 64))
    array[::1000] = 1  # the rest is a hole
    del array
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "x.npy")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100
