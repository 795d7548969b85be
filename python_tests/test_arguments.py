"""Every argument of what is public, given an object that fits nowhere: the error names it.

The calls are those of the examples of docstrings, with one argument replaced.
"""

from __future__ import annotations

import contextlib
import doctest
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from types import GeneratorType
from typing import Any

import pytest
import torch

import deepl0_kernels as dk
from python_tests.test_examples import MODULES, public

# What is taken unseen, or refused in other words, and why.
HELD = {
    # Results hold what solvers and evaluations put into them.
    "distributed.Ranks": ("mesh", "first"),
    "sae.Evaluation": ("fvu", "mse", "l0", "vectors", "fired"),
    "solvers.DictionaryLearner.result": ("loss",),
    "solvers.DictionaryResult": ("D", "loss", "squared_norm", "coherence", "usage", "dead_atoms",
                                 "replaced", "atom_norms"),
    "solvers.SolverResult": ("code", "iterations", "converged", "objective"),
    # Made in every call; whatever reads it looks.
    "SparseCode": ("values", "indices"),
    # Its errors know the name that it is given.
    "sae.Activations": ("source", "name"),
    "sae.Activations.rows": ("index",),  # NumPy's
    "sae.SparseAutoencoder.decode": ("like",),  # not looked at where nothing is normalized
    "training.minimise": ("description",),  # shown by the bar
    "sae.fit": ("description",),
    # Those of torch.optim.Optimizer.
    "sae.SparseAdam": ("params",),
    "sae.SparseAdam.add_param_group": ("param_group",),
    "sae.SparseAdam.step": ("closure",),
}  # fmt: skip


class Stranger:
    """What no argument takes."""


def is_held(where: str, argument: str) -> bool:
    """Estimators of scikit-learn check nothing before ``fit``, and then in its own words."""
    short = where.removeprefix(f"{dk.__name__}.").removesuffix(".__init__")
    if short.startswith("sklearn.") and short != "sklearn.load":
        return where.endswith("__init__") or argument in ("X", "y", "sample_weight")
    return argument in HELD.get(short, ())


@contextlib.contextmanager
def recorded(name: str, thing: Any) -> Iterator[dict[str, tuple[Callable, inspect.BoundArguments]]]:
    """The first call of a function, or of each method of a class; and what was called."""
    calls: dict[str, tuple[Callable, inspect.BoundArguments]] = {}

    def watched(where: str, function: Callable) -> Callable:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args, **more):
            args = tuple(list(a) if isinstance(a, GeneratorType) else a for a in args)
            if where not in calls:
                calls[where] = function, signature.bind(*args, **more)
                calls[where][1].apply_defaults()
            return function(*args, **more)

        return call

    rooms = [importlib.import_module(f"{dk.__name__}.{m}".rstrip(".")) for m in MODULES]
    last = name.rpartition(".")[2]
    owners = (
        [thing] if inspect.isclass(thing) else [r for r in rooms if getattr(r, last, 0) is thing]
    )
    with pytest.MonkeyPatch.context() as patch:
        for owner in owners:
            for key, value in list(vars(owner).items()):
                own = key in ("__init__", "forward") or not key.startswith("_")
                if value is thing or (owner is thing and own and inspect.isfunction(value)):
                    where = name if value is thing else f"{name}.{key}"
                    patch.setattr(owner, key, watched(where, value))
        yield calls


def refused(function: Callable, given: inspect.BoundArguments, argument: str) -> str:
    """What is wrong with how a stranger is refused; nothing: it is refused by name."""
    given = inspect.BoundArguments(given.signature, dict(given.arguments))
    given.arguments[argument] = Stranger()
    first = next(iter(given.arguments.values()), None)
    if function.__name__ == "__init__":
        given.arguments["self"] = type(first).__new__(type(first))
    try:
        function(*given.args, **given.kwargs)
    except (TypeError, ValueError) as error:
        return "" if argument in str(error) else repr(error)
    except Exception as error:
        return repr(error)
    return "taken"


def is_called(thing: Any) -> bool:
    """With arguments of its own: no named tuple, which operators return, and no abstract class."""
    is_tuple = inspect.isclass(thing) and issubclass(thing, tuple)
    return not (is_tuple or inspect.isabstract(thing) or inspect.isbuiltin(thing))


@pytest.mark.parametrize(
    ("name", "thing"), [pytest.param(*it, id=it[0]) for it in public() if is_called(it[1])]
)
def test_a_stranger_is_refused_by_name(name, thing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    room = importlib.import_module(name.rpartition(".")[0])
    names = {"torch": torch, "dk": dk}
    with recorded(name, thing) as calls:
        torch.manual_seed(0)
        for test in doctest.DocTestFinder(recurse=False).find(
            getattr(room, name.rpartition(".")[2]), name, globs=names
        ):
            doctest.DocTestRunner(verbose=False).run(test, out=lambda said: None)
    assert calls, "the example does not call it"
    wrong = {}
    for where, (function, given) in calls.items():
        for argument, parameter in given.signature.parameters.items():
            star = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if argument == "self" or star or is_held(where, argument):
                continue
            if found := refused(function, given, argument):
                wrong[f"{where}({argument})"] = found
    assert not wrong, "\n".join(f"{where}: {found}" for where, found in wrong.items())
