"""The operators on a GPU against torch eager, torch.compile and other top-k kernels.

Times are those of CUDA events, every provider in turn, round by round, three ways: the call with a
cold L2 (flushed before every call), the call with a warm one, and the call inside a CUDA graph,
which no launch overhead hides. A provider "copy of the same bytes" moves what the operator must
move: its time over ours is the share of the copy bandwidth that we reach. Without a GPU everything
here is skipped; ``problems`` is tested on a CPU with small shapes.
"""

from __future__ import annotations

import functools
import importlib
import re
import statistics
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.backends import GPU
from deepl0_kernels.cuda import library
from deepl0_kernels.ops.least_squares import least_squares as solve
from deepl0_kernels.ops.omp import omp as pursue

from . import gpu_cub, gpu_device, records, rivals
from .conftest import EAGER, OURS, _rows
from .draw import COMPILED, COPY
from .rivals import eager_encode_l0, eager_encode_top_m, eager_iht_m, eager_keep_top_m, eager_top_m

N, M = 256, 32
DTYPES = (torch.float32, torch.bfloat16)

pytestmark = pytest.mark.skipif(
    not gpu_device.present(), reason="torch sees no GPU: nothing is measured"
)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Problem(NamedTuple):
    """Providers of one operator on one shape, the check of a result, and the bytes it must move."""

    operator: str
    shape: str
    providers: dict[str, Callable[[], object]]
    check: Callable[[str, object], None]
    bytes: int


def top_m(batch: int, p: int, m: int, dtype: torch.dtype, device: str) -> Problem:
    u = torch.randn(batch, p, device=device).to(dtype)
    want = dk.reference.top_m(u, m)[1]
    providers = {EAGER: lambda: eager_top_m(u, m), OURS: lambda: dk.top_m(u, m)}
    for package, name in (("quack.topk", "topk"), ("flashinfer", "top_k")):
        if other := _optional(package, name):
            providers[package.split(".")[0]] = lambda other=other: _by_magnitude(other, u, m)
    if other := gpu_cub.top_k(u, m):
        providers["CUB"] = lambda: _by_magnitude(other, u, m)

    def check(name, out):
        # Who takes another of several equal magnitudes is excused, ourselves not.
        kept = u.gather(-1, out[1].long()).abs().sort(-1).values
        assert torch.equal(kept, u.gather(-1, want).abs().sort(-1).values), name
        assert name != OURS or torch.equal(out[1], want)

    moved = u.numel() * u.element_size() + batch * m * (u.element_size() + 8)
    return Problem("top_m", f"B={batch} p={p} m={m} {_name(dtype)}", providers, check, moved)


def keep_top_m(batch: int, p: int, m: int, dtype: torch.dtype, device: str) -> Problem:
    u = torch.randn(batch, p, device=device).to(dtype)
    want = dk.reference.keep_top_m(u, m)[0]
    compiled = torch.compile(eager_keep_top_m)
    providers = {
        EAGER: lambda: eager_keep_top_m(u, m),
        COMPILED: lambda: compiled(u, m),
        OURS: lambda: dk.keep_top_m(u, m),
    }

    def check(name, out):
        assert torch.equal(out, want) if name == OURS else ((out != 0).sum(-1) <= m).all(), name

    moved = 2 * u.numel() * u.element_size() + batch * p // 8
    return Problem("keep_top_m", f"B={batch} p={p} m={m} {_name(dtype)}", providers, check, moved)


def helu_training(batch: int, p: int, dtype: torch.dtype, device: str) -> Problem:
    u = torch.randn(batch, p, device=device).to(dtype).requires_grad_()
    theta = (torch.rand(p, device=device) + 0.5).requires_grad_()
    grad = torch.randn_like(u)

    def eager(u, theta, sigma=0.2):
        a, lo = u.abs(), (1 - sigma) * theta
        ramp = u.sign() * (a - lo) / sigma
        return torch.where(a >= theta, u, torch.where(a > lo, ramp, 0.0)).to(u.dtype)

    compiled = torch.compile(eager)

    def step(function):
        return lambda: torch.autograd.grad(function(u, theta), (u, theta), grad)

    with dk.use_backend("reference"):
        want = step(lambda u, theta: dk.helu(u, theta, 0.2))()

    def check(name, out):
        if name == OURS:
            torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)

    providers = {
        EAGER: step(eager),
        COMPILED: step(compiled),
        OURS: step(lambda u, theta: dk.helu(u, theta, 0.2)),
    }
    moved = 5 * u.numel() * u.element_size()
    return Problem(
        "helu forward + backward", f"B={batch} p={p} {_name(dtype)}", providers, check, moved
    )


