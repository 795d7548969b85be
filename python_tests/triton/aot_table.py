"""docs/gpu-kernels.md: what the compiler made of every kernel, written from the build.

``python -m python_tests.triton.aot_table --write`` compiles everything, for every target.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import os
import re
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import triton

from deepl0_kernels.triton import tuned

from . import aot
from .problems import PROBLEMS

ROOT = Path(__file__).parents[2]
PATH = ROOT / "docs" / "gpu-kernels.md"


def sources() -> str:
    """What decides the cells: kernels, launchers, their table, problems, and how they compile."""
    names = ("aot", "offsets", "problems", "recording")
    files = [Path(__file__).with_name(f"{name}.py") for name in names]
    digest = hashlib.sha256()
    for path in (*sorted((ROOT / "deepl0_kernels" / "triton").glob("*.py")), *files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


INTRODUCTION = f"""# GPU kernels as compiled

Written by `python -m python_tests.triton.aot_table --write` with triton {triton.__version__} from
sources {sources()}; `pytest -m aot` compiles the same and compares: for every target where
sources or compiler are others, for a quarter of them by the day where they are these. Nothing here
was run on a GPU.

A line is a file of operators, a kernel they launch, and a configuration of the decision table
(`deepl0_kernels/triton/table.py`): rows x columns x depth of the tile, warps.
A cell holds, over all dtypes and specialisations that the operators launch for that target, the
worst: registers a thread (AMD: vector registers a lane); shared memory of a block; resident warps
over those of the SM or CU, as far as registers, shared memory and block size decide it; spills, if
there are any. Empty: that configuration does not serve that target. Products are PyTorch's.

"""


def lines(module: str, found: Mapping[str, Mapping[aot.Key, object]]) -> list[str]:
    """The lines of ``module``; ``found`` maps target -> kernel and configuration -> cell."""
    keys = sorted({key for per_target in found.values() for key in per_target})
    return [
        " | ".join(
            [f"| {module}", kernel, tile(config)]
            + [str(found.get(t, {}).get((kernel, config), "")) for t in aot.TARGETS]
        )
        + " |"
        for kernel, config in keys
    ]


def tile(c: tuned.Config) -> str:
    return f"{c.rows} x {c.columns} x {c.depth}, {c.warps} w"


def written_with() -> str:
    """The version of triton whose compiler the page shows."""
    found = re.search(r"with triton ([\d.]+\d)", PATH.read_text())
    assert found
    return found[1]


def due(day: datetime.date) -> list[str]:
    """The targets to compile: all, unless the page is of these sources and this compiler."""
    targets = list(aot.TARGETS)
    if (
        os.environ.get("DEEPL0_EVERYTHING") == "1"
        or f"sources {sources()};" not in PATH.read_text()
        or written_with() != triton.__version__
    ):
        return targets
    return targets[day.toordinal() % 4 :: 4]


def committed() -> dict[tuple[str, str, str], dict[str, str]]:
    """Operators, kernel and tile -> target -> cell, as PATH has them; empty cells are left out."""
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in PATH.read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| operators")
    ]
    return {
        (module, kernel, config): {t: c for t, c in zip(aot.TARGETS, rest, strict=True) if c}
        for module, kernel, config, *rest in rows
    }


def compiled(target: str, module: str) -> dict[aot.Key, aot.Cell]:
    return aot.cells(aot.build_all(aot.of_target(aot.launches(module), target), target))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"replace {PATH.name}")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    tasks = [(target, module) for module in PROBLEMS for target in aot.TARGETS]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        results = dict(zip(tasks, pool.map(compiled, *zip(*tasks, strict=True)), strict=True))
    text = page(results)
    if options.write:
        PATH.write_text(text)
    else:
        sys.stdout.write(text)


def page(results: Mapping[tuple[str, str], Mapping[aot.Key, object]]) -> str:
    """The file, from the cells of every target and module."""
    head = "| operators | kernel | tile, warps | " + " | ".join(aot.TARGETS) + " |"
    body = [head, "|---" * (3 + len(aot.TARGETS)) + "|"]
    for module in PROBLEMS:
        body += lines(module, {t: results[t, module] for t in aot.TARGETS})
    return INTRODUCTION + "\n".join(body) + "\n"


if __name__ == "__main__":
    main()
