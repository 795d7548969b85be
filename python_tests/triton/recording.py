"""The launches that the operators make, recorded on tensors without data.

PyTorch's meta tensors have a shape and no memory. The launchers run on them unchanged, at any size,
and reading a value, which on a GPU is a synchronisation, is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deepl0_kernels.backends import GPU, serve_device
from deepl0_kernels.ops import registration
from deepl0_kernels.triton import launch
from deepl0_kernels.triton.launch import Launch

_FLOATING_ATOMICS = ("index_add", "scatter_add", "scatter_reduce", "index_put", "put_", "histc")


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Inside, launches on meta tensors are collected. No launch depends on the device."""
    jobs: list[Launch] = []
    floor = GPU["triton"]
    before = launch.run, floor.launcher
    floor.launcher = lambda name: guarded(before[1](name))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Overriding a previously registered kernel")
        library = registration.serve_natively("meta", ("triton",))
    launch.run = jobs.append
    try:
        yield jobs
    finally:
        launch.run, floor.launcher = before
        library._destroy()
        serve_device("meta")


def guarded(launcher: Callable) -> Callable:
    """The launcher, inside :class:`Capturable`."""

    def guarded(*args):
        with Capturable():
            return launcher(*args)

    return guarded


class Capturable(TorchDispatchMode):
    """Refuses PyTorch operations that a CUDA graph cannot hold, or whose sums have no fixed order:
    results or shapes read back by the host, copies between host and device, floating atomics."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if torch.is_tensor(t)]
        dynamic = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        # Indexing is dynamic by a mask only, not by integers.
        if dynamic and not (
            func is torch.ops.aten.index.Tensor and all(t.dtype != torch.bool for t in tensors)
        ):
            raise AssertionError(f"{func} waits for the device")
        target = kwargs.get("device")
        devices = {t.device.type for t in tensors}
        if target is not None:
            devices.add(torch.device(target).type)
        if devices - {"meta"}:
            raise AssertionError(f"{func} runs on or copies from or to {devices - {'meta'}}")
        name = func.overloadpacket.__name__
        if name.startswith(_FLOATING_ATOMICS) and any(t.is_floating_point() for t in tensors[:1]):
            raise AssertionError(f"{func} adds floats in no fixed order")
        return func(*args, **kwargs)
