"""Instructions of the host in a call, counted by callgrind: a regression shows without a quiet
machine, in which the microseconds of ``bench.host`` are lost.

    python -m bench.host_instructions           compare with the record, fail on a rise over 5 %
    python -m bench.host_instructions --record  write bench/records/host-instructions.csv

The cases are those of ``bench.host``, on CPU tensors with launches that do nothing. A record of
another Python, torch or compiler is shown, not judged: they have most of the instructions.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

import deepl0_kernels as dk

from . import host, instructions, records

RECORD = records.FOLDER / "host-instructions.csv"
WARM, CALLS = 20, 50


def run_cases() -> None:
    """What callgrind watches: ours of every case, and eager's, in the order of their names."""
    from python_tests.cuda import build

    torch.set_num_threads(1)
    with host.device() as where:
        # Of csrc/tests/cuda_emulator.cpp, where valgrind's headers were found.
        counted = ctypes.CDLL(str(build.build().library)).emulator_counted
        for case in host.cases(where).values():
            for call in case:
                repeat(call, WARM)
                gc.collect()
                gc.disable()
                callback = ctypes.CFUNCTYPE(None)(lambda call=call: repeat(call, CALLS))
                counted(callback)
                gc.enable()


def repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def count() -> instructions.Counts:
    """Instructions of a call of ours, and of eager's."""
    from python_tests.cuda import build

    build.build()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "valgrind", "--tool=callgrind", "--instr-atstart=no",
            f"--callgrind-out-file={folder}/out",
            sys.executable, "-m", "bench.host_instructions", "--watched",
        ]  # fmt: skip
        # valgrind knows no AVX-512. The order of dictionaries is no matter of chance.
        env = os.environ | {"DEEPL0_ISA": "avx2", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, stderr=None)
        dumps = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        totals = [re.findall(r"^(?:totals|summary): (\d+)", p.read_text(), re.M) for p in dumps]
    per_call = [int(total[0]) // CALLS for total in totals if total and int(total[0])]
    names = list(host.cases("cpu"))
    assert len(per_call) == 2 * len(names), f"{len(per_call)} counts of {len(names)} cases"
    pairs = zip(per_call[::2], per_call[1::2], strict=True)
    return {name: {"ours": a, "eager": b} for name, (a, b) in zip(names, pairs, strict=True)}


def toolchain() -> str:
    compiler = dk.build_info()["compiler"]
    return f"Python {platform.python_version()}, torch {torch.__version__}, {compiler}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="write the record")
    parser.add_argument("--watched", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.watched:
        run_cases()
        return 0
    if not shutil.which("valgrind"):
        print("valgrind is not installed", file=sys.stderr)
        return 2
    found = count()
    if arguments.record:
        instructions.write(RECORD, found, toolchain())
    return instructions.compare(found, instructions.read(RECORD), toolchain())


if __name__ == "__main__":
    sys.exit(main())