def _weights(p: int, dtype: torch.dtype, device: str, dense: bool = True):
    D = torch.nn.functional.normalize(torch.randn(N, p, device=device), dim=0)
    step = float(0.99 / torch.linalg.matrix_norm(D, 2) ** 2)
    W = step * D.t().contiguous()
    S = (torch.eye(p, device=device) - W @ D).to(dtype) if dense else None
    return D.to(dtype), W.to(dtype), S, step


def _supports(want: torch.Tensor, least: float = 0.9):
    """Rows with the reference's support; near-ties, which half types have more of, are rare."""

    def check(name, out):
        same = (out[1].sort(-1).values == want).all(-1).float().mean()
        assert name != OURS or same >= least, (name, same)

    return check


def encode_top_m(
    batch: int, p: int, stages: int, dtype: torch.dtype, device: str, train: bool = False
) -> Problem:
    x = torch.randn(batch, N, device=device).to(dtype)
    _, W, S, _ = _weights(p, dtype, device, dense=stages > 1)
    m = min(M, p)
    want = dk.reference.encode_top_m(x, W, S, None, m, stages)[1]
    compiled = torch.compile(eager_encode_top_m)
    calls = {
        EAGER: lambda: eager_encode_top_m(x, W, S, m, stages),
        COMPILED: lambda: compiled(x, W, S, m, stages),
        OURS: lambda: rivals.encode_top_m(x, W, S, m, num_stages=stages),
    }
    leaves = [t for t in (W, S) if t is not None]
    grad = torch.randn(batch, m, device=device).to(dtype)

    def step(call):
        values, indices, *_ = call()
        return torch.autograd.grad(values, leaves, grad), indices

    if train:
        for leaf in leaves:
            leaf.requires_grad_()
        calls = {name: lambda call=call: step(call) for name, call in calls.items()}
    size = x.element_size()
    moved = size * (x.numel() + sum(t.numel() for t in leaves)) * (2 if train else 1)
    moved += batch * m * (size + 8) * (stages + 1 if train else 1)
    operator = "encode_top_m forward + backward" if train else "encode_top_m"
    shape = f"B={batch} p={p} m={m} K={stages} {_name(dtype)}"
    return Problem(operator, shape, calls, _supports(want), moved)


def encode_top_m_factored(
    batch: int, p: int, stages: int, dtype: torch.dtype, device: str
) -> Problem:
    """The eager rival is the reference, in the dtype's own precision."""
    x = torch.randn(batch, N, device=device).to(dtype)
    D, W, _, _ = _weights(p, dtype, device, dense=False)
    m = min(M, p)
    reference = dk.reference.encode_top_m_factored
    want = reference(x, W, D, None, None, [m] * stages, False)[1]

    def ours():
        code = dk.encode_top_m(x, W, None, m, num_stages=stages, D=D)
        return code.values, code.indices

    calls = {EAGER: lambda: reference(x, W, D, None, None, [m] * stages, False)[:2], OURS: ours}
    size = x.element_size()
    moved = size * (x.numel() + 2 * W.numel()) + batch * m * (size + 8) * stages
    shape = f"B={batch} p={p} m={m} K={stages} {_name(dtype)}"
    return Problem("encode_top_m with D", shape, calls, _supports(want), moved)


def encode_l0(batch: int, p: int, stages: int, dtype: torch.dtype, device: str) -> Problem:
    x = torch.randn(batch, N, device=device).to(dtype)
    _, W, S, _ = _weights(p, dtype, device)
    levels = (x[:1000].float() @ W.float().t()).abs().flatten()
    theta = torch.full((p,), float(levels.kthvalue(int(0.95 * len(levels))).values), device=device)
    want = dk.reference.encode_l0(x, W, S, None, theta, stages, 0.0, "helu")[0]
    compiled = torch.compile(eager_encode_l0)
    low = theta.to(dtype)
    providers = {
        EAGER: lambda: eager_encode_l0(x, W, S, low, stages),
        COMPILED: lambda: compiled(x, W, S, low, stages),
        OURS: lambda: dk.encode_l0(x, W, S, theta, num_stages=stages),
    }

    def check(name, out):
        assert name != OURS or ((out != 0) != (want != 0)).float().mean() < 1e-2

    moved = x.element_size() * (x.numel() + W.numel() + S.numel() + batch * p)
    shape = f"B={batch} p={p} active=0.05 K={stages} {_name(dtype)}"
    return Problem("encode_l0", shape, providers, check, moved)


