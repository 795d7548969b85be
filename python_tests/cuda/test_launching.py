"""How kernels are launched: on the current stream, capturable, on tensors of torch's allocator,
with errors that name the kernel; and what is allowed only on request."""

from __future__ import annotations

import importlib
import re
import subprocess

import pytest
import torch

import deepl0_kernels as dk
from bench import records
from bench.conftest import OURS
from deepl0_kernels import reference
from deepl0_kernels.cuda import library
from python_tests.triton.problems import PROBLEMS, backward, leaf

from . import build
from .recording import recording
from .test_sparse import code

backends = importlib.import_module("deepl0_kernels.backends")
SERVED = (
    "top_m", "batch_top_m", "encode", "encode, long codes", "decode", "nonnegative codes",
    "factored",
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("module", SERVED)
def test_launchers_are_capturable_and_use_the_current_stream(emulator, module, dtype):
    """At the sizes of the Triton matrix: nothing is read back, copied from the host or added in no
    order; the emulator refuses a launch on any other stream than the current one."""
    for problem in PROBLEMS[module]:
        if problem.name.startswith("stages"):  # of Triton alone
            continue
        if "encoders" in problem.name and not served(problem.name):
            continue
        with recording(emulator) as launches:
            problem.call(dtype)
        assert launches, problem.name
        assert all(0 < n.grid < 1 << 31 for n in launches)


def served(name: str) -> bool:
    """Sizes that the sort of a whole batch's supports holds: below 2^31 entries."""
    batch, m = int(re.findall(r"\[(\d+)", name)[0]), int(re.findall(r"m=(\d+)", name)[0])
    return batch * m < 1 << 31


def test_the_runtime_is_called_for_nothing_that_waits_or_allocates():
    """The launchers are linked against the emulated runtime, which has no more than this."""
    built = build.build()
    wanted = set()
    for path in (*built.library.parent.glob("*.o"), *built.kernels.glob("*.o")):
        if path.stem in build.SOURCES or path.stem.startswith("cuda_"):
            out = subprocess.run(
                ["nm", "--undefined-only", path], capture_output=True, text=True, check=True
            ).stdout
            wanted |= set(re.findall(r"\bU (cuda\w+)", out))
    assert wanted <= {
        "cudaDeviceGetAttribute", "cudaFuncGetAttributes", "cudaFuncSetAttribute", "cudaGetDevice",
        "cudaGetErrorString", "cudaGetLastError", "cudaLaunchKernel", "cudaMemcpyAsync",
        "cudaMemsetAsync",
    }  # fmt: skip
    assert "cudaMemsetAsync" in wanted


def test_every_launch_is_checked_by_name():
    for source in build.SOURCES:
        text = (build.CSRC / "cuda" / f"{source}.cu").read_text()
        for after in text.split("<<<")[1:]:  # to the next launch
            name = re.search(r"launched\((name|\"\w+_kernel\")\)", after)
            assert name, f"{source}: a launch that is not checked: {after[:80]}"
    assert "guard_.emplace(device)" in (build.CSRC / "torch/cuda/bindings.cpp").read_text()


def test_a_device_that_cannot_run_the_kernels_is_left_out(ops, emulator, monkeypatch):
    monkeypatch.setattr(library, "kernels", ops)
    library.refusal.cache_clear()
    gpu = torch.device("cuda", 0)
    assert library.refusal(gpu) is None
    library.refusal.cache_clear()
    emulator.refuse(b"no kernel image is available")
    try:
        assert library.refusal(gpu) == "CUDA: apply_mask_kernel: no kernel image is available"

        class OnGpu:
            device = gpu

        both = ("cuda", "triton")
        assert backends.choose("top_m", both, (OnGpu(),)) == "triton"
        # Alone or forced, the launch itself says what is wrong.
        assert backends.choose("top_m", ("cuda",), (OnGpu(),)) == "cuda"
        monkeypatch.setattr(backends, "_forced", "cuda")
        assert backends.choose("top_m", both, (OnGpu(),)) == "cuda"
    finally:
        emulator.refuse(None)
        library.refusal.cache_clear()


def test_the_choice_is_that_of_the_record():
    """What ``backends.choose`` takes is nowhere slower than Triton's kernels by more than a quarter
    and 4 us, as measured on a GPU in CUDA graphs, which no launch overhead hides."""
    names = {OURS: "cuda", f"{OURS}, triton": "triton"}
    found = {
        (row.operator, row.shape, names[row.provider]): row.p50
        for row in records.read(records.FOLDER / "gpu-h200.csv")
        if row.operator.endswith(", graph") and row.provider in names
    }
    both = [key[:2] for key in found if key[2] == "triton"]
    assert len(both) > 50
    for operator, shape in both:
        mine, other = (found[operator, shape, floor] for floor in ("cuda", "triton"))
        assert mine <= 1.25 * other + 4, (operator, shape, mine, other)


@pytest.mark.parametrize(("batch", "p", "m"), [(3, 8, 8), (20, 50, 3), (2, 300, 40)])
def test_the_atomic_sum(ops, batch, p, m):
    du, rows = code(batch, p, m)
    z, columns = code(batch, p, m)
    out = torch.full((p, p), torch.nan)
    ops.outer_atomic(rows, du, columns, z, out, False)
    want = reference.unpool(du, rows, p).double().t() @ reference.unpool(z, columns, p).double()
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
    ops.outer_atomic(rows, du, columns, z, out, True)
    torch.testing.assert_close(out.double(), 2 * want, rtol=1e-5, atol=1e-5)
    for bad in (-1, p):
        for wrong in (0, 1):
            at = [rows.clone(), columns.clone()]
            at[wrong][1, 0] = bad
            with pytest.raises(RuntimeError, match="outer_atomic_kernel: DeviceTrap"):
                ops.outer_atomic(at[0], du, at[1], z, out, False)


@pytest.fixture
def atomics(force):
    force("gathers")
    dk.allow_atomics()
    yield
    dk.allow_atomics(False)


def gradient_of_steps(device: str) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    x, W, S = (torch.randn(*s, generator=g) for s in ((5, 6), (40, 6), (40, 40)))
    leaves = [t.to(device).requires_grad_() for t in (x, W, 0.1 * S)]
    out = dk.encode_top_m(*leaves, 4, num_stages=3).values
    return torch.autograd.grad(out.square().sum(), leaves[2])[0]


def test_atomics_on_request_give_the_same_gradient(device, emulator, atomics):
    with dk.use_backend("reference"):
        want = gradient_of_steps(device)
    emulator.launches.clear()
    with dk.use_backend("cuda"), pytest.warns(UserWarning, match="not deterministic"):
        got = gradient_of_steps(device)  # the fixture of the emulator has warn_only
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    if device == "cpu":
        assert [n.kernel for n in emulator.launches].count("outer_atomic_kernel") == 2
    dk.allow_atomics(False)
    emulator.launches.clear()
    with dk.use_backend("cuda"):
        gradient_of_steps(device)
    assert "outer_atomic_kernel" not in [n.kernel for n in emulator.launches]


def test_atomics_are_refused_under_deterministic_algorithms(device, atomics):
    torch.use_deterministic_algorithms(True)
    with dk.use_backend("cuda"), pytest.raises(RuntimeError, match="allow_atomics"):
        gradient_of_steps(device)
    torch.use_deterministic_algorithms(True, warn_only=True)


def kernels_of(emulator, m: int, p: int = 640) -> set[str]:
    """Of a forward of two stages and its backward in S."""
    with recording(emulator) as launches:
        x, W, S = (torch.empty(s, device="meta") for s in ((2, 4), (p, 4), (p, p)))
        S.requires_grad_()
        values = dk.encode_top_m(x, W, S, m).values
        torch.autograd.grad(values, S, torch.empty_like(values))
    return {n.kernel for n in launches}


def test_tf32_moves_the_crossover_however_it_was_allowed(emulator):
    def gathers() -> list[bool]:
        found = [kernels_of(emulator, m) for m in (161, 160, 11, 10)]
        assert all(("unpool_kernel" in k) for k in found)  # dS of so small a batch
        return ["gather_top_m_warp_kernel" in k for k in found]

    assert gathers() == [False, True, True, True]
    torch.set_float32_matmul_precision("high")
    try:
        assert gathers() == [False, False, False, True]
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert gathers() == [False, False, False, True]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert gathers() == [False, True, True, True]


def test_small_sums_over_the_batch_are_dense_products(emulator):
    def sorts(batch: int, p: int, m: int) -> bool:
        with recording(emulator) as launches:
            values, at = (torch.empty(batch, m, device="meta") for _ in range(2))
            grad, D = torch.empty(batch, 128, device="meta"), torch.empty(128, p, device="meta")
            torch.ops.deepl0.decode_backward(grad, values, at.long(), D, 2)
        return "sort_scatter_kernel" in {n.kernel for n in launches}

    assert not sorts(1 << 17, 119, 10)
    assert sorts(1 << 17, 120, 10)
    assert not sorts(1 << 12, 120, 10)


@pytest.mark.parametrize(
    ("dtype", "p", "m", "dense"),
    [(torch.bfloat16, 512, 32, True), (torch.float16, 1024, 32, True),
     (torch.bfloat16, 1024, 31, False), (torch.bfloat16, 1056, 64, False),
     (torch.float32, 512, 32, False)],
    ids=str,
)  # fmt: skip
def test_few_units_of_half_types_are_decoded_by_products(emulator, dtype, p, m, dense):
    with recording(emulator) as launches:
        values, D = (torch.empty(s, dtype=dtype, device="meta") for s in ((4096, m), (256, p)))
        at = torch.empty(values.shape, dtype=torch.int64, device="meta")
        grad = torch.ops.deepl0.decode(values, at, D)
        forward = {n.kernel for n in launches}
        torch.ops.deepl0.decode_backward(grad, values, at, D, 3)
    every = {n.kernel for n in launches}
    assert ("unpool_kernel" in forward, "gather_rows_kernel" in forward) == (dense, not dense)
    assert ("entries_at_kernel" in every, "row_dots_kernel" in every) == (dense, not dense)
    # Its product being fast, dD of half types is sorted only where it is 8 times as large.
    assert ("sort_scatter_kernel" in every) == (dtype == torch.float32)


def test_training_on_meta_tensors_leaves_no_trace(emulator):
    before = dk.backends()
    with recording(emulator) as launches:
        u = leaf(3, 40)
        backward(dk.keep_top_m(u, 2), u)
    assert [n.kernel for n in launches] == ["top_m_warp_kernel", "apply_mask_kernel"]
    assert dk.backends() == before
