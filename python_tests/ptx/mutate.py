"""Mutants of PTX text: one small change each, to see whether the tests would notice it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Mutant:
    kind: str
    line: int  # of the original text, from 1
    before: str
    after: str
    text: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.kind}, line {self.line}: {self.before}  ->  {self.after or '(dropped)'}"


def _drop(pattern: str) -> Callable[[str], str | None]:
    found = re.compile(pattern)
    return lambda line: "" if found.search(line) else None


def _substitute(pattern: str, change: Callable[[re.Match], str]) -> Callable[[str], str | None]:
    found = re.compile(pattern)

    def mutate(line: str) -> str | None:
        match = found.search(line)
        if not match:
            return None
        new = line[: match.start()] + change(match) + line[match.end() :]
        return new if new != line else None

    return mutate


_COMPARE = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "eq": "ne", "ne": "eq"}
_ORDER = {"add": "sub", "sub": "add", "max": "min", "min": "max"}

# kind -> a function of one line giving its mutation, "" to drop it, None where it does not apply
KINDS: dict[str, Callable[[str], str | None]] = {
    "drop barrier": _drop(r"\bbar(rier)?(\.cta)?\.sync\b"),
    "drop guard": _substitute(r"@!?%p\d+\s+(?=(ld|st|atom|red)\.)", lambda m: ""),
    "negate guard": _substitute(
        r"@(!?)(%p\d+)(?=\s+bra)", lambda m: "@" + m[2] if m[1] else f"@!{m[2]}"
    ),
    "drop copy mask": _substitute(
        r"(cp\.async\.c[ag]\b.*\], )(0x[0-9a-f]+|\d+), %r\d+", lambda m: f"{m[1]}{m[2]}, {m[2]}"
    ),
    "drop copy wait": _drop(r"cp\.async\.wait_(group|all)"),
    "relax copy wait": _substitute(
        r"(cp\.async\.wait_group\s+)(\d+)", lambda m: f"{m[1]}{int(m[2]) + 1}"
    ),
    "drop wgmma wait": _drop(r"wgmma\.wait_group"),
    "drop wgmma fence": _drop(r"wgmma\.fence"),
    "drop proxy fence": _drop(r"fence\.proxy\.async"),
    "shuffle mask": _substitute(
        r"(shfl\.sync\..*, )(-1|0xffffffff)(?=;)", lambda m: f"{m[1]}65535"
    ),
    "shuffle distance": _substitute(
        r"(shfl\.sync\.\w+\.b32\s+[^,]+, [^,]+, )(\d+)(?=,)", lambda m: f"{m[1]}{int(m[2]) ^ 3}"
    ),
    "compare": _substitute(r"(setp\.)(lt|le|gt|ge|eq|ne)(?=\.)", lambda m: m[1] + _COMPARE[m[2]]),
    "compare constant": _substitute(
        r"(setp\.\w+\.[usb]\d+\s+[^,]+, [^,]+, )(-?\d+)(?=;)", lambda m: f"{m[1]}{int(m[2]) + 1}"
    ),
    "shift": _substitute(
        r"(sh[lr]\.\w+\s+[^,]+, [^,]+, )(\d+)(?=;)", lambda m: f"{m[1]}{int(m[2]) + 1}"
    ),
    "stride": _substitute(
        r"((?:mul|mad)\.(?:lo|wide)\.\w+\s+[^,]+, [^,]+, )(\d+)\b",
        lambda m: f"{m[1]}{int(m[2]) + 1}",
    ),
    "immediate": _substitute(
        r"((?:add|or|and|xor)\.\w+\s+[^,]+, [^,]+, )(-?\d+)(?=;)",
        lambda m: f"{m[1]}{int(m[2]) + 4}",
    ),
    "address": _substitute(
        r"(\[\s*%r\d+\s*\+\s*)(\d+)(?=\s*\])", lambda m: f"{m[1]}{int(m[2]) + 16}"
    ),
    "arithmetic": _substitute(
        r"\b(add|sub|max|min)(?=\.(rn\.)?f(16|32|64)\b)", lambda m: _ORDER[m[1]]
    ),
    "select": _substitute(
        r"(selp\.\w+\s+[^,]+, )([^,]+), ([^,]+)(?=,)", lambda m: f"{m[1]}{m[3]}, {m[2]}"
    ),
}


def sites(ptx: str, kinds: Iterable[str] | None = None) -> Iterator[Mutant]:
    """Every mutant of the given kinds, in the order of the text."""
    lines = ptx.split("\n")
    for kind in kinds or KINDS:
        for i, line in enumerate(lines):
            changed = KINDS[kind](line)
            if changed is not None:
                text = "\n".join([*lines[:i], changed, *lines[i + 1 :]])
                before, after = (" ".join(x.split()) for x in (line, changed))
                yield Mutant(kind, i + 1, before, after, text)


def mutants(
    ptx: str, seed: int = 0, kinds: Iterable[str] | None = None, per_kind: int = 3
) -> list[Mutant]:
    """At most per_kind mutants of each kind, at places a seeded generator picks."""
    chosen = []
    for kind in kinds or KINDS:
        found = list(sites(ptx, [kind]))
        # Seeded by text: the choice does not depend on which other kinds are asked for.
        picked = random.Random(f"{seed} {kind}").sample(
            range(len(found)), min(per_kind, len(found))
        )
        chosen += [found[i] for i in sorted(picked)]
    return chosen


@dataclass
class Report:
    caught: list[tuple[Mutant, str]]  # with what gave it away
    survived: list[Mutant]

    @property
    def share(self) -> float:
        total = len(self.caught) + len(self.survived)
        return len(self.caught) / total if total else 1.0

    def __str__(self) -> str:
        head = f"{len(self.caught)} caught, {len(self.survived)} survived ({self.share:.0%})"
        return "\n".join([head, *(f"  survived: {m}" for m in self.survived)])


def survivors(
    ptx: str, run_and_check: Callable[[str], object], candidates: Iterable[Mutant] | None = None
) -> Report:
    """Run every mutant. It is caught if run_and_check raises or returns False.

    The unchanged text must pass first, else nothing would be learned.
    """
    if run_and_check(ptx) is False:
        raise AssertionError("the unchanged kernel fails its own check")
    report = Report([], [])
    for mutant in mutants(ptx) if candidates is None else candidates:
        try:
            passed = run_and_check(mutant.text)
        except Exception as error:
            report.caught.append((mutant, type(error).__name__))
            continue
        if passed is False:
            report.caught.append((mutant, "result"))
        else:
            report.survived.append(mutant)
    return report
