"""Everything a GPU can be asked in a short time, in one command: ``make gpu OUT=folder``.

``python -m bench.gpu --out FOLDER --minutes 9`` builds the extension for this machine's card, then
tests, checks, measures and tunes, part by part. Each part has a time limit, writes its record and
log below FOLDER/COMMIT-CARD as it goes, and never stops the next one by failing; what is there for
this commit is not done again, so that a second call goes on where the first was cut. A summary of
at most 10,000 characters comes last, also as summary.txt.

It needs no network, and of Python's packages torch, triton, ninja, setuptools, NumPy,
pytest and hypothesis. Without a GPU it ends at once, unless --stub asks for a device made up, which
tries the command and measures nothing. The exit status is 1 if a part failed, was cut or not begun.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from . import gpu_device, gpu_progress, gpu_summary, records

ROOT = records.ROOT
TESTS = (
    "python_tests/gpu/test_operators.py",
    "python_tests/gpu/test_fuzz.py",
    "python_tests/cuda",
    "python_tests/triton",
    "python_tests/gpu/test_sharded.py",
    "python_tests/gpu/test_large.py",
)
# The stub's tests: Triton's interpreter launches.
STUB_TESTS = ("python_tests/triton/test_top_m.py", "python_tests/triton/test_stage.py")
STUB_COUNT = 2
GRACE = 10.0  # seconds for a process to end by itself, and for the summary


class Outcome(NamedTuple):
    """Of a part: passed, failed, cut or skipped; complete if a second call has nothing to do."""

    status: str
    complete: bool
    told: str = ""


def outcome_of(status: int | None, what: str = "", again: bool = False) -> Outcome:
    """Of a command by its exit status, None if the deadline ended it.

    ``again``: a second call tries anew what failed.
    """
    if status is None:
        return Outcome("cut", False, what)
    told = f"{what} ended with {status}".strip() if status else ""
    return Outcome("failed" if status else "passed", not (status and again), told)


class Run:
    """One call of the command: where it writes, for which card, until when."""

    def __init__(
        self,
        out: Path,
        card: gpu_device.Card,
        commit: str,
        end: float,
        only: str = "",
        run: Callable[..., int | None] | None = None,
    ) -> None:
        self.folder = (out / f"{commit}-{card.slug}").resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.card, self.end, self.only = card, end, only
        self.process = run or self._process
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "DEEPL0_COMMIT": commit,
            "DEEPL0_CUB": str(self.folder),
            "DEEPL0_TUNED": str(self.folder / "tuned.json"),
            "PYTHONUNBUFFERED": "1",
        }
        if gpu_device.STUB:
            self.environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}

    def record(self) -> Path:
        return self.folder / f"gpu-{self.card.slug}.csv"

    def _process(
        self,
        part: str,
        command: Sequence[str | Path],
        deadline: float,
        output: Path | None = None,
        **environment: str,
    ) -> int | None:
        """The status of a command, or None if the deadline ended it; what it prints goes to the
        part's log, or its standard output to ``output``."""
        log = self.folder / f"{part}.log"
        with log.open("a") as file, open(output or os.devnull, "w") as other:
            print("$", *command, file=file, flush=True)
            started = subprocess.Popen(
                list(map(str, command)),
                cwd=ROOT,
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=other if output else file,
                stderr=file,
                start_new_session=True,
            )
            try:
                return started.wait(max(1.0, deadline - time.time()))
            except subprocess.TimeoutExpired:
                return None
            finally:
                if started.poll() is None:  # with all that it started
                    os.killpg(started.pid, signal.SIGKILL)
                    started.wait()


def build(run: Run, deadline: float) -> Outcome:
    """The extension for this card alone, on all cores; then CUB's top-k, which may fail."""
    arch = {"TORCH_CUDA_ARCH_LIST": run.card.capability}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    status = run.process("build", command, deadline, **arch)
    if status != 0:  # another try may find another compiler
        return outcome_of(status, "setup.py", again=True)
    rival = [sys.executable, "-m", "bench.gpu_cub", "--out", run.folder]
    run.process("build", [*rival, "--arch", run.card.capability], deadline)
    return Outcome("passed", True)


