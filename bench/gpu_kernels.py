"""One small call of each kind of kernel: what compute-sanitizer and ncu look at.

``python -m bench.gpu_kernels --only REGEX`` makes those whose name matches.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

import deepl0_kernels as dk
from deepl0_kernels.backends import GPU
from deepl0_kernels.cuda import library
from deepl0_kernels.ops.least_squares import least_squares
from deepl0_kernels.ops.omp import omp
from deepl0_kernels.ops.registration import installed_floors

from . import gpu_device


def calls() -> dict[str, Callable[[], object]]:
    """Name -> call, on the device."""
    device = gpu_device.DEVICE
    torch.manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).requires_grad_()

    def backward(call: Callable[[], torch.Tensor], *leaves: torch.Tensor) -> object:
        out = call()
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    def within(choice: Callable[[], AbstractContextManager], call: Callable[[], object]) -> object:
        """By a choice of the CUDA kernels that is off by default, where they serve."""
        if device != "cuda" or not GPU["cuda"].installed():
            return call()
        with choice():
            return call()

    x, W, S = leaf(70, 32), leaf(128, 32), leaf(128, 128)
    wide, theta, D = leaf(16384, 32), (torch.rand(128, device=device) + 0.5), leaf(32, 128)
    theta.requires_grad_()
    rows, long = torch.randn(70, 300, device=device), torch.randn(3, 70000, device=device)
    wider, longest = torch.randn(300, 9001, device=device), torch.randn(1, 300000, device=device)
    unit = torch.nn.functional.normalize(D.detach(), dim=0)
    code = dk.SparseCode(*dk.top_m(torch.randn(70, 128, device=device), 9), 128)
    right, twins = code.values.double(), code.indices.clone()
    twins[:, -1] = twins[:, 0]  # systems that start again
    return {
        "top_m short": lambda: dk.top_m(rows, 20),
        "top_m long": lambda: dk.top_m(long, 50),
        "keep_top_m": lambda: dk.keep_top_m(rows, 20),
        "top_m once": lambda: within(
            library.rows_read_once,
            lambda: (dk.top_m(long, 50), dk.keep_top_m(wider, 50), dk.top_m(longest, 50)),
        ),
        "encode_top_m": lambda: backward(
            lambda: dk.encode_top_m(x, W, S, 9, num_stages=3).values, W, S
        ),
        "encode_top_m wide": lambda: dk.encode_top_m(x, wide, None, 9, num_stages=1),
        "encode_top_m screened": lambda: within(
            library.stages_screened,
            lambda: (
                dk.encode_top_m(x, wide, None, 9, num_stages=1),
                dk.encode_top_m(x, wide, None, 9, num_stages=2, D=wide.detach().t()),
            ),
        ),
        "encode_l0": lambda: backward(
            lambda: dk.encode_l0(x, W, S, theta, num_stages=2), W, S, theta
        ),
        "encode_l0 fused": lambda: within(
            library.stages_fused,
            lambda: [
                dk.encode_l0(x.to(half), W.to(half), S.to(half), theta, num_stages=3)
                for half in (torch.bfloat16, torch.float16)
            ],
        ),
        "helu": lambda: backward(lambda: dk.helu(x @ W.t(), theta, 0.2), x, theta),
        "omp": lambda: (omp(x.detach(), unit, 9, 1e-6), omp(x.detach(), unit, 9, 1e-6, True)),
        "least_squares": lambda: [
            least_squares(unit.double().t() @ unit.double(), right, at, 1e-5)
            for at in (code.indices, twins)
        ],
        "decode": lambda: backward(lambda: dk.decode(code, D), D),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", type=re.compile)
    only = parser.parse_args().only
    for floor in installed_floors() if gpu_device.DEVICE == "cuda" else (None,):
        for name, call in calls().items():
            if only.search(name):
                with dk.use_backend(floor):
                    try:
                        call()
                    except ValueError as error:  # the floor has not all its operators
                        print(f"{floor}: {name}: {error}", flush=True)
                        continue
                    gpu_device.synchronize()
                print(f"{floor or 'stub'}: {name}", flush=True)
