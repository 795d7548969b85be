"""The machine: registers, control flow, barriers. One block at a time, all its threads at once.

Every thread has a program counter; the threads at the first one in reverse postorder run next, so
that diverged threads meet again at the first point they share. An operation gets a mask: True when
all threads of the block take part (the usual case, which costs nothing), else an array of booleans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import dataflow
from .control import Control
from .decode import DECODERS, FLOATS, Context, load_decoders
from .errors import (
    BarrierError,
    PtxError,
    StepLimitError,
    UninitializedError,
    UnknownInstructionError,
)
from .layout import Layout, Options
from .parser import Instruction, Module
from .wgmma import WgmmaState

Operation = Callable[[object], None]


@dataclass
class Block:
    body: list[Operation]
    instructions: list[Instruction]
    finish: Callable[[object], int | None]
    last: Instruction | None


class Machine(Layout, Control):
    issued = 0  # instructions of warps, of all launches in this process: for those who count

    def __init__(
        self,
        module: Module,
        kernel: str,
        block: tuple[int, int, int],
        dynamic_shared: int = 0,
        options: Options | None = None,
    ) -> None:
        load_decoders()
        super().__init__(module, kernel, block, dynamic_shared, options)
        T = self.threads
        self.pcs = np.zeros(T, np.int64)
        self.alive = np.zeros(T, bool)
        self.waiting = np.zeros(T, bool)
        self.barrier_of = np.full(T, -1)
        self.carry = np.zeros(T, bool)  # of add.cc and its kin
        self.async_groups = None  # set by cp.async
        self.reset_hooks: list[Callable[[], None]] = []
        instructions = [i for f in self.functions for i in f.instructions]
        used = any(i.opcode[0] == "wgmma" for i in instructions)
        self.wgmma = WgmmaState(self) if used else None
        self.linear_block = 0
        self._decode_all()

    # --- decoding ---------------------------------------------------------------------------

    def _decode_all(self) -> None:
        self.blocks: list[Block] = []
        self.ranks: list[int] = []
        for function in self.functions:
            self.frames[function.name].first = len(self.blocks)
            ranges = dataflow.blocks(function)
            self.ranks += [len(self.blocks) + r for r in dataflow.ranks(function, ranges)]
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
        if self.wgmma is not None:
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
            missing = ~row if m is True else m > row
            if np.count_nonzero(missing):
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
        guard = context.ins.guard
        rows = [(n, self._defined_row(context, n)) for n in reads if n in checked and n != guard]
        outs = [self._defined_row(context, n) for n in writes if n in checked]
        if not rows and not outs:
            return operation
        all_threads = self.all

        def run(m):
            for name, row in rows:
                missing = ~row if m is True else m > row
                if np.count_nonzero(missing):
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

    # --- running ----------------------------------------------------------------------------

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
        ranks = np.array([*self.ranks, len(blocks)])
        never = np.int64(len(blocks) + 1)
        block, i = None, 0
        try:
            while True:
                if current is not None:
                    block, m = blocks[current], True
                else:
                    rank = np.where(self.alive > self.waiting, ranks[self.pcs], never)
                    first = rank.argmin()
                    if rank[first] == never:
                        if self.waiting.any():
                            self._stuck()
                        break
                    m = rank == rank[first]
                    block = blocks[self.pcs[first]]
                    if np.count_nonzero(m) == self.threads:
                        m = True
                i = -1
                for i, operation in enumerate(block.body):  # noqa: B007
                    operation(m)
                i = len(block.body)
                steps += i + 1
                Machine.issued += (i + 1) * self._warps_of(m)
                current = block.finish(m)
                if current is not None and m is not True:
                    self.pcs[m] = current
                    current = None
                if steps > limit:
                    raise StepLimitError(f"more than {limit} instructions")
        except PtxError as error:
            self._explain(error, block, i, position)
            raise

    def _warps_of(self, m) -> int:
        if m is True:
            return self.warps
        return np.count_nonzero(np.packbits(m).view(np.uint32))

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
