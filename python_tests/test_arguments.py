"""Every argument of what is public, given an object that fits nowhere: the error names it.

The calls are those of the examples of docstrings, with one argument replaced.
"""

from __future__ import annotations

import contextlib
import doctest
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from types import FunctionType, GeneratorType
from typing import Any

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels import sae, training
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
    "sae.Activations.rows": ("index",),  # in NumPy's words, and so are those of a part
    "sae.Activations.part": ("rows",),
    "sae.SparseAutoencoder.decode": ("like",),  # not looked at where nothing is normalized
    "training.minimise": ("description",),  # shown by the bar
    "sae.fit": ("description",),
    # Those of torch.optim.Optimizer.
    "sae.SparseAdam": ("params",),
    "sae.SparseAdam.add_param_group": ("param_group",),
    "sae.SparseAdam.step": ("closure",),
}  # fmt: skip


# Calls of what no example calls.
MORE = {
    "SparseCode": "code.to('cpu'); code.from_parquet('none')",
    "nn.ClusterHead": "head.predict(a); head.entropy(a)",
    "nn.DeepMSparseEncoder": "dk.nn.DeepMSparseEncoder.from_dictionary(D, 4)",
    "nn.JointSparseClustering": "joint = dk.nn.JointSparseClustering(D, head, lam=0.1, alpha=0.1); "
                                "joint.loss(a); joint.fit(x, graph, iterations=1)",
    "nn.SigmaSchedule": "sigma = dk.nn.SigmaSchedule(dk.nn.DeepL0Encoder(16, 32)); "
                        "sigma.load_state_dict(sigma.state_dict())",
    "nn.TAGNet": "dk.nn.TAGNet.from_graph(D, graph, 0.1, 0.1); "
                 "dk.nn.TAGNet.from_dictionary(D, 0.1)",
    "sae.Activations": "rows = sae.Activations(x); rows.batches(8); rows.part(slice(3)); "
                       "rows.check(); rows.open('none')",
    "sae.SparseAutoencoder": "model = sae.SparseAutoencoder(16, 32, m=4); model(x); model.loss(x); "
                             "model.deepen(2)",
    "solvers.DictionaryLearner": "learner = dk.solvers.DictionaryLearner(32, m=4); "
                                 "learner.partial_fit(x); "
                                 "learner.load_state_dict(learner.state_dict())",
    "solvers.TaskDrivenDictionary": "tasks = dk.solvers.TaskDrivenDictionary(D, 3, lam=0.1); "
                                    "tasks.fit_head(x, y); tasks.loss(x, y)",
    "training.L0Regularized": "one = training.L0Regularized(lam=0.1); one.iterate(x, D, 2); "
                              "one.l1(x, D); one.lista(D)",
    "training.MSparse": "one = training.MSparse(m=3); one.encoder(D); one.iterate(x, D, 2); "
                        "one.l1(x, D); one.lista(D)",
}  # fmt: skip


def operands() -> dict[str, Any]:
    """The names that those calls read."""
    x = torch.randn(20, 16)
    graph = dk.solvers.graph_laplacian(dk.solvers.knn_affinity(x, 3))
    D = torch.nn.functional.normalize(torch.randn(16, 32), dim=0)
    code = dk.SparseCode(torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int64), 3)
    head, y = dk.nn.ClusterHead(32, 3), torch.arange(20) % 3
    return dict(dk=dk, sae=sae, training=training, x=x, y=y, a=x @ D, D=D, graph=graph, code=code,
                head=head)  # fmt: skip


class Stranger:
    """What no argument takes."""


def is_held(where: str, argument: str) -> bool:
    """Estimators of scikit-learn check nothing before ``fit``, and then in its own words."""
    short = where.removeprefix(f"{dk.__name__}.").removesuffix(".__init__")
    if short.startswith("sklearn.") and short != "sklearn.load":
        return where.endswith("__init__") or argument in ("X", "y", "sample_weight")
    if short.endswith(".train"):
        return True  # that of torch.nn.Module
    return argument in HELD.get(short, ())


def places(name: str, thing: Any) -> Iterator[tuple[str, Any, str, Any]]:
    """What a function is called, whose attribute it is, by what name; of a class, its methods."""
    if not inspect.isclass(thing):
        last = name.rpartition(".")[2]
        for room in (importlib.import_module(f"{dk.__name__}.{m}".rstrip(".")) for m in MODULES):
            if vars(room).get(last) is thing:
                yield name, room, last, thing
        return
    seen: set[str] = set()
    for base in thing.__mro__:
        for key, value in (
            list(vars(base).items()) if base.__module__.startswith(dk.__name__) else ()
        ):
            own = key in ("__init__", "forward") or not key.startswith("_")
            if own and key not in seen and isinstance(value, (FunctionType, classmethod)):
                seen.add(key)
                yield f"{name}.{key}", base, key, value


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

    with pytest.MonkeyPatch.context() as patch:
        for where, owner, key, value in places(name, thing):
            if isinstance(value, classmethod):
                patch.setattr(owner, key, classmethod(watched(where, value.__func__)))
            else:
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
        # Its name comes first, or it is one of two that exclude each other.
        named = re.search(rf"^{argument}\b|\b{argument}=|where {argument} is given", str(error))
        return "" if named else repr(error)
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
        names = operands()
        for call in filter(None, MORE.get(name.removeprefix(f"{dk.__name__}."), "").split("; ")):
            with contextlib.suppress(FileNotFoundError):
                exec(call, names)
    assert calls, "the example does not call it"
    wrong = {}
    for where, (function, given) in calls.items():
        for argument, parameter in given.signature.parameters.items():
            star = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if argument in ("self", "cls") or star or is_held(where, argument):
                continue
            if found := refused(function, given, argument):
                wrong[f"{where}({argument})"] = found
    assert not wrong, "\n".join(f"{where}: {found}" for where, found in wrong.items())
