"""Measuring the choices of Triton's decision table on a GPU: the work behind ``deepl0 tune``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

import deepl0_kernels as dk

from .triton import table, tuned
from .triton.tuned import Config

_N, _M = 256, 32  # length of a signal, nonzeros of a code


class Choice(NamedTuple):
    """A kernel at one size: the table's configuration and the fastest, in microseconds."""

    kernel: str
    p: int
    dtype: torch.dtype
    default: float
    best: float
    config: Config


class _Tensors(NamedTuple):
    """Random leaves of one dtype on one device."""

    dtype: torch.dtype
    device: str

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        values = torch.randn(shape, device=self.device) / math.sqrt(shape[-1])
        return values.to(dtype or self.dtype).requires_grad_()

    def theta(self, p: int) -> torch.Tensor:
        return torch.full((p,), 0.01, device=self.device).requires_grad_()

    def code(self, batch: int, p: int) -> dk.SparseCode:
        m = min(_M, p)
        indices = torch.arange(batch * m, device=self.device).view(batch, m) % p
        return dk.SparseCode(self(batch, m), indices, p)


def _backward(out: torch.Tensor, *inputs: torch.Tensor) -> None:
    torch.autograd.grad(out, inputs, torch.ones_like(out))


def _helu(batch, p, dtype, device):
    t = _Tensors(dtype, device)
    u, theta = t(batch, p), t.theta(p)
    return lambda: _backward(dk.helu(u, theta, 0.2), u, theta)


def _select(operator):
    def make(batch, p, dtype, device):
        u = _Tensors(dtype, device)(batch, p).detach()
        return lambda: operator(u, min(_M, p))

    return make


def _gather(batch, p, dtype, device):
    t = _Tensors(dtype, device)
    x, W, S = (operand.detach() for operand in (t(batch, _N), t(p, _N), t(p, p)))
    return lambda: dk.encode_top_m(x, W, S, max(1, p // 64))  # few enough for every dtype


def _decode(batch, n, dtype, device):
    t = _Tensors(dtype, device)
    code, D = t.code(batch, 4096), t(4096, n).t()
    return lambda: _backward(dk.decode(code, D), code.values, D)


# Kernel -> the operator's call whose time is compared, made from (batch, size, dtype, device), and
# the sizes where the table's is not p but the length n of a signal. The encoders' backward has no
# workload; others that are not listed take little.
WORKLOADS: dict[str, tuple[Callable[..., Callable[[], object]], tuple[int, ...]]] = {
    "threshold": (_helu, ()),
    "threshold_backward": (_helu, ()),
    "top_m": (_select(dk.top_m), ()),
    "gather_top_m": (_gather, ()),
    "keep_top_m": (_select(dk.keep_top_m), ()),
    "batch_top_m": (_select(dk.batch_top_m), ()),
    "decode": (_decode, (_N,)),
    "decode_backward": (_decode, (_N,)),
    "combine": (_decode, (_N,)),
}


def tunable() -> tuple[str, ...]:
    """The kernels of the table that have a workload."""
    return tuple(k for k in table.TABLE if k in WORKLOADS)


def measure(
    kernel: str, config: Config, batch: int, p: int, dtype: torch.dtype, device: str
) -> float:
    """Median microseconds of the kernel's workload on a GPU; inf if ``config`` does not fit it."""
    from triton.errors import TritonError

    call = WORKLOADS[kernel][0](batch, p, dtype, device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    with tuned.force(kernel, config), dk.use_backend("triton"):
        try:
            for _ in range(3):
                call()
        except TritonError:  # too large for the device, or not compilable for it
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
    """The fastest choice for every kernel, size and dtype, one by one as they are measured.

    Another configuration than the table's must be 3 % faster: less is noise.
    """  # fmt: skip
    sizes, dtypes = tuple(sizes), tuple(dtypes)
    for kernel in kernels:
        for p in WORKLOADS[kernel][1] or sizes:
            for dtype in dtypes:
                first, *others = table.choices(kernel, p)
                default = best = measure(kernel, first, batch, p, dtype, device)
                config = first
                for other in others:
                    time = measure(kernel, other, batch, p, dtype, device)
                    if time < min(best, 0.97 * default):
                        best, config = time, other
                yield Choice(kernel, p, dtype, default, best, config)


def results(choices: Iterable[Choice], device: torch.device) -> dict[str, Config]:
    """What :func:`tuned.store` takes."""
    return {
        tuned.key(*tuned.device_and_version(device), c.kernel, c.p, c.dtype): c.config
        for c in choices
    }
