"""Computations that PyTorch's ambient modes do not reach: autocast, grad mode, inference mode and
default dtype. The operators have rules of their own for them (ops/registration.py); a derivative
written in Python, a solver and a training have none, and are isolated here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_F = TypeVar("_F", bound=Callable[..., Any])

# torch.compile of torch 2.10 and 2.11 cannot ask which devices have autocast.
AUTOCAST_DEVICES = tuple(
    device for device in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(device)
)


def autocast_device() -> str | None:
    """A device type for which autocast is on, if there is one."""
    if not torch._C._is_any_autocast_enabled():  # the rule, and all of them asked at once
        return None
    for device in AUTOCAST_DEVICES:
        if torch.is_autocast_enabled(device):
            return device
    return None


def isolated(grad: bool | None = None) -> Callable[[_F], _F]:
    """Decorates a function that runs without autocast and with float32 as the default dtype.

    Args:
        grad: None leaves grad mode and inference mode to the caller: a derivative, which may be
            differentiated again. False: no gradients, for a solver, whose result is a constant.
            True: gradients, outside of inference mode, for a training; tensor arguments that were
            made in inference mode are replaced by clones, as autograd cannot save the others.

    The default dtype is one of the process in PyTorch, not of the thread: it is changed only where
    it is not float32 already.
    """

    def decorate(function: _F) -> _F:
        @functools.wraps(function)
        def call(*args, **kwargs):
            if grad and torch.is_inference_mode_enabled():
                with torch.inference_mode(False):
                    return call(*args, **kwargs)
            if grad is not None and torch.is_grad_enabled() != grad:
                with torch.set_grad_enabled(grad):
                    return call(*args, **kwargs)
            if (device := autocast_device()) is not None:
                with torch.autocast(device, enabled=False):
                    return call(*args, **kwargs)
            if (dtype := torch.get_default_dtype()) != torch.float32:
                torch.set_default_dtype(torch.float32)
                try:
                    return call(*args, **kwargs)
                finally:
                    torch.set_default_dtype(dtype)
            if grad:
                args = tuple(_ordinary(arg) for arg in args)
                kwargs = {name: _ordinary(arg) for name, arg in kwargs.items()}
            return function(*args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate


def refuse_inference(module: nn.Module) -> None:
    """Parameters that were made in inference mode can never be trained.

    Raises:
        ValueError: the module has such a parameter, which is named.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_inference():
            raise ValueError(
                f"{type(module).__name__} cannot be trained: its parameter {name} was made in "
                "torch.inference_mode(); make the module outside of it"
            )


def _ordinary(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
