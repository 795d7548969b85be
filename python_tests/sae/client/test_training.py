"""The same training as with SAELens's own classes, in its trainer: losses, supports, weights."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sae_lens import SAE, TrainingSAE

from python_tests.sae.client import runs
from python_tests.sae.client.runs import PAIRS, Settings

pytestmark = pytest.mark.saelens

FORMS = [
    ("topk", dict(rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=True)),
    ("topk", dict(rescale_acts_by_decoder_norm=False, apply_b_dec_to_input=False)),
    ("abstopk", dict(rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=False)),
    ("abstopk", dict(rescale_acts_by_decoder_norm=False, apply_b_dec_to_input=True)),
]


def name_of(kind, options):
    return " ".join([kind, *(key for key, on in options.items() if on)])


@pytest.mark.parametrize(("kind", "options"), FORMS)
def test_200_steps_in_float64(kind, options, record):
    """No near-tie is closer than float64 rounds: all is equal from the seed to the last step."""
    s = Settings(d_sae=1024)
    theirs, ours = (runs.trainer_of(runs.sae_of(kind, o, s, **options), s) for o in (False, True))
    start = [p.detach().clone() for p in theirs.sae.parameters()]
    worst, dead, auxiliary = 0.0, [], 0
    for batch in itertools.islice(runs.activations(s), s.steps):
        dead.append(int(theirs.dead_neurons.sum()))
        assert torch.equal(ours.dead_neurons, theirs.dead_neurons)
        a, b = runs.step(ours, batch), runs.step(theirs, batch)
        assert torch.equal(runs.support(a), runs.support(b)), len(dead)
        worst = max(worst, runs.difference(a, b))
        auxiliary += b.losses["auxiliary_reconstruction_loss"].item() > 0
    assert worst < 1e-12
    assert auxiliary > s.steps / 2
    for (name, p), q in zip(ours.sae.named_parameters(), theirs.sae.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12, msg=name)
    # The training went somewhere: no weight is near where it was, by the tolerance above.
    for p, q in zip(theirs.sae.parameters(), start, strict=True):
        assert (p - q).norm() > 1e-3 * p.norm()
    assert torch.equal(ours.act_freq_scores, theirs.act_freq_scores)
    record.setdefault("float64, from one seed", {"activations": runs.source(), **s.as_dict()})[
        name_of(kind, options)
    ] = {
        "steps compared": s.steps,
        "supports equal at every step": True,
        "largest difference of losses, over the loss": worst,
        "steps with an auxiliary loss": auxiliary,
        "of these with a selection among the dead units": sum(d > s.d_in // 2 for d in dead),
        "dead units, most": max(dead),
    }


@pytest.mark.parametrize(("kind", "options"), FORMS)
def test_200_steps_in_float32(kind, options, record):
    """From the same weights at every step: supports are equal but for near-ties, losses round.

    Left to itself a training takes another course from the first near-tie on that is decided
    otherwise, in a code or among the dead units, as another order of sums would make it; how long
    that took is on record.
    """
    s = Settings(d_sae=4096, dtype="float32")
    theirs, ours, alone = (
        runs.trainer_of(runs.sae_of(kind, o, s, **options), s) for o in (False, True, True)
    )
    worst, differing, free, free_worst = 0.0, 0, None, 0.0
    for number, batch in enumerate(itertools.islice(runs.activations(s), s.steps)):
        with torch.no_grad():
            for p, q in zip(ours.sae.parameters(), theirs.sae.parameters(), strict=True):
                p.copy_(q)
        ours.n_forward_passes_since_fired.copy_(theirs.n_forward_passes_since_fired)
        before = {name: p.detach().clone() for name, p in theirs.sae.named_parameters()}
        a, b = runs.step(ours, batch), runs.step(theirs, batch)
        mine, other = runs.support(a), runs.support(b)
        if torch.equal(mine, other):
            worst = max(worst, runs.difference(a, b))
        else:
            rows = (mine != other).any(1)
            ranked = pre_activations(before, theirs.sae.cfg, batch[rows], kind)
            within_rounding(mine[rows], other[rows], *ranked)
            differing += int(rows.sum())
        if free is None:
            c = runs.step(alone, batch)
            if torch.equal(runs.support(c), other):
                free_worst = max(free_worst, runs.difference(c, b))
            else:
                free = number
    assert worst < 1e-5
    assert differing < 1e-3 * s.steps * s.batch
    record.setdefault("float32, from the same weights at every step", {
        "activations": runs.source(), **s.as_dict()
    })[name_of(kind, options)] = {
        "steps compared": s.steps,
        "codes compared": s.steps * s.batch,
        "codes with another support": differing,
        "of these not within the rounding of a tie": 0,
        "supports equal at every step": differing == 0,
        "largest difference of losses, over the loss": worst,
        "from one seed alone: steps with equal supports": s.steps if free is None else free,
        "from one seed alone: largest difference of losses until then": free_worst,
    }  # fmt: skip


def pre_activations(weights, cfg, x, kind):
    """What is ranked, in float64, and by how much one side may have rounded it; [B, p] both."""
    eps = torch.finfo(torch.float32).eps / 2
    W, D, bias, b_dec = (weights[k].double() for k in ("W_enc", "W_dec", "b_enc", "b_dec"))
    b_dec, x = b_dec * cfg.apply_b_dec_to_input, x.double()
    norms = D.norm(dim=-1) if cfg.rescale_acts_by_decoder_norm else torch.ones_like(bias)
    scores = ((x - b_dec) @ W + bias) * norms
    # n products and b, as docs/numerics.md has it; x - b_dec, the norm, the product with it.
    size = (x.abs() + b_dec.abs()) @ W.abs() + bias.abs()
    bounds = (2 * len(W) + 8) * eps * size * norms
    return (scores.abs() if kind == "abstopk" else scores.clamp_min(0)), bounds


def within_rounding(mine, other, scores, bounds):
    """An entry in one support alone is within rounding of each one in the other alone, or of 0 if
    there is none."""
    for row in range(len(mine)):
        (a, room_a), (b, room_b) = (
            [t[row][chosen] if chosen.any() else t.new_zeros(1) for t in (scores, bounds)]
            for chosen in (mine[row] & ~other[row], other[row] & ~mine[row])
        )
        assert ((a[:, None] - b).abs() <= room_a[:, None] + room_b).all(), (row, a, b)


@pytest.mark.parametrize(("kind", "options"), FORMS)
def test_gradients(kind, options):
    s = Settings(d_sae=4096, dtype="float32")
    batch = next(runs.activations(s))
    grads = []
    for ours in (False, True):
        sae = runs.sae_of(kind, ours, s, **options)
        for dead in (0, 100, 1000):
            output = sae.training_forward_pass(step_input(batch, s, dead))
            output.loss.backward()
        grads.append({name: p.grad for name, p in sae.named_parameters()})
    for name, grad in grads[0].items():
        assert (grads[1][name] - grad).norm() < 1e-4 * grad.norm(), name


def step_input(batch, s, dead):
    from sae_lens.saes.sae import TrainStepInput

    mask = torch.arange(s.d_sae) < dead
    return TrainStepInput(batch, {}, mask, n_training_steps=0, is_logging_step=False)


@pytest.mark.parametrize("kind", PAIRS)
def test_dense_activations_where_they_are_asked_for(kind):
    s = Settings(d_sae=512)
    batch = next(runs.activations(s))
    outputs = [
        runs.sae_of(kind, True, s, use_sparse_activations=sparse).training_forward_pass(
            step_input(batch, s, 300)
        )
        for sparse in (True, False)
    ]
    assert [o.feature_acts.is_sparse for o in outputs] == [True, False]
    torch.testing.assert_close(outputs[0].feature_acts.to_dense(), outputs[1].feature_acts)
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
def test_activations_are_tensors_like_others(kind, shape):
    """What becomes of sparse activations decodes as the dense ones would, gradients included."""
    s = Settings(d_sae=64, d_in=16, k=4)
    sae = runs.sae_of(kind, True, s)
    acts = sae.encode(torch.randn(*shape, 16, dtype=torch.float64)).detach()
    results = []
    for way in (lambda z: z, lambda z: z.to_dense(), lambda z: (2 * z).coalesce()):
        z = acts.clone().requires_grad_()
        out = sae.decode(way(z))
        out.square().sum().backward()
        results.append((out, z.grad.to_dense() * (acts.to_dense() != 0)))
        assert out.shape == (*shape, 16)
    for a, b in zip(results[0], results[1], strict=True):
        torch.testing.assert_close(a, b)
    double = results[0][0] - sae.b_dec
    torch.testing.assert_close(results[2][0] - sae.b_dec, 2 * double)


@pytest.mark.parametrize("kind", PAIRS)
def test_autocast_and_compile(kind):
    """The trainer's ``autocast``: products in bfloat16, as theirs; the runner's ``compile_sae``
    changes no bit."""
    s = Settings(d_sae=4096, d_in=64, k=8, dtype="float32", dead_feature_window=3)
    losses = {}
    for ours in (False, True):
        trainer = runs.trainer_of(runs.sae_of(kind, ours, s), s)
        trainer.autocast_if_enabled = torch.autocast("cpu", dtype=torch.bfloat16)
        batches = itertools.islice(runs.activations(s), 6)
        losses[ours] = [runs.step(trainer, batch).loss.item() for batch in batches]
    assert losses[True] == pytest.approx(losses[False], rel=2**-8)
    for backend in (None, "aot_eager"):
        trainer = runs.trainer_of(runs.sae_of(kind, True, s), s)
        if backend:
            step = torch.compile(trainer.sae.training_forward_pass, backend=backend)
            trainer.sae.training_forward_pass = step
        batches = itertools.islice(runs.activations(s), 6)
        losses[backend] = [runs.step(trainer, batch).loss.item() for batch in batches]
    assert losses["aot_eager"] == losses[None]


def test_the_example_of_the_page(tmp_path, monkeypatch):
    page = (Path(__file__).parents[3] / "docs" / "sae.md").read_text()
    code = page.split("## Inside SAELens")[1].split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "docs/sae.md", "exec"), names)
    assert type(names["plain"]) is runs.INFERENCE["abstopk"][0]
    assert type(names["fast"]) is runs.INFERENCE["abstopk"][1]
    x = torch.randn(5, 384)
    torch.testing.assert_close(names["fast"](x), names["plain"](x))


MEMORY = """
import itertools, resource, sys, torch
torch.set_num_threads(1)
from python_tests.sae.client import runs
s = runs.Settings(d_sae=32768, d_in=32, k=16, batch=int(sys.argv[2]), dtype="float32",
                  dead_feature_window=0)
