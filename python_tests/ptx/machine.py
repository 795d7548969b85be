"""The machine: registers, control flow, barriers. One block at a time, all its threads at once.

Every thread has a program counter; the threads at the lowest one run next, so that diverged threads
meet again at the first point they share. An operation gets a mask: True when all threads of the
block take part (the usual case, which costs nothing), else an array of booleans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from . import dataflow
from .decode import DECODERS, FLOATS, Context, load_decoders
from .errors import (
    BarrierError,
    DeviceTrapError,
    ParseError,
    PtxError,
    StepLimitError,
    UninitializedError,
    UnknownInstructionError,
)
from .memory import LOCAL_WINDOW, SHARED_BASE, GlobalMemory, LocalMemory, SharedMemory
from .parser import TYPE_BYTES, Function, Instruction, Module
from .races import Order

Operation = Callable[[object], None]


@dataclass
class Options:
    """Which checks run. All by default."""

    uninitialized: bool = True  # registers and shared memory
    cross_block: bool = True  # plain accesses to what another block of the launch wrote
    max_steps: int = 50_000_000


@dataclass
class Block:
    body: list[Operation]
    instructions: list[Instruction]
    finish: Callable[[object], int | None]
    last: Instruction | None


@dataclass
class Frame:
    """A function's place in the machine."""

    function: Function
    first: int = 0  # its first basic block
    symbols: dict[str, int] = field(default_factory=dict)
    return_to: np.ndarray | None = None


def _access_bytes(ins: Instruction) -> int:
    """Smallest piece of memory an instruction may touch, 16 if none."""
    name = ins.opcode[0]
    if name in ("ld", "st", "atom", "red", "ldu"):
        return TYPE_BYTES.get(next(t for t in reversed(ins.opcode) if t in TYPE_BYTES), 1)
    if name == "cp":
        # Whatever part of the source it reads, cp.async writes all of its destination.
        return int(ins.operands[2], 0) if len(ins.operands) > 2 else 16
    return 16


