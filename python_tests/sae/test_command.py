"""``deepl0 sae``: what it prints and writes, and one line with exit code 2 where input is wrong."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from deepl0_kernels import cli, sae
from deepl0_kernels.sae import study, training
from python_tests.sae.samples import K, N, P, numbers
from python_tests.sae.test_training import N as N_PLANTED
from python_tests.sae.test_training import planted


def deepl0(*arguments):
    return CliRunner().invoke(cli._app(), ["sae", *map(str, arguments)])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An autoencoder in a file, one of two stages, and activations."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    model = sae.SparseAutoencoder(N, P, m=K)
    sae.save(model, folder / "saelens")
    sae.save(model.deepen(2), folder / "deep.safetensors", "deepl0")
    np.save(folder / "x.npy", numbers(100, N).numpy().astype(np.float16))
    return folder


def test_inspect(files):
    done = deepl0("inspect", files / "saelens", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["source"] == f"saelens: {files / 'saelens'}"
    assert (found["n"], found["p"], found["m"], found["selection"]) == (N, P, K, "top_m")
    assert found["atom_norms"]["min"] == pytest.approx(1)
    assert "activations" not in found
    done = deepl0("inspect", files / "deep.safetensors", "--activations", files / "x.npy")
    assert done.exit_code == 0, done.output
    assert re.search(r"num_stages +2\n", done.output)
    assert re.search(r"atom_norms +min 1, mean 1, max 1\n", done.output)
    assert re.search(r"\n  dead +\d+\n", done.output)


def test_eval(files):
    model = sae.load(files / "saelens")
    want = sae.evaluate(model, sae.Activations.open(files / "x.npy")).summary()
    done = deepl0("eval", files / "saelens", "--activations", files / "x.npy", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output) == {"activations": str(files / "x.npy"), **want}
    done = deepl0("eval", files / "saelens", "--activations", files / "x.npy", "--batch", 7)
    assert re.search(rf"fvu +{want['fvu']:.4g}", done.output)
    assert re.search(rf"dead +{want['dead']}\n", done.output)
    assert re.search(rf"\n  >= 1e-1 +{want['firing']['1e-1']} #+\n", done.output)


@pytest.mark.parametrize("to", ["saelens", "sparsify", "deepl0"])
def test_convert(files, tmp_path, to):
    signed = to == "sparsify"
    model = sae.SparseAutoencoder(N, P, m=K, positive=not signed)
    sae.save(model, tmp_path / "from.safetensors", "deepl0")
    out = tmp_path / ("to.safetensors" if to == "deepl0" else "to")
    done = deepl0("convert", tmp_path / "from.safetensors", out, "--to", to)
    assert done.exit_code == 0, done.output
    assert f"wrote {out} as {to}" in done.output
    x = numbers(9, N)
    assert torch.equal(sae.load(out)(x), model(x))


TRAIN = ("--p", 48, "--m", 4, "--steps", 30, "--batch", 64, "--lr", "5e-3", "--every", 10)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    np.save(folder / "x.npy", planted().numpy())
    done = deepl0(
        "train", "--activations", folder / "x.npy", "--out", folder / "run", *TRAIN,
        "--pursuits", "--stages", 1, 2, 3,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder, done.output


def test_what_a_training_writes(run):
    folder, output = run
    results = json.loads((folder / "run" / "results.json").read_text())
    at_m = {row["method"]: row for row in results["evaluations"] if row["trained_m"]}
    assert list(at_m) == [
        "K = 1", "K = 1, tuned", "K = 2, untuned", "K = 2, tuned", "K = 3, untuned",
        "K = 3, tuned", "matching pursuit, SAELens", "matching pursuit", "NIHT", "OMP",
    ]  # fmt: skip
    assert at_m["K = 1, tuned"]["fvu"] < at_m["K = 1"]["fvu"]
    assert {row["m"] for row in results["evaluations"]} == {1, 2, 4, 8}
    for method, row in at_m.items():
        assert f"{method:<24} FVU {row['fvu']:.4f}  L0 {row['l0']:.2f}" in output
        assert row["vectors"] == 60  # a tenth
        assert sum(row["firing"].values()) == 48
    # The files hold what was evaluated.
    x = sae.Activations.open(folder / "x.npy").part(slice(540, 600))
    for name, method in (("base", "K = 1"), ("stages-2", "K = 2, tuned")):
        model = sae.load(folder / "run" / f"{name}.safetensors")
        assert sae.evaluate(model, x).fvu == at_m[method]["fvu"]
    with (folder / "run" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["training"] for r in rows[::30]] == ["base", "stages-1", "stages-2", "stages-3"]
    assert list(rows[0]) == ["training", "step", *training.HISTORY]
    with (folder / "run" / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(results["evaluations"])
    page = (folder / "run" / "report.html").read_text()
    assert page.count("<svg") == 3
    assert f"{at_m['K = 3, tuned']['fvu']:.4f}" in page
    assert not re.search(r"(src|href)=[\"']?(http|[\w/]+\.svg)", page)  # nothing beside it


def test_an_interrupted_training_goes_on_to_the_same_bits(run, monkeypatch):
    """Ctrl-C in the tuning of two stages: exit code 130, and the same command goes on."""
    folder, _ = run
    arguments = (
        "train", "--activations", folder / "x.npy", "--out", folder / "again", *TRAIN,
        "--pursuits", "--stages", "1 2 3",
    )  # fmt: skip
    true, calls = sae.DeadUnits.update, []

    def interrupted(self, code, data):
        true(self, code, data)
        calls.append(0)
        if len(calls) == 75:
            raise KeyboardInterrupt

    monkeypatch.setattr(sae.DeadUnits, "update", interrupted)
    done = deepl0(*arguments)
    assert done.exit_code == 130
    assert f"the same command goes on from what {folder / 'again'} holds" in done.output
    assert not (folder / "again" / "report.html").exists()
    assert deepl0(*arguments).exit_code == 0
    assert len(calls) == 75 + 20 + 30  # from step 10 of the third training
    for name in ("history.csv", "results.csv"):
        first, again = ((folder / run / name).read_bytes() for run in ("run", "again"))
        assert first == again, name
    for name in (f"stages-{k}.safetensors" for k in (1, 2, 3)):
        first, again = (sae.load(folder / run / name).state_dict() for run in ("run", "again"))
        assert all(torch.equal(first[key], again[key]) for key in first), name


@pytest.mark.parametrize("signed", [True, False])
def test_one_of_others_is_deepened_and_tuned(run, tmp_path, signed):
    """Atoms that are not of norm 1 are left free."""
    folder, _ = run
    x = sae.Activations.open(folder / "x.npy")
    model = sae.SparseAutoencoder(N_PLANTED, 48, m=4, positive=not signed)
    with torch.no_grad():
        model.D *= 0.9 if signed else 1.0
    sae.save(model, tmp_path / "theirs")
    done = deepl0(
        "train", "--activations", folder / "x.npy", "--out", tmp_path / "run", "--start",
        tmp_path / "theirs", "--steps", 60, "--batch", 64, "--lr", "5e-3", "--stages", 1, 2,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    at_m = {row["method"]: row for row in results["evaluations"] if row["trained_m"]}
    assert list(at_m) == ["K = 1", "K = 1, tuned", "K = 2, untuned", "K = 2, tuned"]
    kept = x.part(slice(540, 600))
    assert at_m["K = 1"]["fvu"] == sae.evaluate(model, kept).fvu
    assert at_m["K = 2, untuned"]["fvu"] == sae.evaluate(model.deepen(2), kept).fvu
    for method in ("K = 1, tuned", "K = 2, tuned"):
        assert at_m[method]["fvu"] < at_m["K = 1"]["fvu"]
    norms = sae.load(tmp_path / "run" / "stages-2.safetensors").D.norm(dim=0)
    assert bool((norms - 1).abs().max() < 1e-4) != signed
    assert list(results["history"]) == ["stages-1", "stages-2"]


@pytest.mark.parametrize(("grown", "entries"), [(True, (2, 4)), (False, (4, 4))])
def test_entries_grow_over_the_stages_unless_they_must_not(run, tmp_path, grown, entries):
    x = sae.Activations.open(run[0] / "x.npy")
    settings = study.Settings(p=48, m=4, stages=(2,), steps=3, batch=64, grown=grown)
    results = study.train(x, settings, tmp_path / "run")
    assert sae.load(tmp_path / "run" / "stages-2.safetensors").m == entries
    tuned = [row for row in results["evaluations"] if row["method"] == "K = 2, tuned"]
    assert [row["m"] for row in tuned if row["trained_m"]] == [4]
    assert [row["m"] for row in tuned] == study.sizes(4, 48)


def test_starts_that_are_refused(run, files, tmp_path):
    folder, _ = run
    rest = ("--activations", folder / "x.npy", "--out", tmp_path / "run")
    line = refused("train", *rest, "--start", files / "saelens")
    assert f"must hold vectors of n = {N}, as the autoencoder to start from does, got 16" in line
    model = sae.SparseAutoencoder(N_PLANTED, 48, m=4)
    sae.save(model, tmp_path / "one.safetensors", "deepl0")
    sae.save(model.deepen(2), tmp_path / "two.safetensors", "deepl0")
    thresholds = sae.SparseAutoencoder(N_PLANTED, 48, selection="threshold")
    sae.save(thresholds, tmp_path / "thresholds.safetensors", "deepl0")
    for name, options, named in (
        ("two", (), "num_stages=2"),
        ("thresholds", (), "selection='threshold'"),
        ("one", ("--m", 5), "'m': (5,)"),
        ("one", ("--signed",), "'positive': False"),
    ):
        line = refused("train", *rest, "--start", tmp_path / f"{name}.safetensors", *options)
        assert "start must select the top m in one stage" in line
        assert named in line
    with torch.no_grad():
        model.D *= 0.9
    sae.save(model, tmp_path / "short.safetensors", "deepl0")
    line = refused("train", *rest, "--start", tmp_path / "short.safetensors", "--pursuits")
    assert "the atoms must be of norm 1, got 0.9 to 0.9" in line
    assert not (tmp_path / "run").exists()


def refused(*arguments):
    done = deepl0(*arguments)
    assert done.exit_code == 2, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    lines = done.output.strip().splitlines()
    assert len(lines) == 1, done.output
    assert lines[0].startswith(f"deepl0 sae {arguments[0]}: ")
    return lines[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("--p", 49), "p = 48, not 49"),
        (("--m", 3), "m = 4, not 3"),
        (("--signed",), "positive = True, not False"),
        (("--stages", "1 2"), "stages = [1, 2, 3], not [1, 2]"),
        (("--steps", 31), "steps = 30, not 31"),
        (("--tuning-steps", 31), "tuning_steps = None, not 31"),
        (("--batch", 65), "batch = 64, not 65"),
        (("--lr", "1e-3"), "lr = 0.005, not 0.001"),
        (("--seed", 1), "seed = 0, not 1"),
        (("--aux", 0), "aux_coefficient = 0.03125, not 0.0"),
        (("--dead-after", 9), "dead_after = None, not 9"),
        (("--no-pursuits",), "pursuits = True, not False"),
    ],
)
def test_another_training_in_the_folder_is_refused(run, change, named):
    folder, _ = run
    line = refused(
        "train", "--activations", folder / "x.npy", "--out", folder / "run", *TRAIN, "--pursuits",
        "--stages", "1 2 3", *change,
    )  # fmt: skip
    assert f"settings.json holds a training with {named}: give another folder" in line


def test_other_vectors_and_a_damaged_folder_are_refused(run, tmp_path):
    folder, _ = run
    shutil.copytree(folder / "run", tmp_path / "run")
    rest = (*TRAIN, "--pursuits", "--stages", "1 2 3", "--out", tmp_path / "run")
    np.save(tmp_path / "x.npy", planted(seed=1).numpy())
    line = refused("train", "--activations", tmp_path / "x.npy", *rest)
    assert "settings.json holds a training with activations = " in line
    for name in ("checkpoints/stages-2.pt", "settings.json"):
        path = tmp_path / "run" / name
        path.write_bytes(path.read_bytes()[:-100])
        line = refused("train", "--activations", folder / "x.npy", *rest)
        assert f"{path} cannot be read" in line


def npy(path, array):
    np.save(path, array)
    return path


@pytest.mark.parametrize("command", ["eval", "inspect", "train"])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((30, N), np.nan, np.float32), "entry [0, 0] must be finite, got nan"),
        (np.full((30, N), np.inf, np.float16), "got inf: float16 ends at 65504"),
        (np.full((30, N), 1e200), "got 1e+200, which float32 cannot hold"),
        (np.ones((30, N), int), "must be float16, float32 or float64, got int64"),
        (np.ones((0, N)), f"must have shape [N, n] with N, n >= 1, got (0, {N})"),
        (np.array([[None]]), "cannot be read as .npy: "),
        (None, "x.npy does not exist"),
        (b"PK\x03\x04 no archive", "cannot be read as .npz: "),
        (b"%PDF-1.7 foreign", "is no .npy or .npz: it begins with b'%PDF-1'"),
    ],
)
def test_activations_that_are_refused(files, tmp_path, command, array, message):
    path = tmp_path / "x.npy"
    if isinstance(array, bytes):
        path.write_bytes(array)
    elif array is not None:
        np.save(path, array, allow_pickle=True)
    where = ("--out", tmp_path / "run", *TRAIN) if command == "train" else (files / "saelens",)
    line = refused(command, "--activations", path, *where)
    assert str(path) in line
    assert message in line
    assert not (tmp_path / "run").exists()


def test_widths_that_differ(files, tmp_path):
    path = npy(tmp_path / "x.npy", np.ones((30, N + 1), np.float32))
    line = refused("eval", files / "saelens", "--activations", path)
    assert line.endswith(
        f"{path} must hold vectors of n = {N}, as {files / 'saelens'} does, got {N + 1}"
    )
    line = refused(
        "train", "--activations", files / "x.npy", "--held-out", path, "--out", tmp_path / "run"
    )
    assert f"{path} must hold vectors of n = {N}, as {files / 'x.npy'} does, got {N + 1}" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--p", 0), "p must be >= 1, got 0"),
        (("--m", 49, "--p", 48), "m must be >= 1 and <= p = 48, got 49"),
        (("--stages", "1 two"), "stages must be integers, got '1 two'"),
        (("--stages", 1, "x"), "stages must be integers, got '1 x'"),
        (("--stages", "0"), "stages must be >= 1, got 0"),
        (("--stages", "2 2"), "stages must be different numbers, got (2, 2)"),
        (("--stages", ""), "stages must be different numbers, got ()"),
        (("--steps", 0), "steps must be >= 1, got 0"),
        (("--steps", 5, "--epochs", 1), "give steps or epochs, got steps = 5 and epochs = 1.0"),
        (("--epochs", 0), "epochs must be a finite number > 0, got 0"),
        (("--epochs", "inf"), "epochs must be a finite number > 0, got inf"),
        (("--tuning-steps", 0), "tuning_steps must be >= 1, got 0"),
        (("--batch", 0), "batch must be >= 1, got 0"),
        (("--lr", "nan"), "lr must be a finite number > 0, got nan"),
        (("--seed", -1), "seed must be >= 0"),
        (("--aux", -1), "aux_coefficient must be a finite number >= 0, got -1"),
        (("--dead-after", 0), "dead_after must be >= 1, got 0"),
        (("--every", 0), "every must be >= 1, got 0"),
        (("--m", 20, "--pursuits"), f"m must be >= 1 and <= n = {N}, got 20"),
    ],
)
def test_options_out_of_range(files, tmp_path, options, message):
    out = tmp_path / "run"
    assert message in refused("train", "--activations", files / "x.npy", "--out", out, *options)
    assert not out.exists()


def test_too_few_vectors_and_none_that_differ(tmp_path):
    few = npy(tmp_path / "few.npy", np.ones((19, N), np.float32))
    same = npy(tmp_path / "same.npy", np.ones((40, N), np.float32))
    out = ("--out", tmp_path / "run", *TRAIN)
    assert "must hold 20 vectors or more" in refused("train", "--activations", few, *out)
    line = refused("train", "--activations", same, *out)
    assert "same.npy[0:36] must hold vectors that differ: they have no variance" in line
    differ = npy(tmp_path / "differ.npy", numbers(40, N).numpy())
    line = refused("train", "--activations", differ, "--held-out", same, *out)
    assert "same.npy must hold vectors that differ: they have no variance" in line
    assert not (tmp_path / "run").exists()


def test_files_that_are_none(files, tmp_path):
    assert "nothing.pt does not exist" in refused("inspect", tmp_path / "nothing.pt")
    (tmp_path / "x.safetensors").write_bytes(b"foreign")
    for command in (
        ("inspect", tmp_path / "x.safetensors"),
        ("eval", tmp_path / "x.safetensors", "--activations", files / "x.npy"),
        ("convert", tmp_path / "x.safetensors", tmp_path / "y", "--to", "saelens"),
    ):
        assert "x.safetensors cannot be read as safetensors" in refused(*command)
    line = refused("convert", files / "deep.safetensors", tmp_path / "y", "--to", "saelens")
    assert "num_stages = 2" in line
    assert not (tmp_path / "y").exists()
    line = refused("convert", files / "saelens", tmp_path / "y", "--to", "openai")
    assert "format must be one of" in line


def test_a_folder_that_cannot_be_written(files, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused("train", "--activations", files / "x.npy", "--out", tmp_path / "file", *TRAIN)
    assert "file" in line


def test_epochs_are_of_what_is_trained_on():
    x = sae.Activations(planted())
    assert study.steps_of(2, x, None, 100) == 11  # 540 vectors
    assert study.steps_of(2, x, x, 100) == 12
    assert study.steps_of(0.001, x, None, 100) == 1


def test_activations_of_a_transformer(minilm, tmp_path):
    """A slice of them: the file is read by name, evaluated, and trained on."""
    test = sae.Activations.open(f"{minilm}:test")
    assert (test.width, test.dtype) == (384, "float16")
    x = npy(tmp_path / "x.npy", test.rows(slice(0, 2000)).numpy().astype(np.float16))
    done = deepl0(
        "train", "--activations", x, "--out", tmp_path / "run", "--p", 512, "--m", 16, "--epochs",
        3, "--batch", 100, "--lr", "3e-3",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    fvus = {row["m"]: row["fvu"] for row in results["evaluations"]}
    assert fvus[16] < 0.6
    line = refused("eval", tmp_path / "run" / "base.safetensors", "--activations", minilm)
    assert "train [60480, 384], test [10080, 384], train_tokens [60480]" in line


HIDDEN = """
import sys
for name in {modules}:
    sys.modules[name] = None
