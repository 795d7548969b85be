"""Every shipped kernel, configuration and target compiles, fits, spills nothing and keeps its
offsets in 64 bits."""

from __future__ import annotations

import ast
import datetime
from pathlib import Path

import pytest
import torch
import triton

from deepl0_kernels import triton as floor
from deepl0_kernels.triton import table, tuned
from deepl0_kernels.triton.launch import Launch

from . import aot, aot_table, unsound_kernels
from .problems import PROBLEMS

QUICK = {"sm80": torch.float32, "sm90": torch.bfloat16, "gfx942": torch.bfloat16}

# Kernel, target -> bytes a thread that may spill, each stored and loaded once a program or tile.
SPILLS = {
    # ptxas aims at more blocks on the SM than the registers hold: 48, 72, 80, 128 a thread.
    ("apply_mask_fwd_kernel", "sm90"): 8,
    ("apply_mask_fwd_kernel", "sm120"): 16,
    ("combine_chunks_kernel", "sm100"): 8,
    ("combine_kernel", "sm86"): 8,
    ("combine_kernel", "sm89"): 8,
    ("decode_fwd_kernel", "sm80"): 8,
    ("outer_kernel", "sm80"): 8,
    ("outer_kernel", "sm90"): 8,
    ("threshold_bwd_kernel", "sm120"): 8,
    ("threshold_fwd_kernel", "sm90"): 8,
    ("threshold_fwd_kernel", "sm100"): 8,
    # Rows of 8192 in 16 warps: all 128 registers are in use.
    ("top_m_fwd_kernel", "sm86"): 16,
    ("top_m_fwd_kernel", "sm89"): 16,
    ("top_m_fwd_kernel", "sm90"): 8,
    ("top_m_fwd_kernel", "sm100"): 16,
    ("top_m_fwd_kernel", "sm120"): 16,
}

# Of any kernel, where the compiler is not the one that the configurations were chosen with, the
# page's.
OTHER_SPILLS = 256


def faults(builds: list[aot.Build], target: str) -> list[str]:
    """What is wrong with ``builds``, in words."""
    limit = table.SHARED_BYTES[aot.TARGETS[target].device_class]
    same = triton.__version__ == aot_table.written_with()
    found = []
    for b in builds:
        spills = SPILLS.get((b.kernel, target), 0) if same else OTHER_SPILLS
        wrong = {
            f"{b.shared} bytes of shared memory, the limit is {limit}": b.shared > limit,
            f"{b.spills} bytes spilled": b.spills > spills,
            "a block does not fit on the SM": b.occupancy == 0,
            f"32-bit offsets overflow: {b.overflows}": b.overflows,
            "floating-point atomics": b.atomics,
        }
        found += [f"{b.kernel} {b.config}: {what}" for what, is_so in wrong.items() if is_so]
    return found


@pytest.mark.parametrize("target", QUICK)
@pytest.mark.parametrize("module", PROBLEMS)
def test_main_configurations(module, target):
    builds = aot.build_all(aot.of_target(aot.launches(module, QUICK[target]), target), target)
    assert builds
    assert not faults(builds, target)


@pytest.mark.aot
@pytest.mark.parametrize("target", aot_table.due(datetime.date.today()))
@pytest.mark.parametrize("module", PROBLEMS)
def test_everything(module, target):
    builds = aot.build_all(aot.of_target(aot.launches(module), target), target)
    assert not faults(builds, target)
    if triton.__version__ != aot_table.written_with():
        return  # another compiler's registers are not those of the page
    lines = aot_table.lines(module, {target: aot.cells(builds)})
    page = aot_table.committed()
    for line in lines:
        name = tuple(cell.strip() for cell in line.strip("|").split("|")[:3])
        cell = line.strip("|").split("|")[3 + list(aot.TARGETS).index(target)].strip()
        assert page[name][target] == cell, name


