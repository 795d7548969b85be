"""Branches, returns and traps: what ends a basic block.

A terminator takes the mask and returns the block all its threads go to, or sets their program
counters itself and returns None.
"""

from __future__ import annotations

import numpy as np

from .barriers import decode_barrier
from .calls import decode_call
from .decode import Context
from .errors import DeviceTrapError, PtxError
from .parser import Function


class Control:
    """Terminators; mixed into the machine."""

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
            run = decode_call(context, following)
        else:
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
