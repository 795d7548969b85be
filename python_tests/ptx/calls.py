"""call of device functions; arguments travel through per-thread .param memory."""

from __future__ import annotations

import numpy as np

from .decode import Context
from .errors import DeviceTrapError, UnknownInstructionError


def _names(operand) -> list[str]:
    return operand if isinstance(operand, list) else [operand]


def decode_call(ctx: Context, following: int | None):
    """A terminator: copy the arguments and go to the callee; ret copies the result back."""
    machine = ctx.machine
    operands = ctx.operands
    at = next(i for i, o in enumerate(operands) if isinstance(o, str))
    results = _names(operands[0]) if at == 1 else []
    name = operands[at]
    arguments = _names(operands[at + 1]) if len(operands) > at + 1 else []
    callee = machine.module.functions.get(name)
    if callee is None or not callee.has_body:
        return _external(ctx, name, following)
    if ctx.register(name):
        raise UnknownInstructionError("indirect call")
    frame, params = machine.frames[name], machine.params
    pairs = [
        (ctx.symbol(a), frame.symbols[v.name], v.size)
        for a, v in zip(arguments, callee.params, strict=True)
    ]
    back = [
        (ctx.symbol(r), frame.symbols[v.name], v.size)
        for r, v in zip(results, callee.returns, strict=True)
    ]
    # The result is where the caller's ld.param looks: both names share one place.
    for caller_place, place, _ in back:
        own = machine.frames[ctx.function.name].symbols
        for key, value in own.items():
            if value == caller_place and key in [str(r) for r in results]:
                own[key] = place
    first, return_to = frame.first, frame.return_to

    def run(m):
        where = slice(None) if m is True else m
        for source, to, size in pairs:
            params.data[where, to : to + size] = params.data[where, source : source + size]
        return_to[where] = following
        return first

    return run


def _external(ctx: Context, name: str, following: int | None):
    if name == "vprintf":
        return lambda m: following
    if name in ("__assertfail", "abort", "__nv_abort"):

        def fail(m):
            raise DeviceTrapError(f"{name}", 0 if m is True else int(np.flatnonzero(m)[0]))

        return fail
    raise UnknownInstructionError(f"call of {name}, which has no body")
