"""torch.ops.deepl0_emulated: the operators of deepl0_cuda on CPU tensors, with launchers and
bindings as they are and kernels by the PTX interpreter. A kernel may touch exactly the tensors that
its binding has handed out.
"""

from __future__ import annotations

import ctypes
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import numpy as np
import torch

from deepl0_kernels.backends import serve_device
from deepl0_kernels.cuda import library
from deepl0_kernels.ops import registration
from python_tests.ptx.engine import run_ptx
from python_tests.ptx.layout import Options

from . import build


class Range(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_uint64), ("bytes", ctypes.c_uint64))


class Job(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_char_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint64),
        ("shared_allowed", ctypes.c_uint64),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("ranges", ctypes.POINTER(Range)),
        ("range_count", ctypes.c_uint64),
        ("stream", ctypes.c_void_p),
    )


RUN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Job))

STREAM = 0x57EEA3  # what csrc/tests/cuda_emulator.cpp calls the current stream

# An H100, and one with so little shared memory that short rows are long ones.
BIG = (132, 232448)
SMALL = (132, 49152)


@contextmanager
def idle() -> Iterator[None]:
    """Inside, the CUDA floor serves CPU tensors, and its launches do nothing: what a call costs the
    host. Results are not written."""
    built = build.build()
    torch.ops.load_library(str(built.library))
    runtime = ctypes.CDLL(str(built.library))
    runtime.emulator_set_device(*BIG)
    runtime.emulator_set_run(runtime.emulator_do_nothing)
    runtime.emulator_set_fill(0)
    with serving("cpu"):
        yield


@contextmanager
def serving(device: str) -> Iterator[None]:
    """The CUDA floor, emulated, serves tensors of that type; afterwards what served before."""
    before = library.kernels
    library.kernels = torch.ops.deepl0_emulated
    library.tell()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
        registered = registration.serve_natively(device, ("cuda",))
    try:
        yield
    finally:
        registered._destroy()
        serve_device(device, *(("cpu",) if device == "cpu" else ()))
        library.kernels = before


@contextmanager
def _emulated(choice: Callable[[bool], AbstractContextManager], on: bool) -> Iterator[None]:
    before = library.kernels
    library.kernels = torch.ops.deepl0_emulated
    try:
        with choice(on):
            yield
    finally:
        library.kernels = before


def rows_read_once(on: bool = True) -> AbstractContextManager:
    """As library.rows_read_once, of the emulated operators."""
    return _emulated(library.rows_read_once, on)


def stages_screened(on: bool = True) -> AbstractContextManager:
    """As library.stages_screened, of the emulated operators."""
    return _emulated(library.stages_screened, on)


def stages_fused(on: bool = True) -> AbstractContextManager:
    """As library.stages_fused, of the emulated operators."""
    return _emulated(library.stages_fused, on)


class Launch(NamedTuple):
    """One launch, for tests that look at plans."""

    kernel: str  # without namespace and template arguments
    grid: int
    threads: int
    shared: int


