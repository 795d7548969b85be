"""Launching a kernel: on the device and the current stream of its tensors, without waiting."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import table
from .tuned import Config


class Launch(NamedTuple):
    """One kernel launch: what triton needs to compile it and to run it."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Tensor | int | float | None, ...]
    constants: dict[str, Any]
    config: Config


def launch(kernel: Any, grid: tuple[int, ...], *args, config: Config, **constants) -> None:
    """Launch ``kernel[grid](*args, **constants)``; nothing is launched for an empty grid.

    Positional arguments are tensors, numbers or None in the kernel's order; keyword arguments are
    its ``tl.constexpr`` parameters. Warps come from ``config``; no loop is pipelined.
    """
    if all(grid):
        run(Launch(kernel, grid, args, constants, config))


def run(job: Launch) -> None:
    """The engine behind :func:`launch`: the driver's launch on the tensors' device.

    Triton finds the compiled kernel by the arguments, in about 8 us (on a core of an AMD EPYC,
    family 25 model 17). Half of that could be saved by keeping it here, under a key that repeats
    Triton's rules of specialisation, where one that is forgotten is a wrong result.
    """
    options = {"num_warps": job.config.warps, "num_stages": 1}
    device = next(a.device for a in job.args if isinstance(a, Tensor))
    if device.type == "cuda":
        table.device_class(device)  # refuses by name what the kernels were not compiled for
        with torch.cuda.device(device):  # the current stream of that device
            job.kernel[job.grid](*job.args, **job.constants, **options)
    else:  # triton's interpreter
        job.kernel[job.grid](*job.args, **job.constants, **options)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n`` (and 1)."""
    return 1 << max(0, n - 1).bit_length()
