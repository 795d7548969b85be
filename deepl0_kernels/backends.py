"""Which implementation serves which call: query, override, report.

An operator has a ``"reference"`` implementation (pure PyTorch) and, registered with PyTorch's
dispatcher, native ones (``"cpu"``: the compiled extension; on a GPU ``"cuda"``, its CUDA C++
kernels, and ``"triton"``). By default a call is served by a native implementation for its tensor's
device where there is one, by the reference otherwise. Which of two GPU kernels serves is decided in
one place, :func:`choose`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _C
from .cuda import library
from .triton import tuned


class Kernel(NamedTuple):
    """What computes an operator on a floor, below autograd and the dispatcher's other keys."""

    run: Callable[..., Any]  # the operator's arguments and results
    saving: Callable[..., Any]  # those of its twin, where it has one; else ``run``
    checks: bool  # whether it refuses arguments that do not fit, so that nothing else need to
    wide: bool  # whether it takes every dtype, float64 among them; else these
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)
    call: tuple[str, str, str] | None = None  # what a report says of it


@dataclass(eq=False)
class Backend:
    """Kernels for a GPU: a package of launchers, whose modules are imported by their first call."""

    name: str
    modules: Mapping[str, tuple[str, ...]]  # module -> the operators that it serves, by their names
    # Operators that are one of the extension's, and its twin.
    composed: tuple[str, ...]
    # Those of them that no GPU has measured yet: they serve where their backend is forced.
    on_request: tuple[str, ...]
    double: tuple[str, ...]  # those whose kernels are float64's
    installed: Callable[[], bool]
    missing: str  # why it is not installed where it is not
    serving: Callable[[Tensor], AbstractContextManager]  # around a call on such a tensor

    @property
    def operators(self) -> dict[str, str]:
        """Operator of torch.ops.deepl0 -> module."""
        return dict.fromkeys(self.composed, "library") | {
            name: module for module, names in self.modules.items() for name in names
        }

    def launcher(self, operator: str) -> Callable[..., Any]:
        """The function that serves ``operator``."""
        module, name = None, f"{__package__}.{self.name}.{self.operators[operator]}"

        def launch(*args):
            nonlocal module
            if module is None:
                module = importlib.import_module(name)
            with self.serving(args[0]):
                return getattr(module, operator)(*args)

        return launch

    def kernel(self, operator: str) -> Kernel:
        """What computes ``operator``."""
        if operator in self.composed:
            first, *twin = (
                library.told(
                    operator, _native(name, address, getattr(library.kernels, name).default._op)
                )
                for name in (operator, operator + SAVING)
                if (address := library.kernels.address(name))
            )
            made = Kernel(first, twin[0] if twin else first, checks=True, wide=False)
            return made._replace(dtypes=(torch.float64,)) if operator in self.double else made
        launch, count = self.launcher(operator), len(_packet(operator).default._schema.returns)
        if not hasattr(torch.ops.deepl0, operator + SAVING):
            return Kernel(launch, launch, False, False)

        # An operator and its saving twin are one function, which is told.
        def run(*args):
            results = launch(*args, False)
            return results[0] if count == 1 else results[:count]

        return Kernel(run, lambda *args: launch(*args, True), False, False)


def _packet(operator: str):
    return getattr(torch.ops.deepl0, operator)


_KINDS = {
    "Tensor": "t", "Optional[Tensor]": "T", "int": "i", "SymInt": "i", "float": "d", "bool": "b",
    "str": "s", "List[int]": "l",
}  # fmt: skip


def kinds(operator: str) -> str:
    """A letter for each argument of an operator, as csrc/call.cpp knows them."""
    return "".join(
        _KINDS[str(argument.type)] for argument in _packet(operator).default._schema.arguments
    )


