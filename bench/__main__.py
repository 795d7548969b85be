"""Run the suites, rewrite the record, draw the tables and the figure."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from . import draw, gpu_device, records

FOLDER = Path(__file__).parent
GPU = FOLDER / "bench_gpu.py"


def suites(record: Path, files: list[Path]) -> int:
    return pytest.main(
        [*map(str, files), "-q", "-rs", "-o", "python_files=bench_*.py",
         "--benchmark-columns=median,rounds", "--benchmark-sort=name", f"--record={record}",
         *sys.argv[1:]]
    )  # fmt: skip


if __name__ == "__main__":
    record = records.FOLDER / "cpu.csv"
    status = suites(record, [p for p in sorted(FOLDER.glob("bench_*.py")) if p != GPU])
    if status == 0:
        draw.cpu_tables(record)
    # Where there is a GPU, its record stands beside that of the CPU; `make gpu` measures it better.
    if status == 0 and gpu_device.present():
        status = suites(records.FOLDER / f"gpu-{gpu_device.card().slug}.csv", [GPU])
    if status == 0:
        draw.gpu_tables()
    sys.exit(status)
