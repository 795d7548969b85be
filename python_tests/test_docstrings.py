"""Docstrings of the public names, held to the signatures and to what the code can raise.

The style, as this parser reads it: ``Args:`` is a list of ``name, name: text``, several to a line
where they are short; arguments may be those of another name, which is then referred to.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import operator
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import deepl0_kernels as dk
import deepl0_kernels.sae
import deepl0_kernels.sklearn
import deepl0_kernels.training

PACKAGE = dk.__name__
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Source|Sources):", re.M)
NAME = r"[A-Za-z_]\w*"
# A name stands at the beginning of a line or of a sentence.
ENTRY = re.compile(rf"(?:^ {{4}}|(?<=[.;\])] ))(?!None\b)({NAME}(?:, {NAME})*): ", re.M)
REFERENCE = re.compile(r":(func|class|meth|attr):`~?([\w.]+)`")
ELSEWHERE = re.compile(r"(?:those of|as in|see|as of)\s+:(?:func|class|meth):`([\w.]+)`")
COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def public() -> Iterator[tuple[str, Any]]:
    for module in (dk, dk.nn, dk.solvers, dk.sae, dk.sklearn, dk.training):
        for name in module.__all__:
            thing = getattr(module, name)
            if not (inspect.isclass(thing) or inspect.isroutine(thing)):
                continue
            yield f"{module.__name__}.{name}", thing
            for base in reversed(getattr(thing, "__mro__", ())):
                if not base.__module__.startswith(PACKAGE):
                    continue
                for method, value in vars(base).items():
                    if method.startswith("_") or method == "extra_repr":
                        continue
                    if isinstance(value, (classmethod, staticmethod, property)) or callable(value):
                        yield f"{module.__name__}.{name}.{method}", getattr(base, method)


# A class's methods come from its bases too; once is enough.
PUBLIC = {id(thing): (name, thing) for name, thing in public()}.values()
WITH_SIGNATURE = [
    (name, thing)
    for name, thing in PUBLIC
    if not isinstance(thing, property) and not inspect.isbuiltin(thing)
]


def own_doc(thing: Any) -> str:
    """The docstring that it has, itself or from a base class of the package."""
    doc = getattr(thing, "__doc__", None)
    owner = None if inspect.isclass(thing) else owner_of(getattr(thing, "fget", None) or thing)
    for base in owner.__mro__ if not doc and owner else ():
        if base.__module__.startswith(PACKAGE):
            name = (getattr(thing, "fget", None) or thing).__name__
            doc = doc or getattr(vars(base).get(name), "__doc__", None)
    return inspect.cleandoc(doc or "")


def section(doc: str, name: str) -> str:
    """The text of a section, without its heading; empty where there is none."""
    for match in SECTION.finditer(doc):
        if match[1] == name:
            rest = doc[match.end() :]
            body = re.split(r"\n(?=\S)", rest, maxsplit=1)[0]
            return body.strip("\n")
    return ""


def entries(doc: str, name: str = "Args") -> dict[str, str]:
    """Name -> text."""
    body = section(doc, name)
    found = list(ENTRY.finditer(body))
    out = {}
    for i, match in enumerate(found):
        text = body[match.end() : found[i + 1].start() if i + 1 < len(found) else None]
        for one in match[1].split(", "):
            out[one] = " ".join(text.split())
    return out


def parameters(thing: Any) -> dict[str, inspect.Parameter]:
    return {
        name: p
        for name, p in inspect.signature(thing).parameters.items()
        if name not in ("self", "cls") and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }


@functools.cache
def resolve(reference: str, within: str) -> Any:
    """What a docstring of the name ``within`` refers to."""
    places = [dk, dk.nn, dk.solvers, dk.sae, dk.sklearn, dk.training]
    parts = within.split(".")
    for size in range(len(parts), 1, -1):  # a method of the same class, a function beside it
        places.insert(0, functools.reduce(getattr, parts[1:size], dk))
    for place in [*places, torch]:
        tail = reference.removeprefix(f"{place.__name__}.")
        try:
            return functools.reduce(getattr, tail.split("."), place)
        except AttributeError:
            continue
    raise AssertionError(f"{within} refers to {reference}, which does not exist")


def mentions(doc: str, name: str) -> bool:
    if name in entries(doc) or re.search(rf"``[^`\n]*\b{name}\b[^`]*``", doc):
        return True
    # "a" is a word of English: it must come with its shape.
    return bool(re.search(rf"\b{name}\b" + (r" \[" if name == "a" else ""), doc))


def described(name: str, thing: Any, parameter: str) -> bool:
    doc = own_doc(thing)
    if mentions(doc, parameter):
        return True
    for reference in ELSEWHERE.findall(" ".join(doc.split())):
        other = resolve(reference, name)
        if other is not thing and parameter in parameters(other):
            return described(name, other, parameter)
    # "as in the class", of a method.
    owner = owner_of(getattr(thing, "__func__", thing))
    if owner and re.search(r"\bas in the\s+class", doc) and parameter in parameters(owner):
        return described(name, owner, parameter)
    return False


def test_everything_has_one_and_its_references_exist():
    for name, thing in PUBLIC:
        doc = own_doc(thing)
        assert doc, f"{name} has no docstring of its own"
        for _, reference in REFERENCE.findall(doc):
            resolve(reference, name)


def test_every_parameter_is_named_and_no_other():
    wrong = []
    for name, thing in WITH_SIGNATURE:
        found = parameters(thing)
        if missing := [p for p in found if not described(name, thing, p)]:
            wrong.append(f"{name} does not say what {missing} are")
        if extra := [p for p in entries(own_doc(thing)) if p not in found]:
            wrong.append(f"{name} describes {extra}, which it does not take")
    assert not wrong, "\n".join(wrong)


def test_defaults_are_among_what_is_said():
    """A number lies in its range, a word is one of the choices, None is taken where it is
    explained."""
    checked = 0
    for name, thing in WITH_SIGNATURE:
        found = parameters(thing)
        for parameter, text in entries(own_doc(thing)).items():
            default, kind = found[parameter].default, str(found[parameter].annotation)
            where = f"{name}, {parameter} = {default!r}: {text}"
            if re.search(r"\bNone(:| for\b)", text):
                assert default is None or "None" in kind or kind == "Any", where
                checked += 1
            if isinstance(default, str) and (choices := re.findall(r'"([\w-]+)"', text)):
                assert default in choices, where
                checked += 1
            if isinstance(default, (int, float)) and not isinstance(default, bool):
                for relation, bound in re.findall(r"^([<>]=?) (\d+)", text):
                    assert COMPARE[relation](default, float(bound)), where
                    checked += 1
                for left, low, high, right in re.findall(r"\bin ([\[(])(\d+), (\d+)([\])])", text):
                    assert COMPARE[">=" if left == "[" else ">"](default, float(low)), where
                    assert COMPARE["<=" if right == "]" else "<"](default, float(high)), where
                    checked += 1
    assert checked > 30


# What code can raise: the names of the exceptions that it raises itself, and of what it calls.


def functions_of(thing: Any) -> list[Any]:
    """The Python functions that run when the thing is called."""
    if isinstance(thing, property):
        return [thing.fget, *([thing.fset] if thing.fset else [])]
    if inspect.isclass(thing):
        out = []
        for base in thing.__mro__:
            if base.__module__.startswith(PACKAGE):
                out += [f for f in vars(base).values() if inspect.isroutine(f)]
        return out  # a class answers for its methods
    return [thing]


@functools.cache
def nodes_of(file: str) -> dict[int, list[ast.AST]]:
    """Line -> functions that begin there."""
    out: dict[int, list[ast.AST]] = {}
    if not Path(file).exists():  # what dataclasses make
        return out
    for node in ast.walk(ast.parse(Path(file).read_text())):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            first = min([node, *getattr(node, "decorator_list", [])], key=lambda n: n.lineno)
            out.setdefault(first.lineno, []).append(node)
    return out


def called(function: Any, tree: ast.AST) -> Iterator[Any]:
    """Objects that the names in a function's body stand for."""
    scope = dict(vars(builtins)) | function.__globals__
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        scope[name] = cell.cell_contents
    owner = owner_of(function)
    for node in ast.walk(tree):
        chain: list[str] = []
        while isinstance(node, ast.Attribute):
            chain.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            start = owner if node.id in ("self", "cls") else scope.get(node.id)
            for attribute in chain:
                start = getattr(start, attribute, None)
            yield start
        elif chain and owner is not None:  # super().f
            yield from (getattr(base, chain[0], None) for base in owner.__mro__[1:])