def _native(name: str, address: int, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel at an address (0: the extension's for the CPU) of an operator of that name, called
    without the dispatcher; ``otherwise`` is called of what that would not do: tensors that a kernel
    would misread, and calls that somebody watches."""
    return _C.Native(
        name, address, kinds(name), len(_packet(name).default._schema.returns), otherwise
    )


def _cpu_kernel(operator: str) -> Kernel:
    """The extension's, which autograd's keys stand before."""

    def below(name: str) -> Callable[..., Any]:
        run = _packet(name).default._op

        def call(*args):
            with torch._C._AutoDispatchBelowAutograd():
                return run(*args)

        return _native(name, 0, call)

    run, twin = below(operator), operator + SAVING
    saving = below(twin) if hasattr(torch.ops.deepl0, twin) else run
    return Kernel(run, saving, True, True)


SAVING = (
    "_saving"  # after the name of an operator: its twin, which also returns what backward reads
)
_SELECTION = ("top_m", "keep_top_m", "unpool", "apply_mask")
GPU = {
    backend.name: backend
    for backend in (
        Backend(
            "cuda",
            {},
            (
                *_SELECTION,
                "batch_top_m",
                "encode_top_m",
                "encode_top_m_backward",
                "encode_top_m_factored",
                "encode_top_m_factored_backward",
                "encode_l0",
                "encode_l0_backward",
                "threshold",
                "threshold_backward",
                "decode",
                "decode_backward",
                "omp",
                "least_squares",
            ),
            ("omp", "least_squares"),
            ("least_squares",),
            # A ROCm torch cannot run them.
            lambda: bool(_C.build_info()["cuda"]) and torch.version.hip is None,
            "built without nvcc",
            lambda tensor: contextlib.nullcontext(),
        ),
        Backend(
            "triton",
            {
                "thresholds": ("threshold", "threshold_backward"),
                "decode": ("decode", "decode_backward"),
                "top_m": _SELECTION,
                "batch_top_m": ("batch_top_m",),
                "stage": ("threshold_stage", "top_m_stage"),
                **{
                    name: (name, f"{name}_backward")
                    for name in (
                        "encode_l0",
                        "encode_top_m",
                        "encode_l0_factored",
                        "encode_top_m_factored",
                    )
                },
            },
            (),
            (),
            (),
            # Looked up, not imported.
            lambda: importlib.util.find_spec("triton") is not None,
            "triton is not installed",
            tuned.serving,
        ),
    )
}
NAMES = ("reference", "cpu", *GPU)

# Device type -> its native backends. A device that is not listed gets the reference.
_NATIVE: dict[str, tuple[str, ...]] = {"cpu": ("cpu",)}

_implementations: dict[str, dict[str, Callable]] = {}
# Operator and device type -> the native backends that have it there: looked up in every call.
_served: dict[tuple[str, str], tuple[str, ...]] = {}
# Operator, or with the index of a GPU: what serves plain eager calls; filled as they come.
KERNELS: dict[str | tuple[str, int], Kernel | None] = {}
_forced: str | None = None
_blocks: list[use_backend] = []  # the ``with`` blocks that are open, in the order of their begin
# What served the last public call: operator, backend, reason.
LAST: list[tuple[str, str, str] | None] = [None]


class Call(NamedTuple):
    """What served a call: operator, backend, instruction set of the kernel, and why."""

    operator: str
    backend: str
    isa: str | None
    reason: str


def register(operator: str, **implementations: Callable) -> None:
    """Tell which function serves ``operator`` on which backend."""
    _implementations[operator] = implementations
    KERNELS.clear()
    for device in _NATIVE:
        _served[operator, device] = _natives(operator, device)


def serve_device(device: str, *backends: str) -> None:
    """Tell which native backends serve tensors of the type ``device``; none: the reference."""
    _NATIVE[device] = backends
    KERNELS.clear()
    if not backends:
        del _NATIVE[device]
    for operator in _implementations:
        _served[operator, device] = _natives(operator, device)


def _natives(operator: str, device: str) -> tuple[str, ...]:
    """The native backends that have ``operator`` for ``device``."""
    return tuple(b for b in _NATIVE.get(device, ()) if b in _implementations[operator])


def implementation(operator: str, tensor: Tensor, beyond: str | None = None) -> Callable:
    """The function that serves ``operator`` for ``tensor``'s device under the current override.
    ``beyond``: why this call is none that a GPU's kernels serve, if it is not.

    Several native backends are served by one function, PyTorch's operator: on the device, its
    kernel asks :func:`choose`. The choice stands above autograd: what the reference serves is
    differentiated by PyTorch, any number of times.
    """
    natives = _served.get((operator, tensor.device.type), ())
    native = natives[0] if natives else "reference"
    if native in GPU and (why := _passes_over(operator, native, tensor, beyond)):
        backend, reason = "reference", why
    elif _forced is None:
        backend, reason = native, "default for the device"
    elif _forced in (*natives, native, "reference"):
        backend, reason = _forced, "forced by use_backend"
    elif _forced in _NATIVE.get(tensor.device.type, ()):
        raise ValueError(
            f"backend {_forced!r} has no kernel for {operator!r}; "
            "dk.use_backend(None) lets another serve it"
        )
    else:
        raise ValueError(
            f"backend {_forced!r} does not serve {tensor.device.type!r} tensors "
            "(docs/errors.md#a-backend-does-not-serve-a-device)"
        )
    if not torch.compiler.is_compiling():
        LAST[0] = operator, *_told(operator, backend, reason)
    return _implementations[operator][backend]


def _told(operator: str, backend: str, reason: str) -> tuple[str, str]:
    """What a report says: a GPU's backend may have no kernel of its own for an operator."""
    if backend in GPU and operator not in GPU[backend].operators:
        return "reference", "made of PyTorch's operators"
    return backend, reason


def _passes_over(operator: str, native: str, tensor: Tensor, beyond: str | None) -> str | None:
    """Why a backend for GPUs does not serve a call, if it does not."""
    if operator not in GPU[native].operators:
        return beyond  # made of PyTorch's operators
    if tensor.dtype == torch.float64 and operator not in GPU[native].double:
        return "the GPU kernels have no float64"
    if _forced is None and operator in GPU[native].on_request:
        return f"no GPU has measured the kernel: dk.use_backend({native!r}) asks for it"
    return beyond


def kernel_of(operator: str, tensor: Tensor) -> Kernel | None:
    """The native kernel of an operator for a plain tensor under the current override, of whatever
    dtypes it takes, for a call that nothing but a kernel has to see; None where there is none, or
    the reference serves. Kept in ``KERNELS``."""
    if tensor.is_cpu:
        key: str | tuple[str, int] = operator
    elif tensor.is_cuda:
        key = operator, tensor.get_device()
    else:
        return None
    try:
        found = KERNELS[key]
    except KeyError:
        found = KERNELS[key] = _find_kernel(operator, tensor)
    return found


def _find_kernel(operator: str, tensor: Tensor) -> Kernel | None:
    names = [
        name
        for name in _NATIVE.get(tensor.device.type, ())
        if name == "cpu" or operator in GPU[name].operators
    ]
    public = operator in _implementations
    if not names or (public and _forced not in (None, *names)):
        return None
    if names == ["cpu"]:
        name, reason = "cpu", "forced by use_backend" if _forced else "default for the device"
        made = _cpu_kernel(operator)
    else:
        name, reason = _chosen(operator, names, (tensor,))
        made = GPU[name].kernel(operator)
    return made._replace(call=(operator, name, reason) if public else None)


def plan_serves(operator: str) -> bool:
    """Whether a plan may call the CPU kernels of ``operator`` in the operator's place."""
    if _forced not in (None, "cpu") or _served.get((operator, "cpu"), ())[:1] != ("cpu",):
        return False
    LAST[0] = operator, "cpu", "kept ready by a plan"
    return True


def choose(operator: str, backends: Sequence[str], args: Sequence) -> str:
    """Which of the GPU backends that have ``operator`` serves this call.

    An override wins where it has the operator. Else the CUDA kernels serve, where the device can
    run them (its driver is not older than their runtime, and a compiled architecture fits): a pass
    is one native call and nothing is compiled on first use. Selections, ``encode_top_m`` and
    ``decode`` are the faster ones on an H200 at all but a few sizes, where microseconds are lost
    (docs/benchmarks-gpu.md); thresholds and ``encode_l0`` no GPU has compared yet. Triton has the
    operators that CUDA has not, and serves AMD GPUs.
    """
    backend, reason = _chosen(operator, backends, args)
    if _forced is None and LAST[0] is not None and LAST[0][0] == operator:
        LAST[0] = operator, backend, reason
    return backend


def _chosen(operator: str, backends: Sequence[str], args: Sequence) -> tuple[str, str]:
    usable = [b for b in backends if b != "cuda" or _runs_cuda(args)]
    if _forced in backends:
        return str(_forced), "forced by use_backend"
    if "cuda" in usable and len(usable) > 1:
        return "cuda", "a pass is one native call"
    return (usable or backends)[0], "the only kernel for the device"


def _runs_cuda(args: Sequence) -> bool:
    device = args[0].device
    return device.type != "cuda" or library.refusal(device) is None


def by_reference(operator: str, why: str) -> Callable | None:
    """The reference of ``operator``, for what its native kernels do not differentiate; None where a
    native backend is forced. The report says ``why``."""
    if _forced not in (None, "reference"):
        return None
    if not torch.compiler.is_compiling():
        LAST[0] = operator, "reference", why
    return _implementations.get(operator, {}).get("reference")


def backends() -> dict[str, dict[str, str]]:
    """Operator -> device type -> backend that serves it now; ``"other"`` is any other device.

    Example:
        >>> dk.backends()["top_m"]["cpu"]
        'cpu'
    """
    return {
        operator: {
            **{device: _forced or _report(operator, device) for device in _NATIVE},
            "other": _forced or "reference",
        }
        for operator in sorted(_implementations)
    }


def _report(operator: str, device: str) -> str:
    natives = [
        name
        for name in _natives(operator, device)
        if name not in GPU
        or (operator in GPU[name].operators and operator not in GPU[name].on_request)
    ]
    return natives[0] if natives else "reference"


def last_call() -> Call | None:
    """What served the last operator called eagerly in this process, or None before the first.

    Calls inside a ``torch.compile`` graph are not seen: there the choice was made when the graph
    was traced.

    Example:
        >>> values, indices = dk.top_m(torch.randn(10), 2)
        >>> dk.last_call().backend, dk.last_call().reason
        ('cpu', 'default for the device')
    """
    if LAST[0] is None:
        return None
    operator, backend, reason = LAST[0]
    return Call(operator, backend, _C.active_isa() if backend == "cpu" else None, reason)


class use_backend:  # noqa: N801 - used like a function
    """Serve every operator by ``name`` from now on, or within a ``with`` block.

    ``name`` is one of ``"reference"``, ``"cpu"``, ``"cuda"``, ``"triton"``, or None for the
    default choice. The override is process-wide; ``torch.compile`` guards on it. Blocks may be
    opened again, and blocks of several threads may overlap: each takes back its own override.

    Raises:
        ValueError: ``name`` is unknown, or its kernels are not in this build.

    Example:
        >>> with dk.use_backend("reference"):
        ...     values, indices = dk.top_m(torch.tensor([3.0, -5.0]), 1)
        >>> dk.last_call().backend
        'reference'
    """

    def __init__(self, name: str | None) -> None:
        if name is not None and name not in NAMES:
            raise ValueError(f"name must be one of {NAMES} or None, got {name!r}")
        if name not in (None, *available()):
            why = f": {GPU[name].missing}" if name in GPU else ""
            raise ValueError(f"backend {name!r} is not in this build{why}; it has {available()}")
        self._name, self._previous, self._fresh = name, _forced, True
        _force(name)

    def __enter__(self) -> use_backend:
        if not self._fresh:
            self._previous = _forced
            _force(self._name)
        self._fresh = False
        _blocks.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        at = _blocks.index(self)
        if at + 1 < len(_blocks):
            # A block of another thread began within this one and still lasts: it inherits.
            _blocks[at + 1]._previous = self._previous
        else:
            _force(self._previous)
        del _blocks[at]


def _force(name: str | None) -> None:
    global _forced
    _forced = name
    KERNELS.clear()


def available() -> tuple[str, ...]:
    """Backends of this build."""
    return ("reference", *dict.fromkeys(b for native in _NATIVE.values() for b in native))
