"""Run the suites, rewrite the record, draw the figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from . import draw, records

if __name__ == "__main__":
    record = records.FOLDER / "cpu.csv"
    suites = [str(p) for p in sorted(Path(__file__).parent.glob("bench_*.py"))]
    status = pytest.main(
        [*suites, "-q", "-o", "python_files=bench_*.py", "--benchmark-columns=median,rounds",
         "--benchmark-sort=name", f"--record={record}", *sys.argv[1:]]
    )  # fmt: skip
    if status == 0:
        draw.all_figures(record)
    sys.exit(status)
