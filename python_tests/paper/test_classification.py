"""Tables 4 and 5 on tiny protocols: scores, cells, resumption, claims, the command."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from deepl0_kernels import cli, scenes, training
from deepl0_kernels._files import filled
from deepl0_kernels._report import record
from deepl0_kernels.paper import report
from deepl0_kernels.paper.classification import study as cells
from deepl0_kernels.paper.classification import systems
from deepl0_kernels.paper.classification.data import labelled
from deepl0_kernels.paper.classification.protocol import PROTOCOLS
from deepl0_kernels.paper.classification.study import Classification
from deepl0_kernels.paper.classification.systems import METHODS
from deepl0_kernels.paper.deep import DEEP_L0, DEEP_M, SPARSITIES
from deepl0_kernels.paper.pages import classification as page
from deepl0_kernels.paper.pages import name_of
from deepl0_kernels.paper.scores import classification as scores
from deepl0_kernels.paper.scores import confusion
from deepl0_kernels.paper.study import SIZES, Job

STUDY = Classification()
TINY = replace(
    PROTOCOLS["table4"].quickened(),
    digits=600,
    held_out=300,
    dictionary_epochs=4,
    pretrain_epochs=2,
    epochs=25,
    tdsc_max_iter=60,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("classification")
    results = STUDY.run({"table4": TINY}, [40], [0], out, progress=False)
    report.write(out)
    return out, results


def test_scores_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (200,), generator=g)
    predicted = torch.where(torch.rand(200, generator=g) < 0.6, y, y.flip(0))
    matrix = confusion(y, predicted, 4)
    assert (matrix.numpy() == metrics.confusion_matrix(y, predicted)).all()
    found = scores(matrix)
    assert found["overall_accuracy"] == pytest.approx(100 * metrics.accuracy_score(y, predicted))
    assert found["error"] == pytest.approx(100 - found["overall_accuracy"])
    balanced = 100 * metrics.balanced_accuracy_score(y, predicted)
    assert found["average_accuracy"] == pytest.approx(balanced)
    assert found["kappa"] == pytest.approx(metrics.cohen_kappa_score(y, predicted))


def test_a_class_that_does_not_occur_counts_nothing():
    found = scores(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    assert found["average_accuracy"] == pytest.approx(87.5)
    assert scores(torch.tensor([[5]]))["kappa"] == 1


def test_every_method_learns(run):
    out, results = run
    assert [cell["method"] for cell in results["cells"]] == list(METHODS)
    for cell in results["cells"]:
        # Chance is 90.
        assert cell["training_error"] < 35, cell["method"]
        assert cell["error"] < 45, cell["method"]
        matrix = torch.tensor(cell["confusion"])
        assert matrix.sum() == 300
        assert cell["overall_accuracy"] == pytest.approx(matrix.trace().item() / 3)
    nonzeros = {cell["method"]: cell["nonzeros"] for cell in results["cells"]}
    for m in SPARSITIES:
        assert nonzeros[DEEP_M.format(m)] == m
    with (out / "classification.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["error"]) for row in rows] == [x["error"] for x in results["cells"]]
    text = (out / "classification.md").read_text()
    assert "| Deep M-Sparse, M = 10 |" in text
    assert "* tdsc_lam: 0.03" in text


def test_soft_thresholds_inside_are_of_the_deep_encoders():
    protocol = replace(TINY, inside="soft")
    l0, sparse, lista = (
        STUDY.cell("table4", method, 40, Job(protocol, 0))
        for method in (DEEP_L0, DEEP_M.format(20), systems.TUNED_LISTA)
    )
    for found in (l0, sparse, lista):
        assert found["training_error"] < 35
        assert found["error"] < 45
    assert sparse["nonzeros"] == 20
    # Of both stages the last has the thresholds that are shown.
    assert l0["arrays"]["theta"].shape == l0["arrays"]["theta_start"].shape == (40,)
    assert "theta" not in sparse["arrays"]
    hard = STUDY.cell("table4", DEEP_L0, 40, Job(TINY, 0))
    assert hard["loss"] != l0["loss"]
    assert STUDY.cell("table4", systems.TUNED_LISTA, 40, Job(TINY, 0))["loss"] == lista["loss"]


def test_a_run_goes_on_where_it_stopped(run, monkeypatch):
    out, results = run
    lost = out / "cells" / "table4-2-p40-seed0.json"
    kept = json.loads(lost.read_text())
    lost.unlink()
    calls = []
    real = Classification.cell
    monkeypatch.setattr(Classification, "cell", lambda *a: calls.append(a[2]) or real(*a))
    again = STUDY.run({"table4": TINY}, [40], [0], out, progress=False)
    assert calls == [DEEP_L0]
    # The cell does not depend on those before it.
    found = json.loads(lost.read_text())
    assert found["confusion"] == kept["confusion"]
    assert found["loss"] == kept["loss"]
    assert again["claims"] == results["claims"]
    with pytest.raises(ValueError, match=r"another protocol \(table4: epochs differ\)"):
        STUDY.run({"table4": replace(TINY, epochs=6)}, [40], [0], out)


def test_test_labels_and_signals_are_for_scoring_alone(run, monkeypatch):
    _, results = run

    def other(protocol, seed):
        data = labelled(protocol, seed)
        return replace(data, x_test=-data.x_test, y_test=data.y_test.flip(0))

    monkeypatch.setattr(cells, "labelled", other)
    found = STUDY.cell("table4", DEEP_M.format(10), 40, Job(TINY, 0))
    kept = next(x for x in results["cells"] if x["method"] == DEEP_M.format(10))
    assert found["loss"] == kept["loss"]
    assert found["training_error"] == kept["training_error"]
    assert found["error"] != kept["error"]


def test_indian_pines(data_dir, monkeypatch):
    monkeypatch.setenv("DEEPL0_DATA", str(data_dir))
    protocol = replace(
        PROTOCOLS["table5"].quickened(), fraction=0.05, epochs=15, dictionary_epochs=4, context=1
    )
    data = labelled(protocol, 0)
    assert data.x.shape[1] == 400
    assert data.begin is None
    torch.testing.assert_close(data.x.mean(0), torch.zeros(400), atol=1e-3, rtol=0)
    torch.testing.assert_close(data.x.std(0), torch.ones(400), atol=1e-3, rtol=0)
    assert len(data.x) + len(data.x_test) == 10249
    found = STUDY.cell("table5", DEEP_M.format(20), 64, Job(protocol, 0))
    assert len(found["confusion"]) == 16
    # The largest class alone leaves 76 % of errors.
    assert found["error"] < 60
    # The map of the scene holds every labelled pixel once, and the scores.
    kept, scene = found["arrays"], scenes.indian_pines()
    assert torch.equal(kept["truth"].long(), scene.y)
    assert int(kept["tested"].sum()) == len(data.x_test)
    at = kept["tested"]
    matrix = confusion(kept["truth"][at].long() - 1, kept["predicted"][at].long() - 1, 16)
    assert matrix.tolist() == found["confusion"]
    wrong = kept["truth"] != kept["predicted"]
    assert int((wrong & ~at).sum()) / len(data.x) == pytest.approx(found["training_error"] / 100)
    # Unless pixels of the training set stand in for those of the test set.
    place = labelled(replace(protocol, validation=0.25), 0).place
    assert len(place.train) + len(place.test) == len(data.x)
    assert not at.flatten()[torch.cat((place.train, place.test))].any()


@pytest.mark.parametrize("table", ["table4", "table5"])
def test_validation_signals_are_training_signals(table, data_dir, monkeypatch):
    monkeypatch.setenv("DEEPL0_DATA", str(data_dir))
    protocol = replace(PROTOCOLS[table].quickened(), digits=600, shift=0)
    whole, part = (labelled(replace(protocol, validation=v), 1) for v in (0.0, 0.25))
    assert len(part.x) + len(part.x_test) == len(whole.x)
    assert len(part.x_test) == pytest.approx(len(whole.x) / 4, rel=0.05)
    if table == "table4":  # bands are scaled by fewer pixels
        rows = {tuple(row) for row in whole.x.tolist()}
        assert {tuple(row) for row in torch.cat((part.x, part.x_test)).tolist()} == rows
    assert set(part.y_test.tolist()) == set(whole.y.tolist())


def test_claims_are_judged_by_the_means():
    def seen(errors):
        return [
            {"table": "table5", "method": method, "p": 128, "seed": seed, "error": error}
            for method, of_seeds in errors.items()
            for seed, error in enumerate(of_seeds)
        ]

    errors = {systems.TDSC: (1, 1), systems.TUNED_LISTA: (2, 4), DEEP_L0: (1, 5)}
    errors |= {DEEP_M.format(m): (e, e) for m, e in ((10, 9), (20, 1), (30, 3))}
    found = STUDY.claims(["table5"], seen(errors), [128])
    assert [(x["holds"], x["seeds_holding"]) for x in found] == [(False, 1), (True, 2), (True, 1)]
    assert found[1]["better"] == 1


def test_the_command_runs_both_tables_and_reports(tmp_path, monkeypatch, data_dir):
    monkeypatch.setenv("DEEPL0_DATA", str(data_dir))
    few = ["digits=300", "held_out=200", "fraction=0.05", "epochs=4", "dictionary_epochs=2"]
    few += ["pretrain_epochs=1", "tdsc_epochs=1", "tdsc_max_iter=20", "tdsc_batch_size=100"]
    few += ["tdsc_lr=0.03"]  # one epoch from atoms of a tight frame does not forgive more
    arguments = ["reproduce", "table5", "table4", "--quick", "--p", "32", "--out", str(tmp_path)]
    done = CliRunner().invoke(cli._app(), [*arguments, *(f"--set={setting}" for setting in few)])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "classification.md").read_text()
    assert done.stdout.strip() == text[: text.index("\n## Protocol of")].strip()
    for kind in ("json", "npz"):
        assert len(list((tmp_path / "cells").glob(f"*.{kind}"))) == 2 * len(METHODS)
    shown = (tmp_path / "report.html").read_text()
    assert "table4: Classification of MNIST" in shown
    assert "table5: Classification of Indian Pines" in shown
    assert shown.count("<th>Deep M-Sparse, M = 10</th>") == 4
    assert shown.count("<svg") == 5 + 4  # digits have no map
    # A folder of classes alone is a whole run; one of nothing is not.
    (tmp_path / "classification.json").write_text("{}")
    with pytest.raises(ValueError, match="lacks cells, claims"):
        report.write(tmp_path)
    (tmp_path / "classification.json").unlink()
    with pytest.raises(FileNotFoundError, match="run deepl0 reproduce first"):
        report.write(tmp_path)


def test_tuning_goes_on_and_looks_at_no_test_pixel(tmp_path, monkeypatch, data_dir):
    monkeypatch.setenv("DEEPL0_DATA", str(data_dir))
    method, short = DEEP_M.format(30), dict(epochs=4, dictionary_epochs=2, fraction=0.05)
    trials = [dict(m_sparse_lr=1e-2, **short), dict(m_sparse_lr=1e30, clip=1e30, **short)]
    monkeypatch.setattr(page, "TRIALS", {method: trials})
    monkeypatch.setattr(page, "SEEDS", (0,))
    monkeypatch.setattr(page, "RECORD", tmp_path)
    monkeypatch.setattr(page, "TRIED", tmp_path / "tuning.json")
    seen = []
    monkeypatch.setattr(cells, "labelled", lambda *a: seen.append(labelled(*a)) or seen[-1])
    page.tune(progress=False)
    found = json.loads(page.TRIED.read_text())["trials"]
    assert [trial["settings"] for trial in found] == trials
    assert "failed" in found[1]
    whole = labelled(replace(PROTOCOLS["table5"], fraction=0.05), 0)
    assert len(seen[0].x) + len(seen[0].x_test) == len(whole.x)
    assert "| m_sparse_lr = 0.01, epochs = 4" in page.tuning(found)
    monkeypatch.setattr(
        Classification, "cell", lambda *a: pytest.fail("the trial is there already")
    )
    page.tune(progress=False)


def test_dropout_is_of_training_alone():
    """A share of the codes' entries, the others scaled up; none when it classifies."""
    torch.manual_seed(0)
    network = training.Classifier(torch.nn.Linear(4, 1000), 1000, 3, dropout=0.25)
    seen = []
    network.head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    x = torch.randn(20, 4)
    network.train()(x)
    network.eval()(x)
    left, whole = seen
    assert (left == 0).float().mean() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(left[left != 0], whole[left != 0] / 0.75)
    assert "dropout" not in dict(training.Classifier(network.encoder, 1000, 3).named_children())
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="dropout must be in"):
            training.Classifier(network.encoder, 1000, 3, dropout=wrong)