class Machine:
    def __init__(
        self,
        module: Module,
        kernel: str,
        block: tuple[int, int, int],
        dynamic_shared: int = 0,
        options: Options | None = None,
    ) -> None:
        load_decoders()
        self.module, self.options = module, options or Options()
        self.block_dim = block
        self.real = block[0] * block[1] * block[2]
        self.warps = (self.real + 31) // 32
        self.threads = T = self.warps * 32
        self.all = np.arange(T)
        self.entry = module.functions[kernel]
        self.order = Order(self.warps)
        self.functions = self._reachable()
        pieces = [_access_bytes(i) for f in self.functions for i in f.instructions]
        granule = min([16, *pieces])
        self.globals = GlobalMemory(granule, self.order, self.options.cross_block)
        self._keep: list = []  # arrays behind module variables
        self._allocate(dynamic_shared, granule)
        self._special_registers()
        self.pcs = np.zeros(T, np.int64)
        self.alive = np.zeros(T, bool)
        self.waiting = np.zeros(T, bool)
        self.barrier_of = np.full(T, -1)
        self.async_groups = None  # set by cp.async
        self.wgmma = None  # set by wgmma
        self.reset_hooks: list[Callable[[], None]] = []
        self._constants: dict = {}
        self.linear_block = 0
        self._decode_all()

    # --- layout -----------------------------------------------------------------------------

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

    # --- decoding ---------------------------------------------------------------------------

    def constant(self, value: int | float, dtype: np.dtype) -> np.ndarray:
        """A constant as a full row: ufuncs are fastest on equal shapes."""
        key = (repr(value), dtype)
        if key not in self._constants:
            row = np.full(self.threads, value, dtype)
            row.flags.writeable = False
            self._constants[key] = row
        return self._constants[key]

    def _decode_all(self) -> None:
        self.blocks: list[Block] = []
        for function in self.functions:
            self.frames[function.name].first = len(self.blocks)
            ranges = dataflow.blocks(function)
            starts = {start: len(self.blocks) + i for i, (start, _) in enumerate(ranges)}
            checked = dataflow.maybe_undefined(function) if self.options.uninitialized else set()
            for number, (start, end) in enumerate(ranges):
                following = len(self.blocks) + 1 if number + 1 < len(ranges) else None
                body, instructions = [], function.instructions[start:end]
                finish = (lambda m, n=following: n) if following is not None else self._exit
                last = None
                for ins in instructions:
                    context = Context(self, function, ins)
                    try:
                        if dataflow.ends_block(ins):
                            last = ins
                            finish = self._terminator(context, starts, following)
                            finish = self._checked(context, finish, checked)
                            if ins.guard:
                                finish = self._checked_guard(context, finish, checked)
                        else:
                            body.append(self._operation(context, checked))
                    except PtxError as error:
                        error.where = error.where or f" [{ins} | PTX line {ins.line}]"
                        raise
                    except (KeyError, IndexError, StopIteration, TypeError, ValueError) as error:
                        raise UnknownInstructionError(
                            f"cannot decode {ins} on PTX line {ins.line}: {error!r}"
                        ) from error
                self.blocks.append(Block(body, instructions, finish, last))

    def _operation(self, context: Context, checked: set[str]) -> Operation:
        ins = context.ins
        decoder = DECODERS.get(ins.opcode[0])
        if ins.opcode[-1] in FLOATS:
            decoder = DECODERS.get(ins.opcode[0] + ".f", decoder)
        if decoder is None:
            raise UnknownInstructionError(f"unknown instruction {'.'.join(ins.opcode)}")
        operation = self._checked(context, decoder(context), checked)
        if self.wgmma is not None or "wgmma" in ins.opcode:
            operation = self.wgmma.guard(context, operation)
        if not ins.guard:
            return operation
        return self._checked_guard(context, self._guarded(context, operation), checked)

    def _checked_guard(self, context: Context, operation: Operation, checked: set[str]):
        guard = context.ins.guard
        if guard not in checked:
            return operation
        row = self._defined_row(context, guard)

        def run(m):
            missing = ~row if m is True else ~row & m
            if missing.any():
                thread = int(np.flatnonzero(missing)[0])
                raise UninitializedError(f"read of register {guard} before any write", thread)
            return operation(m)

        return run

    def _guarded(self, context: Context, operation: Operation) -> Operation:
        predicate, negated = context.src(context.ins.guard, "pred"), context.ins.negated
        count, T = np.count_nonzero, self.threads

        def run(m) -> None:
            taken = ~predicate if negated else predicate
            if m is not True:
                taken = taken & m
            n = count(taken)
            if n == T:
                operation(True)
            elif n:
                # A copy: the operation may change its own predicate.
                operation(taken if negated or m is not True else taken.copy())

        return run

    def _checked(self, context: Context, operation, checked: set[str]):
        """Keep account of which threads have written the registers that need it."""
        if not checked:
            return operation
        reads, writes = dataflow.roles(context.ins, context.function.registers)
        rows = [(n, self._defined_row(context, n)) for n in reads if n in checked]
        outs = [self._defined_row(context, n) for n in writes if n in checked]
        if not rows and not outs:
            return operation
        guard = context.ins.guard
        all_threads = self.all

        def run(m):
            for name, row in rows:
                missing = ~row if m is True else ~row & m
                if name != guard and missing.any():
                    thread = int(all_threads[missing][0])
                    raise UninitializedError(f"read of register {name} before any write", thread)
            result = operation(m)
            for row in outs:
                row[m if m is not True else slice(None)] = True
            return result

        return run

    def _defined_row(self, context: Context, name: str) -> np.ndarray:
        width, index = self.register_index[context.function.name, name]
        base = 0
        for key in ("p", 16, 32, 64):
            if key == width:
                return self.defined[base + index]
            base += len(self.files[key])
        raise KeyError(name)

    # --- control flow -----------------------------------------------------------------------

    def _terminator(self, context: Context, starts: dict[int, int], following: int | None):
        ins, function = context.ins, context.function
        name = ins.opcode[0]
        leave = self._return(function) if name == "ret" else self._exit
        if name == "bra":
            at = function.labels[ins.operands[0]]
            target = starts.get(at)
            return self._branch(context, leave if target is None else target, following)
        if name in ("ret", "exit"):
            return self._branch(context, leave, following)
        if name == "brx":
            return self._indexed_branch(context, starts)
        if name == "trap":
            return self._branch(context, self._trap, following)
        if name == "call":
            from .calls import decode_call

            run = decode_call(context, following)
        else:
            from .barriers import decode_barrier

            run = decode_barrier(context, following)
        if ins.guard:
            return self._branch(context, run, following)
        return run

    def _branch(self, context: Context, target, following: int | None):
        """Threads whose guard holds go to target (a block, or a function of the mask)."""
        ins = context.ins
        go = target if callable(target) else None
        stay = self._exit if following is None else None
        if not ins.guard:
            return go or (lambda m: target)
        predicate, negated = context.src(ins.guard, "pred"), ins.negated
        T, pcs = self.threads, self.pcs

        def run(m):
            taken = ~predicate if negated else predicate.copy()
            if m is not True:
                taken &= m
                total = np.count_nonzero(m)
            else:
                total = T
            n = np.count_nonzero(taken)
            if n == total:
                return go(m) if go else target
            if n == 0:
                return stay(m) if stay else following
            rest = ~taken if m is True else m & ~taken
            if stay:
                stay(rest)
            else:
                pcs[rest] = following
            where = go(taken) if go else target
            if where is not None:
                pcs[taken] = where
            return None

        return run

    def _indexed_branch(self, context: Context, starts: dict[int, int]):
        function = context.function
        index = context.src(context.ins.operands[0], "u32")
        labels = function.branch_targets[context.ins.operands[1]]
        table = np.array([starts[function.labels[t]] for t in labels])
        pcs, everyone = self.pcs, self.all

        def run(m):
            chosen = everyone if m is True else np.flatnonzero(m)
            which = index[chosen]
            if (which >= len(table)).any():
                raise PtxError("brx.idx beyond its table", int(chosen[0]))
            targets = table[which]
            if (targets == targets[0]).all():
                return int(targets[0])
            pcs[chosen] = targets
            return None

        return run

    def _exit(self, m) -> None:
        self.alive[m if m is not True else slice(None)] = False

    def _return(self, function: Function):
        if function.is_entry:
            return self._exit
        back, pcs = self.frames[function.name].return_to, self.pcs

        def run(m):
            targets = back if m is True else back[m]
            if (targets == targets[0]).all():
                return int(targets[0])
            pcs[m if m is not True else slice(None)] = targets
            return None

        return run

    def _trap(self, m) -> None:
        raise DeviceTrapError("trap", 0 if m is True else int(np.flatnonzero(m)[0]))

    # --- running ----------------------------------------------------------------------------

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

    def run(self, grid: tuple[int, int, int], order=None) -> None:
        for name, n in zip("xyz", grid, strict=True):
            self.special[f"%nctaid.{name}"][:] = n
        total = grid[0] * grid[1] * grid[2]
        with np.errstate(all="ignore"):
            for linear in range(total) if order is None else order(total):
                position = (
                    linear % grid[0],
                    linear // grid[0] % grid[1],
                    linear // grid[0] // grid[1],
                )
                for name, n in zip("xyz", position, strict=True):
                    self.special[f"%ctaid.{name}"][:] = n
                self._run_block(linear, position)

    def _run_block(self, linear: int, position: tuple[int, int, int]) -> None:
        self.order.new_block()
        self.globals.new_block(linear)
        self.shared.new_block()
        self.defined[:] = False
        for hook in self.reset_hooks:
            hook()
        self.alive[:] = self.real_mask
        self.waiting[:] = False
        start = self.frames[self.entry.name].first
        self.pcs[:] = start
        current = start if self.real == self.threads else None
        steps, limit, blocks = 0, self.options.max_steps, self.blocks
        block, i = None, 0
        try:
            while True:
                if current is not None:
                    block, m = blocks[current], True
                else:
                    runnable = self.alive & ~self.waiting
                    if not runnable.any():
                        if self.waiting.any():
                            self._stuck()
                        break
                    low = int(self.pcs[runnable].min())
                    m = runnable & (self.pcs == low)
                    block = blocks[low]
                    if m.all():
                        m = True
                i = -1
                for i, operation in enumerate(block.body):  # noqa: B007
                    operation(m)
                i = len(block.body)
                steps += i + 1
                current = block.finish(m)
                if current is not None and m is not True:
                    self.pcs[m] = current
                    current = None
                if steps > limit:
                    raise StepLimitError(f"more than {limit} instructions")
        except PtxError as error:
            self._explain(error, block, i, position)
            raise

    def _explain(self, error: PtxError, block: Block | None, i: int, position: tuple) -> None:
        if error.where:
            return
        place = f"block {position}"
        if block is not None and (error.thread is not None or not isinstance(error, BarrierError)):
            ins = block.last if i >= len(block.body) else block.instructions[i]
            if ins is not None:
                source = f", {ins.source}" if ins.source else ""
                place = f"{' '.join(ins.text.split())} | PTX line {ins.line}{source} | {place}"
        if error.thread is not None:
            place += f", thread {error.thread} (warp {error.thread // 32})"
        error.where = f" [{place}]"

    def _stuck(self) -> None:
        ids = self.barrier_of[self.waiting]
        arrived = np.flatnonzero(self.waiting)
        exited = self.real_mask & ~self.alive
        counts = ", ".join(f"{int((ids == b).sum())} at barrier {b}" for b in np.unique(ids))
        lines = sorted({self._wait_line(int(t)) for t in arrived})
        raise BarrierError(
            f"divergent barrier: {counts}, {int(exited.sum())} threads have exited; "
            f"waiting on PTX line(s) {lines}, first waiting thread {int(arrived[0])}"
        )

    def _wait_line(self, thread: int) -> int:
        for block in self.blocks[max(int(self.pcs[thread]) - 1, 0) : int(self.pcs[thread])]:
            if block.last is not None:
                return block.last.line
        return 0


def sum_params(function: Function) -> int:
    """Bytes of a kernel's parameters with their alignments."""
    at = 0
    for v in function.params:
        at = -(-at // v.align) * v.align + v.size
    return at
