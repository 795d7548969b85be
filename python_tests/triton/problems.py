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


def helu(batch: int, p: int, kind: str = "helu", sigma: float = 0.2, scalar: bool = False):
    def call(dtype):
        u, theta = leaf(batch, p, dtype=dtype), leaf(*(() if scalar else (p,)))
        backward(dk.helu(u, theta, sigma, kind), u, theta)

    name = f"helu {kind} sigma={sigma} {'scalar' if scalar else 'vector'} [{batch}, {p}]"
    return Problem(name, call, p in (33, 512))


def soft(batch: int, p: int):
    def call(dtype):
        u, theta = leaf(batch, p, dtype=dtype), leaf(p)
        backward(dk.soft_threshold(u, theta), u, theta)

    return Problem(f"soft [{batch}, {p}]", call, False)


PROBLEMS: dict[str, tuple[Problem, ...]] = {
    "thresholds": (
        helu(4096, 512), helu(7, 33), helu(1 << 20, 4096),
        helu(4096, 512, "ste_theta", 0.2), helu(4096, 512, "ste", 0.2), helu(4096, 64, "hard", 0.0),
        helu(4096, 512, scalar=True), soft(4096, 512),
    ),
}  # fmt: skip
