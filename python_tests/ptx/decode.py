"""What a decoder sees: typed views of operands. A decoder turns an instruction into a closure."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np

from .errors import ParseError, UnknownInstructionError
from .parser import Address

DTYPES = {
    **{f"{k}{n}": np.dtype(f"u{n // 8}") for k in "bu" for n in (8, 16, 32, 64)},
    **{f"s{n}": np.dtype(f"i{n // 8}") for n in (8, 16, 32, 64)},
    **{"f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8")},
    **{"bf16": np.dtype("u2"), "bf16x2": np.dtype("u4"), "f16x2": np.dtype("u4")},
    "tf32": np.dtype("u4"),
    "pred": np.dtype(bool),
}

BITS = {1: "b8", 2: "b16", 4: "b32", 8: "b64"}
FLOATS = {"f16", "bf16", "f16x2", "bf16x2", "f32", "f64"}
# Keyed by the first part of the opcode; "add.f" is preferred over "add" for floating types.
DECODERS: dict[str, Callable] = {}


def decoder(*names: str):
    def register(function):
        for name in names:
            DECODERS[name] = function
        return function

    return register


def load_decoders() -> None:
    """Import the modules that register decoders; here, because they import this one."""
    for name in (
        *("integer", "bits", "compare", "floating", "convert", "loadstore", "atomics", "copies"),
        *("warp", "matrix", "wgmma"),
    ):
        importlib.import_module(f".{name}", __package__)


def literal(text: str, dtype: np.dtype) -> int | float:
    """A PTX literal as the value a register of dtype holds."""
    sign, body = (-1, text[1:]) if text[0] == "-" else (1, text)
    head = body[:2].lower()
    if head in ("0f", "0d"):
        bits = int(body[2:], 16)
        value = np.array(bits, "u4" if head == "0f" else "u8").view("f4" if head == "0f" else "f8")
        if dtype.kind == "f":
            return sign * float(value)
        return bits
    if dtype.kind == "f":
        return sign * (float(body) if head != "0x" else int(body, 16))
    if body == "WARP_SZ":
        return 32
    if "." in body:
        return int(np.array(sign * float(body), f"f{dtype.itemsize}").view(f"u{dtype.itemsize}"))
    octal = body.isdigit() and body[0] == "0" and len(body) > 1
    value = sign * int(body.rstrip("U"), 8 if octal else 0)
    if dtype.kind == "b":
        return value != 0
    bits = 8 * dtype.itemsize
    value &= (1 << bits) - 1
    if dtype.kind == "i" and value >> (bits - 1):
        value -= 1 << bits
    return value


class Context:
    """One instruction being decoded."""

    def __init__(self, machine, function, ins) -> None:
        self.machine, self.function, self.ins = machine, function, ins
        self.threads: int = machine.threads
        self.mods: list[str] = ins.opcode[1:]
        self.operands = ins.operands

    @property
    def type(self) -> str:
        return self.mods[-1]

    def has(self, *mods: str) -> bool:
        return any(m in self.mods for m in mods)

    def only(self, *allowed: str) -> None:
        """Refuse modifiers that would silently be ignored."""
        for mod in self.mods:
            if mod not in allowed and mod not in DTYPES:
                raise UnknownInstructionError(
                    f"unknown modifier .{mod} of {'.'.join(self.ins.opcode)}"
                )

    def register(self, operand) -> tuple | None:
        if not isinstance(operand, str):
            return None
        return self.machine.register_index.get((self.function.name, operand))

    def row(self, name: str) -> np.ndarray:
        width, index = self.machine.register_index[self.function.name, name]
        return self.machine.files[width][index]

    def symbol(self, name: str) -> int | None:
        symbols = self.machine.frames[self.function.name].symbols
        return symbols.get(name, self.machine.symbols.get(name))

    def src(self, operand, kind: str) -> np.ndarray:
        """The row of values of an operand, as a view of the given type."""
        dtype = DTYPES[kind]
        if not isinstance(operand, str):
            raise ParseError(f"unexpected operand {operand!r}")
        if operand[0] == "!":
            raise ParseError("a negated predicate is not allowed here")
        if self.register(operand):
            row = self.row(operand)
            if row.dtype.itemsize != dtype.itemsize:
                raise ParseError(f"{operand} has {8 * row.dtype.itemsize} bits, not .{kind}")
            return row.view(dtype)
        if operand in self.machine.special:
            row = self.machine.special[operand]
            return row.view(dtype) if row.dtype.itemsize == dtype.itemsize else row.astype(dtype)
        if operand[0] == "%":
            raise UnknownInstructionError(f"unknown special register {operand}")
        address = self.symbol(operand)
        if address is not None:
            return self.machine.constant(address, dtype)
        if kind in ("bf16", "bf16x2", "f16x2") and "." in operand:
            raise UnknownInstructionError(f"literal {operand} of type .{kind}")
        return self.machine.constant(literal(operand, dtype), dtype)

    def dst(self, operand, kind: str) -> np.ndarray:
        if operand == "_":
            return np.zeros(self.threads, DTYPES[kind])
        row = self.row(operand)
        dtype = DTYPES[kind]
        if row.dtype.itemsize != dtype.itemsize:
            raise ParseError(f"{operand} has {8 * row.dtype.itemsize} bits, not .{kind}")
        return row.view(dtype)

    def raw(self, operand) -> np.ndarray:
        """A register of any width as unsigned, for ld, st and cvt which accept wider ones."""
        if operand == "_":
            return np.zeros(self.threads, np.uint64)
        return self.row(operand)

    def predicate(self, operand) -> Callable[[], np.ndarray]:
        """A predicate source, perhaps negated."""
        if operand[0] == "!":
            row = self.src(operand[1:], "pred")
            return lambda: ~row
        row = self.src(operand, "pred")
        return lambda: row

    def address(self, operand) -> Callable[[object], np.ndarray]:
        """Address of a memory operand for the threads of a mask, as unsigned."""
        if isinstance(operand, str):
            operand = Address(operand, 0)
        if self.register(operand.base):
            row = self.row(operand.base)
            if operand.offset == 0:
                return lambda m: row if m is True else row[m]
            step = self.machine.constant(
                operand.offset & ((1 << 8 * row.dtype.itemsize) - 1), row.dtype
            )
            return lambda m: row + step if m is True else (row + step)[m]
        base = self.symbol(operand.base) if operand.base else 0
        if base is None:
            raise ParseError(f"unknown symbol {operand.base}")
        row = self.machine.constant(base + operand.offset, np.dtype("u8"))
        return lambda m: row if m is True else row[m]

    def lanes(self) -> Callable[[object], np.ndarray]:
        everyone = self.machine.all
        return lambda m: everyone if m is True else np.flatnonzero(m)


def assign(out: np.ndarray, value: np.ndarray, m) -> None:
    """Masked assignment of a full row."""
    if m is True:
        out[...] = value
    else:
        np.copyto(out, value, where=m, casting="unsafe")