class Emulator:
    """The engine behind the emulated runtime; ``mutate`` maps PTX text to what runs instead."""

    def __init__(self) -> None:
        built = build.build()
        torch.ops.load_library(str(built.library))
        self.library = ctypes.CDLL(str(built.library))
        self.ptx = {}
        self.parameters = {}
        for text in built.ptx.values():
            self.ptx |= modules_of(text)
            self.parameters |= kernels_of(text)
        self.static = {name: static_shared(text, name) for name, text in self.ptx.items()}
        self.launches: list[Launch] = []
        self.mutate: Callable[[str, str], str] = lambda kernel, text: text
        self.block_order: Callable[[int], list[int]] | None = None
        self.options = Options()
        # Kernel, blocks and arguments -> blocks and arguments that run instead.
        self.relocate: Callable[[str, int, list], tuple[int, list]] | None = None
        self.record: Callable[[Job], None] | None = None  # takes the launches, and nothing runs
        self.error = b""
        self._run = RUN(self._launch)  # as long as the library may call it
        self.restore()

    def restore(self) -> None:
        """Launches are executed, by this object."""
        self.library.emulator_set_run(self._run)
        self.library.emulator_set_fill(0xFF)
        self.set_device(*BIG)

    def set_device(self, multiprocessors: int, shared_bytes: int) -> None:
        self.library.emulator_set_device(multiprocessors, shared_bytes)

    def _launch(self, pointer) -> int:
        try:
            self._execute(pointer.contents)
        except Exception as error:  # nothing passes through C: it becomes the CUDA error's text
            self.error = f"{type(error).__name__}: {error}".encode()
            self.library.emulator_set_error(self.error)
            return 1
        return 0

    def refuse(self, text: bytes | None) -> None:
        """From now on the device runs no kernels, for the reason ``text``."""
        self._refusal = text  # the library keeps the pointer
        self.library.emulator_set_refusal(text)

    def _execute(self, job: Job) -> None:
        name = job.kernel.decode()
        assert job.stream == STREAM, f"{name} is not launched on the current stream"
        if self.record is not None:
            self.record(job)
            return
        threads = job.block[0] * job.block[1] * job.block[2]
        static = self.static[name]
        assert 0 < threads <= 1024, f"{threads} threads"
        assert all(n > 0 for n in job.grid), f"grid {list(job.grid)}"
        assert job.grid[1] <= 65535, f"grid {list(job.grid)}"
        if job.shared_bytes + static > 48 << 10:
            assert job.shared_bytes <= job.shared_allowed, "shared memory was not allowed"
        self.launches.append(Launch(base_name(name), job.grid[0], threads, job.shared_bytes))
        memory = [
            (r.begin, bytes_at(r.begin, r.bytes))
            for r in (job.ranges[i] for i in range(job.range_count))
            if r.bytes
        ]
        arguments = [
            value_of(size, job.arguments[i], memory) for i, size in enumerate(self.parameters[name])
        ]
        grid = tuple(job.grid)
        if self.relocate is not None:
            blocks, arguments = self.relocate(base_name(name), grid[0], arguments)
            grid = (blocks, *grid[1:])
        run_ptx(
            self.mutate(name, self.ptx[name]), name, grid, tuple(job.block), arguments,
            job.shared_bytes, block_order=self.block_order, options=self.options,
        )  # fmt: skip


def bytes_at(begin: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(begin))


def value_of(size: int, pointer: int, memory: list) -> bytes | np.ndarray:
    """The argument: memory from its address on, where it is one; else its bytes."""
    raw = ctypes.string_at(pointer, size)
    if size == 8:
        address = int.from_bytes(raw, "little")
        for begin, array in memory:
            if begin <= address < begin + array.size:
                return array[address - begin :]
    return raw


def kernels_of(ptx: str) -> dict[str, list[int]]:
    """Kernel -> sizes of its parameters."""
    sizes = {"8": 1, "16": 2, "32": 4, "64": 8}
    return {
        match.group(1): [sizes[n] for n in re.findall(r"\.param \.[ubsf](\d+)", match.group(2))]
        for match in re.finditer(r"\.entry (\w+)\((.*?)\)", ptx, re.DOTALL)
    }


def modules_of(ptx: str) -> dict[str, str]:
    """Kernel -> the module with it alone: parsing all of them for one would take seconds."""
    head, *parts = re.split(r"(?=^(?:\.weak |\.visible )?\.entry )", ptx, flags=re.MULTILINE)
    pieces = [part.partition("\n}\n") for part in parts]
    rest = [between for _, _, between in pieces]
    return {
        re.search(r"\.entry (\w+)\(", body)[1]: "\n".join([head, *rest[:i], body + end, *rest[i:]])
        for i, (body, end, _) in enumerate(pieces)
    }


def static_shared(ptx: str, kernel: str) -> int:
    """Bytes of static shared memory that the kernel's body names."""
    body = body_of(ptx, kernel)
    declared = re.findall(r"^\s*(?:\.\w+ )*\.shared \.align \d+ \.b8 (\w+)\[(\d+)\]", ptx, re.M)
    return sum(int(size) for name, size in declared if re.search(rf"\b{re.escape(name)}\b", body))


def body_of(ptx: str, kernel: str) -> str:
    begin = ptx.index(f".entry {kernel}(")
    return ptx[begin : ptx.find("\n}\n", begin)]


def base_name(mangled: str) -> str:
    """top_m_block_kernel of _ZN6deepl04cuda18top_m_block_kernelI..."""
    match = re.search(r"\d+((?:[a-z]+_)+kernel)", mangled)
    return match.group(1) if match else mangled
