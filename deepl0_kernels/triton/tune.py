"""Measuring the candidates of the decision table on a GPU: the work behind ``deepl0 tune``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

import deepl0_kernels as dk

from . import table, tuned
from .table import Config

_N = 256  # length of a signal


class Choice(NamedTuple):
    """A kernel at one size: the table's configuration and the fastest, in microseconds."""

    kernel: str
    p: int
    dtype: torch.dtype
    default: float
    best: float
    config: Config


def _leaf(*shape: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    return (torch.randn(shape, device=device) / math.sqrt(shape[-1])).to(dtype).requires_grad_()


def _forward_and_backward(out: torch.Tensor, *inputs: torch.Tensor) -> None:
    torch.autograd.grad(out, inputs, torch.ones_like(out))


def _helu(batch: int, p: int, dtype: torch.dtype, device: str) -> Callable[[], object]:
    u, theta = _leaf(batch, p, dtype=dtype, device=device), torch.full((p,), 0.01, device=device)
    theta.requires_grad_()
    return lambda: _forward_and_backward(dk.helu(u, theta, 0.2), u, theta)


# Kernel -> the operator's call whose time is compared, made from (batch, p, dtype, device).
WORKLOADS: dict[str, Callable[[int, int, torch.dtype, str], Callable[[], object]]] = {
    "threshold": _helu,
    "threshold_backward": _helu,
}


def measure(
    kernel: str, config: Config, batch: int, p: int, dtype: torch.dtype, device: str
) -> float:
    """Median microseconds of the kernel's workload on a GPU; inf if ``config`` does not fit it."""
    from triton.runtime.errors import OutOfResources

    call = WORKLOADS[kernel](batch, p, dtype, device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    with tuned.force(kernel, config):
        try:
            for _ in range(3):
                call()
        except OutOfResources:
            return math.inf
        for _ in range(20):
            begin.record()
            for _ in range(5):
                call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 200)
    return statistics.median(times)


def choose(
    kernels: Iterable[str],
    sizes: Iterable[int],
    dtypes: Iterable[torch.dtype],
    batch: int,
    device: str,
    measure: Callable[..., float] = measure,
) -> Iterable[Choice]:
    """The fastest candidate for every kernel, size and dtype, one by one as they are measured.

    Another configuration than the table's must be 3 % faster: less is noise.
    """  # fmt: skip
    sizes, dtypes = tuple(sizes), tuple(dtypes)
    for kernel in kernels:
        for p in sizes:
            for dtype in dtypes:
                first, *others = table.candidates(kernel, p)
                default = best = measure(kernel, first, batch, p, dtype, device)
                config = first
                for candidate in others:
                    time = measure(kernel, candidate, batch, p, dtype, device)
                    if time < min(best, 0.97 * default):
                        best, config = time, candidate
                yield Choice(kernel, p, dtype, default, best, config)


def results(choices: Iterable[Choice], device: torch.device) -> dict[str, Config]:
    """What :func:`tuned.store` takes."""
    return {
        tuned.key(*tuned.device_and_version(device), c.kernel, c.p, c.dtype): c.config
        for c in choices
    }
