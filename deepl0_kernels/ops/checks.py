"""Checks at the public boundary: each names the argument and the value seen, before any work."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._isolation import AUTOCAST_DEVICES
from ..reference.precision import accumulation_dtype
from ..reference.thresholds import readable

_INT64_MAX = 2**63 - 1
# dtype -> the largest number that it rounds to 0, and its largest.
_LIMITS = {
    dtype: (torch.finfo(dtype).tiny * torch.finfo(dtype).eps / 2, torch.finfo(dtype).max)
    for dtype in (torch.float32, torch.float64)
}
FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def floating(name: str, tensor: Tensor, min_dim: int = 1) -> None:
    """``tensor`` is a dense floating tensor of at least ``min_dim`` dimensions."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATING:
        raise ValueError(
            f"{name} must be float32, float64, float16 or bfloat16, got {tensor.dtype}"
        )
    if tensor.layout != torch.strided or tensor.is_nested:
        layout = "nested" if tensor.is_nested else tensor.layout
        raise ValueError(f"{name} must be dense (strided), got layout {layout}")
    if tensor.dim() < min_dim:
        raise ValueError(f"{name} must have at least {min_dim} dimension(s), got {shape(tensor)}")


def like(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """``tensor`` is dense, with dtype and device of ``other``; autocast evens out the dtypes."""
    floating(name, tensor, 0)
    if tensor.dtype != other.dtype and not autocast_is_on(other.device.type):
        raise ValueError(
            f"{name} must have the dtype of {other_name} ({other.dtype}), got {tensor.dtype}"
        )
    if tensor.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name} ({other.device}), got {tensor.device}"
        )


def has_shape(name: str, tensor: Tensor, expected: Sequence[int], meaning: str) -> None:
    """``tensor`` has the shape ``expected``; ``meaning`` is that shape in letters."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(
            f"{name} must have shape {meaning} = {tuple(expected)}, got {shape(tensor)}"
        )


def integer(name: str, value: int, low: int, high: int | None = None, limit: str = "") -> int:
    """``value`` is an integer in [low, high]; ``limit`` says in letters what ``high`` is."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not isinstance(value, (int, torch.SymInt)):
        try:
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if high is None and isinstance(value, int) and value > _INT64_MAX:
        high, limit = _INT64_MAX, "2**63 - 1"
    if value < low or (high is not None and value > high):
        upper = "" if high is None else f" and <= {limit} = {high}"
        raise ValueError(f"{name} must be >= {low}{upper}, got {value}")
    return value


def boolean(name: str, value: bool) -> bool:
    """``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def instance(name: str, value: object, kind: type | tuple[type, ...], what: str) -> None:
    """``value`` is of a kind, ``what`` in words."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {what}, got {type(value).__name__}")


def module(name: str, value: nn.Module) -> None:
    """``value`` is a ``torch.nn.Module``."""
    instance(name, value, nn.Module, "a torch.nn.Module")


def function(name: str, value: object, none: bool = False) -> None:
    """``value`` can be called, or is None where there may be ``none``."""
    if not (callable(value) or (none and value is None)):
        raise TypeError(f"{name} must be a function{' or None' if none else ''}, got {value!r}")


def path(name: str, value: str | os.PathLike[str]) -> Path:
    """``value`` as a path."""
    instance(name, value, (str, os.PathLike), "a path")
    return Path(value)


def several(name: str, value: Any) -> list[Any]:
    """``value`` as a list that is not empty."""
    try:
        found = list(value)
    except TypeError:
        raise TypeError(f"{name} must be a sequence, got {value!r}") from None
    if not found:
        raise ValueError(f"{name} must not be empty, got {value!r}")
    return found


def seed(name: str, value: int) -> int:
    """``value`` is what a ``torch.Generator`` takes."""
    return integer(name, value, -(2**63), _INT64_MAX, "2**63 - 1")


def ranks(name: str, group: Any) -> int:
    """How many ranks share in a process group; one where there is none."""
    if group is None:
        return 1
    instance(name, group, dist.ProcessGroup, "a process group or None")
    return dist.get_world_size(group)


