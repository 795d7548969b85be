"""Shared by the tests: hand-written kernels, and the conditions for Triton and nvcc."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from .decode import DTYPES
from .engine import run_ptx
from .layout import Options


def module(
    body: str, registers: str = "", params: int = 4, declarations: str = "", target: str = "sm_80"
) -> str:
    """A module with one kernel `test` whose pointer parameters are in %rd0, %rd1, ..."""
    names = ", ".join(f".param .u64 p{i}" for i in range(params))
    loads = "\n".join(
        f"ld.param.u64 %rd{i}, [p{i}]; cvta.to.global.u64 %rd{i}, %rd{i};" for i in range(params)
    )
    return f"""
.version 8.0
.target {target}
.address_size 64
{declarations}
.visible .entry test({names})
{{
  .reg .pred %p<16>; .reg .b16 %h<32>; .reg .b32 %r<64>; .reg .f32 %f<32>;
  .reg .b64 %rd<64>; .reg .f64 %d<16>;
  {registers}
  {loads}
  mov.u32 %r0, %tid.x;
{body}
  ret;
}}
"""


def execute(
    body: str,
    *arrays: np.ndarray,
    threads: int = 64,
    grid: int = 1,
    shared_bytes: int = 0,
    options: Options | None = None,
    **more,
) -> None:
    """Run a hand-written body on arrays, which become %rd0, %rd1, ..."""
    text = module(body, params=max(len(arrays), 1), **more)
    run_ptx(text, "test", grid, threads, list(arrays), shared_bytes, options=options)


def apply(instruction: str, out: str, *inputs: tuple[str, np.ndarray]) -> np.ndarray:
    """One instruction on all elements: `add.s32 {d}, {a}, {b};` with {d} of PTX type `out`."""
    count = len(inputs[0][1])
    letter = {1: "%h", 2: "%h", 4: "%r", 8: "%rd"}
    lines, names = [], {}
    dtype = DTYPES[out] if out != "pred" else np.dtype("i4")
    result = np.zeros(count, dtype)
    for i, (kind, values) in enumerate(inputs):
        assert values.dtype.itemsize == DTYPES[kind].itemsize
        width = DTYPES[kind].itemsize
        register = f"{letter[width]}{20 + i}"
        names["abcdef"[i]] = register
        lines += [
            f"mul.wide.u32 %rd10, %r0, {width}; add.s64 %rd11, %rd{i + 1}, %rd10;",
            f"ld.global.b{8 * width} {register}, [%rd11];",
        ]
    width = dtype.itemsize
    names["d"] = "%p1" if out == "pred" else f"{letter[width]}30"
    lines.append(instruction.format(**names))
    if out == "pred":
        lines.append("selp.b32 %r30, 1, 0, %p1;")
        names["d"] = "%r30"
    lines += [
        f"mul.wide.u32 %rd10, %r0, {width}; add.s64 %rd11, %rd0, %rd10;",
        f"st.global.b{8 * width} [%rd11], {names['d']};",
    ]
    arrays = [np.ascontiguousarray(values) for _, values in inputs]
    execute("\n".join(lines), result, *arrays, threads=count)
    return result.astype(bool) if out == "pred" else result


def require_triton() -> None:
    """Skip a test module where Triton cannot compile."""
    pytest.importorskip("triton", reason="triton is not installed")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip(
            "TRITON_INTERPRET=1 replaces the compiler these tests need", allow_module_level=True
        )


def find_nvcc() -> str:
    """Path of nvcc, honouring CUDA_HOME; skips the test where there is none."""
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    found = found or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if not found:
        pytest.skip("nvcc is not installed")
    return found
