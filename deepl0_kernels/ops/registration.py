"""How an operator is told to PyTorch: schema, fake kernel, autocast, vmap.

The CPU kernels are registered by the compiled extension (csrc/torch_ops.cpp), the GPU kernels by
:func:`serve_natively`, the derivatives in the file of each operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import cuda as cuda_kernels
from .. import triton as triton_kernels
from ..backends import choose, register, serve_device
from . import checks
from .operands import CHECKS

# Backends of a GPU -> what they serve.
_FLOORS = {"cuda": cuda_kernels, "triton": triton_kernels}

# Held for the life of the process: destroying it would take the kernels back.
_library = torch.library.Library("deepl0", "FRAGMENT")
_DEVICES = ("cpu", "cuda")


def define(name: str, schema: str, fake: Callable) -> None:
    """Define ``torch.ops.deepl0.<name>`` and its fake kernel (shapes, dtypes, devices)."""
    _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"deepl0::{name}", fake, lib=_library)


def serve(name: str, reference: Callable, low: Sequence[int] | None = ()) -> Callable:
    """Register with :func:`deepl0_kernels.backends.implementation`, and the autocast rule.

    Under autocast the tensor arguments at the positions ``low`` are cast to the autocast dtype
    (they feed matrix products), the others to float32, so thresholds and selection are float32.
    With ``low=None`` nothing is cast: an operator that only moves values. Returns the native
    implementation.
    """
    operator = getattr(torch.ops.deepl0, name).default
    if low is not None:
        for device in _DEVICES:
            _library.impl(name, _autocast(operator, device, low), f"Autocast{device.upper()}")

    def native(*args):
        # Autograd's Python layer costs more than a small call: go below it if nothing is recorded.
        if torch.compiler.is_compiling() or records_gradient(*args):
            return operator(*args)
        if forward_ad._current_level >= 0:
            refuse_tangents(name, *args)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    def reference_with_autocast(*args):
        device = args[0].device.type
        if low is not None and checks.autocast_is_on(device):
            return _autocast(reference, device, low)(*args)
        return reference(*args)

    floors = [floor for floor, kernels in _FLOORS.items() if name in kernels.OPERATORS]
    register(name, reference=reference_with_autocast, **dict.fromkeys(("cpu", *floors), native))
    return native


def installed_floors() -> tuple[str, ...]:
    """The GPU backends that this installation has."""
    return tuple(floor for floor, kernels in _FLOORS.items() if kernels.installed())


def serve_natively(device: str, floors: Sequence[str]) -> torch.library.Library:
    """Register the launchers of the backends ``floors`` for tensors of the type ``device``: "cuda",
    which is also what PyTorch calls an AMD GPU, or in tests "cpu", where an interpreter runs the
    kernels, and "meta", where launches are recorded. Where several backends have an operator,
    :func:`deepl0_kernels.backends.choose` decides call by call.

    They serve as long as the result lives.
    """
    library = torch.library.Library("deepl0", "IMPL")
    key = "Meta" if device == "meta" else device.upper()
    names = {name for floor in floors for name in _FLOORS[floor].OPERATORS}
    for name in sorted(names):
        library.impl(name, _launcher(name, floors), key, allow_override=True)
    serve_device(device, *floors)
    return library


def _launcher(name: str, floors: Sequence[str]) -> Callable:
    launchers = {
        floor: _FLOORS[floor].launcher(name) for floor in floors if name in _FLOORS[floor].OPERATORS
    }

    check, names = CHECKS[name], tuple(launchers)

    def launch(*args):
        check(*args)
        return launchers[choose(name, names, args)](*args)

    return launch


def serve_by_triton(device: str) -> torch.library.Library:
    """The Triton kernels alone."""
    return serve_natively(device, ("triton",))


def _autocast(function: Callable, device: str, low: Sequence[int]) -> Callable:
    def cast(position: int, arg):
        eligible = isinstance(arg, Tensor) and arg.is_floating_point()
        if not eligible or arg.device.type != device or arg.dtype == torch.float64:
            return arg
        return arg.to(torch.get_autocast_dtype(device) if position in low else torch.float32)

    def kernel(*args):
        cast_args = [cast(i, arg) for i, arg in enumerate(args)]
        with torch.autocast(device, enabled=False):
            return function(*cast_args)

    return kernel


def vmap_rows(name: str, rows: Sequence[int], batch_dims: Sequence[int] | None = None) -> None:
    """vmap over the arguments at the positions ``rows``, whose leading dimensions are a batch.

    An operator that takes exactly one batch dimension gives ``batch_dims``, where it stands in each
    result: the mapped dimension is folded into it and unfolded again. vmap over any other argument
    (weights, theta) is refused: the reference is made of PyTorch operators, which do map.
    """
    operator = getattr(torch.ops.deepl0, name).default

    def rule(info, in_dims, *args):
        for position, dim in enumerate(in_dims):
            if dim is not None and position not in rows:
                raise NotImplementedError(
                    f"deepl0::{name} does not map over argument {position}; "
                    "dk.use_backend('reference') maps over weights and thresholds too"
                )
        size = info.batch_size
        mapped = list(args)
        for position in rows:
            arg, dim = args[position], in_dims[position]
            arg = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            mapped[position] = arg if batch_dims is None else arg.flatten(0, 1)
        out = operator(*mapped)
        if batch_dims is None:
            return out, 0 if isinstance(out, Tensor) else (0,) * len(out)
        results = (out,) if isinstance(out, Tensor) else out
        unfolded = tuple(
            t.unflatten(d, (size, t.shape[d] // size))
            for t, d in zip(results, batch_dims, strict=True)
        )
        return (
            (unfolded[0], batch_dims[0])
            if isinstance(out, Tensor)
            else (unfolded, tuple(batch_dims))
        )

    torch.library.register_vmap(f"deepl0::{name}", rule, lib=_library)


def refuse_double_backward(name: str, forward: str) -> None:
    """Differentiating the backward ``name`` of ``forward`` is an error that says what to do."""

    def backward(ctx, *grads):
        raise RuntimeError(
            f"{forward}: double backward is not implemented; "
            "dk.use_backend('reference') differentiates any number of times"
        )

    torch.library.register_autograd(f"deepl0::{name}", backward, lib=_library)


def refuse_tangents(name: str, *args) -> None:
    """Forward mode has no formula for ``name``, and PyTorch would drop the tangents unsaid."""
    for arg in args:
        if isinstance(arg, Tensor) and forward_ad.unpack_dual(arg).tangent is not None:
            raise NotImplementedError(
                f"deepl0::{name} has no derivative in forward mode; the reference has, and serves "
                "such calls when no backend is forced"
            )


def constant_result(name: str) -> None:
    """What ``name`` returns has no derivative: it does not require a gradient, whatever came in."""

    def setup(ctx, inputs, output):
        ctx.mark_non_differentiable(*output)

    def backward(ctx, *grads):
        return None

    torch.library.register_autograd(f"deepl0::{name}", backward, setup_context=setup, lib=_library)


def records_gradient(*args) -> bool:
    """Whether autograd would record a call on these arguments, so that a backward may follow."""
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)


def wanted(ctx, *positions: int) -> int:
    """The mask of a backward: bit i says whether the gradient of the i-th of these inputs is."""
    return sum(ctx.needs_input_grad[p] << bit for bit, p in enumerate(positions))


def fake_gradients(mask: int, *operands: Tensor | tuple[Tensor]) -> tuple[Tensor, ...]:
    """Contiguous gradients of the operands, of shape [0] where the mask does not want one; a matrix
    in a tuple: in its layout."""

    def one(bit: int, t: Tensor | tuple[Tensor]) -> Tensor:
        matrix = t[0] if isinstance(t, tuple) else t
        if not mask >> bit & 1:
            return matrix.new_empty(0)
        return gradient_of_matrix(matrix) if isinstance(t, tuple) else matrix.new_empty(t.shape)

    return tuple(one(bit, t) for bit, t in enumerate(operands))


def gradient_of_matrix(t: Tensor) -> Tensor:
    """A fake gradient of the matrix ``t``: contiguous, or transposed like a transposed view."""
    rows, columns = t.shape[-2:]
    if t.stride(-2) == 1 and t.stride(-1) == rows and columns > 1:
        return t.new_empty((*t.shape[:-2], columns, rows)).transpose(-2, -1)
    return t.new_empty(t.shape)