def test_the_page_is_drawn_from_its_record():
    text = page.PAGE.read_text()
    assert filled(text, page.parts()) == text
    for name in page.DRAWN:
        assert f"(figures/classification-{name})" in text
        assert (page.DOCS / "figures" / f"classification-{name}").is_file()
    # The figures are of a run that the table holds.
    results = STUDY.read(page.RECORD, "table5")
    errors = {(c["method"], c["p"], c["seed"]): c["error"] for c in results["cells"]}
    for cell in STUDY.read(page.FIGURES)["cells"]:
        assert cell["error"] == errors[cell["method"], cell["p"], cell["seed"]]


def test_records_are_what_their_names_say():
    for table, variants in page.SHOWN.items():
        for name in variants:
            results = STUDY.read(page.RECORD, name)
            ran = results["protocols"][table]
            assert name_of(table, PROTOCOLS[table], variants, ran) == name
            assert results["sizes"] == sorted(set(results["sizes"]) & set(SIZES))


def test_a_run_is_taken_for_the_figures_of_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "FIGURES", tmp_path / "taken")
    kept = Path(page.RECORD / "figures")
    page.take_figures(kept)
    for path in kept.rglob("*.npz"):
        taken, there = (record.read_arrays(f) for f in (tmp_path / "taken/cells" / path.name, path))
        assert set(taken) == set(page.ARRAYS) == set(there)
        assert all(torch.equal(taken[key], there[key]) for key in there)
    assert STUDY.read(tmp_path / "taken") == STUDY.read(kept)