trainer = runs.trainer_of(runs.sae_of(sys.argv[1], True, s), s)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
batches = list(itertools.islice(runs.activations(s), 2))
for _ in range(3):
    runs.step(trainer, batches[0][:16])
before = peak()
out = runs.step(trainer, batches[1])
assert out.losses["auxiliary_reconstruction_loss"] > 0
print(peak() - before)
"""


@pytest.mark.parametrize("kind", PAIRS)
def test_nothing_dense_of_the_batch_is_formed(kind):
    """A whole step of the trainer, nearly all units dead: [B, p] would be 256 MB."""
    command = [sys.executable, "-c", MEMORY, kind, "2048"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 128


@pytest.mark.parametrize("kind", PAIRS)
def test_the_whole_loop_and_what_it_saves(kind, tmp_path):
    """``fit`` with a checkpoint, from which training goes on to the same weights."""
    s = Settings(d_sae=256, steps=30)
    trainer = runs.trainer_of(runs.sae_of(kind, True, s), s)
    trainer.cfg = dataclasses.replace(trainer.cfg, checkpoint_path=str(tmp_path))
    trainer.checkpoint_thresholds = [15 * s.batch - 1]
    sae = trainer.fit()

    # As the runner resumes: weights, and the trainer's state.
    (checkpoint,) = tmp_path.iterdir()
    again = runs.trainer_of(runs.sae_of(kind, True, Settings(d_sae=256, seed=5)), s)
    again.load_trainer_state(checkpoint)
    again.sae.load_weights_from_checkpoint(checkpoint)
    for batch in itertools.islice(runs.activations(s), 15, s.steps):
        runs.step(again, batch)
    for p, q in zip(again.sae.parameters(), sae.parameters(), strict=True):
        assert torch.equal(p, q)

    x = next(runs.activations(Settings(d_sae=256, seed=9)))
    sae.save_model(tmp_path / "saved")
    sae.save_inference_model(tmp_path / "final")
    (theirs, _), (ours, _) = PAIRS[kind]
    for folder, base, classes in (
        ("saved", TrainingSAE, (theirs, ours)),
        ("final", SAE, runs.INFERENCE[kind]),
    ):
        plain = base.load_from_disk(tmp_path / folder)
        mine = classes[1].load_from_disk(tmp_path / folder)
        assert (type(plain), type(mine)) == classes
        torch.testing.assert_close(plain(x), sae(x))
        torch.testing.assert_close(mine(x), sae(x))
