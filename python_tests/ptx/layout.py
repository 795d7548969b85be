"""Where everything lives: registers, shared, local, parameter memory, special registers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .errors import ParseError, UnknownInstructionError
from .memory import LOCAL_WINDOW, SHARED_BASE, GlobalMemory, LocalMemory, SharedMemory
from .parser import TYPE_BYTES, Function, Instruction, Module
from .races import Order

_SPACES = ("global", "shared", "local", "param", "const")


@dataclass
class Options:
    """Which checks run. All by default."""

    uninitialized: bool = True  # registers and shared memory
    cross_block: bool = True  # plain accesses to what another block of the launch wrote
    max_steps: int = 50_000_000


@dataclass
class Frame:
    """A function's place in the machine."""

    function: Function
    first: int = 0  # its first basic block
    symbols: dict[str, int] = field(default_factory=dict)
    return_to: np.ndarray | None = None


def _access_bytes(ins: Instruction, space: str) -> int:
    """Smallest piece of a memory space an instruction may touch, 16 if none."""
    name = ins.opcode[0]
    spaces = {part.split("::")[0] for part in ins.opcode} & {*_SPACES}
    if spaces and space not in spaces:
        return 16
    if name in ("ld", "st", "atom", "red", "ldu"):
        return TYPE_BYTES.get(next(t for t in reversed(ins.opcode) if t in TYPE_BYTES), 1)
    if name == "cp":
        # Whatever part of the source it reads, cp.async writes all of its destination.
        return int(ins.operands[2], 0) if len(ins.operands) > 2 else 16
    return 16


