"""Ahead-of-time compilation of every launch the operators make, for every device class.

The launches are those of the real launchers (see recording.py) and they are specialised by triton's
own binder, so what is compiled here is what a GPU would run. Not with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.jit import create_function_from_signature

from deepl0_kernels.triton import tuned
from deepl0_kernels.triton.launch import Launch

from . import offsets
from .problems import PROBLEMS
from .recording import recording


class Target(NamedTuple):
    """An architecture, the class of the table that serves it, and its limits per SM (CU)."""

    triton: GPUTarget
    device_class: str
    warps: int
    blocks: int
    shared: int  # bytes, with what the driver reserves per block
    registers: int = 65536
    reserved: int = 1024

    @property
    def is_cuda(self) -> bool:
        return self.triton.backend == "cuda"


TARGETS = {
    "sm80": Target(GPUTarget("cuda", 80, 32), "sm80", 64, 32, 164 << 10),
    "sm86": Target(GPUTarget("cuda", 86, 32), "sm86", 48, 16, 100 << 10),
    "sm89": Target(GPUTarget("cuda", 89, 32), "sm86", 48, 24, 100 << 10),
    "sm90": Target(GPUTarget("cuda", 90, 32), "sm90", 64, 32, 228 << 10),
    "sm100": Target(GPUTarget("cuda", 100, 32), "sm100", 64, 32, 228 << 10),
    "sm120": Target(GPUTarget("cuda", 120, 32), "sm120", 48, 24, 100 << 10),
    # Four SIMDs of 8 waves and 512 registers a lane each; a wave has 64 lanes.
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), "gfx942", 32, 32, 64 << 10, 131072, 0),
    "gfx950": Target(GPUTarget("hip", "gfx950", 64), "gfx950", 32, 32, 160 << 10, 131072, 0),
}

Key = tuple[str, tuned.Config]  # kernel, configuration


class Build(NamedTuple):
    """What the compiler made of one launch."""

    kernel: str
    config: tuned.Config
    registers: int
    shared: int
    spills: int  # bytes a thread
    occupancy: float  # resident warps over the SM's
    overflows: tuple[str, ...]  # 32-bit offsets that can pass 2^31
    atomics: bool  # floating-point atomics


# The targets on which also the rarer variants are compiled: ragged sizes, ramps, nothing saved.
THOROUGH = ("sm90",)


@functools.cache
def launches(module: str, *dtypes: torch.dtype) -> tuple[Launch, ...]:
    """What the operators of ``module`` launch, on any target: with one dtype by the problems marked
    quick, else by all in float32 and bfloat16."""
    jobs: list[Launch] = []
    with recording() as recorded:
        for problem in PROBLEMS[module]:
            if dtypes and not problem.quick:
                continue
            for dtype in dtypes or (torch.float32, torch.bfloat16):
                problem.call(dtype)
            # Kernels of float16 are those of bfloat16 but for the conversions.
            if not dtypes and problem.quick:
                problem.call(torch.float16)
            # Thousands of launches of a large batch are alike: one of each kind is kept.
            jobs += {_kind(job): job for job in recorded}.values()
            recorded.clear()
    return tuple(jobs)


def of_target(jobs: Iterable[Launch], target: str) -> list[Launch]:
    """Those to compile for ``target``: the rarer variants for few."""
    jobs = list(jobs)
    return jobs if target in THOROUGH else list({_main_kind(job): job for job in jobs}.values())


def _kind(job: Launch) -> tuple:
    args = (
        (a.dtype, a.storage_offset() % 16) if isinstance(a, torch.Tensor) else a for a in job.args
    )
    return job.kernel.__name__, job.config, job.grid, *args, *job.constants.values()


def _main_kind(job: Launch) -> tuple:
    """Kernel, configuration and dtypes, of operands that may be missing, without the rarer
    variants."""
    dtypes = (a.dtype if isinstance(a, torch.Tensor) else a is None for a in job.args)
    return job.kernel.__name__, job.config, *dtypes


def specialise(job: Launch, target: GPUTarget) -> tuple[ASTSource, dict[str, Any]]:
    """Source and options of ``job``, as a call on a device of that kind would make them."""
    backend = make_backend(target)
    kernel = job.kernel
    keywords = {**job.constants, "num_warps": job.config.warps, "num_stages": 1}
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, rest = bind(*job.args, **keywords)
    options, signature, constants, attributes = kernel._pack_args(
        backend, keywords, bound, specialization, rest
    )
    return ASTSource(kernel, signature, constants, attributes), options.__dict__


def build_all(jobs: Iterable[Launch], name: str) -> list[Build]:
    """One build per kernel, specialisation and configuration."""
    target = TARGETS[name].triton
    distinct: dict[tuple[str, tuned.Config], list[tuple[Launch, ASTSource, dict[str, Any]]]] = {}
    for job in jobs:
        source, options = specialise(job, target)
        distinct.setdefault((source.hash(), job.config), []).append((job, source, options))
    return [_build(same, name) for same in distinct.values()]


def _build(same: Sequence[tuple[Launch, ASTSource, dict[str, Any]]], name: str) -> Build:
    """Compile the first of launches that differ only in sizes; look at the sizes of all."""
    target = TARGETS[name]
    job, source, options = same[0]
    compiled = triton.compile(source, target=target.triton, options=options)
    ttir = compiled.asm["ttir"]
    registers, spills = (_cubin if target.is_cuda else _amdgcn)(compiled)
    shared = compiled.metadata.shared
    wide = {
        line
        for other, _, _ in same
        for line in offsets.overflows(ttir, _integers(other), other.grid)
    }
    return Build(
        job.kernel.__name__, job.config, registers, shared, spills,
        occupancy(target, job.config.warps, registers, shared),
        tuple(sorted(wide)), "tt.atomic_rmw fadd" in ttir,
    )  # fmt: skip


def _integers(job: Launch) -> dict[str, int]:
    names = [p.name for p in job.kernel.params if not p.is_constexpr]
    values = dict(zip(names, job.args, strict=False))
    return {name: int(v) for name, v in values.items() if isinstance(v, int)}


def _cubin(compiled: CompiledKernel) -> tuple[int, int]:
    """Registers a thread, bytes of stack a thread (spills)."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])


