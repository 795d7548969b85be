"""Docstrings of this house to the field lists that Sphinx knows.

The style is the one that python_tests/test_docstrings.py reads and holds to the signatures: several
arguments may share a line, which napoleon does not take.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

from python_tests.test_docstrings import ENTRY, SECTION

TITLES = {"Args": "Arguments", "Source": "Source", "Sources": "Source"}
LISTS = ("Args", "Attributes", "Raises")


def _indented(lines: list[str], by: int) -> list[str]:
    return [" " * by + line if line.strip() else "" for line in lines]


def _entries(body: str) -> list[str]:
    """A definition an entry; what belongs to none is a paragraph after them."""
    found = list(ENTRY.finditer(body))
    if not found:
        return [line.removeprefix("    ") for line in body.split("\n")]
    out, loose = [], body[: found[0].start()].split("\n")
    for i, match in enumerate(found):
        end = found[i + 1].start() if i + 1 < len(found) else None
        first, *rest = body[match.end() : end].rstrip().split("\n")
        cut = next((at for at, line in enumerate(rest) if re.match(r" {4}\S", line)), len(rest))
        loose += rest[cut:]  # a sentence on all of them
        term = ", ".join(f"``{name}``" for name in match[1].split(", "))
        out += [term, *_indented([first, *(line[8:] for line in rest[:cut])], 4), ""]
    return [*out, *(line.strip() for line in loose)]


def convert(doc: str) -> list[str]:
    """A docstring with its sections as fields."""
    # The example stands indented below its heading; a doctest block begins at the margin.
    doc, mark, example = doc.partition("\nExample:\n")
    out: list[str] = []
    at = 0
    for match in SECTION.finditer(doc):
        if match.start() < at:
            continue
        out += doc[at : match.start()].rstrip("\n").split("\n")
        body = re.split(r"\n(?=\S)", doc[match.end() :], maxsplit=1)[0]
        at = match.end() + len(body)
        if body.startswith("\n"):
            lines = body.strip("\n")
            listed = _entries(lines) if match[1] in LISTS else lines.replace("\n    ", "\n")[4:]
            lines = listed if isinstance(listed, list) else listed.split("\n")
        else:  # a sentence, which may go on at the margin
            at = (doc + "\n\n").index("\n\n", match.end())
            lines = doc[match.end() : at].split("\n")
            lines = [line.strip() for line in lines]
        out += ["", f":{TITLES.get(match[1], match[1])}:", *_indented(lines, 4), ""]
    out += doc[at:].split("\n")
    if mark:
        lines = [line.removeprefix("    ") for line in example.split("\n")]
        out += ["", ".. rubric:: Example", "", *lines]
    return out


def _process(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    # |a| is an amount here, never a substitution.
    text, mark, example = "\n".join(lines).partition("\nExample:\n")
    text = re.sub(r"(``.*?``)|\|", lambda m: m[1] or r"\|", text, flags=re.S)
    lines[:] = convert(text + mark + example)


def _skip(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool:
    """What scikit-learn adds to every estimator is its to document."""
    return skip or bool(re.fullmatch(r"set_\w+_request|get_metadata_routing", name))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", _process)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True}