def iht_m(batch: int, p: int, iterations: int, dtype: torch.dtype, device: str) -> Problem:
    """The dense iteration as a solver writes it, against the encoder with as many stages."""
    x = torch.randn(batch, N, device=device).to(dtype)
    D, W, S, step = _weights(p, dtype, device)
    m = min(M, p)
    want = dk.reference.encode_top_m(x, W, S, None, m, iterations)[1]
    providers = {
        EAGER: lambda: eager_encode_top_m(x, W, S, m, iterations),
        "dense IHT": lambda: eager_iht_m(x, D, step, m, iterations),
        OURS: lambda: rivals.encode_top_m(x, W, S, m, num_stages=iterations),
    }
    moved = x.element_size() * (x.numel() + W.numel() + S.numel()) + batch * m * 12
    shape = f"B={batch} p={p} m={m} {_name(dtype)}"
    # Ten selections in a row: near-ties add up, so fewer rows agree in every index.
    return Problem(
        f"iht_m {iterations} iterations", shape, providers, _supports(want, 0.7), moved
    )  # fmt: skip


def omp(batch: int, p: int, m: int, dtype: torch.dtype, device: str) -> Problem:
    """By what serves it today, the reference; the CUDA kernel serves on request, as a floor."""
    x, D = torch.randn(batch, N, device=device), _weights(p, dtype, device, dense=False)[0]
    want = dk.reference.omp(x.double(), D.double(), m, 1e-6)[1]
    providers = {EAGER: lambda: rivals.eager_omp(x, D, m), OURS: lambda: pursue(x, D, m, 1e-6)}
    moved = 4 * (x.numel() + D.numel()) + batch * m * 12
    shape = f"B={batch} p={p} m={m} {_name(dtype)}"
    return Problem("omp", shape, providers, _supports(want), moved)


def least_squares(batch: int, p: int, m: int, dtype: torch.dtype, device: str) -> Problem:
    """In float64; by what serves it today, the reference, as for :func:`omp`."""
    D = torch.nn.functional.normalize(torch.randn(N, p, device=device).double(), dim=0)
    gram, b = D.t() @ D, torch.randn(batch, N, device=device).double() @ D
    support = dk.reference.top_m(b, m)[1]
    right = b.gather(1, support)
    want = dk.reference.least_squares(gram, right, support, 1e-5)
    providers = {
        EAGER: lambda: rivals.eager_least_squares(gram, right, support),
        OURS: lambda: solve(gram, right, support, 1e-5),
    }

    def check(name, out):
        torch.testing.assert_close(out, want, msg=name)

    moved = batch * (24 * m + 4 * m * m)
    return Problem("least_squares", f"B={batch} p={p} m={m} float64", providers, check, moved)


def decode(batch: int, p: int, dtype: torch.dtype, device: str, train: bool = False) -> Problem:
    D = _weights(p, dtype, device, dense=False)[0].t().contiguous().t()
    values, indices = dk.reference.top_m(torch.randn(batch, p, device=device).to(dtype), min(M, p))
    code = dk.SparseCode(values, indices, p)
    want = dk.reference.decode(values, indices, D)

    def check(name, out):
        torch.testing.assert_close(out, want, rtol=0.05, atol=0.05 if dtype.itemsize == 2 else 1e-4)

    calls = {
        EAGER: lambda: code.to_dense() @ D.t(),
        OURS: lambda: dk.decode(code, D),
    }
    grad = torch.randn(batch, N, device=device).to(dtype)

    def step(call):
        def both():
            out = call()
            torch.autograd.grad(out, (values, D), grad)
            return out

        return both

    if train:
        values.requires_grad_()
        D.requires_grad_()
        calls = {name: step(call) for name, call in calls.items()}
    moved = values.numel() * (dtype.itemsize + 8) + dtype.itemsize * (D.numel() + batch * N)
    operator = "decode forward + backward" if train else "decode"
    moved *= 2 if train else 1
    return Problem(operator, f"B={batch} p={p} {_name(dtype)}", calls, check, moved)


Case = Callable[[torch.dtype, str], Problem]


def _cases(make: Callable[..., Problem], *shapes: tuple) -> dict[str, Case]:
    """Name -> the problem that ``make`` builds of a shape (its arguments before the dtype)."""
    return {
        f"{make.__name__}-{'x'.join(map(str, shape))}": lambda dtype, device, shape=shape: make(
            *shape, dtype, device
        )
        for shape in shapes
    }


def encode_top_m_training(batch: int, p: int, stages: int, dtype: torch.dtype, device: str):
    return encode_top_m(batch, p, stages, dtype, device, True)


def decode_training(batch: int, p: int, dtype: torch.dtype, device: str):
    return decode(batch, p, dtype, device, True)