def labels(name: str, value: Tensor, count: int) -> int:
    """``value`` is [N] int64 of ``count`` classes, each >= 0; returns the largest, -1 of none."""
    instance(name, value, Tensor, "a tensor")
    if value.dtype != torch.int64:
        raise ValueError(f"{name} must be int64, got {value.dtype}")
    has_shape(name, value, (count,), "[N]")
    if count and (least := int(value.min())) < 0:
        raise ValueError(f"{name} must be >= 0, got {least}")
    return int(value.max()) if count else -1


def number(name: str, value: float) -> float:
    """``value`` as a float: a number, or what holds just one."""
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value)
    except OverflowError:  # of an int
        raise ValueError(f"{name} must be within the range of float64, got {value}") from None
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None


def positive(name: str, value: float) -> float:
    """``value`` is a finite number > 0."""
    value = number(name, value)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be a finite number > 0, got {value}")
    return value


def nonnegative(name: str, value: float) -> float:
    """``value`` is a finite number >= 0."""
    value = number(name, value)
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be a finite number >= 0, got {value}")
    return value


def momentum(name: str, value: float) -> float:
    """``value`` is a number in [0, 1)."""
    value = number(name, value)
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
    return value


def of_stages(name: str, value: Any, num_stages: int) -> list[Any]:
    """``value`` of every stage: one for all, or a sequence of them."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value] * num_stages
    if len(value) != num_stages:
        raise ValueError(
            f"{name} must have num_stages = {num_stages} entries, got {len(value)}: {value!r}"
        )
    return list(value)


def sigma(value: float | Tensor, name: str = "sigma") -> float | Tensor:
    """Width of the ramp of HELU_sigma, as a fraction of theta: a number; in a graph a tensor [],
    whose range the kernel checks, so that the graph serves every value but 0."""
    if not torch.compiler.is_compiling():
        value = number(name, value)  # type: ignore[arg-type]
    elif isinstance(value, Tensor):
        if value.dim() > 0 or not value.is_floating_point():
            raise ValueError(f"{name} must be a floating tensor [], got {shape(value)}")
        return value.to("cpu", torch.float64)
    elif not _is_float(value):
        value = number(name, value)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be in [0, 1], got {value}")
    if torch.compiler.is_compiling() and value != 0.0:
        return _in_graph(value, torch.float64, torch.device("cpu"))
    return value


def _is_float(value: object) -> bool:
    return isinstance(value, (float, torch.SymFloat))


def _in_graph(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number of a graph as a tensor. A sum is what torch.compile traces without taking the number
    for a constant, as it would for ``torch.full``."""
    return torch.zeros((), dtype=dtype, device=device) + value


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, got {value!r}")


def theta(
    value: float | Tensor, u: Tensor, p: int, *, zero: bool = False, stages: int = 0
) -> Tensor:
    """The threshold as a tensor [] or [p] (or [stages, p]) in u's accumulation dtype.

    A number is checked here; the values of a tensor are checked by the kernel, which reads them.
    """
    dtype = accumulation_dtype(u.dtype)
    if not isinstance(value, Tensor):
        traced = torch.compiler.is_compiling() and _is_float(value)
        value = value if traced else number("theta", value)
        if not (value > 0 or (zero and value == 0)):
            raise ValueError(f"theta must be {'>= 0' if zero else '> 0'}, got {value}")
        rounded_to_zero, largest = _LIMITS[dtype]
        if largest < value < math.inf or 0 < value <= rounded_to_zero:
            raise ValueError(f"theta must be within the range of {dtype}, got {value}")
        if traced:
            return _in_graph(value, dtype, u.device)
        return torch.scalar_tensor(value, dtype=dtype, device=u.device)
    floating("theta", value, 0)
    if value.device != u.device:
        raise ValueError(f"theta must be on {u.device}, got {value.device}")
    if value.dtype not in (dtype, u.dtype) and not autocast_is_on(u.device.type):
        raise ValueError(f"theta must be {dtype}, got {value.dtype}")
    if value.dim() > 0 and value.shape != (p,) and not (stages and value.shape == (stages, p)):
        per_stage = f" or [num_stages, p] = {(stages, p)}" if stages else ""
        raise ValueError(f"theta must have shape [] or [p] = {(p,)}{per_stage}, got {shape(value)}")
    return value.to(dtype)


