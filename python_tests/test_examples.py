"""The examples of docstrings and pages run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect

import pytest
import torch

import deepl0_kernels as dk

MODULES = ("", "datasets", "distributed", "images", "nn", "sae", "scenes", "sklearn", "solvers",
           "training")  # fmt: skip


def public() -> list[tuple[str, object]]:
    """Every public class and function by its full name."""
    found = []
    for module in MODULES:
        room = importlib.import_module(f"{dk.__name__}.{module}".rstrip("."))
        for name in room.__all__:
            thing = getattr(room, name)
            if any(thing is known for _, known in found):  # encode_dataset has two doors
                continue
            if inspect.isclass(thing) or inspect.isroutine(thing):
                found.append((f"{room.__name__}.{name}", thing))
    return found


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_docstrings(module):
    """In one process; the page of the reference says that these two imports come first."""
    room = importlib.import_module(f"{dk.__name__}.{module}".rstrip("."))
    names = {"torch": torch, "dk": dk}
    found = doctest.DocTestFinder(recurse=False).find(room, room.__name__, globs=dict(names))
    for name, thing in public():
        if name.rpartition(".")[0] == room.__name__ and not inspect.isbuiltin(thing):
            here = doctest.DocTestFinder(recurse=False).find(thing, name, globs=dict(names))
            run = [e for test in here for e in test.examples if doctest.SKIP not in e.options]
            assert run, f"{name} has no example"
            found += here
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in found:
        torch.manual_seed(0)
        runner.run(test, out=said.append)
    assert not said, "\n".join(said)
    assert runner.tries >= len(room.__all__) // 2
