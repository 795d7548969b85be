"""Engines that run the Triton kernels on CPU tensors, behind the public operators.

With TRITON_INTERPRET=1 the engine is triton's interpreter. Without it, every kernel is compiled
ahead of time for sm_80 and for sm_90, and its PTX is executed by python_tests/ptx. (One process
cannot do both.) On a machine with a GPU the tests of this folder run the kernels there as well.
"""

from __future__ import annotations

import itertools
import os
import warnings

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.backends import GPU, serve_device
from deepl0_kernels.ops import registration

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ENGINES = ["interpreter"] if INTERPRETED else ["sm80", "sm90"]
if torch.cuda.is_available() and not INTERPRETED:
    ENGINES.append("gpu")
# Tests of matrix products, which every target does by other instructions, run on all engines; the
# others on one, and the GPU. Every target's mutants are in test_mutants.py.
EVERY = pytest.mark.parametrize("engine", ENGINES, indirect=True)
ONE = ENGINES[-2:] if ENGINES[-1] == "gpu" else ENGINES[-1:]

# Of opcheck, what a floor has to do with; the rest of the registration is python_tests/ops's.
CHECKS = ("test_schema", "test_faketensor")

if INTERPRETED:  # what these look at is the compiler's work
    collect_ignore = ["test_aot.py", "test_mutants.py"]
if not GPU["triton"].installed():
    if os.environ.get("DEEPL0_NO_SKIPS") == "1":
        raise RuntimeError("triton is not installed, so the tests of its kernels cannot run")
    warnings.warn("triton is not installed: no test of its kernels", stacklevel=1)
    collect_ignore_glob = ["test_*.py"]


def crossed(*axes: list) -> list[tuple]:
    """All combinations of the values; where kernels are compiled, which takes long, every value of
    every axis at least once."""
    if INTERPRETED:
        return list(itertools.product(*axes))
    return [tuple(axis[i % len(axis)] for axis in axes) for i in range(max(map(len, axes)))]


def round_to_nearest(monkeypatch):
    """float32 to bfloat16 as a GPU does it: triton's interpreter truncates."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast = InterpreterBuilder.cast_impl

    def rounding(self, src, dst_type):
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, src, dst_type)
        rounded = torch.from_numpy(np.ascontiguousarray(src.data)).bfloat16().view(torch.uint16)
        return TensorHandle(rounded.numpy(), dst_type.scalar)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", rounding)


def patch_once(monkeypatch):
    """Triton's interpreter looks through all of its language at every call of a function from a
    kernel, for what the kernel's launch has replaced already: a quarter of its time."""
    from triton.runtime import interpreter

    patch, inside = interpreter._patch_lang, {}  # the globals that a launch has patched -> scope

    def once(fn):
        if id(fn.__globals__) in inside:
            return inside[id(fn.__globals__)]
        scope = inside[id(fn.__globals__)] = patch(fn)
        restore = scope.restore

        def leave():  # called of the launch's own scope alone
            inside.clear()
            restore()

        scope.restore = leave
        return scope

    monkeypatch.setattr(interpreter, "_patch_lang", once)


@pytest.fixture(params=ONE)
def engine(request, monkeypatch):
    """Serve the device under test by Triton through the named engine.

    Fresh memory holds NaN, so that a kernel that reads what nobody wrote shows it.
    """
    if request.param == "gpu":
        with dk.use_backend("triton"):
            yield "gpu"
        return
    if request.param == "interpreter":
        round_to_nearest(monkeypatch)
        patch_once(monkeypatch)
    else:
        from deepl0_kernels.triton import launch
        from python_tests.ptx.engine import launch as run_ptx

        monkeypatch.setattr(
            launch,
            "run",
            lambda job: run_ptx(
                job.kernel, job.grid, job.args, job.constants,
                num_warps=job.config.warps, num_stages=1,
                target=int(request.param[2:]),
            ),
        )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Overriding a previously registered kernel")
        library = registration.serve_natively("cpu", ("triton",))
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield request.param
    torch.use_deterministic_algorithms(False)
    library._destroy()
    serve_device("cpu", "cpu")


@pytest.fixture
def device(engine) -> str:
    """Where the tensors of a test live."""
    return "cuda" if engine == "gpu" else "cpu"