def _amdgcn(compiled: CompiledKernel) -> tuple[int, int]:
    """Vector registers a lane, bytes of scratch a lane (spills).

    Scalar registers spill to lanes of vector registers, which moves no memory: not counted.
    """
    code = compiled.asm["amdgcn"]

    def read(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", code)[1])

    spills = max(4 * read("vgpr_spill_count"), read("private_segment_fixed_size"))
    return read("vgpr_count"), spills


def occupancy(target: Target, warps: int, registers: int, shared: int) -> float:
    """Warps that fit on an SM (CU) at once, over those it can hold."""
    lanes = target.triton.warp_size
    unit = 256 if target.is_cuda else 8 * lanes  # registers are given to a warp in such portions
    per_warp = -(-max(registers, 1) * lanes // unit) * unit
    blocks = min(
        target.blocks,
        target.warps // warps,
        target.registers // per_warp // warps,
        target.shared // max(1, shared + target.reserved),
    )
    return blocks * warps / target.warps


class Cell(NamedTuple):
    """The builds of one kernel and configuration for one target, the worst of each figure."""

    registers: int
    shared: int
    spills: int
    occupancy: float

    def __str__(self) -> str:
        text = f"{self.registers} r, {self.shared / 1024:.3g} KB, {self.occupancy:.0%}"
        return text + (f", {self.spills} spilled" if self.spills else "")


def cells(builds: Iterable[Build]) -> dict[Key, Cell]:
    groups: dict[Key, list[Build]] = {}
    for b in builds:
        groups.setdefault((b.kernel, b.config), []).append(b)
    return {
        key: Cell(
            max(b.registers for b in group),
            max(b.shared for b in group),
            max(b.spills for b in group),
            min(b.occupancy for b in group),
        )
        for key, group in groups.items()
    }