# The most telling first: a run may be cut.
CASES: dict[str, Case] = {
    **_cases(encode_top_m, (4096, 512, 2), (4096, 128, 2), (65536, 512, 2), (4096, 4096, 2)),
    **_cases(top_m, (4096, 512, 32), (64, 131072, 64), (64, 131072, 32)),
    **_cases(keep_top_m, (65536, 512, 32)),
    **_cases(encode_top_m_training, (4096, 512, 2)),
    **_cases(encode_l0, (4096, 512, 2)),
    **_cases(decode, (4096, 512)),
    **_cases(decode_training, (4096, 512)),
    **_cases(helu_training, (65536, 512)),
    **_cases(top_m, (4096, 4096, 32), (512, 16384, 32), (1, 131072, 64), (8, 131072, 64),
             *((b, 1 << 20, 64) for b in (1, 8, 64))),
    **_cases(keep_top_m, (4096, 512, 32), (512, 16384, 32)),
    **_cases(helu_training, (4096, 512)),
    **_cases(encode_top_m, *((b, p, 2) for p in (128, 256, 512) for b in (128, 4096, 65536)),
             (4096, 1024, 2), (4096, 2048, 2), (4096, 4096, 1), (4096, 16384, 1), (512, 131072, 1)),
    **_cases(encode_top_m_factored, (4096, 16384, 2)),
    **_cases(encode_top_m_training, *((4096, p, 2) for p in (128, 256, 1024, 2048, 4096))),
    **_cases(encode_l0, (4096, 128, 2), (4096, 256, 2), (65536, 512, 2), (4096, 2048, 2)),
    **_cases(iht_m, (4096, 512, 10)),
    **_cases(omp, (4096, 512, 16), (4096, 4096, 32)),
    **_cases(least_squares, (4096, 512, 16), (4096, 512, 64), (4096, 512, 128)),
    **_cases(decode, (4096, 16384), (4096, 131072)),
    **_cases(decode_training, (4096, 16384)),
}  # fmt: skip

# One of each kind, for a CPU.
SMALL: dict[str, Case] = {
    **_cases(top_m, (6, 40, 5)),
    **_cases(keep_top_m, (6, 40, 5)),
    **_cases(helu_training, (6, 40)),
    **_cases(encode_top_m, (6, 64, 2), (6, 64, 1)),
    **_cases(encode_top_m_factored, (6, 64, 2)),
    **_cases(encode_top_m_training, (6, 64, 2)),
    **_cases(encode_l0, (6, 64, 2)),
    **_cases(iht_m, (6, 64, 3)),
    **_cases(omp, (6, 64, 5)),
    **_cases(least_squares, (6, 64, 5)),
    **_cases(decode, (6, 64)),
    **_cases(decode_training, (6, 64)),
}


def runs(cases: dict[str, Case]) -> list:
    """Cases in every dtype that their operator has: pursuits and systems have no half types."""
    return [
        pytest.param(case, dtype, id=f"{case}-{_name(dtype)}")
        for case in cases
        for dtype in (DTYPES[:1] if case.startswith(("omp-", "least_squares-")) else DTYPES)
    ]


