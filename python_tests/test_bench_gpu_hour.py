"""``python -m bench.gpu``: order, limits, resumption and summary, by processes made up and by the
stub of a device; what runs on a card is tried as far as a CPU can."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench import draw, gpu, gpu_device, gpu_progress, gpu_summary, records

CARD = gpu_device.Card("NVIDIA H999", "9.0", 132, "1.2", "CUDA 13.0", "3.6.0")
FOLDER = "abc-h999"
ROW = records.Row(
    "top_m, graph", "B=1", 1, "deepl0", 1, 10.0, 12, 10, "torch eager", 2.0, "2026-01-01T00:00Z",
    "NVIDIA H999, 132 multiprocessors, CUDA 13.0", "sm90", "2.11.0", "0.1.0", "abc", "3.6.0", "1.2",
)  # fmt: skip


def run_of(folder: Path, seconds: float = 60, only: str = "", process=None) -> gpu.Run:
    return gpu.Run(folder, CARD, "abc", time.time() + seconds, only, process)


def parts_of(log: list, **works) -> dict[str, gpu.Part]:
    def noted(name, work):
        def call(run, deadline):
            log.append((name, round(deadline - time.time())))
            return work()

        return call

    return {name: gpu.Part(noted(name, work), 30, 10) for name, work in works.items()}


def passes():
    return gpu.Outcome("passed", True)


def breaks():
    raise OSError("no such device")


def test_parts_keep_their_order_and_none_stops_the_next(tmp_path):
    log: list = []
    parts = parts_of(log, build=passes, tests=breaks, bench=passes)
    gpu.perform(run_of(tmp_path), ["bench", "build", "tests"], parts)
    assert [name for name, _ in log] == ["build", "tests", "bench"]
    found = {n: json.loads((tmp_path / FOLDER / f"{n}.json").read_text()) for n in parts}
    assert [found[n]["status"] for n in parts] == ["passed", "failed", "passed"]
    assert found["tests"]["told"] == "OSError: no such device"


def test_a_part_takes_its_limit_and_leaves_the_later_ones_theirs(tmp_path):
    log: list = []
    gpu.perform(run_of(tmp_path, 45), ["a", "b", "c"], parts_of(log, a=passes, b=passes, c=passes))
    assert log == [("a", 25), ("b", 30), ("c", 30)]
    log.clear()
    gpu.perform(run_of(tmp_path / "late", 0), ["a"], parts_of(log, a=passes))
    assert log == []


def test_the_build_has_its_time_however_little_there_is(tmp_path):
    log: list = []
    parts = {
        name: gpu.PARTS[name]._replace(work=part.work)
        for name, part in parts_of(
            log, build=passes, tests=passes, bench=passes, tune=passes
        ).items()
    }
    gpu.perform(run_of(tmp_path, 120), list(parts), parts)
    assert log[0] == ("build", 120)


def test_what_is_there_for_the_commit_is_not_done_again(tmp_path):
    log: list = []
    outcomes = iter([gpu.Outcome("cut", False), passes(), passes()])
    parts = parts_of(log, host=passes, tune=lambda: next(outcomes))
    for _ in range(3):
        gpu.perform(run_of(tmp_path), ["host", "tune"], parts)
    assert [name for name, _ in log] == ["host", "tune", "tune"]
    gpu.perform(run_of(tmp_path, only="top_m"), ["tune"], parts)  # asks for something else
    assert [name for name, _ in log][3:] == ["tune"]


def test_the_build_is_ninjas_to_skip(tmp_path):
    """What is built may be another commit's or card's."""
    log: list = []
    parts = parts_of(log, build=passes)
    for _ in range(2):
        gpu.perform(run_of(tmp_path), ["build"], parts)
    assert len(log) == 2


def test_what_failed_is_tried_anew_but_for_tests():
    assert not gpu.outcome_of(1, again=True).complete
    assert gpu.outcome_of(0, again=True).complete
    assert gpu.outcome_of(1).complete


def test_a_line_half_written_is_no_outcome(tmp_path):
    path = tmp_path / "tests.jsonl"
    gpu_progress.append(path, id="a", outcome="passed")
    path.write_text(path.read_text() + '{"id": "b", "outc')
    assert list(gpu_progress.read(path)) == ["a"]


def test_the_build_is_for_the_card_alone(tmp_path):
    seen = []

    def process(part, command, deadline, output=None, **environment):
        seen.append((command[1:], environment))
        return 0

    assert gpu.build(run_of(tmp_path, process=process), time.time() + 9).status == "passed"
    assert seen[0] == (["setup.py", "build_ext", "--inplace"], {"TORCH_CUDA_ARCH_LIST": "9.0"})
    assert [str(word) for word in seen[1][0]][:2] == ["-m", "bench.gpu_cub"]


def test_a_process_ends_at_its_deadline_with_all_that_it_started(tmp_path):
    run, begin = run_of(tmp_path), time.time()
    child = "import subprocess, sys; print('up', flush=True); subprocess.run(['sleep', '100'])"
    status = run.process("x", [sys.executable, "-c", child], time.time() + 1)
    assert status is None
    assert time.time() - begin < 20
    assert "up" in (tmp_path / FOLDER / "x.log").read_text()
    assert run.process("x", [sys.executable, "-c", "raise SystemExit(3)"], time.time() + 60) == 3


TESTS = """
import os
def test_first(): pass
def test_fails(): assert 1 == 2, "not so"
def test_crashes(): os.kill(os.getpid(), 9)
def test_last(): pass
"""


@pytest.fixture
def suite(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "test_made_up.py"
    path.write_text(TESTS)
    monkeypatch.setattr(gpu, "GRACE", 0.0)
    return path


def outcomes(folder: Path) -> list[tuple[str, str]]:
    found = gpu_progress.read(folder / FOLDER / "tests.jsonl")
    return [(name.split("::test_")[1], line["outcome"]) for name, line in found.items()]


def test_a_crash_loses_one_test_and_a_cut_none_that_ended(tmp_path, suite):
    options = [str(suite), "--noconftest", f"--rootdir={tmp_path}", "-c", os.devnull]
    run = run_of(tmp_path)
    # What a cut in the second test leaves.
    progress = tmp_path / FOLDER / "tests.jsonl"
    gpu_progress.append(progress, id="test_made_up.py::test_first", outcome="passed", message="x")
    gpu_progress.append(progress, id="test_made_up.py::test_fails", outcome="started")
    found = gpu.pytests(run, "tests", time.time() + 300, options)
    assert (found.status, found.complete) == ("failed", True)
    assert outcomes(tmp_path) == [
        ("first", "passed"), ("fails", "failed"), ("crashes", "crashed"), ("last", "passed"),
    ]  # fmt: skip
    assert "x" in progress.read_text()  # it was not run again
    failed = gpu_summary.failures(tmp_path / FOLDER)
    assert len(failed) == 2
    assert failed[0].startswith("failed: test_made_up.py::test_fails: ")
    assert failed[1].endswith("test_crashes: the process ended with -9")


def test_a_part_that_is_cut_says_so(tmp_path, suite):
    run = run_of(tmp_path, process=lambda *arguments: None)
    assert gpu.pytests(run, "tests", time.time() + 300, [str(suite)]).status == "cut"
    for part in (gpu.host, gpu.tune, gpu.bench):
        found = part(run_of(tmp_path, process=lambda *a, **k: None), time.time() + 300)
        assert (found.status, found.complete) == ("cut", False)


def test_at_its_deadline_a_session_ends_by_itself(tmp_path, suite):
    options = [
        sys.executable, "-m", "pytest", "-p", "bench.gpu_progress", "--noconftest", "-c",
        os.devnull, f"--rootdir={tmp_path}", f"--progress={tmp_path / 'p.jsonl'}", "--deadline=0",
        str(suite),
    ]  # fmt: skip
    done = subprocess.run(
        options, cwd=gpu.ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."}
    )
    assert "the time is over" in done.stdout
    assert len(gpu_progress.read(tmp_path / "p.jsonl")) == 1


def test_only_the_named_tests(tmp_path, suite):
    options = [str(suite), "--noconftest", f"--rootdir={tmp_path}", "-c", os.devnull]
    found = gpu.pytests(run_of(tmp_path, only="first|last"), "tests", time.time() + 60, options)
    assert found == gpu.Outcome("passed", True)
    assert outcomes(tmp_path) == [("first", "passed"), ("last", "passed")]


def test_the_summary_tells_losses_and_changes(tmp_path):
    eager = replace(ROW, provider="torch eager", p50=20.0, speedup=1.0)
    before = [ROW, eager]
    slower = [replace(ROW, p50=11.0, speedup=20 / 11), replace(eager, p50=20.4)]
    assert gpu_summary.changes(slower, before) == [
        "+10% top_m, graph, B=1: 10 -> 11 us (torch eager +2%)"
    ]
    assert gpu_summary.changes([replace(ROW, p50=10.4), eager], before) == []
    assert gpu_summary.losses([replace(ROW, speedup=0.5), eager]) == [
        "0.50 x: top_m, graph, B=1: 10 us"
    ]
    assert gpu_summary.losses([replace(ROW, operator="top_m, cold L2", speedup=0.5)]) == []


def test_the_summary_fits_its_length_whatever_failed(tmp_path):
    folder = tmp_path / FOLDER
    folder.mkdir()
    for i in range(500):
        gpu_progress.append(
            folder / "tests.jsonl", id=f"t{i}" + "x" * 300, outcome="failed", message="m" * 300
        )
    rows = [replace(ROW, shape=f"B={i}" + "y" * 200, speedup=0.5) for i in range(500)]
    records.write(folder / "gpu-h999.csv", rows)
    page = gpu_summary.page(folder, CARD, "2.11.0", ["tests", "bench"])
    assert len(page) <= gpu_summary.LONGEST
    assert "Failed: 500" in page
    assert "Slower than torch eager: 500" in page or "cut" in page
    assert "not begun" in page


def test_records_of_several_cards_are_drawn_side_by_side(tmp_path):
    eager = replace(ROW, provider="torch eager", p50=20.0, speedup=1.0)
    rows = [replace(r, operator=f"top_m, {m}") for m in ("graph", "warm L2") for r in (ROW, eager)]
    other = [replace(r, machine="NVIDIA B999, 1 multiprocessors, CUDA 13.0") for r in rows]
    records.write(tmp_path / "gpu-h999.csv", rows)
    records.write(tmp_path / "gpu-b999.csv", other)
    assert records.read(tmp_path / "gpu-h999.csv") == rows
    page = draw.gpu_page(tmp_path)
    assert page.index("## NVIDIA B999") < page.index("## NVIDIA H999")
    assert "driver 1.2, torch 2.11.0, triton 3.6.0; commit abc" in page
    assert CARD.slug == "h999"


def test_old_rows_claim_no_commit():
    rows = [r for r in records.read(records.FOLDER / "gpu-h200.csv") if r.time < "2026-11-27"]
    assert {(r.commit, r.driver, r.triton) for r in rows} <= {("", "580.159.04", "3.8.0")}


def test_the_commit_of_a_copy_without_git(monkeypatch):
    monkeypatch.setenv("DEEPL0_COMMIT", "named")
    assert records.commit.__wrapped__() == "named"
    monkeypatch.delenv("DEEPL0_COMMIT")
    monkeypatch.setenv("PATH", "")
    assert len(records.commit.__wrapped__()) == 12


def command(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *map(str, arguments)],
        cwd=gpu.ROOT, capture_output=True, text=True, env=os.environ | env, timeout=600,
    )  # fmt: skip


def test_without_a_gpu_it_says_so_and_fails(tmp_path):
    done = command("--out", tmp_path, CUDA_VISIBLE_DEVICES="", DEEPL0_GPU_STUB="")
    assert done.returncode == 2
    assert "torch sees no GPU here" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--parts", "tests,nonsense", "got nonsense"),
        ("--only", "(", "--only must be a regular expression"),
        ("--minutes", "0", "--minutes must be > 0, got 0"),
    ],
)
def test_bad_options_are_named(tmp_path, capsys, option, value, words):
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--out", str(tmp_path), option, value])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_the_stub_goes_to_the_end_and_a_second_call_has_nothing_to_do(tmp_path):
    parts = ("--parts", "sanitizer,bench,host,tune", "--only", r"^top_m( short)?$|\[top_m-6")
    arguments = ("--out", tmp_path, "--stub", "--minutes", "30", *parts)
    done = command(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "A STUB OF A DEVICE" in done.stdout
    (folder,) = tmp_path.iterdir()
    rows = records.read(folder / "gpu-stub.csv")
    assert {r.operator for r in rows} >= {"top_m, graph", "top_m, warm L2", "top_m, cold L2"}
    assert {(f"{r.commit}-stub", r.driver) for r in rows} == {(folder.name, "none")}
    assert (folder / "summary.txt").read_text().strip() in done.stdout
    again = command(*arguments)
    assert again.stdout.count("there already") == 4
