"""Calls of the public operators that reach every kernel and every entry of the decision table.

Sizes: the paper's (n = 256, p = 128 to 512, m = 32), ragged ones, which the compiler may not align,
dictionaries of 16k and 131k units, and tensors of more than 2^31 elements. Nothing is computed:
``call(dtype)`` is made inside :func:`.recording.recording`, on meta tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import deepl0_kernels as dk


class Problem(NamedTuple):
    name: str
    call: Callable[[torch.dtype], None]
    quick: bool = True  # part of the subset that every run compiles


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)


def backward(out: Tensor, *inputs: Tensor) -> None:
    torch.autograd.grad(out, inputs, torch.empty_like(out))


def side(positive: bool) -> str:
    return ", nonnegative" if positive else ""


def helu(
    batch: int, p: int, kind: str = "helu", sigma: float = 0.2, scalar: bool = False,
    positive: bool = False,
):  # fmt: skip
    def call(dtype):
        u, theta = leaf(batch, p, dtype=dtype), leaf(*(() if scalar else (p,)))
        backward(dk.helu(u, theta, sigma, kind, positive=positive), u, theta)

    name = f"helu {kind} sigma={sigma} {'scalar' if scalar else 'vector'} [{batch}, {p}]"
    return Problem(name + side(positive), call, p in (33, 512) and not positive)


def soft(batch: int, p: int):
    def call(dtype):
        u, theta = leaf(batch, p, dtype=dtype), leaf(p)
        backward(dk.soft_threshold(u, theta), u, theta)

    return Problem(f"soft [{batch}, {p}]", call, False)


def top_m(
    batch: int, p: int, m: int, quick: bool = False, train: bool = True, positive: bool = False
):
    def call(dtype):
        u = leaf(batch, p, dtype=dtype)
        values, indices = dk.top_m(u, m, positive=positive)
        if not train:
            dk.keep_top_m(u, m, positive=positive)
            return
        backward(values, u)
        v = leaf(batch, m, dtype=dtype)
        backward(dk.unpool(v, indices, p), v)
        backward(dk.keep_top_m(u, m, positive=positive), u)

    name = f"top_m, unpool, keep_top_m [{batch}, {p}] m={m}"
    return Problem(name + side(positive), call, quick)


def batch_top_m(batch: int, p: int, m: int, quick: bool = False):
    def call(dtype):
        u = leaf(batch, p, dtype=dtype)
        backward(dk.batch_top_m(u, m, positive=True)[1], u)
        with torch.no_grad():
            dk.batch_top_m(u, m)

    return Problem(f"batch_top_m [{batch}, {p}] m={m}", call, quick)


def stage(
    batch: int, n: int, p: int, m: int, quick: bool = False, strided: bool = False,
    positive: bool = False,
):  # fmt: skip
    """Nonnegative codes come with a bias."""

    def call(dtype):
        x, W, S = (leaf(*s, dtype=dtype) for s in ((batch, n), (p, n), (p, p)))
        z, theta = leaf(batch, p, dtype=dtype), leaf(p)
        used = S.t() if strided else S
        more = dict(positive=positive, bias=leaf(p, dtype=dtype) if positive else None)
        backward(dk.top_m_stage(x, W, z, used, m, **more), x, W, z, S)
        for sigma in (0.0, 0.2):
            out = dk.threshold_stage(x, W, z, used, theta, sigma, **more)
            backward(out, x, W, z, S, theta)
        with torch.no_grad():
            dk.threshold_stage(x, W, z, used, theta, 0.2, **more)

    name = f"stages [{batch}, {n}] p={p} m={m}{', S transposed' if strided else ''}"
    return Problem(name + side(positive), call, quick)


def encoders(
    batch: int, n: int, p: int, m: int, stages: int = 2, quick: bool = False, tied: bool = True,
    l0: bool = True, train: bool = True, positive: bool = False,
):  # fmt: skip
    """Both encoders: inference, and training with and without a gradient in x. Nonnegative codes
    come with a bias."""

    def call(dtype):
        W = leaf(p, n, dtype=dtype)
        S = None
        if stages > 1:
            S = leaf(*(() if tied else (stages - 1,)), p, p, dtype=dtype)
        leaves = (W,) if S is None else (W, S)
        more = dict(num_stages=stages, positive=positive)
        if positive:
            more["bias"] = leaf(p, dtype=dtype)
            leaves = (*leaves, more["bias"])
        data = torch.empty(batch, n, dtype=dtype, device="meta")
        for x in (leaf(batch, n, dtype=dtype), data) if train else ():
            needed = (x, *leaves) if x.requires_grad else leaves
            backward(dk.encode_top_m(x, W, S, m, **more).values, *needed)
            if l0:
                ramps = [(0.0, leaf(p)), (0.2, leaf(*(() if tied else (stages, p))))]
                for sigma, theta in ramps if quick else ramps[1:]:
                    z = dk.encode_l0(x, W, S, theta, sigma=sigma, **more)
                    backward(z, *needed, theta)
        with torch.no_grad():
            dk.encode_top_m(data, W, S, m, **more)
            if l0 and (quick or not train):
                dk.encode_l0(data, W, S, leaf(p), **more)

    kind = "tied" if tied else "untied"
    name = f"encoders [{batch}, {n}] p={p} m={m} K={stages} {kind}"
    return Problem(name + side(positive), call, quick)


def factored(batch: int, n: int, p: int, m: int, quick: bool = False, atoms: bool = False):
    """Both encoders of three stages with D in the place of S."""

    def call(dtype):
        x, W, bias = leaf(batch, n, dtype=dtype), leaf(p, n, dtype=dtype), leaf(p, dtype=dtype)
        D = leaf(p, n, dtype=dtype).t() if atoms else leaf(n, p, dtype=dtype)
        more = dict(num_stages=3, D=D, bias=bias, step=leaf(3))
        leaves = (x, W, D, bias, more["step"])
        backward(dk.encode_top_m(x, W, None, m, **more).values, *leaves)
        backward(dk.encode_l0(x, W, None, leaf(p), sigma=0.2, **more), *leaves)

    layout = ", contiguous atoms" if atoms else ""
    return Problem(f"factored encoders [{batch}, {n}] p={p} m={m}{layout}", call, quick)


def decode(batch: int, n: int, p: int, m: int, quick: bool = False, atoms: bool = False):
    def call(dtype):
        D = leaf(p, n, dtype=dtype).t() if atoms else leaf(n, p, dtype=dtype)
        values = leaf(batch, m, dtype=dtype)
        indices = torch.empty(batch, m, dtype=torch.int64, device="meta")
        backward(dk.decode(dk.SparseCode(values, indices, p), D), values, D)

    layout = ", contiguous atoms" if atoms else ""
    return Problem(f"decode [{batch}, {n}] p={p} m={m}{layout}", call, quick)


PROBLEMS: dict[str, tuple[Problem, ...]] = {
    "thresholds": (
        helu(4096, 512), helu(7, 33), helu(1 << 20, 4096),
        helu(4096, 512, "ste_theta", 0.2), helu(4096, 512, "ste", 0.2), helu(4096, 64, "hard", 0.0),
        helu(4096, 512, scalar=True), soft(4096, 512),
    ),
    "top_m": (
        top_m(4096, 512, 32, quick=True), top_m(7, 33, 5), top_m(5, 1, 1), top_m(1, 100, 10),
        *(top_m(4096, p, 10, train=False) for p in (16, 32, 64, 128, 256, 1024, 2048, 4096, 8192)),
        top_m(4096, 16384, 32, quick=True), top_m(8, 131072, 64), top_m(3, 100003, 64),
        top_m(4096, 1 << 20, 64), top_m(4096, 16384, 4096), top_m(1, 131072, 4096),
    ),
    "batch_top_m": (
        batch_top_m(4096, 16384, 32, quick=True), batch_top_m(4096, 512, 32), batch_top_m(7, 33, 5),
        batch_top_m(1, 100, 1), batch_top_m(1 << 20, 1 << 16, 64),
    ),
    "stage": (
        stage(4096, 256, 512, 32, quick=True), stage(4096, 256, 128, 32), stage(4096, 256, 256, 32),
        stage(7, 100, 77, 9), stage(4096, 256, 1024, 32), stage(4096, 256, 512, 32, strided=True),
        stage(256, 256, 4096, 64), stage(1 << 20, 256, 4096, 64),
    ),
    "encode": (
        encoders(4096, 256, 512, 32, quick=True), encoders(4096, 256, 128, 32),
        encoders(4096, 256, 256, 32), encoders(7, 100, 77, 9), encoders(4096, 256, 1024, 32),
        encoders(4096, 256, 128, 32, stages=3, tied=False), encoders(4096, 256, 512, 32, stages=1),
        encoders(1 << 22, 256, 1024, 64, train=False), encoders(4096, 256, 512, 8, quick=True),
        encoders(4096, 256, 2048, 32, l0=False), encoders(4096, 256, 64, 1, l0=False),
    ),
    "encode, long codes": (
        encoders(4096, 256, 16384, 32, stages=1, l0=False, quick=True),
        encoders(4096, 256, 4096, 512), encoders(4096, 256, 16384, 32, l0=False),
        encoders(64, 256, 131072, 64, 1, l0=False), encoders(5, 100, 2001, 60),
        encoders(1 << 16, 256, 1 << 20, 64, 1, l0=False),
    ),
    "decode": (
        decode(4096, 256, 512, 32, quick=True), decode(4096, 256, 16384, 32, atoms=True),
        decode(7, 33, 77, 5), decode(64, 128, 131072, 64), decode(1 << 20, 4096, 1 << 20, 64),
    ),
    "nonnegative codes": (
        helu(4096, 512, positive=True),
        top_m(4096, 512, 32, positive=True), top_m(4096, 16384, 32, positive=True, quick=True),
        top_m(4096, 16384, 4096, positive=True),
        stage(4096, 256, 512, 32, positive=True), stage(7, 100, 77, 9, positive=True),
        encoders(4096, 256, 512, 32, positive=True, quick=True),
        encoders(4096, 256, 128, 32, positive=True),
        encoders(4096, 256, 16384, 32, l0=False, positive=True),
    ),
    "factored": (factored(4096, 256, 16384, 32, quick=True), factored(7, 33, 77, 5, atoms=True)),
}  # fmt: skip