@pytest.mark.parametrize(("case", "dtype"), runs(SMALL if gpu_device.STUB else CASES))
def test_on_the_gpu(case, dtype, request, monkeypatch):
    if gpu_device.STUB:
        monkeypatch.setattr(torch, "compile", lambda function: function)
    problem = (SMALL if gpu_device.STUB else CASES)[case](dtype, gpu_device.DEVICE)
    for name, call in problem.providers.items():
        problem.check(name, call())
    serving = dk.last_call().backend
    on_request = problem.operator in GPU["cuda"].on_request
    assert gpu_device.STUB or serving in (("reference",) if on_request else ("cuda", "triton"))
    half = torch.empty(problem.bytes // 2, dtype=torch.uint8, device=gpu_device.DEVICE)
    other = torch.empty_like(half)
    floors = {} if gpu_device.STUB else _by_floor(problem.providers[OURS], serving)
    floors |= {} if gpu_device.STUB else _rows_read_once(problem)
    floors |= {} if gpu_device.STUB else _stages_screened(problem)
    floors |= {} if gpu_device.STUB else _stages_fused(problem)
    providers = problem.providers | floors | {COPY: lambda: other.copy_(half)}
    for mode, times in _race(providers, request.config.getoption("--seconds")).items():
        _record(f"{problem.operator}, {mode}", problem.shape, times)
    if path := request.config.getoption("--record"):  # at once: a run may be cut
        records.write(records.Path(path), _rows)
        _rows.clear()


def _by_floor(call: Callable[[], object], serving: str) -> dict[str, Callable]:
    """The call by the GPU backend that is not ``serving``, if it has all its operators."""
    found = {}
    for floor in {"cuda", "triton"} - {serving}:

        def forced(floor=floor):
            with dk.use_backend(floor):
                return call()

        try:
            forced()
        except ValueError:  # not in this build, or without one of the operators
            continue
        found[f"{OURS}, {floor}"] = forced
    return found


def _rows_read_once(problem: Problem) -> dict[str, Callable]:
    """The call with long rows read once by the CUDA kernels, which is off until it is measured."""
    rows = re.search(r"\bp=(\d+)", problem.shape)
    selecting = problem.operator in ("top_m", "keep_top_m", "encode_top_m")
    if not selecting or rows is None or int(rows[1]) <= 1024 or not GPU["cuda"].installed():
        return {}

    def once():
        with dk.use_backend("cuda"), library.rows_read_once():
            return problem.providers[OURS]()

    problem.check(OURS, once())
    return {f"{OURS}, rows read once": once}


def _stages_screened(problem: Problem) -> dict[str, Callable]:
    """The call with stages screened by the CUDA kernels, which is off until it is measured."""
    shape = re.search(r"\bp=(\d+) m=(\d+) K=(\d+) float32", problem.shape)
    if shape is None or not GPU["cuda"].installed():
        return {}
    p, m, stages = map(int, shape.groups())
    alone = problem.operator == "encode_top_m" and stages == 1
    if p < max(2048, 128 * m) or not (alone or problem.operator == "encode_top_m with D"):
        return {}

    def screened():
        with dk.use_backend("cuda"), library.stages_screened():
            return problem.providers[OURS]()

    problem.check(OURS, screened())
    return {f"{OURS}, screened": screened}


def _stages_fused(problem: Problem) -> dict[str, Callable]:
    """The call with a stage of half types by one CUDA kernel, which is off until it is
    measured."""
    half = problem.shape.endswith(("bfloat16", "float16"))
    if problem.operator != "encode_l0" or not half or not GPU["cuda"].installed():
        return {}

    def fused():
        with dk.use_backend("cuda"), library.stages_fused():
            return problem.providers[OURS]()

    problem.check(OURS, fused())
    return {f"{OURS}, fused": fused}


def _race(providers: dict[str, Callable], budget: float) -> dict[str, dict[str, list[float]]]:
    """Mode -> provider -> microseconds of the rounds."""
    flush = torch.empty(
        1 if gpu_device.STUB else 256 << 20, dtype=torch.uint8, device=gpu_device.DEVICE
    )
    graphs = {}
    for name, call in providers.items():
        for _ in range(3):
            call()
        if graph := gpu_device.captured(call):
            graphs[name] = graph
    found = {}
    for mode, calls in (("cold L2", providers), ("warm L2", providers), ("graph", graphs)):
        if OURS not in calls or EAGER not in calls:
            continue
        once = sum(gpu_device.microseconds(call, name) for name, call in calls.items())
        rounds = int(min(400, max(10, budget * 1e6 * len(calls) / once)))
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                if mode == "cold L2":
                    flush.zero_()
                times[name].append(gpu_device.microseconds(call, name))
        found[mode] = times
    return found


def _record(operator: str, shape: str, times: dict[str, list[float]]) -> None:
    medians = {name: statistics.median(t) for name, t in times.items()}
    environment = records.environment() | gpu()
    for name, seen in times.items():
        low, *_, high = statistics.quantiles(seen, n=5)
        _rows.append(
            records.Row(
                operator, shape, 1, name, round(low, 2), round(medians[name], 2), round(high, 2),
                len(seen), EAGER, round(medians[EAGER] / medians[name], 3), **environment,
            )
        )  # fmt: skip


@functools.cache
def gpu() -> dict[str, str]:
    """The columns of the record that tell the GPU: device, class, driver, versions."""
    from deepl0_kernels.triton.table import device_class

    card = gpu_device.card()
    return {
        "machine": f"{card.name}, {card.multiprocessors} multiprocessors, {card.toolkit}",
        "isa": device_class(torch.device(gpu_device.DEVICE)),
        "triton": card.triton,
        "driver": card.driver,
    }


def _by_magnitude(top_k: Callable, u: torch.Tensor, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A top-k of the signed values serves |u|; the values are gathered, as ours come with sign."""
    indices = top_k(u.abs(), m)[1].long()
    return u.gather(-1, indices), indices


def _optional(package: str, name: str) -> Callable | None:
    try:
        return getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError):
        return None
