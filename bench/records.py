"""The record of a benchmark run: one CSV row per operator, shape and provider."""

from __future__ import annotations

import csv
import functools
import hashlib
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(__file__).parent / "records"


@dataclass(frozen=True)
class Row:
    """One provider on one shape; times are microseconds per call."""

    operator: str
    shape: str
    threads: int
    provider: str
    p20: float
    p50: float
    p80: float
    rounds: int
    against: str
    speedup: float  # of this provider over the one of the column before, medians
    time: str
    machine: str
    isa: str
    torch: str
    deepl0: str
    # Empty where it was not written down, or there is none.
    commit: str = ""
    triton: str = ""
    driver: str = ""


def machine() -> str:
    """CPU model, cores, cache: what a figure must be read with."""
    model, l2 = platform.processor(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        info = dict(
            [part.strip() for part in line.split(":", 1)]
            for line in cpuinfo.read_text().splitlines()
            if ":" in line
        )
        family = f"family {info.get('cpu family')} model {info.get('model')}"
        model = f"{info.get('model name', model)} ({family})"
    cache = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
    if cache.exists():
        l2 = f", L2 {cache.read_text().strip()}"
    return f"{model}, {os.cpu_count()} cores{l2}"


def environment() -> dict[str, str]:
    """The columns that are equal in all rows of a run."""
    import deepl0_kernels as dk  # the summary of a run whose build failed needs no extension

    return {
        "time": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "machine": machine(),
        "isa": dk.build_info()["isa_active"],
        "torch": torch.__version__,
        "deepl0": dk.__version__,
        "commit": commit(),
    }


@functools.cache
def commit() -> str:
    """The commit of the sources, and of what differs from it a hash; DEEPL0_COMMIT if that is set.

    Without git, as in a copy of the files, a hash of the sources.
    """
    if named := os.environ.get("DEEPL0_COMMIT"):
        return named

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != ROOT:
            return _hash_of_sources()
        head = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--", *SOURCES)
    except (OSError, subprocess.CalledProcessError):
        return _hash_of_sources()
    return f"{head}+{_hash_of_sources()}" if changed else head


SOURCES = (
    "deepl0_kernels",
    "csrc",
    "bench",
    "python_tests",
    "setup.py",
    "cuda_toolkit.py",
    "pyproject.toml",
)


def _hash_of_sources() -> str:
    digest = hashlib.sha256()
    for name in SOURCES:
        top = ROOT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh", ".mk", ".toml"):
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def write(path: Path, rows: Iterable[Row]) -> None:
    """Replace the rows of the same operator, shape and threads; the file changes at once or not."""
    rows = list(rows)
    fresh = {(r.operator, r.shape, r.threads) for r in rows}
    kept = (
        [r for r in read(path) if (r.operator, r.shape, r.threads) not in fresh]
        if path.exists()
        else []
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(r) for r in kept + rows)
    part.replace(path)


def read(path: Path) -> list[Row]:
    numbers = {
        "threads": int,
        "rounds": int,
        **dict.fromkeys(("p20", "p50", "p80", "speedup"), float),
    }
    with path.open(newline="") as file:
        return [
            Row(**{name: numbers.get(name, str)(value) for name, value in line.items()})
            for line in csv.DictReader(file)
        ]
