"""Entry points: run PTX text, or a Triton kernel compiled ahead of time, on CPU memory."""

from __future__ import annotations

import contextlib
import ctypes
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .errors import PtxError
from .layout import Options
from .machine import Machine
from .parser import Module, parse

# What an allocator promises at least; the virtual address keeps these bits of the real one.
_ALIGNMENT = 4096
_modules: dict[str, Module] = {}
_machines: dict[tuple, Machine] = {}
_compiled: dict[tuple, Any] = {}


def _remember(cache: dict, key: Any, value: Any) -> None:
    """Keep the newest few: a machine holds the registers of a whole block."""
    while len(cache) >= 16:
        del cache[next(iter(cache))]
    cache[key] = value


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First byte and size of the memory a strided view can touch."""
    if tensor.numel() == 0:
        return tensor.data_ptr(), 0
    low = sum(min(0, (n - 1) * s) for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    high = sum(max(0, (n - 1) * s) for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    width = tensor.element_size()
    return tensor.data_ptr() + low * width, (high - low + 1) * width


def _as_memory(value: Any) -> tuple[int, int, int, int] | None:
    """(pointer, first byte, size, start of its allocation) of a tensor or array."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise ValueError(f"tensors must be on the CPU, got {value.device}")
        first, size = _extent(value)
        return value.data_ptr(), first, size, value.untyped_storage().data_ptr()
    if isinstance(value, np.ndarray):
        low, high = (
            np.lib.array_utils.byte_bounds(value) if value.size else (value.ctypes.data,) * 2
        )
        base = value
        while isinstance(base.base, np.ndarray):
            base = base.base
        return value.ctypes.data, low, high - low, base.ctypes.data
    return None


class Pieces(tuple):
    """A pointer to memory of which only pieces are there: (bytes from the pointer, array) of each,
    far apart, ascending. Addresses keep the low bits of the arrays' own."""


class _Mapping:
    """Virtual addresses of the arguments: views of one allocation keep their distances."""

    def __init__(self, machine: Machine, named: Sequence[tuple[str, Any]]) -> None:
        self.memory = machine.globals
        self.pointers: dict[int, int] = {}
        self.far: dict[int, int] = {}  # virtual
        extents: dict[int, list[tuple[int, int, str]]] = {}
        for position, (name, value) in enumerate(named):
            if isinstance(value, Pieces):
                self.far[position] = self._map_pieces(name, value)
            found = _as_memory(value)
            if found is None:
                continue
            pointer, first, size, allocation = found
            extents.setdefault(allocation, []).append((first, first + size, name))
            self.pointers[position] = pointer
        self.bases: list[tuple[int, int, int]] = []
        for pieces in extents.values():
            pieces.sort()
            low, high = pieces[0][0], max(p[1] for p in pieces)
            start = self.memory.reserve(high - low, low % _ALIGNMENT)
            self.bases.append((low, high, start - low))
            merged: list[list] = []
            for first, last, name in pieces:
                if merged and first <= merged[-1][1]:
                    merged[-1][1] = max(merged[-1][1], last)
                    merged[-1][2] += f", {name}"
                else:
                    merged.append([first, last, name])
            for first, last, name in merged:
                if last > first:
                    self.memory.map(name, first + start - low, first, last - first)

    def _map_pieces(self, name: str, pieces: Pieces) -> int:
        last, array = pieces[-1]
        host = [(data.ctypes.data - offset) % _ALIGNMENT for offset, data in pieces]
        assert len({low % 16 for low in host}) == 1, "pieces at other alignments"
        start = self.memory.reserve(last + array.size, host[0])
        for offset, data in pieces:
            self.memory.map(name, start + offset, data.ctypes.data, data.size)
        return start

    def virtual(self, position: int) -> int:
        if position in self.far:
            return self.far[position]
        pointer = self.pointers[position]
        # One allocation may end where another begins; an empty tensor may stand at an end.
        found = [(low, shift) for low, high, shift in self.bases if low <= pointer <= high]
        if found:
            return pointer + max(found)[1]
        return 0x10  # an empty tensor: valid nowhere


