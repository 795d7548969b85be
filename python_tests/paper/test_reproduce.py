"""The tables' machinery on a tiny protocol: cells, resumption, cache, rendering, errors."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from deepl0_kernels import cli
from deepl0_kernels._files import filled
from deepl0_kernels._report import record
from deepl0_kernels._report.page import as_markdown
from deepl0_kernels.paper import report
from deepl0_kernels.paper.codes import cells as regression
from deepl0_kernels.paper.codes import protocol, race
from deepl0_kernels.paper.codes.study import Codes, unlearned_note
from deepl0_kernels.paper.pages import reproduction as page
from deepl0_kernels.paper.rendering import blocks, errors
from deepl0_kernels.paper.scores import prediction_error
from deepl0_kernels.paper.study import SIZES

STUDY = Codes()

# Few nonzeros: 40 atoms start as an orthonormal set, and at m = 32 iterations have nothing to do.
SETTINGS = ("digits=1200", "held_out=300", "dictionary_epochs=8", "epochs=6", "m=8", "lam=2")
TINY = protocol.Protocol().quickened().changed(SETTINGS)
ALL = ("table1", "table2", "table3")


def protocols(protocol):
    return dict.fromkeys(ALL, protocol)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("tables")
    results = STUDY.run(protocols(TINY), [40], [0], out, progress=False)
    report.write(out)
    return out, results


def test_rows_and_their_errors(run):
    out, results = run
    assert [c["problem"] for c in results["cells"]] == ["l0", "m_sparse"]
    for cell in results["cells"]:
        rows = {row["method"]: row for row in cell["rows"]}
        for k in (2, 5, 10):
            assert f"NIHT-{k} from zero" in rows
        assert ("Deep encoder, K = 2, untied" in rows) == (cell["problem"] == "l0")
        for start in ("zero", "l1"):
            errors = [rows[f"Iterative-{k} from {start}"]["prediction_error"] for k in (2, 5, 10)]
            assert errors == sorted(errors, reverse=True)
        assert rows["Iterative-10 from zero"]["prediction_error"] > 1  # else nothing is to be won
        # Even a training of seconds beats the iterations that the encoder started as.
        deep = rows["Deep encoder, K = 2"]
        assert deep["prediction_error"] < rows["Iterative-2 from zero"]["prediction_error"]
        assert deep["training_error"] > 0
        assert cell["optimal"]["converged"] > 0.99
        assert cell["optimal"]["stable_supports"] > 0.95
        assert cell["optimal"]["median_margin"] > 0
        assert cell["dictionary"]["dead_atoms"] == 0
        low, high = cell["dictionary"]["usage"]
        assert 0 < low <= 8 / 40 <= high <= 1 or cell["problem"] == "l0"
        assert cell["environment"]["torch"] == torch.__version__
        assert cell["seconds"].keys() == cell["cpu_seconds"].keys()
        assert "Baseline encoder with linear readout" in rows
        # The saved encoder is the one of the row.
        saved = torch.load(out / "cells" / f"{cell['problem']}-p40-seed0.pt", weights_only=True)
        problem = TINY.problem(cell["problem"])
        encoder = problem.encoder(saved["D"]).eval()
        encoder.load_state_dict(saved["encoder"])
        test = protocol.signals(TINY, 0).test
        best, _ = regression.optimal_codes(problem, test, saved["D"], out / "cells")
        with torch.no_grad():
            assert prediction_error(best, encoder(test)) == pytest.approx(deep["prediction_error"])


def test_iterations_are_the_untrained_encoder(run):
    out, _ = run
    D = torch.load(out / "cells" / "m_sparse-p40-seed0.pt", weights_only=True)["D"]
    x = protocol.signals(TINY, 0).test
    for key in ("m_sparse", "l0"):
        problem = TINY.problem(key)
        with torch.no_grad():
            torch.testing.assert_close(problem.iterate(x, D, 5), problem.encoder(D, 5).eval()(x))


def test_a_run_goes_on_where_it_stopped(run, monkeypatch):
    out, results = run
    monkeypatch.setattr(Codes, "cell", lambda *a: pytest.fail("the cell is there already"))
    again = STUDY.run(protocols(TINY), [40], [0], out, progress=False)
    assert again["cells"] == results["cells"]
    with pytest.raises(ValueError, match=r"another protocol.*epochs"):
        STUDY.run(protocols(replace(TINY, epochs=7)), [40], [0], out, progress=False)


def test_a_run_of_before_a_choice_existed_goes_on_with_its_default(run, tmp_path):
    note = tmp_path / "run.json"
    known = json.loads((run[0] / "run.json").read_text())
    del known["protocol"]["inside"]
    note.write_text(json.dumps(known))
    record.agree(note, STUDY.note(protocols(TINY)), write=False)
    changed = replace(TINY, inside="soft")
    with pytest.raises(ValueError, match=r"another protocol.*inside differ"):
        record.agree(note, STUDY.note(protocols(changed)), write=False)


def test_an_interrupted_run_keeps_its_cells(tmp_path, monkeypatch):
    calls = []

    def cell(self, key, method, p, job):
        if calls:
            raise KeyboardInterrupt
        calls.append(key)
        return dict.fromkeys(STUDY.cell_keys, 0) | {"problem": key}

    monkeypatch.setattr(Codes, "cell", cell)
    with pytest.raises(KeyboardInterrupt):
        STUDY.run(protocols(TINY), [40], [0], tmp_path, progress=False)
    assert [p.name for p in (tmp_path / "cells").iterdir()] == ["l0-p40-seed0.json"]
    assert json.loads((tmp_path / "cells" / "l0-p40-seed0.json").read_text())["problem"] == "l0"


def test_a_prediction_is_polished(run):
    """Nearer to the optimal codes than LISTA, and as sparse as they are."""
    for cell in run[1]["cells"]:
        rows = {row["method"]: row for row in cell["rows"]}
        before, after = rows["LISTA, K = 2"], rows["LISTA, K = 2, polished"]
        assert after["ridge"] in regression._RIDGES
        assert before["ridge"] is None
        for figure in ("prediction_error", "support_error"):
            assert after[figure] < before[figure]


def test_an_interrupted_cell_keeps_its_networks_and_gives_the_same_rows(run, tmp_path, monkeypatch):
    _, results = run
    fit, names = protocol.Protocol.fit, []

    def interrupted(self, network, x, codes, lr, seed, progress, description):
        names.append(description)
        if len(names) == 3:
            raise KeyboardInterrupt
        return fit(self, network, x, codes, lr, seed, progress, description)

    monkeypatch.setattr(protocol.Protocol, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        STUDY.run({"table1": TINY}, [40], [0], tmp_path, progress=False)
    assert not list((tmp_path / "cells").glob("*.json"))
    found = STUDY.run({"table1": TINY}, [40], [0], tmp_path, progress=False)
    assert names[3] == names[2]  # the one that was interrupted is the first to be trained again
    assert len(set(names)) == len(names) - 1

    def without_times(cell):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in cell["rows"]]

    assert without_times(found["cells"][0]) == without_times(results["cells"][0])
    assert not list((tmp_path / "cells" / "cache").glob("*-rows.json"))


def test_depth_and_tying_are_varied_at_small_sizes_only(run):
    problem, D = TINY.problem("m_sparse"), torch.randn(256, 40)
    few = [name for name, *_ in regression._networks(replace(TINY, further_p=39), problem, D, 256)]
    assert few == ["Baseline encoder", "LISTA, K = 2", "Deep encoder, K = 2"]
    many = [name for name, *_ in regression._networks(TINY, problem, D, 256)]
    assert many[:3] == few
    assert len(many) == 8
    # A table of both sizes leaves blanks.
    _, results = run
    cell = results["cells"][1]
    small = {**cell, "p": 64, "rows": [r for r in cell["rows"] if "K = 4" not in r["method"]]}
    both = {**results, "sizes": [64, 40], "cells": [small, cell]}
    frame = errors(STUDY, both, "table2")
    assert frame.loc["Deep encoder, K = 4", "p = 64"] == ""
    assert frame.loc["Deep encoder, K = 4", "p = 40"] != ""
    assert list(frame.index)[: len(cell["rows"])] == [r["method"] for r in cell["rows"]]


@pytest.mark.parametrize("kind", ["l1", "mod"])
def test_other_dictionaries(kind, tmp_path):
    other = replace(TINY, dictionary=kind, digits=600, dictionary_epochs=1)
    data = protocol.signals(other, 0)
    learned = other.learn(other.problem("l0"), data.train, 40, 0, False)
    assert learned.squared_norm > 2  # atoms of unit norm
    assert learned.atom_norms[1] == pytest.approx(1, abs=1e-5)


def test_settings():
    changed = protocol.Protocol().changed(["lam=0.25", "dictionary=l1", "epochs=3"])
    assert (changed.lam, changed.dictionary, changed.epochs) == (0.25, "l1", 3)
    for setting, words in (
        ("epoch=3", "NAME=VALUE with a name of data, digits"),
        ("epochs", "got 'epochs'"),
        ("epochs=2.5", "epochs must be of type int, got '2.5'"),
        ("lam=x", "lam must be of type float, got 'x'"),
        ("data=cifar", "data must be one of .* got 'cifar'"),
    ):
        with pytest.raises(ValueError, match=words):
            protocol.Protocol().changed([setting])


def test_the_cache_knows_what_codes_depend_on(tmp_path, monkeypatch):
    problem = TINY.problem("m_sparse")
    x, D = torch.randn(50, 256), torch.randn(256, 40) / 60
    code, course = regression.optimal_codes(problem, x, D, tmp_path)
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 1
    monkeypatch.setattr(type(problem), "optimal", lambda *a: pytest.fail("the codes are cached"))
    again, same = regression.optimal_codes(problem, x, D, tmp_path)
    assert torch.equal(code, again)
    assert course == same
    for other in ((replace(problem, m=7), x, D), (problem, x + 1, D), (problem, x, 2 * D)):
        with pytest.raises(pytest.fail.Exception):
            regression.optimal_codes(*other, tmp_path)


def test_tables_claims_and_report(run):
    out, results = run
    text = (out / "tables.md").read_text()
    for name in ALL:
        assert f"## {name}" in text
        assert (out / f"{name}.svg").exists()
    assert "Iterative-10 (paper)" in text
    assert len(results["claims"]) == 5
    shown = report.write(out).read_text()
    assert shown.count("<svg") == len(list(out.glob("*.svg")))
    assert "src=" not in shown  # nothing is fetched
    assert "<link" not in shown
    assert "does not hold" in shown or all(c["holds"] for c in results["claims"])


def test_claims_are_judged_by_the_means():
    def cell(problem, seed, deep, iterative, baseline):
        errors = {"Deep encoder, K = 2": deep, "Iterative-10 from zero": iterative,
                  "Baseline encoder": baseline}  # fmt: skip
        rows = [{"method": k, "prediction_error": e, "support_error": e} for k, e in errors.items()]
        return {"problem": problem, "p": 128, "seed": seed, "rows": rows}

    cells = [
        cell("l0", 0, 1.0, 2.0, 3.0),
        cell("l0", 1, 4.0, 2.0, 3.0),  # the mean is 2.5: above 2, below 3
        cell("m_sparse", 0, 1.0, 1.0, 3.0),  # equal is not better
    ]
    found = {(c["table"], c["rival"]): c["holds"] for c in STUDY.claims(ALL, cells, [128])}
    assert found == {
        ("table1", "Iterative-10 from zero"): False,
        ("table1", "Baseline encoder"): True,
        ("table2", "Iterative-10 from zero"): False,
        ("table2", "Baseline encoder"): True,
        ("table3", "Iterative-10 from zero"): False,
    }


def test_a_network_whose_loss_rose_is_a_marked_row(run):
    _, results = run
    deepest = "Deep encoder, K = 4, untied"

    def with_losses(of_deepest):
        def changed(row):
            losses = of_deepest if row["method"] == deepest else row["losses"] and [2, 1]
            return {**row, "losses": losses}

        cells = [{**cell, "rows": list(map(changed, cell["rows"]))} for cell in results["cells"]]
        return {**results, "cells": cells}

    learned, not_learned = with_losses([7.0, 6.0]), with_losses([7.0, 8.5])
    assert unlearned_note(learned) == ""
    assert "†" not in as_markdown(blocks(STUDY, learned, run[0]))
    note = unlearned_note(not_learned)
    assert f"l0, p = 40, seed 0, {deepest}" in note
    assert note.count("7.00 in the first epoch, 8.50 in the last") == 2
    assert note in as_markdown(blocks(STUDY, not_learned, run[0]))
    frame = errors(STUDY, not_learned, "table1")["p = 40"]
    assert [name for name, entry in frame.items() if "†" in entry] == [deepest]


def test_means_over_seeds(run):
    _, results = run
    first = results["cells"][0]

    def other(seed, error):
        rows = [{**row, "prediction_error": error} for row in first["rows"]]
        return {**first, "seed": seed, "rows": rows}

    both = {**results, "seeds": [0, 1], "cells": [other(0, 1.0), other(1, 3.0)]}
    assert errors(STUDY, both, "table1")["p = 40"].iloc[0] == "2.00 ± 1.41"
    assert STUDY.rows(both["cells"], "table2") == []


def test_the_race_of_all_methods(run):
    out, results = run
    found = race.measure(TINY, "m_sparse", 40, 0, out, seconds=0.1)
    points = {q["method"]: q for q in found["points"]}
    rows = {row["method"]: row for row in results["cells"][1]["rows"]}
    for network in ("LISTA, K = 2", "LISTA, K = 2, polished"):
        at, seen = rows[network]["prediction_error"], points[network]["prediction_error"]
        assert seen == pytest.approx(at, rel=1e-4)
    assert {"IHT-10", "NIHT-10", "AIHT-10", "HTP-5", "OMP", "encoder, K = 2"} <= set(points)
    assert all(q["microseconds"] > 0 and q["prediction_error"] >= 0 for q in found["points"])
    assert points["IHT-100"]["prediction_error"] < points["IHT-2"]["prediction_error"]
    if "OMP (SPAMS)" in points:  # the same greedy codes
        ours, theirs = points["OMP"], points["OMP (SPAMS)"]
        assert ours["prediction_error"] == pytest.approx(theirs["prediction_error"], rel=0.02)
    assert set(race.draw(found)) == {"pareto-m_sparse-p40.png", "pareto-m_sparse-p40.svg"}
    assert points["OMP"]["support_error"] > 0
    optimal = found["optimal_codes"]
    assert optimal["signals"] == 300
    assert optimal["kernels_microseconds"] > 0
    assert optimal["torch_microseconds"] > 0
    assert optimal["same_supports"] > 0.98
    assert optimal["relative_objective"] == pytest.approx(1, abs=1e-3)
    text = race.time_of_codes(found)
    assert "300 signals" in text
    assert f"{100 * optimal['same_supports']:.1f} %" in text


def test_the_command_its_times_and_their_renewal(tmp_path, monkeypatch):
    out = tmp_path / "run"
    settings = [f"--set={s}" for s in (*SETTINGS, "digits=600", "epochs=2", "further_p=0")]
    arguments = ["reproduce", *ALL, "--quick", "--p", "40", "--out", str(out), *settings]
    runner = CliRunner()
    done = runner.invoke(cli._app(), arguments)
    assert done.exit_code == 0, done.output
    made = {path.name for path in out.iterdir()}
    assert {"results.json", "results.csv", "tables.md", "report.html", "table1.svg"} <= made
    assert {f"pareto-{key}-p40.{kind}" for key in ("l0", "m_sparse")
            for kind in ("json", "svg", "png")} <= made  # fmt: skip
    assert "## Times" in done.output
    tables = (out / "tables.md").read_text()
    assert done.stdout.strip() == tables[: tables.index("\n## Protocol of")].strip()
    first = {path.name: path.read_text() for path in out.glob("pareto-*.json")}
    # The same command takes no time anew; the other takes all of them, and computes no error.
    monkeypatch.setattr(Codes, "cell", lambda *a: pytest.fail("the cell is there already"))
    done = runner.invoke(cli._app(), [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    lines = json.loads(done.stdout)["results"]
    assert {line["p"] for line in lines} == {40}
    assert {path.name: path.read_text() for path in out.glob("pareto-*.json")} == first
    results = (out / "results.json").read_text()
    done = runner.invoke(cli._app(), ["timing", str(out), "--seconds", "0"])
    assert done.exit_code == 0, done.output
    assert done.output.count("optimal codes of 300 signals") == 2
    for path in out.glob("pareto-*.json"):
        before, after = json.loads(first[path.name]), json.loads(path.read_text())
        assert before != after
        for a, b in zip(before["points"], after["points"], strict=True):
            assert {**a, "microseconds": 0} == {**b, "microseconds": 0}
    assert (out / "results.json").read_text() == results
    # And says what it lacks.
    done = runner.invoke(cli._app(), ["timing", str(tmp_path)])
    assert done.exit_code == 2
    assert "run deepl0 reproduce first" in done.output
    (out / "cells" / "l0-p40-seed0.pt").unlink()
    done = runner.invoke(cli._app(), ["timing", str(out)])
    assert done.exit_code == 2
    assert "l0-p40-seed0.pt is missing" in done.output


def test_an_interrupted_command_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Codes, "cell", interrupted)
    arguments = ["reproduce", "table1", "--quick", "--p", "40", "--out", str(tmp_path)]
    done = CliRunner().invoke(cli._app(), arguments)
    assert done.exit_code == 130
    assert "goes on" in done.output


def test_missing_data_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPL0_DATA", str(tmp_path / "nowhere"))
    done = CliRunner().invoke(cli._app(), ["reproduce", "table1", "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert "nowhere" in done.output
    done = CliRunner().invoke(cli._app(), ["report", str(tmp_path)])
    assert done.exit_code == 2
    assert "results.json" in done.output


def test_the_documentation_shows_the_record():
    text = page.PAGE.read_text()
    assert filled(text, page.parts()) == text
    results = STUDY.read(page.RECORD)
    assert results["sizes"] == list(SIZES)
    assert results["protocol"] == asdict(protocol.Protocol())
    assert results["claims"] == STUDY.claims(results["tables"], results["cells"], results["sizes"])
    for found in race.read(page.RECORD):
        name = f"reproduction-{race.name_of(found['problem'], found['p'])}.svg"
        assert f"figures/{name}" in text
        assert (page.DOCS / "figures" / name).is_file()
    changed = text.replace("| p = 128", "| p = 129", 1)
    assert changed != text
    assert filled(changed, page.parts()) == text