def sum_params(function: Function) -> int:
    """Bytes of a kernel's parameters with their alignments."""
    at = 0
    for v in function.params:
        at = -(-at // v.align) * v.align + v.size
    return at


class Layout:
    """Memory and registers of one block of a kernel; all blocks use them one after the other."""

    def __init__(
        self,
        module: Module,
        kernel: str,
        block: tuple[int, int, int],
        dynamic_shared: int = 0,
        options: Options | None = None,
    ) -> None:
        self.module, self.options = module, options or Options()
        self.block_dim = block
        self.real = block[0] * block[1] * block[2]
        self.warps = (self.real + 31) // 32
        self.threads = self.warps * 32
        self.all = np.arange(self.threads)
        self.entry = module.functions[kernel]
        self.order = Order(self.warps)
        self.functions = self._reachable()
        instructions = [i for f in self.functions for i in f.instructions]
        granule, shared_granule = (
            min([16, *(_access_bytes(i, space) for i in instructions)])
            for space in ("global", "shared")
        )
        self.globals = GlobalMemory(granule, self.order, self.options.cross_block)
        self._keep: list = []  # arrays behind module variables
        self._allocate(dynamic_shared, shared_granule)
        self._constants: dict = {}
        self._special_registers()

    def _reachable(self) -> list[Function]:
        """Called functions first, so that callees have lower addresses than their callers."""
        order: list[Function] = []

        def visit(function: Function) -> None:
            for ins in function.instructions:
                if ins.opcode[0] == "call":
                    name = next(o for o in ins.operands if isinstance(o, str))
                    callee = self.module.functions.get(name)
                    if callee and callee.has_body and callee not in order and callee != function:
                        visit(callee)
            order.append(function)

        visit(self.entry)
        return order

    def _allocate(self, dynamic_shared: int, granule: int) -> None:
        counts = {"p": 0, 16: 0, 32: 0, 64: 0}
        self.register_index: dict[tuple[str, str], tuple] = {}
        for function in self.functions:
            for name, kind in function.registers.items():
                width = "p" if kind == "pred" else max(16, 8 * TYPE_BYTES[kind])
                if width == 128:
                    raise UnknownInstructionError(f".reg .{kind}")
                self.register_index[function.name, name] = (width, counts[width])
                counts[width] += 1
        T = self.threads
        self.files = {
            "p": np.zeros((counts["p"], T), bool),
            16: np.zeros((counts[16], T), np.uint16),
            32: np.zeros((counts[32], T), np.uint32),
            64: np.zeros((counts[64], T), np.uint64),
        }
        self.defined = np.zeros((sum(counts.values()), T), bool)
        self.frames: dict[str, Frame] = {}
        shared, local, param = 0, 0, 0
        self.symbols: dict[str, int] = {}
        dynamic: list[tuple[str, dict]] = []
        own = [(v, self.symbols) for v in self.module.variables]
        for function in self.functions:
            frame = self.frames[function.name] = Frame(function)
            frame.return_to = np.zeros(T, np.int64)
            own += [(v, frame.symbols) for v in (*function.variables,)]
            own += [(v, frame.symbols) for v in (*function.params, *function.returns)]
        for v, table in own:
            if v.space == "shared":
                if v.size == 0:
                    dynamic.append((v.name, table))
                    continue
                shared = -(-shared // v.align) * v.align
                table[v.name] = SHARED_BASE + shared
                shared += v.size
            elif v.space == "local":
                local = -(-local // v.align) * v.align
                table[v.name] = LOCAL_WINDOW + local
                local += v.size
            elif v.space == "param":
                param = -(-param // v.align) * v.align
                table[v.name] = param
                param += v.size
            else:
                table[v.name] = self._module_variable(v)
        shared = -(-shared // 16) * 16 if dynamic_shared else shared
        for name, table in dynamic:
            table[name] = SHARED_BASE + shared
        self.dynamic_shared = dynamic_shared
        self.shared = SharedMemory(
            shared + dynamic_shared, granule, self.order, self.options.uninitialized
        )
        self.local = LocalMemory(local, T)
        self.params = LocalMemory(param, T)

    def _module_variable(self, v) -> int:
        data = np.zeros(v.size + 32, np.uint8)
        skip = -data.ctypes.data % 16
        data = data[skip : skip + v.size]
        width = TYPE_BYTES[v.type]
        for i, value in enumerate(v.values):
            if value.startswith(("0f", "0F", "0d", "0D")):
                number = int(value[2:], 16)
            elif v.type.startswith("f") and width >= 4:
                number = int(np.array(float(value), f"f{width}").view(f"u{width}"))
            else:
                try:
                    number = int(value, 0) & ((1 << 8 * width) - 1)
                except ValueError:
                    number = self.symbols.get(value.removeprefix("generic(").rstrip(")"), 0)
            data[i * width : (i + 1) * width] = list(number.to_bytes(width, "little"))
        self._keep.append(data)
        return self.globals.new(v.name, data).start

    def _special_registers(self) -> None:
        T, (bx, by, bz) = self.threads, self.block_dim
        linear = np.arange(T, dtype=np.uint32)
        full = lambda v: np.full(T, v, np.uint32)  # noqa: E731
        lane = linear & 31
        one = np.uint64(1)
        bits = lambda x: x.astype(np.uint32)  # noqa: E731
        lane64 = lane.astype(np.uint64)
        self.special = {
            "%tid.x": linear % bx,
            "%tid.y": linear // bx % by,
            "%tid.z": linear // (bx * by),
            **{f"%ntid.{c}": full(n) for c, n in zip("xyz", (bx, by, bz), strict=True)},
            **{f"%ctaid.{c}": full(0) for c in "xyz"},
            **{f"%nctaid.{c}": full(1) for c in "xyz"},
            **{f"%{r}.{c}": full(0) for r in ("clusterid", "cluster_ctaid") for c in "xyz"},
            **{f"%{r}.{c}": full(1) for r in ("nclusterid", "cluster_nctaid") for c in "xyz"},
            **{f"%{r}": full(0) for r in ("cluster_ctarank", "smid", "gridid", "clock")},
            "%cluster_nctarank": full(1),
            "%nsmid": full(1),
            "%laneid": lane,
            "%warpid": linear // 32,
            "%nwarpid": full(self.warps),
            "%lanemask_eq": bits(one << lane64),
            "%lanemask_lt": bits((one << lane64) - one),
            "%lanemask_le": bits((one << (lane64 + one)) - one),
            "%lanemask_gt": bits(~((one << (lane64 + one)) - one)),
            "%lanemask_ge": bits(~((one << lane64) - one)),
            "%dynamic_smem_size": full(self.dynamic_shared),
            "%total_smem_size": full(self.shared.size),
            "%clock64": np.zeros(T, np.uint64),
            "%globaltimer": np.zeros(T, np.uint64),
        }
        self.real_mask = linear < self.real

    def constant(self, value: int | float, dtype: np.dtype) -> np.ndarray:
        """A constant as a full row: ufuncs are fastest on equal shapes."""
        key = (repr(value), dtype)
        if key not in self._constants:
            row = np.full(self.threads, value, dtype)
            row.flags.writeable = False
            self._constants[key] = row
        return self._constants[key]

    def set_params(self, data: bytes) -> None:
        if len(data) != sum_params(self.entry):
            raise ParseError(
                f"{self.entry.name} takes {sum_params(self.entry)} bytes of parameters, "
                f"got {len(data)}"
            )
        symbols = self.frames[self.entry.name].symbols
        at = 0
        for v in self.entry.params:
            at = -(-at // v.align) * v.align
            start = symbols[v.name]
            piece = np.frombuffer(data[at : at + v.size], np.uint8)
            self.params.data[:, start : start + v.size] = piece
            at += v.size
