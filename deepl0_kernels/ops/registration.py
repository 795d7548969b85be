"""How an operator is told to PyTorch: schema, fake kernel, derivative, autocast, vmap.

The CPU kernels are registered by the compiled extension (csrc/torch_ops.cpp), the GPU kernels by
:func:`serve_natively`.

Where a call goes. The public function hands its arguments to what :func:`serve` has returned. An
ordinary one, eager, of plain tensors, in no mode that PyTorch's dispatcher has a key for, goes
straight to the kernel of its floor (:func:`_at_once`, :func:`deepl0_kernels.backends.kernel_of`),
or to it by way of a ``torch.autograd.Function`` where a gradient is recorded: of the attachments to
autograd that were measured the cheapest (docs/gpu.md). For any other call
:func:`deepl0_kernels.backends.implementation` names the reference, or PyTorch's operator, of whose
keys

* Autocast casts (:func:`serve`),
* vmap folds the mapped dimension into the batch (:func:`vmap_rows`),
* Autograd (:func:`differentiate`) decides what is saved: the operator itself saves nothing; its
  twin ``<name>_saving`` runs in its place when a gradient is recorded. What no native kernel
  differentiates (torch.func.grad, vjp, jvp, ..., forward mode) it hands to the reference: eagerly
  and while tracing, as both come here. Where a native backend is forced that is an error instead,
* CPU, CUDA: the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _C
from .._isolation import isolated
from ..backends import (
    GPU,
    KERNELS,
    LAST,
    SAVING,
    by_reference,
    choose,
    implementation,
    kernel_of,
    kinds,
    register,
    serve_device,
)
from . import checks
from .operands import CHECKS

# Held for the life of the process: destroying it would take the kernels back.
_library = torch.library.Library("deepl0", "FRAGMENT")
_DEVICES = ("cpu", "cuda")


def define(name: str, schema: str, fake: Callable) -> None:
    """Define ``torch.ops.deepl0.<name>`` and its fake kernel (shapes, dtypes, devices).

    A ``float sigma`` may also be a tensor []: a number would be part of a graph, which would be
    compiled again for every other one. The overload reads it when it is run.
    """
    _define(name, schema, fake)
    if "float sigma" not in schema:
        return
    _define(f"{name}.Tensor", schema.replace("float sigma", "Tensor sigma"), fake)
    operator = getattr(torch.ops.deepl0, name).default
    at = _position_of_sigma(operator)
    assert at is not None

    def kernel(*args):
        return operator(*args[:at], args[at].item(), *args[at + 1 :])

    _library.impl(f"{name}.Tensor", kernel, "CompositeExplicitAutograd")


def _define(name: str, schema: str, fake: Callable) -> None:
    _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"deepl0::{name}", fake, lib=_library)


def _position_of_sigma(operator) -> int | None:
    names = [argument.name for argument in operator._schema.arguments]
    return names.index("sigma") if "sigma" in names else None


def _overloads(name: str) -> list[tuple[str, Any]]:
    """``name`` and, where there is one, ``name.Tensor``, with their operators."""
    packet = getattr(torch.ops.deepl0, name)
    return [
        (name if overload == "default" else f"{name}.{overload}", getattr(packet, overload))
        for overload in packet.overloads()
    ]


# Serving.


def native(name: str) -> Callable:
    """The operator ``name``, by a kernel at once where the call is an ordinary one."""
    packet = getattr(torch.ops.deepl0, name)
    operator = packet.default
    other, at = getattr(packet, "Tensor", operator), _position_of_sigma(operator)

    def otherwise(args, error):
        if error is not None:
            raise error
        return (operator if at is None or not isinstance(args[at], Tensor) else other)(*args)

    return _at_once(name, kinds(name), 0, otherwise, public=False)


def _at_once(
    name: str,
    forms: str,
    dims: int,
    otherwise: Callable[[tuple, Exception | None], Any],
    public: bool,
) -> Callable:
    """The operator ``name``: by its kernel, where nothing but a kernel and autograd has to see the
    call, an eager one of plain tensors under no tracing, mode, transform of torch.func, autocast or
    forward mode; else by ``otherwise``, which is also told of the kernel's error.

    All of it but the look at a tracer is csrc/call.cpp, as it stands in the way of every call.

    Args:
        forms: of the arguments of a call at once, as in ``kinds``; "n": None.
        dims: dimensions that the first of them has; 0: any.
        public: whether arguments may be wrong, which the kernel has to check, and the call is one
            that is reported.
    """
    entrance = _C.AtOnce(name, forms, dims, public, otherwise, KERNELS, kernel_of, _formulas, LAST)
    is_compiling = torch.compiler.is_dynamo_compiling

    def call(*args):
        if is_compiling():
            return otherwise(args, None)
        return entrance(*args)

    return call


def serve(
    name: str,
    reference: Callable,
    prepare: Callable | None = None,
    low: Sequence[int] | None = (),
    dims: int = 0,
    absent: int | None = None,
) -> Callable:
    """Register with :func:`deepl0_kernels.backends.implementation`, and the autocast rule. Returns
    the function behind the public one, which takes its arguments in the order of the operator.

    Args:
        prepare: checks the arguments, by name, and returns them as the operator takes them.
        low: under autocast the tensor arguments at these positions are cast to the autocast dtype
            (they feed matrix products), the others to float32, so thresholds and selection are
            float32. None: nothing is cast, of an operator that only moves values.
        dims: dimensions that the operator's first argument has; 0: any number.
        absent: position of an optional argument that the kernel does not check as its public
            function does: it is None in a call at once.

    Checks in Python take a third of the time of a small call, and the compiled kernels make all of
    them again. So plain tensors and numbers of the operator's own types go to the kernel unchecked;
    if it refuses them, ``prepare`` says by name what is wrong with them, and the kernel's own error
    stands where it finds nothing.
    """
    by_operators_of_torch = _under_autocast(name, reference, low)
    run = native(name)

    floors = [floor.name for floor in GPU.values() if name in floor.operators]
    register(name, reference=by_operators_of_torch, **dict.fromkeys(("cpu", *floors), run))
    if prepare is None:
        return lambda *args: implementation(name, args[0])(*args)

    def otherwise(args, error):
        given, args = args, prepare(*args)
        if error is not None and all(a is b for a, b in zip(given, args, strict=True)):
            raise error
        return implementation(name, args[0])(*args)

    forms = kinds(name)
    if absent is not None:
        forms = f"{forms[:absent]}n{forms[absent + 1 :]}"
    return _at_once(name, forms, dims, otherwise, public=True)


def compose(name: str, kernel: Callable, reference: Callable | None = None) -> None:
    """An operator whose ``kernel`` is made of PyTorch's operators: it runs on every device, below
    autograd, opaque to tracers, in the place of a native one. With a ``reference``, which is
    differentiable any number of times, it is a public one; under autocast it is float32's.
    """
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    if reference is not None:
        operator = getattr(torch.ops.deepl0, name).default
        serving = dict.fromkeys(("cpu", *GPU), operator)
        register(name, reference=_under_autocast(name, reference, ()), **serving)


def _under_autocast(name: str, reference: Callable, low: Sequence[int] | None) -> Callable:
    """Register the operator's autocast rule; the reference with the same one is returned."""
    if low is None:
        return reference
    for overload, function in _overloads(name):
        for device in _DEVICES:
            _library.impl(overload, _autocast(function, device, low), f"Autocast{device.upper()}")

    def by_operators_of_torch(*args):
        device = args[0].device.type
        if checks.autocast_is_on(device):
            return _autocast(reference, device, low)(*args)
        return reference(*args)

    return by_operators_of_torch


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


