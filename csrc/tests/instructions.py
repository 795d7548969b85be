"""Instructions per row of the main kernels, counted by callgrind: a regression shows without a
quiet machine.

    python instructions.py PROGRAM           compare with instructions.csv, fail on a rise
    python instructions.py PROGRAM --record  write instructions.csv

valgrind knows no AVX-512, so the levels scalar and avx2 are counted.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from bench import instructions

RECORD = Path(__file__).with_name("instructions.csv")
KERNELS = ("top_m", "keep_top_m", "helu", "encode_two_stages")
KERNELS += tuple(f"positive_{kernel}" for kernel in KERNELS)
LEVELS = ("scalar", "avx2")
ROWS = 64


def count(program: str, kernel: str, level: str, rows: int) -> int:
    done = subprocess.run(
        [
            "valgrind",
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            program,
            kernel,
            str(rows),
        ],
        env=os.environ | {"DEEPL0_ISA": level},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(re.search(r"Collected : (\d+)", done.stderr)[1])


def per_row(program: str, kernel: str, level: str) -> int:
    """Setting up cancels; drawing the data does too, but for the rows in between."""
    return (count(program, kernel, level, 2 * ROWS) - count(program, kernel, level, ROWS)) // ROWS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    if not shutil.which("valgrind"):
        print("valgrind is not installed", file=sys.stderr)
        return 2
    version = subprocess.run(
        [os.environ.get("CXX", "g++"), "-dumpfullversion"],
        capture_output=True,
        text=True,
        check=True,
    )
    compiler = f"g++ {version.stdout.strip()}"
    found = {
        f"{kernel}, {level}": {
            "per row": per_row(arguments.program, kernel, level)
            - per_row(arguments.program, "none", level)
        }
        for kernel in KERNELS
        for level in LEVELS
    }
    if arguments.record:
        instructions.write(RECORD, found, compiler)
    return instructions.compare(found, instructions.read(RECORD), compiler)


if __name__ == "__main__":
    sys.exit(main())
