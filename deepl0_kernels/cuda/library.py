"""The operators that the compiled extension registers, and what launchers share."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

kernels: Any = torch.ops.deepl0_cuda


_atomics = False


def allow_atomics(allowed: bool = True) -> None:
    """Let the CUDA kernels' backward of ``encode_top_m`` add up dS by atomic additions.

    Off until it is called; ``allowed=False`` takes it back. It spares the sort of the supports by
    unit; the sums then have no fixed order, so the last bits of dS differ from run to run.
    Process-wide, and without effect on other backends or where the products are dense.

    Under ``torch.use_deterministic_algorithms(True)`` such a backward raises a RuntimeError, with
    ``warn_only=True`` it warns.

    Example:
        >>> dk.allow_atomics()  # faster sums of dS on a GPU, no fixed order
        >>> dk.allow_atomics(False)
    """
    global _atomics, _told_tf32
    if not isinstance(allowed, bool):
        raise TypeError(f"allowed must be True or False, got {allowed!r}")
    _atomics = allowed
    _told_tf32 = None  # the next call tells


def atomics() -> bool:
    """Whether dS is added up atomically now."""
    if _atomics and torch.are_deterministic_algorithms_enabled():
        text = (
            "encode_top_m: the atomic sum of dS is not deterministic, and "
            "torch.use_deterministic_algorithms is on; call dk.allow_atomics(False)"
        )
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(text)
        warnings.warn(text, stacklevel=2)
    return _atomics


@functools.cache
def refusal(device: torch.device) -> str | None:
    """Why the kernels cannot run on the device, or None: a driver older than the CUDA runtime they
    are linked with, or a device that none of the compiled architectures serves."""
    try:
        kernels.probe(device.index or 0)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def told(operator: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, a pass that serves ``operator``, after which the rules know what they go by."""
    if operator not in ("encode_top_m", "encode_top_m_backward"):
        return run

    def call(*args):
        if _atomics or (_precision("cuda", "matmul") == "tf32") is not _told_tf32:
            tell()
        return run(*args)

    return call


@contextmanager
def _switched(switch: Callable[[bool], bool], on: bool) -> Iterator[None]:
    """``switch`` sets a choice and returns what it was."""
    before = switch(on)
    try:
        yield
    finally:
        switch(before)


def rows_read_once(on: bool = True) -> AbstractContextManager[None]:
    """Within the block the CUDA kernels select from rows beyond 1,024 entries by the kernel that
    reads them once (csrc/cuda/top_m_once.h), or by the others. The results are the same, bit for
    bit.

    Off by default, until a GPU has measured it; process-wide, and with DEEPL0_CUDA_ONCE=1 in the
    environment it is on from the start.
    """
    return _switched(kernels.read_rows_once, on)


def stages_screened(on: bool = True) -> AbstractContextManager[None]:
    """Within the block the CUDA kernels screen float32 encoders of one stage or with D, p >= 2,048,
    in bfloat16 and decide in float32 (csrc/cuda/screen.h), or multiply and select. Codes are those
    of float32 dot products either way; sums in another order may differ in their last bits.

    Off by default, until a GPU has measured it; process-wide, and with DEEPL0_SCREEN=1 in the
    environment it is on from the start.
    """
    return _switched(kernels.screen_stages, on)


def stages_fused(on: bool = True) -> AbstractContextManager[None]:
    """Within the block the CUDA kernels run a stage of ``encode_l0`` in half types, forward, as one
    kernel (csrc/cuda/threshold_stage.h), or as a product and a threshold. Codes are rounded after
    every stage either way; float32 sums in another order may differ in their last bits.

    Off by default, until a GPU has measured it; process-wide, and with DEEPL0_CUDA_FUSED=1 in the
    environment it is on from the start.
    """
    return _switched(kernels.fuse_stages, on)


_told_tf32: bool | None = None
_precision = torch._C._get_fp32_precision_getter


def tell() -> None:
    """Let the rules of csrc/torch/cuda/rules.h know what C++ cannot ask PyTorch for."""
    global _told_tf32
    _told_tf32 = _precision("cuda", "matmul") == "tf32"
    kernels.tell_rules(_told_tf32, atomics())