def _scalar(value: Any, size: int) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, np.generic):
        return value.tobytes()
    if isinstance(value, ctypes._SimpleCData):
        return bytes(value)
    if isinstance(value, float):
        return struct.pack({2: "<e", 4: "<f", 8: "<d"}[size], value)
    if value is None:
        value = 0
    return (int(value) & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def _triple(value: int | Sequence[int]) -> tuple[int, int, int]:
    parts = (value,) if isinstance(value, int) else tuple(int(v) for v in value)
    return (*parts, 1, 1)[:3]


def run_ptx(
    ptx_text: str,
    kernel_name: str,
    grid: int | Sequence[int],
    block_threads: int | Sequence[int],
    args: Sequence[Any],
    shared_bytes: int = 0,
    *,
    options: Options | None = None,
    names: Sequence[str] | None = None,
    block_order: Callable[[int], Sequence[int]] | None = None,
) -> None:
    """Execute a kernel of a PTX module on the memory of its arguments.

    args: CPU tensors and numpy arrays become pointers; int, float, bool, numpy scalars and bytes
    (for structures) values of the parameter's size; None a null pointer. Missing trailing arguments
    are zero. shared_bytes is the dynamic shared memory. block_order maps the number of blocks to
    the order in which they run.
    """
    options = options or Options()
    module = _modules.get(ptx_text)
    if module is None:
        module = parse(ptx_text)
        _remember(_modules, ptx_text, module)
    function = module.functions.get(kernel_name)
    if function is None or not function.is_entry:
        raise PtxError(f"no kernel {kernel_name!r}; there are {sorted(module.functions)}")
    block = _triple(block_threads)
    key = (ptx_text, kernel_name, block, shared_bytes, tuple(vars(options).items()))
    machine = _machines.get(key)
    if machine is None:
        machine = Machine(module, kernel_name, block, shared_bytes, options)
        _remember(_machines, key, machine)
    params = function.params
    if len(args) > len(params):
        raise PtxError(f"{kernel_name} takes {len(params)} arguments, got {len(args)}")
    labels = list(names or []) + [f"argument {i}" for i in range(len(names or []), len(args))]
    machine.globals.unmap_arguments()
    mapping = _Mapping(machine, list(zip(labels, args, strict=False)))
    data = bytearray()
    for i, parameter in enumerate(params):
        data += bytes(-len(data) % parameter.align)
        value = args[i] if i < len(args) else None
        data += (
            mapping.virtual(i).to_bytes(8, "little")
            if i in mapping.pointers or i in mapping.far
            else _scalar(value, parameter.size)
        )
    machine.set_params(bytes(data))
    machine.run(_triple(grid), block_order)
    machine.globals.unmap_arguments()


# --- Triton -------------------------------------------------------------------------------------


def compile_triton(
    kernel, args: Sequence[Any], constants: Mapping[str, Any], target: int, **options: Any
):
    """Compile a @triton.jit function for the arguments exactly as the JIT would.

    Returns (compiled kernel, run-time arguments, their names).
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile, make_backend
    from triton.runtime.jit import create_function_from_signature

    if not hasattr(kernel, "params"):
        raise TypeError(f"{kernel} is not a compiled-mode @triton.jit function")
    gpu = GPUTarget("cuda", target, 32)
    backend = make_backend(gpu)
    # Two kernels of one name may differ in what they call or in globals: cache_key has it all.
    binder_key = (id(kernel), "binder", target)
    if binder_key not in _compiled:
        binder = create_function_from_signature(kernel.signature, kernel.params, backend)
        _compiled[binder_key] = (kernel, binder)
    binder = _compiled[binder_key][1]
    bound, specialization, extra = binder(*args, **constants, **options)
    values = list(bound.values())
    kinds = [s[0] for s in specialization]
    key = (
        id(kernel),
        kernel.cache_key,
        target,
        repr(specialization),
        repr([v for v, k in zip(values, kinds, strict=True) if k == "constexpr"]),
        tuple(sorted(extra.items())),
    )
    if key not in _compiled:
        parsed, signature, constexprs, attrs = kernel._pack_args(
            backend, dict(extra), bound, specialization, extra
        )
        source = ASTSource(kernel, signature, constexprs, attrs)
        _compiled[key] = compile(source, target=gpu, options=parsed.__dict__)
    pairs = [(n, v) for (n, v), k in zip(bound.items(), kinds, strict=True) if k != "constexpr"]
    return _compiled[key], [v for _, v in pairs], [n for n, _ in pairs]


def launch(
    kernel,
    grid: int | Sequence[int] | Callable[[dict], Sequence[int]],
    args: Sequence[Any],
    constants: Mapping[str, Any] | None = None,
    num_warps: int = 4,
    num_stages: int = 3,
    target: int = 80,
    *,
    options: Options | None = None,
    block_order: Callable[[int], Sequence[int]] | None = None,
    transform: Callable[[str], str] | None = None,
    **compile_options: Any,
):
    """Compile a Triton kernel ahead of time and execute its PTX on CPU tensors, in place.

    args are the positional arguments, constants those given by name (constexpr or not). transform
    may rewrite the PTX, as mutants do. Returns the compiled kernel.
    """
    constants = dict(constants or {})
    compiled, values, names = compile_triton(
        kernel,
        args,
        constants,
        target,
        num_warps=num_warps,
        num_stages=num_stages,
        **compile_options,
    )
    if callable(grid):
        grid = grid({**dict(zip(kernel.arg_names, args, strict=False)), **constants})
    text = compiled.asm["ptx"]
    metadata = compiled.metadata
    if getattr(metadata, "global_scratch_size", 0):
        raise PtxError("kernels with global scratch memory are not supported")
    run_ptx(
        transform(text) if transform else text,
        metadata.name,
        grid,
        32 * metadata.num_warps,
        values,
        metadata.shared,
        options=options,
        names=names,
        block_order=block_order,
    )
    return compiled


@contextlib.contextmanager
def intercept(target: int = 80, **more: Any) -> Iterator[list]:
    """Within it, every `kernel[grid](...)` of a @triton.jit function runs here instead of on a GPU.

    Yields the list of compiled kernels launched. more goes to `launch`.
    """
    from triton.runtime.jit import JITFunction

    launches: list = []

    def run(self, *args: Any, grid: Any, warmup: bool = False, **named: Any):
        sizes = named.pop("num_warps", 4), named.pop("num_stages", 3)
        compiled = launch(self, grid, args, named, *sizes, target, **more)
        launches.append(compiled)
        return compiled

    original = JITFunction.run
    JITFunction.run = run
    try:
        yield launches
    finally:
        JITFunction.run = original