def installed_floors() -> tuple[str, ...]:
    """The GPU backends that this installation has."""
    return tuple(name for name, floor in GPU.items() if floor.installed())


def serve_natively(device: str, floors: Sequence[str]) -> torch.library.Library:
    """Register the kernels of the backends ``floors`` for tensors of the type ``device``: "cuda",
    which is also what PyTorch calls an AMD GPU, or in tests "cpu", where an interpreter runs the
    kernels, and "meta", where launches are recorded. Where several backends have an operator,
    :func:`deepl0_kernels.backends.choose` decides call by call.

    They serve as long as the result lives.
    """
    library = torch.library.Library("deepl0", "IMPL")
    key = "Meta" if device == "meta" else device.upper()
    for name in sorted({name for floor in floors for name in GPU[floor].operators}):
        having = tuple(floor for floor in floors if name in GPU[floor].operators)
        library.impl(name, _launcher(name, having, "run"), key, allow_override=True)
        if hasattr(torch.ops.deepl0, name + SAVING):
            saving = _launcher(name, having, "saving")
            library.impl(name + SAVING, saving, key, allow_override=True)
    serve_device(device, *floors)
    return library


def _launcher(name: str, floors: Sequence[str], which: str) -> Callable:
    """Of the floors' kernels the one that is chosen, call by call; made when they are wanted."""
    check = CHECKS[name]
    saves = (which == "saving",) if hasattr(torch.ops.deepl0, name + SAVING) else ()
    runs: dict[str, Callable] = {}

    def launch(*args):
        check(*args, *saves)
        floor = choose(name, floors, args)
        if floor not in runs:
            runs[floor] = getattr(GPU[floor].kernel(name), which)
        return runs[floor](*args)

    return launch


# Differentiation.