from deepl0_kernels.cli import main
main()
"""


def hiding(modules, *arguments):
    return subprocess.run(
        [sys.executable, "-c", HIDDEN.format(modules=modules), "sae", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("typer", ("inspect", "x"), "demo"),
        ("safetensors", ("inspect", "saelens"), "sae"),
        ("matplotlib", ("train", "--activations", "x.npy", "--out", "run"), "demo"),
        ("pandas", ("train", "--activations", "x.npy", "--out", "run"), "demo"),
        ("transformers", ("activations", "--text", "x.npy", "--out", "y.npy"), "sae-activations"),
    ],
)
def test_what_is_missing_is_named_with_its_extra(files, tmp_path, module, arguments, extra):
    there = [files / a if a in ("saelens", "x.npy") else a for a in arguments]
    if arguments[0] == "activations":
        (tmp_path / "text").write_text("words")
        there[2] = tmp_path / "text"
    done = hiding([module], *there)
    assert done.returncode == (1 if module == "typer" else 2), done.stderr
    assert f"needs {module}: pip install 'deepl0-kernels[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_needs_none_of_what_commands_need():
    heavy = ["numpy", "pandas", "matplotlib", "safetensors", "transformers", "tqdm", "sklearn"]
    done = hiding(heavy, "train", "--help")
    assert done.returncode == 0, done.stderr
    assert "--stages" in done.stdout
