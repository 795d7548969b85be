"""Time of the host in a call: what Python, the dispatcher and the launches take until it returns.

Calls of small tensors in bursts that the device follows; between bursts it is waited for, outside
of the time. ``python -m bench.host --json`` prints a list of operator, shape, provider and
microseconds (the fastest of the bursts' means: the rest is noise of the machine).
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable

import torch

import deepl0_kernels as dk

from . import gpu_device, rivals
from .rivals import eager_encode_l0, eager_encode_top_m, eager_keep_top_m, eager_top_m

EAGER, OURS = "torch eager", "deepl0"
BURSTS, CALLS = (2, 3) if gpu_device.STUB else (20, 25)


def cases(device: str) -> dict[tuple[str, str], dict[str, Callable[[], object]]]:
    """(operator, shape) -> provider -> call."""
    torch.manual_seed(0)
    u, x = torch.randn(64, 128, device=device), torch.randn(64, 32, device=device)
    W, S = torch.randn(128, 32, device=device), 0.1 * torch.randn(128, 128, device=device)
    theta, D = torch.ones(128, device=device), torch.randn(32, 128, device=device)
    code = dk.SparseCode(*dk.top_m(u, 16), 128)
    leaves = [t.clone().requires_grad_() for t in (W, S)]
    grad = torch.randn(64, 16, device=device)

    def step(encode: Callable):
        return lambda: torch.autograd.grad(encode(x, *leaves)[0], leaves, grad)

    return {
        ("top_m", "B=64 p=128 m=16"): {
            EAGER: lambda: eager_top_m(u, 16), OURS: lambda: dk.top_m(u, 16),
        },
        ("keep_top_m", "B=64 p=128 m=16"): {
            EAGER: lambda: eager_keep_top_m(u, 16), OURS: lambda: dk.keep_top_m(u, 16),
        },
        ("encode_top_m", "B=64 p=128 m=16 K=2"): {
            EAGER: lambda: eager_encode_top_m(x, W, S, 16, 2),
            OURS: lambda: rivals.encode_top_m(x, W, S, 16, num_stages=2),
        },
        ("encode_top_m forward + backward", "B=64 p=128 m=16 K=2"): {
            EAGER: step(lambda x, W, S: eager_encode_top_m(x, W, S, 16, 2)),
            OURS: step(lambda x, W, S: rivals.encode_top_m(x, W, S, 16, num_stages=2)),
        },
        ("encode_l0", "B=64 p=128 K=2"): {
            EAGER: lambda: eager_encode_l0(x, W, S, theta, 2),
            OURS: lambda: dk.encode_l0(x, W, S, theta, num_stages=2),
        },
        ("decode", "B=64 p=128 m=16"): {
            EAGER: lambda: code.to_dense() @ D.t(), OURS: lambda: dk.decode(code, D),
        },
    }  # fmt: skip


def measured(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Provider -> microseconds, the providers in turn, burst by burst."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for burst in range(BURSTS + 1):
        for name, call in calls.items():
            gpu_device.synchronize()
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            if burst:  # the first one warms up
                times[name].append(1e6 * (time.perf_counter() - start) / CALLS)
    return {name: round(min(seen), 2) for name, seen in times.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="a list, on standard output")
    parser.add_argument("--only", default="", type=re.compile, help="regular expression")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = [
        {"operator": operator, "shape": shape, "provider": provider, "us": us, "device": device}
        for (operator, shape), calls in cases(device).items()
        if arguments.only.search(operator)
        for provider, us in measured(calls).items()
    ]
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        for row in found:
            print("{operator}, {shape}: {provider} {us} us ({device})".format(**row))
