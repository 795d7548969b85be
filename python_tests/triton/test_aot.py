"""Every shipped kernel, configuration and target compiles, fits, spills nothing, uses the matrix
unit where it should and keeps its offsets in 64 bits."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from deepl0_kernels import triton as floor
from deepl0_kernels.triton import _MODULES, table

from .conftest import INTERPRETED

if INTERPRETED:
    pytest.skip("triton either interprets or compiles in one process", allow_module_level=True)

from . import aot, aot_table, offsets

# Kernel -> why it may spill, and how much at most.
SPILLS: dict[str, int] = {}


def faults(builds: list[aot.Build], target: str) -> list[str]:
    """What is wrong with ``builds``, in words."""
    limit = table.SHARED_BYTES[aot.TARGETS[target].device_class]
    found = []
    for b in builds:
        wrong = {
            f"{b.shared} bytes of shared memory, the limit is {limit}": b.shared > limit,
            f"{b.spills} bytes spilled": b.spills > SPILLS.get(b.kernel, 0),
            "a block does not fit on the SM": b.occupancy == 0,
            "no matrix instruction": b.needs_matrix and not b.matrix,
            f"32-bit offsets overflow: {b.overflows}": b.overflows,
            "floating-point atomics": b.atomics,
        }
        found += [f"{b.kernel} {b.config}: {what}" for what, is_so in wrong.items() if is_so]
    return found


@pytest.mark.parametrize("target", ["sm80", "sm90", "gfx942"])
@pytest.mark.parametrize("module", _MODULES)
def test_main_configurations(module, target):
    jobs = aot.launches(target, module, (torch.float32, torch.bfloat16), quick=True)
    builds = aot.build_all(jobs, target)
    assert builds
    assert not faults(builds, target)


@pytest.mark.aot
@pytest.mark.parametrize("target", aot.TARGETS)
@pytest.mark.parametrize("module", _MODULES)
def test_everything(module, target):
    builds = aot.build_all(aot.launches(target, module), target)
    assert not faults(builds, target)
    lines = aot_table.lines(module, {target: aot.cells(builds)})
    page = aot_table.committed()
    for line in lines:
        name = tuple(cell.strip() for cell in line.strip("|").split("|")[:3])
        cell = line.strip("|").split("|")[3 + list(aot.TARGETS).index(target)].strip()
        assert page[name][target] == cell, name


def test_the_committed_table_has_what_is_shipped():
    shipped = {
        (module, job.kernel.__name__, aot_table.tile(job.config), target)
        for target in aot.TARGETS
        for module in _MODULES
        for job in aot.launches(target, module)
    }
    page = {(*name, target) for name, row in aot_table.committed().items() for target in row}
    assert page == shipped, "python -m python_tests.triton.aot_table --write"


def test_every_kernel_and_entry_of_the_table_is_reached():
    jobs = [j for t in aot.TARGETS for m in _MODULES for j in aot.launches(t, m)]
    kernels = set()
    for path in Path(floor.__file__).parent.glob("*.py"):
        kernels |= {
            node.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
        }
    assert {j.kernel.__name__ for j in jobs} == kernels
    used = {j.config for j in jobs}
    unused = {(k, c) for k, entries in table.TABLE.items() for _, c in entries if c not in used}
    assert not unused
