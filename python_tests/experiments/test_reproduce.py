"""The tables' machinery on a tiny protocol: cells, resumption, cache, rendering, errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from deepl0_kernels import cli
from deepl0_kernels.experiments import pareto, protocol, regression, report, reproduce, tables
from deepl0_kernels.experiments.metrics import prediction_error

TINY = replace(
    protocol.Protocol().quickened(), digits=1_200, held_out=300, dictionary_epochs=8, epochs=6
)
ALL = ("table1", "table2", "table3")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("tables")
    results = reproduce.run(ALL, TINY, [40], [0], out, progress=False)
    tables.write(results, out)
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
        # Even a training of seconds beats the iterations that the encoder started as.
        deep = rows["Deep encoder, K = 2"]
        assert deep["prediction_error"] < rows["Iterative-2 from zero"]["prediction_error"]
        assert deep["training_error"] > 0
        assert cell["optimal"]["converged"] > 0.99
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
    monkeypatch.setattr(reproduce, "cell", lambda *a: pytest.fail("the cell is there already"))
    again = reproduce.run(ALL, TINY, [40], [0], out, progress=False)
    assert again["cells"] == results["cells"]
    with pytest.raises(ValueError, match=r"another protocol.*epochs"):
        reproduce.run(ALL, replace(TINY, epochs=7), [40], [0], out, progress=False)


def test_an_interrupted_run_keeps_its_cells(tmp_path, monkeypatch):
    calls = []

    def cell(protocol, key, p, seed, *rest):
        if calls:
            raise KeyboardInterrupt
        calls.append(key)
        return {"problem": key, "p": p, "seed": seed, "rows": []}

    monkeypatch.setattr(reproduce, "cell", cell)
    with pytest.raises(KeyboardInterrupt):
        reproduce.run(ALL, TINY, [40], [0], tmp_path, progress=False)
    assert [p.name for p in (tmp_path / "cells").iterdir()] == ["l0-p40-seed0.json"]
    assert json.loads((tmp_path / "cells" / "l0-p40-seed0.json").read_text())["problem"] == "l0"


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
    for other in ((replace(problem, m=31), x, D), (problem, x + 1, D), (problem, x, 2 * D)):
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
    page = report.write(out).read_text()
    assert page.count("<svg") == len(list(out.glob("*.svg")))
    assert "src=" not in page  # nothing is fetched
    assert "<link" not in page
    assert "does not hold" in page or all(c["holds"] for c in results["claims"])


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
    found = {(c["table"], c["rival"]): c["holds"] for c in reproduce.claims(ALL, cells, [128])}
    assert found == {
        ("table1", "Iterative-10 from zero"): False,
        ("table1", "Baseline encoder"): True,
        ("table2", "Iterative-10 from zero"): False,
        ("table2", "Baseline encoder"): True,
        ("table3", "Iterative-10 from zero"): False,
    }


def test_means_over_seeds():
    cells = [
        {"problem": "l0", "p": 128, "rows": [{"method": "a", "prediction_error": e}]}
        for e in (1.0, 3.0)
    ]
    mean, spread = reproduce.means(cells, reproduce.TABLES["table1"], 128)["a"]
    assert (mean, spread) == (2.0, pytest.approx(2**0.5))
    assert reproduce.means(cells, reproduce.TABLES["table2"], 128) == {}


def test_the_race_of_all_methods(run):
    out, _ = run
    found = pareto.measure(TINY, "m_sparse", 40, 0, out, seconds=0.1)
    points = {q["method"]: q for q in found["points"]}
    assert {"IHT-10", "NIHT-10", "AIHT-10", "HTP-5", "OMP", "encoder, K = 2"} <= set(points)
    assert all(q["microseconds"] > 0 and q["prediction_error"] >= 0 for q in found["points"])
    assert points["IHT-100"]["prediction_error"] < points["IHT-2"]["prediction_error"]
    if "OMP (SPAMS)" in points:  # the same greedy codes
        ours, theirs = points["OMP"], points["OMP (SPAMS)"]
        assert ours["prediction_error"] == pytest.approx(theirs["prediction_error"], rel=0.02)
    assert set(pareto.draw(found)) == {"pareto-m_sparse-p40.png", "pareto-m_sparse-p40.svg"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table9", "--quick"], "table9"),
        (["table1", "--quick", "--p", "16"], "got 16"),
        (["table1", "--quick", "--p", "many"], "many"),
        (["table1", "--quick", "--seeds", "0"], "greater than or equal to 1"),
    ],
)
def test_bad_arguments_are_named(arguments, words, tmp_path):
    done = CliRunner().invoke(cli._app(), ["reproduce", *arguments, "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert words in done.output


def test_an_interrupted_command_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "cell", interrupted)
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