def pytests(run: Run, part: str, deadline: float, arguments: Sequence[str]) -> Outcome:
    """A pytest session, begun anew after a crash without the test that crashed."""
    progress = run.folder / f"{part}.jsonl"
    command = [
        sys.executable, "-m", "pytest", "-q", "-rs", "-p", "bench.gpu_progress",
        "-p", "no:cacheprovider", f"--progress={progress}", f"--only={run.only}",
        f"--deadline={deadline - GRACE / 2}", *arguments,
    ]  # fmt: skip
    while True:
        before = gpu_progress.read(progress)
        status = run.process(part, command, deadline)
        lines = gpu_progress.read(progress)
        for name in [n for n, line in lines.items() if line["outcome"] == "started"]:
            if status is not None:
                gpu_progress.append(
                    progress, id=name, outcome="crashed", message=f"the process ended with {status}"
                )
        over = status is None or time.time() > deadline - GRACE / 2
        if status in (0, 1, 5) or over or lines == before:
            break
    outcomes = [line["outcome"] for line in gpu_progress.read(progress).values()]
    failed = any(outcome in ("failed", "crashed") for outcome in outcomes)
    complete = status in (0, 1, 5) and bool(outcomes or run.only)
    if status in (3, 4) or (status == 5 and not outcomes):
        return Outcome("failed", False, f"pytest ended with {status}: see {part}.log")
    return Outcome("failed" if failed else "passed" if complete else "cut", complete)


def tests(run: Run, deadline: float) -> Outcome:
    if gpu_device.STUB:
        return pytests(run, "tests", deadline, [*STUB_TESTS, f"--first={STUB_COUNT}"])
    return pytests(run, "tests", deadline, TESTS)