def steps(value: float | Sequence[float] | Tensor | None, x: Tensor, stages: int) -> Tensor | None:
    """The step of every stage as a tensor [stages] in x's accumulation dtype, each > 0, or None.

    The values of a tensor on a GPU, or in a graph, are not looked at.
    """
    if value is None:
        return None
    dtype = accumulation_dtype(x.dtype)
    if not isinstance(value, Tensor):
        if isinstance(value, Sequence) and not isinstance(value, str):
            numbers = [positive("step", v) for v in value]
        else:
            numbers = [positive("step", value)] * stages
        value = torch.tensor(numbers, dtype=dtype, device=x.device)
    floating("step", value, 0)
    if value.device != x.device:
        raise ValueError(f"step must be on {x.device}, got {value.device}")
    if value.dtype not in (dtype, x.dtype) and not autocast_is_on(x.device.type):
        raise ValueError(f"step must be {dtype}, got {value.dtype}")
    has_shape("step", value, (stages,), "[num_stages]")
    if readable(value) and not (good := value > 0).all():
        at = int(good.logical_not().nonzero()[0, 0])
        raise ValueError(f"step must be > 0, got {value[at].item()} in stage {at}")
    return value.to(dtype)


def shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def indices(name: str, tensor: Tensor, values_name: str, values: Tensor) -> None:
    """``tensor`` is int64 with the shape and device of ``values``."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype != torch.int64:
        raise ValueError(f"{name} must be int64, got {tensor.dtype}")
    if tensor.shape != values.shape or tensor.device != values.device:
        raise ValueError(
            f"{name} must have the shape and device of {values_name} "
            f"({shape(values)}, {values.device}), got {shape(tensor)}, {tensor.device}"
        )


def encoder_operands(
    x: Tensor, W: Tensor, S: Tensor | None, bias: Tensor | None, num_stages: int
) -> None:
    """x [..., n], W [p, n], bias [p], S [p, p] or [num_stages - 1, p, p] fit together."""
    first_operands(x, W, bias)
    if S is None:
        if num_stages > 1:
            raise ValueError(f"S must be given when num_stages > 1, got None at {num_stages}")
        return
    like("S", S, "x", x)
    p = W.shape[0]
    if S.shape != (p, p) and S.shape != (num_stages - 1, p, p):
        raise ValueError(
            f"S must have shape [p, p] = {(p, p)} or [num_stages - 1, p, p] = "
            f"{(num_stages - 1, p, p)}, got {shape(S)}"
        )


def first_operands(x: Tensor, W: Tensor, bias: Tensor | None) -> None:
    """x [..., n], W [p, n] and bias [p] fit together."""
    floating("x", x)
    like("W", W, "x", x)
    if W.dim() != 2 or W.shape[1] != x.shape[-1]:
        raise ValueError(f"W must have shape [p, n] with n = {x.shape[-1]}, got {shape(W)}")
    if bias is not None:
        like("bias", bias, "x", x)
        has_shape("bias", bias, W.shape[:1], "[p]")


def rows(tensor: Tensor) -> Tensor:
    """[..., n] as a matrix [B, n], n = 0 and empty batches included."""
    if tensor.dim() == 2:
        return tensor
    return tensor.flatten(0, -2) if tensor.dim() > 2 else tensor[None]


def autocast_is_on(device: str) -> bool:
    return (
        device in AUTOCAST_DEVICES or torch.amp.is_autocast_available(device)
    ) and torch.is_autocast_enabled(device)


def dtype_of_products(x: Tensor) -> torch.dtype:
    """Dtype of the operands of matrix products of x: under autocast that of autocast."""
    if x.dtype != torch.float64 and autocast_is_on(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