def differentiate(
    name: str,
    setup: Callable | None = None,
    backward: Callable | None = None,
) -> None:
    """The derivative of the operator ``name``: ``setup(ctx, inputs, output)`` saves, where output
    is what ``<name>_saving`` returns if there is such an operator, and ``backward(ctx, *grads)``
    returns the gradients of the inputs, None for those that ``ctx.needs_input_grad`` does not name.
    Of several differentiable results some of ``grads`` may be None, never all.

    Ambient modes do not reach ``backward``. Without it the result is a constant.
    """
    saving = hasattr(torch.ops.deepl0, name + SAVING)
    for overload, operator in _overloads(name):
        twin = operator
        if saving:
            packet = getattr(torch.ops.deepl0, name + SAVING)
            twin = getattr(packet, operator._overloadname)
            _differentiate(name + SAVING + overload[len(name) :], twin, twin, setup, backward)
        _differentiate(overload, operator, twin, setup, backward)


# Operator -> itself with its derivative: ``apply`` of its autograd function.
_formulas: dict[str, Callable] = {}


def _differentiate(overload: str, operator, twin, setup, backward) -> None:
    name = overload.partition(".")[0]
    formula = None
    if backward is not None:
        formula = _formula(operator, twin is not operator, setup, backward)
        # The method of the base class: that of torch.autograd.Function looks for torch.func's
        # transforms in every argument, of which an ordinary call has none.
        _formulas[overload] = super(torch.autograd.Function, formula).apply  # type: ignore[misc]

    def kernel(keyset, *args):
        if why := _beyond_native(args):
            if (reference := by_reference(name, why)) is None:
                raise NotImplementedError(
                    f"deepl0::{name} has no derivative in {why}; the reference has, and serves "
                    "such calls when no backend is forced"
                )
            return reference(*args)
        if formula is not None and records_gradient(*args):

            def run(*inputs):
                with torch._C._AutoDispatchBelowAutograd():
                    return twin.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)

            return formula.apply(*args, run)
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    _library.impl(overload, kernel, "Autograd", with_keyset=True)


def _formula(operator, saves: bool, setup, backward) -> type[torch.autograd.Function]:
    """The operator, differentiable. The last argument of its ``apply`` is what computes it: where
    it ``saves``, the operator's twin."""
    schema = operator._schema
    of = _C.Formula(
        len(schema.arguments), len(schema.returns), saves, setup, backward, isolated()(backward)
    )
    methods = {"forward": staticmethod(of.forward), "backward": staticmethod(of.backward)}
    return type(f"DerivativeOf_{operator._opname}", (torch.autograd.Function,), methods)


def _beyond_native(args: Sequence) -> str | None:
    """What differentiates this call that PyTorch's autograd functions do not serve, if anything.

    (vmap alone is none of them.)
    """
    if torch._C._are_functorch_transforms_active():
        kinds = torch._C._functorch.TransformType
        kind = torch._C._functorch.peek_interpreter_stack().key()
        if kind in (kinds.Grad, kinds.Jvp) and any(
            isinstance(arg, Tensor) and torch._C._functorch.is_gradtrackingtensor(arg)
            for arg in args
        ):
            return "forward mode" if kind == kinds.Jvp else "torch.func"  # .grad, .vjp, ...
    elif forward_ad._current_level >= 0 and any(
        isinstance(arg, Tensor) and forward_ad.unpack_dual(arg).tangent is not None for arg in args
    ):
        return "forward mode"
    return None


def refuse_double_backward(name: str, forward: str) -> None:
    """Differentiating the backward ``name`` of ``forward`` is an error that says what to do."""

    def backward(ctx, *grads):
        raise RuntimeError(
            f"{forward}: double backward is not implemented; "
            "dk.use_backend('reference') differentiates any number of times "
            "(docs/errors.md#double-backward-is-not-implemented)"
        )

    differentiate(name, lambda ctx, inputs, output: None, backward)


def records_gradient(*args) -> bool:
    """Whether autograd would record a call on these arguments, so that a backward may follow."""
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)


mask, wanted = _C.mask, _C.wanted


def gradient(operand: Tensor, wanted: int | bool) -> Tensor:
    """Memory for the gradient of an operand, in its shape and dense; empty where it is not
    wanted."""
    return operand.new_empty(operand.shape if wanted else 0)


def vmap_rows(name: str, rows: Sequence[int], batch_dims: Sequence[int] | None = None) -> None:
    """vmap over the arguments at the positions ``rows``, whose leading dimensions are a batch.

    An operator that takes exactly one batch dimension gives ``batch_dims``, where it stands in each
    result: the mapped dimension is folded into it and unfolded again. vmap over any other argument
    (weights, theta) is refused: the reference is made of PyTorch operators, which do map.
    """
    for overload, operator in _overloads(name):
        rule = _rows_rule(name, operator, rows, batch_dims)
        torch.library.register_vmap(f"deepl0::{overload}", rule, lib=_library)


def _rows_rule(
    name: str, operator: Callable, rows: Sequence[int], batch_dims: Sequence[int] | None
) -> Callable:
    def rule(info, in_dims, *args):
        for position, dim in enumerate(in_dims):
            if isinstance(dim, int) and position not in rows:  # of a list of numbers it is one
                raise NotImplementedError(
                    f"deepl0::{name} does not map over argument {position}; "
                    "dk.use_backend('reference') maps over every tensor"
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

    return rule