def sanitizer(run: Run, deadline: float) -> Outcome:
    """memcheck and racecheck over one small call of each kind."""
    kernels = [sys.executable, "-m", "bench.gpu_kernels", "--only", run.only]
    tool = shutil.which("compute-sanitizer")
    conventional = Path("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None and conventional.exists():
        tool = str(conventional)
    if tool is None and not gpu_device.STUB:
        return Outcome("skipped", False, "there is no compute-sanitizer here")
    for check in ("memcheck", "racecheck"):
        before = [tool, "--tool", check, "--error-exitcode", "9"] if tool else []
        if gpu_device.STUB:
            before = []
        status = run.process("sanitizer", [*before, *kernels], deadline)
        if status != 0:
            return outcome_of(status, check, again=True)
    return Outcome("passed", True, "memcheck, racecheck: no error")


def bench(run: Run, deadline: float) -> Outcome:
    seconds = "0" if gpu_device.STUB else "0.15"
    arguments = ["bench/bench_gpu.py", "-o", "python_files=bench_*.py", f"--seconds={seconds}"]
    return pytests(run, "bench", deadline, [*arguments, f"--record={run.record()}"])


def host(run: Run, deadline: float) -> Outcome:
    part = run.folder / "host.part"
    command = [sys.executable, "-m", "bench.host", "--json", "--only", run.only]
    status = run.process("host", command, deadline, output=part)
    if status == 0:
        part.replace(run.folder / "host-times.json")
    return outcome_of(status, again=True)


def tune(run: Run, deadline: float) -> Outcome:
    done = run.folder / "tune.done"
    command = [sys.executable, "-m", "bench.gpu_tune", "--done", done, "--only", run.only]
    status = run.process("tune", command, deadline)
    return outcome_of(status, again=True)


def ncu(run: Run, deadline: float) -> Outcome:
    """Nsight Compute's figures of the kernels whose names match --only."""
    tool = shutil.which("ncu")
    if tool is None:
        return Outcome("skipped", False, "there is no ncu here")
    command = [
        tool, "--set", "basic", "--csv", "--kernel-name", f"regex:{run.only or '.*'}",
        "--log-file", run.folder / "ncu.csv", sys.executable, "-m", "bench.gpu_kernels",
    ]  # fmt: skip
    status = run.process("ncu", command, deadline)
    return outcome_of(status, again=True)


class Part(NamedTuple):
    work: Callable[[Run, float], Outcome]
    limit: float  # seconds
    kept: float  # seconds that the parts before it leave


# In the order they are done. ncu only if it is asked for.
PARTS = {
    "build": Part(build, 300, 300),  # nothing runs without it
    "tests": Part(tests, 180, 60),
    "sanitizer": Part(sanitizer, 60, 20),
    "bench": Part(bench, 240, 120),
    "host": Part(host, 30, 20),
    "tune": Part(tune, 120, 20),
    "ncu": Part(ncu, 60, 20),
}
USUAL = [name for name in PARTS if name != "ncu"]


def perform(run: Run, names: list[str], parts: dict[str, Part] = PARTS) -> None:
    """The parts named, in their order, each until its deadline."""
    names = [name for name in parts if name in names]
    for at, name in enumerate(names):
        result = run.folder / f"{name}.json"
        done = json.loads(result.read_text()) if result.exists() else {}
        # What is built here may be another commit's or card's: ninja knows what there is to do.
        if name != "build" and done.get("complete") and done.get("only") == run.only:
            print(f"{name}: there already", flush=True)
            continue
        part, begin = parts[name], time.time()
        left = run.end - begin - sum(parts[later].kept for later in names[at + 1 :])
        if run.end - begin <= 1:
            print(f"{name}: no time left", flush=True)
            continue
        # Who tries the stub may share a slow machine, and waits for no card.
        most = part.limit * (10 if gpu_device.STUB else 1)
        limit = min(most, max(left, min(part.kept, run.end - begin)))
        print(f"{name}: {limit:.0f} s at most", flush=True)
        try:
            outcome = part.work(run, begin + limit)
        except Exception as error:  # whatever it is, the next part goes on
            outcome = Outcome("failed", False, f"{type(error).__name__}: {error}")
        text = json.dumps(
            {
                "part": name,
                "status": outcome.status,
                "complete": outcome.complete,
                "told": outcome.told,
                "seconds": round(done.get("seconds", 0) + time.time() - begin, 1),
                "commit": run.environment["DEEPL0_COMMIT"],
                "only": run.only,
            },
            indent=1,
        )
        write(result, text)
        print(f"{name}: {outcome.status} {outcome.told}", flush=True)


def write(path: Path, text: str) -> None:
    """At once or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text + "\n")
    part.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=9, help="for everything (9)")
    parser.add_argument("--parts", default=",".join(USUAL), help=f"of {','.join(PARTS)}")
    parser.add_argument("--only", default="", help="regular expression: tests, kernels, operators")
    parser.add_argument("--stub", action="store_true", help="a device made up: measures nothing")
    options = parser.parse_args(arguments)
    begin = time.time()
    names = options.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--parts must be among {','.join(PARTS)}, got {','.join(unknown)}")
    try:
        re.compile(options.only)
    except re.error as error:
        parser.error(f"--only must be a regular expression, got {options.only!r}: {error}")
    if options.minutes <= 0:
        parser.error(f"--minutes must be > 0, got {options.minutes:g}")
    if options.stub and not gpu_device.STUB:
        os.environ["DEEPL0_GPU_STUB"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "bench.gpu", *(arguments or sys.argv[1:])])
    if not gpu_device.present():
        print(
            "torch sees no GPU here: nothing is measured (--stub tries the command)",
            file=sys.stderr,
        )
        return 2
    card = gpu_device.card()
    end = begin + 60 * options.minutes - min(GRACE, 6 * options.minutes)
    run = Run(options.out, card, records.commit(), end, options.only)
    perform(run, names)
    summary = gpu_summary.page(run.folder, card, torch.__version__, names)
    write(run.folder / "summary.txt", summary)
    print(summary)
    results = [run.folder / f"{name}.json" for name in names]
    done = [json.loads(path.read_text()) for path in results if path.exists()]
    return int(
        any(result["status"] in ("failed", "cut") for result in done) or len(done) < len(names)
    )


if __name__ == "__main__":
    sys.exit(main())
