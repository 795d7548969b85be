"""Basic blocks, and which register reads may see a register nothing has written."""

from __future__ import annotations

from collections.abc import Iterator

from .parser import Address, Function, Instruction

# Their first operand is not a destination.
NO_RESULT = {
    *("st", "red", "bra", "brx", "bar", "barrier", "ret", "exit", "fence", "membar", "stmatrix"),
    *("trap", "prefetch", "prefetchu", "nanosleep", "cp", "pmevent", "brkpt", "discard"),
    *("applypriority", "griddepcontrol", "setmaxnreg", "wgmma"),
}
ENDS_BLOCK = {"bra", "brx", "ret", "exit", "trap", "bar", "barrier", "call"}


def ends_block(ins: Instruction) -> bool:
    """Whether threads may part after it; bar.warp.sync never parts a block."""
    return ins.opcode[0] in ENDS_BLOCK and ins.opcode[:2] != ["bar", "warp"]


def _registers(operand, known: dict[str, str]) -> Iterator[str]:
    if isinstance(operand, str):
        name = operand.lstrip("!-")
        if name in known:
            yield name
    elif isinstance(operand, Address):
        if operand.base in known:
            yield operand.base
    else:
        for part in operand:
            yield from _registers(part, known)


def roles(ins: Instruction, known: dict[str, str]) -> tuple[list[str], list[str]]:
    """Registers an instruction reads and those it writes."""
    reads = [ins.guard] if ins.guard else []
    operands = ins.operands
    writes: list[str] = []
    name = ins.opcode[0]
    if name == "call":
        return reads, writes
    if name == "bar" or name == "barrier":
        if "red" in ins.opcode:
            writes += _registers(operands[0], known)
            operands = operands[1:]
    elif name == "wgmma":
        # Accumulators keep their own books (see wgmma.py); the rest is read.
        if operands:
            writes += _registers(operands[0], known)
        operands = operands[1:]
    elif name not in NO_RESULT and operands:
        if isinstance(operands[0], Address):
            pass
        else:
            writes += _registers(operands[0], known)
            operands = operands[1:]
    if name == "prmt":
        operands = _permuted(operands)
    for operand in operands:
        reads += _registers(operand, known)
    return reads, writes


def _permuted(operands: list) -> list:
    """Without the register of which an immediate selector of prmt takes no byte: it may hold
    anything."""
    a, b, selector = operands
    try:
        nibbles = [int(str(selector).rstrip("U"), 0) >> 4 * i & 7 for i in range(4)]
    except ValueError:
        return operands
    return [a] * any(n < 4 for n in nibbles) + [b] * any(n >= 4 for n in nibbles)


def blocks(function: Function) -> list[tuple[int, int]]:
    """Half-open instruction ranges. Only labels that something branches to start one."""
    count = len(function.instructions)
    leaders = {0}
    targets = {t for ts in function.branch_targets.values() for t in ts}
    for i, ins in enumerate(function.instructions):
        if ends_block(ins):
            leaders.add(i + 1)
            if ins.opcode[0] == "bra":
                targets.add(ins.operands[0])
    for name, at in function.labels.items():
        if name in targets or name.split(".")[-1] in targets:
            leaders.add(at)
    edges = sorted(i for i in leaders if i < count)
    return list(zip(edges, [*edges[1:], count], strict=True))


def successors(function: Function, ranges: list[tuple[int, int]]) -> list[list[int]]:
    starts = {start: i for i, (start, _) in enumerate(ranges)}
    out = []
    for _, end in ranges:
        last = function.instructions[end - 1] if end else None
        following = [starts[end]] if end in starts else []
        name = last.opcode[0] if last else ""
        if name == "bra":
            taken = [starts[at] for at in [function.labels[last.operands[0]]] if at in starts]
            following = taken + (following if last.guard else [])
        elif name == "brx":
            labels = function.branch_targets[last.operands[1]]
            following = [starts[function.labels[t]] for t in labels]
        elif name in ("ret", "exit", "trap"):
            following = following if last.guard else []
        out.append(following)
    return out


def ranks(function: Function, ranges: list[tuple[int, int]]) -> list[int]:
    """In which order diverged threads wait for each other: reverse postorder, exits of a loop last.

    Not the order of the text: a compiler may lay the end of a loop out before its beginning.
    """
    after = successors(function, ranges)
    postorder: list[int] = []
    seen = set()
    for root in range(len(ranges)):
        if root in seen:
            continue
        seen.add(root)
        path = [(root, iter(sorted(after[root], reverse=True)))]
        while path:
            block, rest = path[-1]
            following = next((n for n in rest if n not in seen), None)
            if following is None:
                postorder.append(block)
                path.pop()
            else:
                seen.add(following)
                path.append((following, iter(sorted(after[following], reverse=True))))
    order = {block: len(ranges) - 1 - i for i, block in enumerate(postorder)}
    return [order[i] for i in range(len(ranges))]


def maybe_undefined(function: Function) -> set[str]:
    """Registers with a read that some path reaches before any unconditional write.

    Those are checked when they run; all other reads need no check. A guarded write does not count.
    """
    known = function.registers
    bit = {name: 1 << i for i, name in enumerate(known)}
    ranges = blocks(function)
    if not ranges:
        return set()
    all_roles = [roles(ins, known) for ins in function.instructions]
    generated = []
    for start, end in ranges:
        made = 0
        for i in range(start, end):
            if not function.instructions[i].guard:
                for name in all_roles[i][1]:
                    made |= bit[name]
        generated.append(made)
    after = successors(function, ranges)
    everything = (1 << len(bit)) - 1
    entry = [everything] * len(ranges)
    entry[0] = 0
    work = [0]
    seen = {0}
    while work:
        block = work.pop()
        leaving = entry[block] | generated[block]
        for target in after[block]:
            merged = entry[target] & leaving
            if merged != entry[target] or target not in seen:
                entry[target] = merged
                seen.add(target)
                work.append(target)
    found: set[str] = set()
    for number, (start, end) in enumerate(ranges):
        defined = entry[number]
        for i in range(start, end):
            for name in all_roles[i][0]:
                if not defined & bit[name]:
                    found.add(name)
            if not function.instructions[i].guard:
                for name in all_roles[i][1]:
                    defined |= bit[name]
    return found
