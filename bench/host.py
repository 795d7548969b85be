"""Time of the host in a call: what Python, the dispatcher and the launches take until it returns.

On a machine with a GPU its kernels are launched, in bursts that the device follows; between bursts
it is waited for, outside of the time. Elsewhere the CUDA floor runs on CPU tensors with the
emulated runtime of the tests, whose launches do nothing (it takes nvcc): products are PyTorch's, as
its rivals' are, of operands so small that the arithmetic is next to nothing on both sides.

``python -m bench.host --json`` prints one object, the machine, and case -> ours_us, eager_us, their
ratio; calls: the operators that the dispatcher is asked for, the floor's own and PyTorch's, without
allocations, views and what a PyTorch operator or product calls in its turn (a composed pass calls
float32 products past the dispatcher); python: the functions, Python's and C's, that the interpreter
calls.
Microseconds are the fastest of the bursts' means; the rest is noise of the machine, which the
counts do not have. ``host_instructions.py`` counts instructions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import deepl0_kernels as dk

from . import gpu_device, records, rivals
from .rivals import eager_encode_l0, eager_encode_top_m

BURSTS, CALLS = (2, 3) if gpu_device.STUB else (300, 5)
BATCH, N, P, M = 4, 8, 32, 4
SIGMA = 0.2

# Memory and views are no work of the dispatcher's that a composition could spare.
_NO_WORK = re.compile(
    r"aten::(empty|new_empty|resize|detach|view|reshape|as_strided|t$|transpose|expand|select"
    r"|slice|alias|unsqueeze|squeeze|flatten|result_type|is_|lift_fresh|resolve_)"
)

Case = tuple[Callable[[], object], Callable[[], object]]  # ours, eager's


def cases(device: str) -> dict[str, Case]:
    """Of each: ours, and what a user writes today."""
    torch.manual_seed(0)
    u, x = torch.randn(BATCH, P, device=device), torch.randn(BATCH, N, device=device)
    W, S = torch.randn(P, N, device=device), 0.1 * torch.randn(P, P, device=device)
    theta, D = torch.ones(P, device=device), torch.randn(N, P, device=device)
    values, indices = rivals.eager_top_m(u, M)
    bias = torch.zeros(P, device=device)
    grad_code, grad_z = (torch.randn(BATCH, size, device=device) for size in (M, P))
    grad_x, target = (torch.randn(BATCH, N, device=device) for _ in range(2))

    def leaves(*tensors: Tensor) -> list[Tensor]:
        return [t.clone().requires_grad_() for t in tensors]

    def step(function: Callable[..., Tensor], grad: Tensor, *tensors: Tensor):
        inputs = leaves(*tensors)
        return lambda: torch.autograd.grad(function(*inputs), inputs, grad)

    def training(encode: Callable, decode: Callable):
        parameters = leaves(W, S, D)
        optimizer = torch.optim.SGD(parameters, lr=1e-6)

        def run() -> None:
            optimizer.zero_grad()
            out = decode(encode(x, *parameters[:2]), parameters[2])
            (out - target).square().mean().backward()
            optimizer.step()

        return run

    def eager_decode(values: Tensor, D: Tensor) -> Tensor:
        return values.new_zeros(BATCH, P).scatter(-1, indices, values) @ D.t()

    def eager_decode_code(code: tuple[Tensor, Tensor], D: Tensor) -> Tensor:
        return code[0].new_zeros(BATCH, P).scatter(-1, code[1], code[0]) @ D.t()

    def eager_helu(u: Tensor, theta: Tensor) -> Tensor:
        a = u.abs()
        ramp = (u - u.sign() * (1 - SIGMA) * theta) / SIGMA
        return torch.where(a >= theta, u, torch.where(a > (1 - SIGMA) * theta, ramp, 0.0))

    def factored(W: Tensor, D: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        more = dict(D=D, bias=bias, positive=True, num_stages=2)
        return rivals.encode_top_m(x, W, None, M, **more)

    return {
        "encode_top_m forward": (
            lambda: rivals.encode_top_m(x, W, S, M, num_stages=2),
            lambda: eager_encode_top_m(x, W, S, M, 2),
        ),
        "encode_top_m forward + backward": (
            step(lambda W, S: rivals.encode_top_m(x, W, S, M, num_stages=2)[0], grad_code, W, S),
            step(lambda W, S: eager_encode_top_m(x, W, S, M, 2)[0], grad_code, W, S),
        ),
        "encode_top_m_factored forward": (
            lambda: factored(W, D, bias),
            lambda: rivals.eager_encode_factored(x, W, D, bias, M, 2),
        ),
        "encode_top_m_factored forward + backward": (
            step(lambda *args: factored(*args)[0], grad_code, W, D, bias),
            step(lambda W, D, bias: rivals.eager_encode_factored(x, W, D, bias, M, 2)[0],
                 grad_code, W, D, bias),
        ),
        "encode_l0 forward": (
            lambda: dk.encode_l0(x, W, S, theta, num_stages=2),
            lambda: eager_encode_l0(x, W, S, theta, 2),
        ),
        "encode_l0 forward + backward": (
            step(lambda W, S: dk.encode_l0(x, W, S, theta, num_stages=2), grad_z, W, S),
            step(lambda W, S: eager_encode_l0(x, W, S, theta, 2), grad_z, W, S),
        ),
        "top_m": (lambda: dk.top_m(u, M), lambda: torch.topk(u, M)),
        "keep_top_m": (
            lambda: dk.keep_top_m(u, M),
            lambda: rivals.eager_keep_top_m(u, M),
        ),
        "helu forward + backward": (
            step(lambda u, theta: dk.helu(u, theta, SIGMA), grad_z, u, theta),
            step(eager_helu, grad_z, u, theta),
        ),
        "decode forward": (
            lambda: dk.decode(dk.SparseCode(values, indices, P), D),
            lambda: eager_decode(values, D),
        ),
        "decode forward + backward": (
            step(
                lambda values, D: dk.decode(dk.SparseCode(values, indices, P), D),
                grad_x, values, D,
            ),
            step(eager_decode, grad_x, values, D),
        ),
        "training step": (
            training(lambda *args: dk.encode_top_m(*args, M, num_stages=2), dk.decode),
            training(lambda *args: eager_encode_top_m(*args, M, 2), eager_decode_code),
        ),
    }  # fmt: skip


@contextlib.contextmanager
def device() -> Iterator[str]:
    """Where the cases run: a GPU, or the CPU with launches that do nothing."""
    if torch.cuda.is_available() or gpu_device.STUB:
        yield gpu_device.DEVICE
        return
    from python_tests.cuda import emulator

    with emulator.idle():
        yield "cpu"


def calls_of(function: Callable[[], object]) -> int:
    """Operators that the dispatcher is asked for in one call."""
    from torch.profiler import ProfilerActivity, profile

    function()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        function()
    return sum(
        "::" in event.name
        and not event.name.startswith("autograd::")
        and not _NO_WORK.match(event.name)
        and not _within_torch(event)
        for event in recorded.events()
    )


def _within_torch(event) -> bool:
    parent = event.cpu_parent
    while parent is not None:
        # Beneath a composed pass there is what its products call, and copies of half types.
        if parent.name.startswith("aten::") or (
            parent.name.startswith("deepl0_") and event.name in ("aten::copy_", "aten::expand")
        ):
            return True
        parent = parent.cpu_parent
    return False


def python_calls(function: Callable[[], object]) -> int:
    """Functions that the interpreter calls in one call, those of the backward among them."""
    count = 0

    def event(frame, kind, argument) -> None:
        nonlocal count
        count += kind in ("call", "c_call")

    function()
    sys.setprofile(event)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count - 1  # that of the end of the profile


def measured(case: Case) -> tuple[float, float]:
    """Microseconds of ours and eager's, in turn, burst by burst."""
    times: tuple[list[float], list[float]] = ([], [])
    for burst in range(BURSTS + 1):
        for call, seen in zip(case, times, strict=True):
            gpu_device.synchronize()
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            if burst:  # the first one warms up
                seen.append(1e6 * (time.perf_counter() - start) / CALLS)
    return min(times[0]), min(times[1])


def report(case: Case) -> dict[str, float]:
    ours, eager = measured(case)
    return {
        "ours_us": round(ours, 2),
        "eager_us": round(eager, 2),
        "ratio": round(ours / eager, 3),
        "calls": calls_of(case[0]),
        "eager_calls": calls_of(case[1]),
        "python": python_calls(case[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one object, on standard output")
    parser.add_argument("--only", default="", type=re.compile, help="regular expression")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with device() as where:
        every = cases(where)
        found = {name: report(case) for name, case in every.items() if arguments.only.search(name)}
    if arguments.json:
        print(
            json.dumps(
                {"machine": f"{records.machine()}, torch {torch.__version__}", **found}, indent=1
            )
        )
        return
    for name, row in found.items():
        print("{}: {ours_us} us, torch eager {eager_us} ({ratio}); "
              "{calls} calls, eager {eager_calls}".format(name, **row))  # fmt: skip


if __name__ == "__main__":
    main()
