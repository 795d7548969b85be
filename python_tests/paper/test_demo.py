"""The demo end to end, and its parts."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from deepl0_kernels._report import record
from deepl0_kernels.datasets import mnist_subset
from deepl0_kernels.nn import DeepMSparseEncoder
from deepl0_kernels.paper import demo, scores
from deepl0_kernels.paper.timing import interleaved_medians
from deepl0_kernels.training.problems import MSparse


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("demo") / "run"
    return out, demo.run(demo.Config().quickened(), out, progress=False)


def test_files_and_record(quick):
    out, result = quick
    assert {path.name for path in out.iterdir()} == {
        "record.json", "table.txt", "figure.png", "figure.svg", "m_sparse.pt", "l0.pt",
    }  # fmt: skip
    assert json.loads((out / "record.json").read_text()) == json.loads(json.dumps(result))
    assert (out / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert "</svg>" in (out / "figure.svg").read_text()
    assert (out / "table.txt").read_text() == demo.table(result)
    assert result["config"]["seed"] == 0
    assert result["environment"]["torch"] == torch.__version__
    assert result["data"]["discarded_held_out"] == 0
    saved = torch.load(out / "m_sparse.pt", weights_only=True)
    DeepMSparseEncoder(256, 128, 32).load_state_dict(saved["encoder"])


def test_it_takes_all_digits_of_the_package():
    digits, config = mnist_subset(), demo.Config()
    assert (config.digits, config.held_out) == (len(digits.x), len(digits.x_test))


def test_rows(quick):
    _, result = quick
    iterative = [f"iterative {k} from {start}" for start in ("zero", "l1") for k in (2, 5, 10)]
    for key, problem in result["problems"].items():
        rows = {row["method"]: row for row in problem["rows"]}
        assert list(rows)[:7] == [*iterative, "encoder, K = 2"]
        assert ("OMP (scikit-learn)" in rows) == (key == "m_sparse")
        for row in rows.values():
            assert 0 <= row["prediction_error"] < 150
            assert row["half_support_error"] == row["support_error"] / 2
            assert row["microseconds"] > 0
        for start in ("zero", "l1"):
            errors = [rows[f"iterative {k} from {start}"]["prediction_error"] for k in (2, 5, 10)]
            assert errors == sorted(errors, reverse=True)
        times = {name: row["microseconds"] for name, row in rows.items()}
        assert times["iterative 10 from zero"] > times["iterative 2 from zero"]
        assert problem["optimal"]["converged"] > 0.99
        assert problem["claim_holds"] == (problem["encoder_error"] < problem["iterative_error"])
        # Even a training of seconds must help.
        assert problem["encoder_error"] < rows["iterative 2 from zero"]["prediction_error"]
        assert problem["training_loss"][-1] < problem["training_loss"][0]


def test_what_is_timed_from_l1_solves_the_l1_problem(monkeypatch):
    solved, l1 = [], MSparse.l1
    monkeypatch.setattr(MSparse, "l1", lambda *args: solved.append(args) or l1(*args))
    x, D = torch.randn(4, 6), torch.nn.functional.normalize(torch.randn(6, 9), dim=0)
    problem = MSparse(m=2)
    code = demo._from_l1(problem, D, 2, 0.1, x)
    assert len(solved) == 1
    assert torch.equal(code, problem.iterate(x, D, 2, problem.l1(x, D), 0.1))


def test_the_table_is_honest(quick):
    result = copy.deepcopy(quick[1])
    text = demo.table(result)
    assert "A quick run" in text
    for problem in result["problems"].values():
        problem["claim_holds"] = False
    result["config"]["quick"] = False
    assert demo.table(result).count("DOES NOT HOLD") == 2


def test_the_figure_depends_on_the_record_alone(quick):
    _, result = quick
    assert demo.draw(result) == demo.draw(result)


def test_a_missing_dependency_shows_before_any_work(monkeypatch, tmp_path):
    def require(module, purpose):
        raise ModuleNotFoundError(f"{purpose} needs {module}: pip install 'deepl0-kernels[demo]'")

    monkeypatch.setattr(demo, "require", require)
    with pytest.raises(ModuleNotFoundError, match=r"deepl0-kernels\[demo\]"):
        demo.run(demo.Config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_writing_is_atomic(tmp_path):
    path = tmp_path / "record.json"
    record.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_scores_of_codes():
    a = torch.tensor([[3.0, 0, 4, 0], [0, 0, 0, 5]])
    b = torch.tensor([[3.0, 1, 0, 0], [0, 0, 0, 5]])
    assert scores.prediction_error(a, b) == pytest.approx(100 * 17 / 50)
    assert scores.support_error(a, b) == 1.0
    D = torch.eye(4)
    assert scores.reconstruction_error(a, D, b) == pytest.approx(100 * 17 / 50)


def test_interleaved_medians_takes_turns():
    calls = []
    rivals = {k: lambda k=k: calls.append(k) for k in "abc"}
    times = interleaved_medians(rivals, seconds=0, slice_seconds=0)
    assert set(times) == set("abc")
    assert calls == list("abc") * 4
    interleaved_medians(rivals, seconds=0, slice_seconds=0.001)
    turns = [k for k, before in zip(calls[12:], [None, *calls[12:]], strict=False) if k != before]
    assert turns == list("abc") * 4
