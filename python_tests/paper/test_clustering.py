"""Tables 6 and 7 on tiny protocols: scores, labels kept away, resumption, claims, the command."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import asdict, replace

import pytest
import torch
from typer.testing import CliRunner

from deepl0_kernels import cli, images
from deepl0_kernels._files import filled
from deepl0_kernels.paper import report
from deepl0_kernels.paper.claims import verdicts
from deepl0_kernels.paper.clustering import data, systems
from deepl0_kernels.paper.clustering import study as cells
from deepl0_kernels.paper.clustering.protocol import PROTOCOLS
from deepl0_kernels.paper.clustering.study import Clustering
from deepl0_kernels.paper.clustering.systems import LEARNED, METHODS, TAGNET
from deepl0_kernels.paper.deep import DEEP_L0, DEEP_M, SPARSITIES
from deepl0_kernels.paper.pages import clustering as page
from deepl0_kernels.paper.pages import name_of
from deepl0_kernels.paper.scores import clustering
from deepl0_kernels.paper.study import Job
from deepl0_kernels.solvers import eigengap, graph_laplacian, knn_affinity

STUDY = Clustering()
TINY = replace(PROTOCOLS["table6"].quickened(), every=9, dictionary_epochs=2, size=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    out = tmp_path_factory.mktemp("clustering")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPL0_DATA", str(data_dir))
        results = STUDY.run({"table6": TINY}, [40], [0], out, progress=False)
    report.write(out)
    return out, results


def test_clusters_are_scored_under_the_best_matching():
    y = torch.tensor([0, 0, 0, 1, 1, 2])
    found = clustering(y, torch.tensor([2, 2, 2, 0, 0, 1]))
    assert found == {"error": 0, "nmi": 1, "ari": 1, "clusters": 3}
    # One to one: two clusters of one class do not both count.
    found = clustering(y, torch.tensor([0, 0, 3, 1, 1, 1]))
    assert found["error"] == pytest.approx(100 * 2 / 6)
    assert found["clusters"] == 3
    # Greedy matching takes the 3 and is left with 0 + 0; the best is 2 + 2.
    y = torch.tensor([0] * 5 + [1] * 2)
    found = clustering(y, torch.tensor([0, 0, 0, 1, 1, 0, 0]))
    assert found["error"] == pytest.approx(100 * 3 / 7)
    independent = clustering(torch.arange(4).repeat(4), torch.arange(4).repeat_interleave(4))
    assert independent["nmi"] == pytest.approx(0, abs=1e-9)
    assert independent["ari"] < 0


def test_every_method_clusters(run):
    out, results = run
    assert [cell["method"] for cell in results["cells"]] == list(METHODS)
    for cell in results["cells"]:
        # Chance is about 80 on so few images.
        assert cell["error"] < 60, cell["method"]
        assert len(cell["labels"]) == 160
        assert (cell["start_error"] is not None) == (cell["method"] in LEARNED)
        if "M-Sparse" in cell["method"] or cell["method"] == TAGNET:
            # That of Deep l0-Regularized rises when its ramp gets steeper.
            assert cell["loss"][-1] < cell["loss"][0]
    nonzeros = {cell["method"]: cell["nonzeros"] for cell in results["cells"]}
    for m in SPARSITIES:
        assert nonzeros[DEEP_M.format(m)] == m
    with (out / "clustering.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["error"]) for row in rows] == [x["error"] for x in results["cells"]]
    text = (out / "clustering.md").read_text()
    assert "| Deep M-Sparse, M = 10 " in text
    assert "* alpha: 5.0" in text
    assert (out / "figures/table6-embedding.svg").exists()


def test_no_label_reaches_a_system(run, monkeypatch, data_dir):
    """With permuted labels every assignment is the same to the last bit; only scores change."""
    _, results = run
    monkeypatch.setenv("DEEPL0_DATA", str(data_dir))
    real = images.coil20()
    shuffled = real.y[torch.randperm(len(real.y))]
    monkeypatch.setattr(images, "coil20", lambda: images.Images(real.x, shuffled))
    job = Job(TINY, 0)
    for kept in results["cells"]:
        found = STUDY.cell("table6", kept["method"], 40, job)
        assert found["labels"] == kept["labels"], kept["method"]
        assert found["loss"] == kept["loss"]
        assert found["embedding"] == kept["embedding"]
        assert found["error"] > kept["error"]


def test_labels_are_read_after_the_clusters(run, monkeypatch, data_dir):
    monkeypatch.setenv("DEEPL0_DATA", str(data_dir))
    assert data.signals(TINY).shape == (160, 64)

    def refuse(protocol):
        raise AssertionError("labels were read")

    monkeypatch.setattr(data, "classes", refuse)
    job = Job(TINY, 1)
    found, _ = cells.assign("table6", DEEP_M.format(20), 40, data.signals(TINY), job)
    assert len(found.labels) == 160
    with pytest.raises(AssertionError, match="labels were read"):
        STUDY.cell("table6", DEEP_M.format(20), 40, job)


def test_a_run_goes_on_where_it_stopped(run, monkeypatch, data_dir):
    monkeypatch.setenv("DEEPL0_DATA", str(data_dir))
    out, results = run
    index = METHODS.index(DEEP_L0)
    lost = out / "cells" / f"table6-{index}-p40-seed0.json"
    kept = json.loads(lost.read_text())
    lost.unlink()
    calls = []
    real = Clustering.cell
    monkeypatch.setattr(Clustering, "cell", lambda *a: calls.append(a[2]) or real(*a))
    again = STUDY.run({"table6": TINY}, [40], [0], out, progress=False)
    assert calls == [DEEP_L0]
    # The cell does not depend on those before it.
    found = json.loads(lost.read_text())
    assert found["labels"] == kept["labels"]
    assert again["claims"] == results["claims"]
    with pytest.raises(ValueError, match=r"another protocol \(table6: epochs differ\)"):
        STUDY.run({"table6": replace(TINY, epochs=6)}, [40], [0], out)


def test_signals_have_equal_norms(data_dir, monkeypatch):
    monkeypatch.setenv("DEEPL0_DATA", str(data_dir))
    for protocol in (TINY, replace(PROTOCOLS["table7"], every=20, whiten=12)):
        x = data.signals(protocol)
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.norm(dim=1), torch.full((len(x),), float(protocol.size)))
        assert len(data.classes(protocol)) == len(x)
    assert x.shape[1] == 12
    blank = images.Images(torch.zeros(1440, 32, 32, dtype=torch.uint8), torch.zeros(1440).long())
    monkeypatch.setattr(images, "coil20", lambda: blank)
    with pytest.raises(ValueError, match="coil20 has 160 images of one grey"):
        data.signals(TINY)


def test_codes_that_are_all_zero_are_one_point():
    assert (cells.t_sne(torch.zeros(50, 7)) == 0).all()
    spread = cells.t_sne(torch.randn(50, 7, generator=torch.Generator().manual_seed(0)))
    assert spread.isfinite().all()
    assert spread.std(0).min() > 0


def test_a_spectral_start_is_that_clustering(data_dir, monkeypatch):
    monkeypatch.setenv("DEEPL0_DATA", str(data_dir))
    protocol = replace(TINY, start="spectral", ridge=1e-7)
    x = data.signals(protocol)
    found, _ = cells.assign("table6", DEEP_M.format(30), 40, x, Job(protocol, 0))
    theirs = systems.spectral(x, 20, protocol, 0)
    assert (found.start == theirs).double().mean() > 0.95


def test_claims_are_judged_by_the_means_and_tested_over_seeds():
    def seen(errors):
        return [
            {"table": "table6", "method": method, "p": p, "seed": seed, "error": error + (p == 256)}
            for method, of_seeds in errors.items()
            for seed, error in enumerate(of_seeds)
            for p in (128, 256)
        ]

    errors = {systems.SOFT_MAX: range(20, 28), systems.MARGIN: range(8), TAGNET: range(10, 18)}
    errors |= {DEEP_L0: [e + 0.5 for e in range(10, 18)]}
    errors |= {DEEP_M.format(m): [e + m for e in range(10, 18)] for m in SPARSITIES}
    found = STUDY.claims(["table6"], seen(errors), [128, 256])
    first = found[:4]
    assert [claim["holds"] for claim in first] == [True, True, False, False]
    assert [claim["seeds_holding"] for claim in first] == [8, 8, 0, 0]
    assert [claim["significance"] for claim in first] == [
        pytest.approx(2 / 2**8), pytest.approx(2 / 2**8), pytest.approx(2 / 2**8), None,
    ]  # fmt: skip
    assert [claim["holds"] for claim in found[8:]] == [False] * len(LEARNED)
    first[0]["significance"] = None
    lines = verdicts({"claims": [*first, first[3] | {"seeds": 5}]})
    assert lines[0].endswith(": 14.00 and 13.50: holds (8 of 8 seeds, no seed differs)"), lines[0]
    assert lines[1].endswith(": 14.00 and 23.50: holds (8 of 8 seeds, Wilcoxon p = 0.0078)")
    assert lines[4].endswith("does not hold (0 of 5 seeds, too few to test)")


def test_the_command_runs_both_tables_and_reports(tmp_path, monkeypatch, data_dir):
    monkeypatch.setenv("DEEPL0_DATA", str(data_dir))
    few = ["every=36", "size=8", "dictionary_epochs=1", "epochs=2", "joint_max_iter=10"]
    few += ["joint_steps=1", "inits=1"]
    arguments = ["reproduce", "table7", "table6", "--quick", "--p", "32", "--out", str(tmp_path)]
    done = CliRunner().invoke(cli._app(), [*arguments, *(f"--set={setting}" for setting in few)])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "clustering.md").read_text()
    assert done.stdout.strip() == text[: text.index("\n## Protocol of")].strip()
    assert len(list((tmp_path / "cells").iterdir())) == 2 * len(METHODS)
    shown = (tmp_path / "report.html").read_text()
    assert "table6: Clustering of COIL-20" in shown
    assert "table7: Clustering of CMU PIE" in shown
    assert shown.count("<svg") == 2
    assert report.write(tmp_path).read_text() == shown
    (tmp_path / "clustering.json").write_text("{}")
    with pytest.raises(ValueError, match="lacks cells, claims"):
        report.write(tmp_path)


def test_records_are_what_their_names_say(data_dir, monkeypatch):
    monkeypatch.setenv("DEEPL0_DATA", str(data_dir))
    names = [name for table in PROTOCOLS for name in page.shown(table)]
    assert sorted(names) == sorted(path.stem for path in page.RECORD.glob("table*.json"))
    for name in names:
        results = STUDY.read(page.RECORD, name)
        ((table, protocol),) = results["protocols"].items()
        variants = page.shown(table)
        assert name_of(table, PROTOCOLS[table], variants, protocol) == name
        assert results["sizes"] == [128, 256, 512][: len(results["sizes"])]
        assert len(results["seeds"]) >= 10
    # The graph of the records is the one with the largest gap, and the gap that of the images.
    for graph in (g for table in PROTOCOLS for g in page.graphs(table)):
        best = page.chosen(graph["table"])
        if all(graph[key] == value for key, value in best.items()):
            x = data.signals(replace(PROTOCOLS[graph["table"]], **best))
            clusters = data.CLASSES[PROTOCOLS[graph["table"]].data]
            gap = eigengap(graph_laplacian(knn_affinity(x, best["neighbours"])), clusters)
            assert gap == pytest.approx(graph["eigengap"], abs=0.01)
    other = asdict(replace(PROTOCOLS["table7"], epochs=6))
    with pytest.raises(ValueError, match=r"with \{'epochs': 6\}, which is on no page"):
        name_of("table7", PROTOCOLS["table7"], page.shown("table7"), other)


def test_the_page_is_drawn_from_its_record():
    text = page.PAGE.read_text()
    assert filled(text, page.parts()) == text
    assert not re.search(r"-->\n<!-- end", text)
