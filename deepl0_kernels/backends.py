"""Which implementation serves which call: query, override, report.

An operator has a ``"reference"`` implementation (pure PyTorch) and, registered with PyTorch's
dispatcher, native ones (``"cpu"``: the compiled extension; ``"triton"``: Triton kernels on a GPU).
By default a call is served by the native implementation for its tensor's device where there is one,
by the reference otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _C

NAMES = ("reference", "cpu", "cuda", "triton")

# Device type -> its native backend. A device that is not listed gets the reference.
_NATIVE = {"cpu": "cpu"}

_implementations: dict[str, dict[str, Callable]] = {}
_forced: str | None = None
_blocks: list[use_backend] = []  # the ``with`` blocks that are open, in the order of their begin
_last: tuple[str, str, str] | None = None


class Call(NamedTuple):
    """What served a call: operator, backend, instruction set of the kernel, and why."""

    operator: str
    backend: str
    isa: str | None
    reason: str


def register(operator: str, **implementations: Callable) -> None:
    """Tell which function serves ``operator`` on which backend."""
    _implementations[operator] = implementations


def serve_device(device: str, backend: str) -> None:
    """Tell which native backend serves tensors of the type ``device`` by default."""
    _NATIVE[device] = backend


def _native(operator: str, device: str) -> str:
    backend = _NATIVE.get(device, "reference")
    return backend if backend in _implementations[operator] else "reference"


def implementation(operator: str, tensor: Tensor) -> Callable:
    """The function that serves ``operator`` for ``tensor``'s device under the current override."""
    global _last
    native = _native(operator, tensor.device.type)
    if native == "triton" and tensor.dtype == torch.float64:
        backend, reason = "reference", "the GPU kernels have no float64"
    elif _forced is None:
        backend, reason = native, "default for the device"
        if _differentiates_functionally():
            backend, reason = "reference", "torch.func differentiates through the reference only"
    elif _forced in (native, "reference"):
        backend, reason = _forced, "forced by use_backend"
    else:
        raise ValueError(f"backend {_forced!r} does not serve {tensor.device.type!r} tensors")
    if not torch.compiler.is_compiling():
        _last = operator, backend, reason
    return _implementations[operator][backend]


def _differentiates_functionally() -> bool:
    """Whether torch.func.grad, vjp, jvp, ... or forward mode is active: PyTorch's operator library
    does not reach through them, but the reference, made of PyTorch operators, does. (vmap alone is
    served.)"""
    if torch.compiler.is_compiling():
        return False
    if forward_ad._current_level >= 0:
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() != torch._C._functorch.TransformType.Vmap for level in stack)


def backends() -> dict[str, dict[str, str]]:
    """Operator -> device type -> backend that serves it now; ``"other"`` is any other device."""
    return {
        operator: {
            **{device: _forced or _native(operator, device) for device in _NATIVE},
            "other": _forced or "reference",
        }
        for operator in sorted(_implementations)
    }


def last_call() -> Call | None:
    """What served the last operator called eagerly in this process, or None before the first.

    Calls inside a ``torch.compile`` graph are not seen: there the choice was made when the graph
    was traced.
    """
    if _last is None:
        return None
    operator, backend, reason = _last
    return Call(operator, backend, _C.active_isa() if backend == "cpu" else None, reason)


class use_backend:  # noqa: N801 - used like a function
    """Serve every operator by ``name`` from now on, or within a ``with`` block.

    ``name`` is one of ``"reference"``, ``"cpu"``, ``"cuda"``, ``"triton"``, or None for the
    default choice. The override is process-wide; ``torch.compile`` guards on it. Blocks may be
    opened again, and blocks of several threads may overlap: each takes back its own override.

    Raises:
        ValueError: ``name`` is unknown, or its kernels are not in this build.
    """

    def __init__(self, name: str | None) -> None:
        global _forced
        if name is not None and name not in NAMES:
            raise ValueError(f"name must be one of {NAMES} or None, got {name!r}")
        if name not in (None, "reference", *_NATIVE.values()):
            why = ": triton is not installed" if name == "triton" else ""
            raise ValueError(f"backend {name!r} is not in this build{why}; it has {available()}")
        self._name, self._previous, self._fresh = name, _forced, True
        _forced = name

    def __enter__(self) -> use_backend:
        global _forced
        if not self._fresh:
            self._previous, _forced = _forced, self._name
        self._fresh = False
        _blocks.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _forced
        at = _blocks.index(self)
        if at + 1 < len(_blocks):
            # A block of another thread began within this one and still lasts: it inherits.
            _blocks[at + 1]._previous = self._previous
        else:
            _forced = self._previous
        del _blocks[at]


def available() -> tuple[str, ...]:
    """Backends of this build."""
    return ("reference", *_NATIVE.values())