def test_what_is_due(monkeypatch, tmp_path):
    """Everything of other sources or another compiler; of these, in any four days, everything."""
    page, day = tmp_path / "page.md", datetime.date(2026, 1, 1)
    monkeypatch.setattr(aot_table, "PATH", page)
    monkeypatch.delenv("DEEPL0_EVERYTHING", raising=False)
    page.write_text(aot_table.INTRODUCTION.replace(aot_table.sources(), "0" * 16))
    assert aot_table.due(day) == list(aot.TARGETS)
    page.write_text(aot_table.INTRODUCTION.replace(f"triton {triton.__version__}", "triton 3.0.1"))
    assert aot_table.due(day) == list(aot.TARGETS)
    page.write_text(aot_table.INTRODUCTION)
    found = [aot_table.due(day + datetime.timedelta(i)) for i in range(4)]
    assert sorted(target for targets in found for target in targets) == sorted(aot.TARGETS)
    assert max(map(len, found)) == 2
    monkeypatch.setenv("DEEPL0_EVERYTHING", "1")
    assert aot_table.due(day) == list(aot.TARGETS)


def test_the_committed_table_has_what_is_shipped():
    shipped = {
        (module, job.kernel.__name__, aot_table.tile(job.config), target)
        for target in aot.TARGETS
        for module in PROBLEMS
        for job in aot.of_target(aot.launches(module), target)
    }
    page = {(*name, target) for name, row in aot_table.committed().items() for target in row}
    assert page == shipped, "python -m python_tests.triton.aot_table --write"


def kernels_in_the_sources() -> set[str]:
    return {
        node.name
        for path in Path(floor.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }


def test_every_kernel_and_entry_of_the_table_is_reached():
    jobs = [job for module in PROBLEMS for job in aot.launches(module)]
    assert {j.kernel.__name__ for j in jobs} == kernels_in_the_sources()
    used = {j.config for j in jobs}
    unused = {(k, c) for k, entries in table.TABLE.items() for _, c in entries if c not in used}
    assert not unused


def build_of(kernel, *args, target="sm80", warps=4, **constants) -> aot.Build:
    config = tuned.Config(1, 1, warps=warps)
    job = Launch(getattr(unsound_kernels, kernel), (1 << 20, 1), args, constants, config)
    return aot.build_all([job], target)[0]


def test_unsound_kernels_are_found():
    x = torch.empty(1, device="meta")
    # The argument is not part of the specialisation: only the interpretation of the launch sees it.
    assert [bool(build_of("offset_kernel", x, n, WIDE=w).overflows)
            for n in (16, 4096) for w in (False, True)] == [False, False, True, False]  # fmt: skip
    index = torch.empty(1, device="meta", dtype=torch.int32)
    assert build_of("index_kernel", x, index, 1 << 17).overflows
    assert not build_of("index_kernel", x, index, 1 << 15).overflows
    assert build_of("atomic_kernel", x).atomics
    assert build_of("spill_kernel", x).spills > 0
    assert build_of("spill_kernel", x, target="gfx942", warps=1).spills > 0


def test_faults_are_told():
    build = build_of("atomic_kernel", torch.empty(1, device="meta"))
    sound = build._replace(atomics=False)
    assert not faults([sound], "sm80")
    for wrong in (
        {"shared": 164 << 10}, {"spills": 4}, {"occupancy": 0.0}, {"overflows": ("x",)},
        {"atomics": True},
    ):  # fmt: skip
        assert len(faults([sound._replace(**wrong)], "sm80")) == 1


def test_occupancy():
    """Against NVIDIA's own calculator for compute capability 8.0 and 9.0."""
    sm80 = aot.TARGETS["sm80"]
    assert aot.occupancy(sm80, 4, 32, 0) == 1.0
    assert aot.occupancy(sm80, 4, 64, 0) == 0.5
    assert aot.occupancy(sm80, 8, 255, 0) == 0.125
    assert aot.occupancy(sm80, 4, 32, 80 << 10) == 0.125
    assert aot.occupancy(aot.TARGETS["sm90"], 4, 32, 227 << 10) == 4 / 64
    assert aot.occupancy(sm80, 4, 32, 165 << 10) == 0.0
