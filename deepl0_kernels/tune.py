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


def _stage(operator):
    def make(batch, p, dtype, device):
        t = _Tensors(dtype, device)
        operands = [m.detach() for m in (t(batch, _N), t(p, _N), t(batch, p), t(p, p))]
        last = min(_M, p) if operator is dk.top_m_stage else t.theta(p).detach()
        return lambda: operator(*operands, last)

    return make


def _encode(operator, stages):
    def make(batch, p, dtype, device):
        t = _Tensors(dtype, device)
        x, W = t(batch, _N).detach(), t(p, _N).detach()
        S = t(p, p).detach() if stages > 1 else None
        last = min(_M, p) if operator is dk.encode_top_m else t.theta(p).detach()
        return lambda: operator(x, W, S, last, num_stages=stages)

    return make


def _sparse(batch, n, dtype, device):
    t = _Tensors(dtype, device)
    x, W = t(batch, n).detach(), t(16384, n).detach()
    return lambda: dk.encode_top_m(x, W, None, _M, num_stages=1)


def _decode(batch, n, dtype, device):
    t = _Tensors(dtype, device)
    code, D = t.code(batch, 4096), t(4096, n).t()
    return lambda: _backward(dk.decode(code, D), code.values, D)


# Kernel (without the mode of its product) -> the operator's call whose time is compared, made from
# (batch, size, dtype, device), and the sizes where the table's is not p but the length n of a
# signal. The encoders' backward has no workload; others that are not listed take little.
WORKLOADS: dict[str, tuple[Callable[..., Callable[[], object]], tuple[int, ...]]] = {
    "threshold": (_helu, ()),
    "threshold_backward": (_helu, ()),
    "top_m": (_select(dk.top_m), ()),
    "keep_top_m": (_select(dk.keep_top_m), ()),
    "batch_top_m": (_select(dk.batch_top_m), ()),
    "threshold_stage": (_stage(dk.threshold_stage), ()),
    "whole_rows": (_encode(dk.encode_top_m, 2), ()),
    "encode_sparse": (_sparse, (_N,)),
    "decode": (_decode, (_N,)),
    "decode_backward": (_decode, (_N,)),
    "combine": (_decode, (_N,)),
}


# Mode of a kernel's product, at the end of its name in the table -> dtypes of the operands.
_MODES = {
    "half": (torch.bfloat16, torch.float16),
    "tf32": (torch.float32,),
    "ieee": (torch.float32,),
}


def split(kernel: str) -> tuple[str, str]:
    """Kernel and mode of a name in the table."""
    name, _, mode = kernel.rpartition("_")
    return (name, mode) if mode in _MODES else (kernel, "")


def tunable() -> tuple[str, ...]:
    """The kernels of the table that have a workload."""
    return tuple(k for k in table.TABLE if split(k)[0] in WORKLOADS)


def workload(kernel: str, batch: int, p: int, dtype: torch.dtype, device: str):
    """A call that launches ``kernel``, in the mode that its name asks for."""
    name, mode = split(kernel)
    call = WORKLOADS[name][0](batch, p, dtype, device)
    if mode != "tf32":
        return call

    def with_tf32():
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return call()
        finally:
            torch.set_float32_matmul_precision(before)

    return with_tf32


def measure(
    kernel: str, config: Config, batch: int, p: int, dtype: torch.dtype, device: str
) -> float:
    """Median microseconds of the kernel's workload on a GPU; inf if ``config`` does not fit it."""
    from triton.errors import TritonError

    call = workload(kernel, batch, p, dtype, device)
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
        name, mode = split(kernel)
        for p in WORKLOADS[name][1] or sizes:
            for dtype in (d for d in dtypes if not mode or d in _MODES[mode]):
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