def owner_of(function: Any) -> Any:
    head, _, _ = function.__qualname__.rpartition(".")
    owner = function.__globals__.get(head) if head and "<locals>" not in head else None
    return owner if inspect.isclass(owner) else None


def raised(thing: Any) -> set[str]:
    """Names of the exceptions that it can raise, as far as names lead."""
    out, seen, left = set(), set(), functions_of(thing)
    while left:
        one = left.pop()
        one = inspect.unwrap(getattr(one, "__func__", one))
        if id(one) in seen:
            continue
        seen.add(id(one))
        module = str(getattr(one, "__module__", ""))
        if type(one).__module__ == "torch._ops" or one is dk.backends.__globals__["implementation"]:
            out.add("RuntimeError")  # of the compiled kernels
        elif module.startswith("sklearn.utils.validation"):
            out |= {"ValueError", "NotFittedError"}
        elif not module.startswith(PACKAGE):
            continue
        elif inspect.isclass(one):
            left += [f for k in ("__init__", "__post_init__") if (f := vars(one).get(k))]
        elif inspect.isfunction(one):
            for tree in nodes_of(one.__code__.co_filename).get(one.__code__.co_firstlineno, []):
                for node in ast.walk(tree):
                    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                        out.add(getattr(node.exc.func, "id", ""))
                    # An except clause that lets an exception through was written for it.
                    if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name):
                        passes = any(isinstance(n, ast.Raise) and not n.exc for n in node.body)
                        out |= {node.type.id} if passes else set()
                left += [f for f in called(one, tree) if callable(f)]
    return out


def test_what_is_claimed_to_be_raised_can_be_raised():
    claims, wrong = 0, []
    for name, thing in PUBLIC:
        text = section(own_doc(thing), "Raises")
        for claimed in re.findall(rf"^ {{4}}({NAME}(?:, {NAME})*): ", text, re.M):
            for one in claimed.split(", "):
                claims += 1
                if one not in (kinds := raised(thing)):
                    wrong.append(f"{name} says {one}; found {sorted(kinds)}")
    assert not wrong, "\n".join(wrong)
    assert claims > 60
