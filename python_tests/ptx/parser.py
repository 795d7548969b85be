"""PTX text to functions, instructions and declarations."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .errors import ParseError

TYPE_BYTES = {
    **{f"{k}{n}": n // 8 for k in "bus" for n in (8, 16, 32, 64)},
    **{"f16": 2, "bf16": 2, "f16x2": 4, "bf16x2": 4, "f32": 4, "tf32": 4, "f64": 8, "b128": 16},
}


class Scope:
    """Names of one pair of braces. Registers and labels of inline assembly are local to it."""

    def __init__(self, parent: Scope | None, prefix: str) -> None:
        self.parent = parent
        self.prefix = prefix
        self.names: dict[str, str] = {}

    def declare(self, name: str) -> str:
        self.names[name] = self.prefix + name
        return self.names[name]

    def resolve(self, name: str) -> str:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        return name


@dataclass
class Address:
    base: str  # register, symbol, or "" for an absolute address
    offset: int


@dataclass
class Instruction:
    text: str
    line: int
    source: str  # the file:line:column a .loc names
    guard: str  # predicate register or ""
    negated: bool
    opcode: list[str]
    operands: list  # str, Address, list (vector), or tuple (dst|predicate)
    scope: Scope

    def __str__(self) -> str:
        return self.text


@dataclass
class Variable:
    """A .param, .shared, .local, .global or .const declaration."""

    name: str
    space: str
    align: int
    type: str
    size: int  # bytes; 0 for extern arrays
    values: list[str] = field(default_factory=list)


@dataclass
class Function:
    name: str
    is_entry: bool
    params: list[Variable] = field(default_factory=list)
    returns: list[Variable] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)  # name -> type
    variables: list[Variable] = field(default_factory=list)
    branch_targets: dict[str, list[str]] = field(default_factory=dict)
    has_body: bool = False


@dataclass
class Module:
    functions: dict[str, Function] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)


_NAME = r"[A-Za-z_$%][\w$]*"
_VARIABLE = re.compile(
    r"\.(?P<space>param|shared|local|global|const)\s+(?P<mods>(?:\.(?:align\s+\d+|ptr|global|shared|"
    r"const|local|v[24]|attribute\([^)]*\))\s*)*)\.(?P<type>\w+)\s*(?P<mods2>(?:\.(?:align\s+\d+|ptr|"
    rf"global|shared|const|local)\s*)*)(?P<name>{_NAME})(?P<dims>(?:\[\d*\])*)"
    r"(?:\s*=\s*(?P<init>\{.*\}|[^;,{]+))?",
    re.S,
)
_HEADER = re.compile(
    r"(?P<link>(?:\.(?:visible|weak|extern)\s+)*)\.(?P<kind>entry|func)\s*(?:\.\w+\s*)*"
    rf"(?:\((?P<ret>[^)]*)\)\s*)?(?P<name>{_NAME})\s*(?:\((?P<params>[^)]*)\))?"
)
_LABEL = re.compile(rf"({_NAME})\s*:(?!:)")
_LOC = re.compile(r"\.loc\b[^\n]*")


def _variable(text: str) -> Variable:
    match = _VARIABLE.search(text)
    if not match:
        raise ParseError(f"cannot read the declaration {text!r}")
    mods = match["mods"] + match["mods2"]
    kind = match["type"]
    # The alignment behind .ptr is that of the object pointed to, not of the parameter.
    own = re.sub(r"\.ptr.*", "", mods, flags=re.S)
    align = re.search(r"\.align\s+(\d+)", own)
    width = TYPE_BYTES[kind]
    if vector := re.search(r"\.v([24])", mods):
        width *= int(vector[1])
    count = 1
    for dim in re.findall(r"\[(\d*)\]", match["dims"]):
        count *= int(dim or 0)
    init = (match["init"] or "").strip()
    values = [v.strip() for v in init.strip("{}").split(",") if v.strip()] if init else []
    return Variable(
        match["name"],
        match["space"],
        int(align[1]) if align else width,
        kind,
        width * count,
        values,
    )


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets and braces."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "{[(":
            depth += 1
        elif c in "}])":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    if text[start:].strip():
        parts.append(text[start:].strip())
    return parts


def _operand(text: str, scope: Scope):
    if text[0] == "{":
        return [_operand(t, scope) for t in _split(text[1:-1])]
    if text[0] == "(":
        return [_operand(t, scope) for t in _split(text[1:-1])]
    if text[0] == "[":
        inner = text[1:-1].strip()
        match = re.fullmatch(rf"({_NAME}(?:\.\w+)?)?\s*(?:\+?\s*([-+]?\s*\w+))?", inner)
        if not match:
            raise ParseError(f"cannot read the address {text!r}")
        offset = int(match[2].replace(" ", ""), 0) if match[2] else 0
        return Address(scope.resolve(match[1]) if match[1] else "", offset)
    if "|" in text:
        return tuple(_operand(t.strip(), scope) for t in text.split("|"))
    if text[0] == "!":
        return "!" + scope.resolve(text[1:].strip())
    return scope.resolve(text)


def _instruction(text: str, line: int, source: str, scope: Scope) -> Instruction:
    guard, negated = "", False
    body = text
    if text[0] == "@":
        match = re.match(rf"@\s*(!?)\s*({_NAME})\s*", text)
        if not match:
            raise ParseError(f"cannot read the guard of {text!r}")
        negated, guard = match[1] == "!", scope.resolve(match[2])
        body = text[match.end() :]
    parts = body.split(None, 1)
    opcode = re.match(r"[\w.:]+", parts[0])
    if not opcode:
        raise ParseError(f"cannot read the instruction {text!r} on line {line}")
    rest = body[opcode.end() :].strip()
    operands = [_operand(t, scope) for t in _split(rest)] if rest else []
    return Instruction(text, line, source, guard, negated, opcode[0].split("."), operands, scope)


def _strip_comments(text: str) -> str:
    """Blank out comments, keeping line numbers and the positions that follow .loc directives."""

    def blank(match: re.Match) -> str:
        comment = match[0]
        if comment.startswith("//"):
            return ""
        return re.sub(r"[^\n]", " ", comment)

    # The comment of a .loc line names the source: keep it as part of the directive.
    keep = re.sub(r"(\.loc\b[^\n/]*)//([^\n]*)", r"\1\2", text)
    return re.sub(r"//[^\n]*|/\*.*?\*/", blank, keep, flags=re.S)


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = _strip_comments(text)
        self.pos = 0
        self.line = 1

    def advance(self, pos: int) -> str:
        piece = self.text[self.pos : pos]
        self.line += piece.count("\n")
        self.pos = pos
        return piece

    def skip(self) -> bool:
        """Skip white space; whether anything is left."""
        match = re.compile(r"\s*").match(self.text, self.pos)
        self.advance(match.end())
        return self.pos < len(self.text)

    def until(self, stop: str) -> str:
        end = self.text.find(stop, self.pos)
        if end < 0:
            raise ParseError(f"no {stop!r} after line {self.line}")
        piece = self.advance(end)
        self.advance(end + len(stop))
        return piece


def parse(text: str) -> Module:
    """Parse a whole PTX module."""
    reader = _Reader(text)
    module = Module()
    while reader.skip():
        rest = reader.text[reader.pos : reader.pos + 400]
        if re.match(r"\.(version|target|address_size|file|loc)\b", rest):
            reader.advance(_line_end(reader))
        elif rest.startswith(".section"):
            reader.until("{")
            reader.until("}")
        elif re.match(r"(\.(visible|weak|extern)\s+)*\.(entry|func)\b", rest):
            _function(reader, module)
        elif re.match(r"(\.(visible|weak|extern|common)\s+)*\.(shared|global|const)\b", rest):
            module.variables.append(_variable(reader.until(";")))
        elif re.match(r"\.(pragma|alias|visible|weak|extern)\b", rest):
            reader.until(";")
        else:
            raise ParseError(f"cannot read line {reader.line}: {rest.splitlines()[0]!r}")
    return module


def _line_end(reader: _Reader) -> int:
    end = reader.text.find("\n", reader.pos)
    return len(reader.text) if end < 0 else end


def _function(reader: _Reader, module: Module) -> None:
    match = _HEADER.match(reader.text, reader.pos)
    if not match:
        raise ParseError(f"cannot read the function on line {reader.line}")
    reader.advance(match.end())
    function = Function(match["name"], match["kind"] == "entry")
    function.params = [_variable(p) for p in _split(match["params"] or "")]
    function.returns = [_variable(p) for p in _split(match["ret"] or "")]
    end = re.compile(r"[^{;]*").match(reader.text, reader.pos).end()
    reader.advance(end)
    opening = reader.text[reader.pos]
    reader.advance(reader.pos + 1)
    if opening == "{":
        function.has_body = True
        _body(reader, function)
    if function.has_body or function.name not in module.functions:
        module.functions[function.name] = function


def _body(reader: _Reader, function: Function) -> None:
    scope = Scope(None, "")
    source, scopes = "", 0
    depth = 1
    while depth:
        if not reader.skip():
            raise ParseError(f"the body of {function.name} does not end")
        char = reader.text[reader.pos]
        if char == "{":
            scopes += 1
            depth += 1
            scope = Scope(scope, f"scope{scopes}.")
            reader.advance(reader.pos + 1)
        elif char == "}":
            depth -= 1
            scope = scope.parent or scope
            reader.advance(reader.pos + 1)
        elif char == ";":
            reader.advance(reader.pos + 1)
        elif loc := _LOC.match(reader.text, reader.pos):
            named = re.search(r"(\S+:\d+:\d+)\s*$", loc[0])
            source = named[1] if named else source
            reader.advance(loc.end())
        elif label := _LABEL.match(reader.text, reader.pos):
            name = scope.declare(label[1])
            function.labels[name] = len(function.instructions)
            reader.advance(label.end())
            targets = re.compile(r"\s*\.(branchtargets|callprototype|calltargets)\b").match(
                reader.text, reader.pos
            )
            if targets:
                reader.advance(targets.end())
                function.branch_targets[name] = [t.strip() for t in reader.until(";").split(",")]
        else:
            line = reader.line
            statement = reader.until(";").strip()
            _statement(statement, line, source, function, scope)
    for ins in function.instructions:
        if ins.opcode[0] == "bra":  # labels may come after the branch
            ins.operands[0] = ins.scope.resolve(ins.operands[0])


def _statement(text: str, line: int, source: str, function: Function, scope: Scope) -> None:
    if text.startswith(".reg"):
        match = re.match(r"\.reg\s+(?:\.v\d\s+)?\.(\w+)\s+(.*)", text, re.S)
        for name in match[2].split(","):
            counted = re.fullmatch(r"\s*([\w$%]+)<(\d+)>\s*", name)
            names = (
                [f"{counted[1]}{i}" for i in range(int(counted[2]))] if counted else [name.strip()]
            )
            for n in names:
                function.registers[scope.declare(n)] = match[1]
    elif re.match(r"\.(param|shared|local|global|const)\b", text):
        variable = _variable(text)
        # Shared variables of a function live as long as the block; only names need the scope.
        variable.name = scope.declare(variable.name)
        function.variables.append(variable)
    elif text.startswith("."):
        if not re.match(r"\.(pragma|maxnreg|noreturn|branchtargets|loc|file)\b", text):
            raise ParseError(f"line {line}: cannot read {text!r}")
    else:
        function.instructions.append(_instruction(text, line, source, scope))
