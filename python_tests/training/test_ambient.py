"""Autocast, grad mode, inference mode and default dtype around every public entry point of the
layers, the trainings and the estimators: the same results to the last bit."""

from __future__ import annotations

import contextlib
import copy
import inspect

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
import deepl0_kernels as dk
from deepl0_kernels import nn, training
from deepl0_kernels import sklearn as estimators

N, P, M, ROWS = 6, 10, 3, 24
OPTIONS = dict(epochs=2, batch_size=8, lr=1e-2, clip=1.0, seed=0)
SHORT = dict(epochs=1, min_steps=4, batch_size=8, dictionary_epochs=1, random_state=0)


def discovered() -> set[str]:
    """Functions, constructors, and methods and properties that are ours, of all that is public."""
    found = set()
    for module in (nn, training, estimators):
        for name in module.__all__:
            thing = getattr(module, name)
            found.add(name)
            if not inspect.isclass(thing):
                continue
            for base in thing.__mro__:
                if base.__module__.startswith("deepl0_kernels"):
                    found |= {f"{name}.{key}" for key in vars(base) if not key.startswith("_")}
    return found


# -- what is called, and how: key -> (made outside of the modes, called within them)


def data() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(ROWS, N, generator=g)
    D = torch.randn(N, P, generator=g)
    ring = torch.eye(ROWS).roll(1, 0)
    return dict(
        x=x,
        D=D / D.norm(dim=0),
        a=dk.keep_top_m(torch.randn(ROWS, P, generator=g), M),
        y=(x[:, 0] > 0).long(),
        weights=torch.rand(ROWS, generator=g),
        L=dk.solvers.graph_laplacian((ring + ring.T).to_sparse()),
    )


def seeded(make):
    def call():
        torch.manual_seed(5)
        return make()

    return call


GIVEN = data()
LAYERS = {
    "LISTA": lambda: nn.LISTA(N, P),
    "BaselineEncoder": lambda: nn.BaselineEncoder(N, P),
    "ClusterHead": lambda: nn.ClusterHead(P, 3),
    "DeepL0Encoder": lambda: nn.DeepL0Encoder(N, P),
    "DeepMSparseEncoder": lambda: nn.DeepMSparseEncoder(N, P, M),
    "DeepHTPEncoder": lambda: nn.DeepHTPEncoder(N, P, M, 3),
    "TAGNet": lambda: nn.TAGNet(N, P, gamma=0.1),
    "SigmaSchedule": lambda: nn.SigmaSchedule(nn.DeepL0Encoder(N, P)),
    "Classifier": lambda: training.Classifier(nn.DeepL0Encoder(N, P), P, 2),
    "Clusters": lambda: training.Clusters(nn.DeepL0Encoder(N, P), nn.ClusterHead(P, 3)),
    "L0Regularized": lambda: training.L0Regularized(lam=0.3),
    "MSparse": lambda: training.MSparse(m=M),
    "JointSparseClustering": lambda: nn.JointSparseClustering(
        GIVEN["D"], nn.ClusterHead(P, 3), 0.1, 0.2
    ),
}


def course():
    encoder = nn.DeepL0Encoder(N, P)
    return training.Course(encoder, encoder, GIVEN["x"])


def minimised(network, v):
    losses = training.minimise(
        network, lambda rows: (network(v["x"][rows].clone()) - 1).square().mean(), ROWS, **OPTIONS
    )
    return losses, network


def trained(fit, name, *arguments, **options):
    def call(network, v):
        return fit(network, *(v[key] for key in arguments), **options, **OPTIONS), network

    return seeded(LAYERS[name]), call


def fitted(model):
    return model.fit(GIVEN["x"].numpy(), GIVEN["y"].numpy())


CASES: dict = {
    "ClusterHead.entropy": (LAYERS["ClusterHead"], lambda m, v: m.entropy(v["a"], 0.5)),
    "ClusterHead.logits": (LAYERS["ClusterHead"], lambda m, v: m.logits(v["a"])),
    "ClusterHead.predict": (LAYERS["ClusterHead"], lambda m, v: m.predict(v["a"])),
    "ClusterHead.forward": (LAYERS["ClusterHead"], lambda m, v: m(v["a"])),
    "JointSparseClustering": (
        LAYERS["ClusterHead"],
        lambda m, v: nn.JointSparseClustering(v["D"], m, 0.1, 0.2),
    ),
    "JointSparseClustering.encode": (
        LAYERS["JointSparseClustering"],
        lambda m, v: m.encode(v["x"], v["L"]),
    ),
    "JointSparseClustering.forward": (
        LAYERS["JointSparseClustering"],
        lambda m, v: m(v["x"], v["L"]),
    ),
    "JointSparseClustering.loss": (LAYERS["JointSparseClustering"], lambda m, v: m.loss(v["a"])),
    "JointSparseClustering.project": (
        LAYERS["JointSparseClustering"],
        lambda m, v: (m.D.data.mul_(1.5), m.project(), m)[1:],
    ),
    "JointSparseClustering.fit": (
        LAYERS["JointSparseClustering"],
        lambda m, v: (m.fit(v["x"], v["L"], iterations=3, lr=1e-2), m),
    ),
    "SigmaSchedule.step": (LAYERS["SigmaSchedule"], lambda s, v: (s.step(), s.encoder.sigma)),
    "SigmaSchedule.load_state_dict": (
        LAYERS["SigmaSchedule"],
        lambda s, v: (s.load_state_dict(s.state_dict() | {"epoch": 1}), s.encoder.sigma),
    ),
    "SigmaSchedule": (LAYERS["DeepL0Encoder"], lambda m, v: nn.SigmaSchedule(m, 0.3).sigma),
    "TAGNet.forward": (LAYERS["TAGNet"], lambda m, v: m(v["x"], v["L"])),
    "TAGNet.from_graph": (
        lambda: None,
        lambda _, v: nn.TAGNet.from_graph(v["D"], v["L"], 0.1, 0.2),
    ),
    "Course": (
        LAYERS["DeepL0Encoder"],
        lambda m, v: training.Course(m, m, torch.empty(100_000, 1, dtype=torch.float32)).x.shape,
    ),
    "Course.look": (course, lambda c, v: (c.look(), c.nonzeros, c.dead_units)),
    "Classifier": (seeded(LAYERS["Classifier"]), lambda m, v: m.eval()(v["x"])),
    "BaselineEncoder": (seeded(LAYERS["BaselineEncoder"]), lambda m, v: m.eval()(v["x"])),
    "Clusters.forward": (seeded(LAYERS["Clusters"]), lambda m, v: m.eval()(v["x"])),
    "cross_entropies": (
        seeded(LAYERS["Classifier"]),
        lambda m, v: training.cross_entropies(m, v["x"], v["y"], v["weights"])(torch.arange(5)),
    ),
    "minimise": (seeded(LAYERS["LISTA"]), minimised),
    "fit_to_codes": trained(training.fit_to_codes, "DeepL0Encoder", "x", "a"),
    "fit_to_classes": trained(training.fit_to_classes, "Classifier", "x", "y", "weights"),
    "fit_to_clusters": trained(training.fit_to_clusters, "Clusters", "x", balance=0.5),
    "logistic_head": (lambda: None, lambda _, v: training.logistic_head(v["a"], v["y"], 2)),
    "start_head": (lambda: None, lambda _, v: training.start_head(v["a"], 3, 0)),
}
for name in ("LISTA", "DeepL0Encoder", "DeepMSparseEncoder", "DeepHTPEncoder"):
    CASES[f"{name}.forward"] = seeded(LAYERS[name]), lambda m, v: m(v["x"])
CASES["DeepMSparseEncoder.encode"] = (
    seeded(LAYERS["DeepMSparseEncoder"]),
    lambda m, v: m.encode(v["x"]),
)
for name in ("LISTA", "DeepL0Encoder", "DeepHTPEncoder", "TAGNet"):
    CASES[f"{name}.theta"] = seeded(LAYERS[name]), lambda m, v: m.theta
    CASES[f"{name}.from_dictionary"] = (
        lambda: None,
        lambda _, v, name=name: getattr(nn, name).from_dictionary(
            v["D"], M if name == "DeepHTPEncoder" else 0.2
        ),
    )
CASES["DeepHTPEncoder.stages"] = seeded(LAYERS["DeepHTPEncoder"]), lambda m, v: m.stages(v["x"])
CASES["calibrate"] = (
    seeded(lambda: nn.DeepHTPEncoder(N, P, M, 3)),
    lambda m, v: (training.calibrate(m, v["x"], v["a"]), m),
)
CASES["DeepMSparseEncoder.from_dictionary"] = (
    lambda: None,
    lambda _, v: nn.DeepMSparseEncoder.from_dictionary(v["D"], M),
)
for name in (
    "LISTA", "DeepL0Encoder", "DeepMSparseEncoder", "DeepHTPEncoder", "TAGNet", "ClusterHead",
    "BaselineEncoder",
):  # fmt: skip
    CASES[f"{name}.reset_parameters"] = (
        LAYERS[name],
        lambda m, v: (torch.manual_seed(6), m.reset_parameters(), m)[1:],
    )
for name, method, arguments in (
    *((name, "iterate", ("x", "D", 3)) for name in ("L0Regularized", "MSparse")),
    *((name, "optimal", ("x", "D")) for name in ("L0Regularized", "MSparse")),
    *((name, "l1", ("x", "D")) for name in ("L0Regularized", "MSparse")),
    *((name, "encoder", ("D",)) for name in ("L0Regularized", "MSparse")),
    *((name, "lista", ("D",)) for name in ("L0Regularized", "MSparse")),
):
    CASES[f"{name}.{method}"] = (
        LAYERS[name],
        lambda p, v, method=method, arguments=arguments: getattr(p, method)(
            *(v.get(a, a) for a in arguments)
        ),
    )
MODELS = {
    "DeepL0Classifier": lambda: estimators.DeepL0Classifier(P, lam=0.3, **SHORT),
    "DeepL0Clusterer": lambda: estimators.DeepL0Clusterer(3, P, m=M, **SHORT),
    "DeepL0Transformer": lambda: estimators.DeepL0Transformer(P, m=M, **SHORT),
    "IHTSparseCoder": lambda: estimators.IHTSparseCoder(
        code_size=P, lam=0.3, init="l1", min_steps=4, random_state=0
    ),
}
for name, make in MODELS.items():
    CASES[f"{name}.fit"] = (
        make,
        lambda m, v: m.fit(v["x"].numpy(), v["y"].numpy()),
    )
    for method in (
        "transform", "predict", "predict_proba", "predict_log_proba", "decision_function",
    ):  # fmt: skip
        if hasattr(make(), method):
            CASES[f"{name}.{method}"] = (
                lambda make=make: fitted(make()),
                lambda m, v, method=method: getattr(m, method)(v["x"].numpy()),
            )
    CASES[f"{name}.inverse_transform"] = (
        lambda make=make: fitted(make()),
        lambda m, v: m.inverse_transform(v["a"].numpy()),
    )
    if hasattr(make(), "partial_fit"):
        CASES[f"{name}.partial_fit"] = (
            lambda make=make: fitted(make()),
            lambda m, v: m.partial_fit(v["x"].numpy(), v["y"].numpy()),
        )

# Nothing is computed by these, or what is has a case of its own.
ELSEWHERE = (
    {"load"}  # with save, below
    | {f"{name}.save" for name in MODELS}
    | {
        f"{name}.{kind}"
        for name in LAYERS
        for kind in ("extra_repr", "state_dict", "sigma", "train")
    }
    | {
        f"{name}.{kind}"
        for name in ("Problem", "L0Regularized", "MSparse")
        for kind in ("formula", "l1_penalty", "sparsity", "key", "name", "tol", "max_iter", "m")
    }
    | {"L0Regularized.lam", "MSparse.l1_lam", "Course.SIGNALS"}
    | {f"Problem.{kind}" for kind in ("encoder", "iterate", "l1", "lista", "optimal")}
    | set(MODELS)  # parameters alone
    # As nn.Linear they are made in the default dtype; what makes their values is reset_parameters.
    | {*LAYERS, "Problem"}
    | {f"{name}.{value}" for name in MODELS for value in ("components_", "sparse_output")}
)
# Under autocast a layer is what its operators' rules make of it, as nn.Linear is.
BY_THE_RULES = {
    "LISTA.forward", "DeepL0Encoder.forward", "DeepMSparseEncoder.forward",
    "DeepMSparseEncoder.encode", "TAGNet.forward", "BaselineEncoder", "Classifier",
    "Clusters.forward", "cross_entropies",
}  # fmt: skip


@contextlib.contextmanager
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "float64": float64_by_default,
}


def numbers(result) -> list:
    """All that a result holds, as lists of numbers."""
    if isinstance(result, torch.nn.Module):
        result = [*result.state_dict().values(), *(m.training for m in result.modules())]
    elif hasattr(result, "get_params"):
        result = [v for k, v in sorted(vars(result).items()) if k.endswith("_")]
    elif isinstance(result, dk.SparseCode):
        result = [result.values, result.indices]
    elif isinstance(result, dk.solvers.SolverResult):
        result = [result.dense, result.iterations, result.converged]
    if isinstance(result, torch.Tensor):
        assert result.dtype != torch.bfloat16
        return [str(result.dtype), result.tolist()]
    if isinstance(result, np.ndarray):
        return [str(result.dtype), result.tolist()]
    if isinstance(result, (list, tuple)):
        return [numbers(part) for part in result]
    if isinstance(result, dict):
        return [numbers(part) for part in result.values()]
    return [result]


def run(key: str, *modes: str):
    make, call = CASES[key]
    torch.manual_seed(4)
    subject = make()
    with contextlib.ExitStack() as stack:
        for mode in modes:
            stack.enter_context(MODES[mode]())
        # Made within the modes, of the same numbers.
        values = {key: value.clone() for key, value in GIVEN.items()}
        return call(subject, values)


def test_nothing_public_is_left_out():
    known = {key for key in discovered() if key not in CASES and key not in ELSEWHERE}
    # Parameters and fitted values are no entry points.
    known = {key for key in known if inspect.isroutine(_attribute(key))}
    # Those of scikit-learn's metadata routing are put into our classes.
    known = {key for key in known if not key.endswith("_request")}
    assert not known, "entry points without a case here"
    assert CASES.keys() >= BY_THE_RULES


def _attribute(key: str):
    name, _, attribute = key.partition(".")
    module = next(m for m in (nn, training, estimators) if hasattr(m, name))
    thing = getattr(module, name)
    return getattr(thing, attribute, None) if attribute else thing


@pytest.mark.parametrize("key", CASES)
def test_the_same_in_every_mode(key):
    want = numbers(run(key))
    for mode in MODES:
        if mode == "autocast" and key in BY_THE_RULES:
            run(key, mode)
            continue
        assert numbers(run(key, mode)) == want, mode
    together = [m for m in MODES if not (m == "autocast" and key in BY_THE_RULES)]
    assert numbers(run(key, *together)) == want


@pytest.mark.parametrize("name", MODELS)
def test_files_in_every_mode(name, tmp_path):
    model = fitted(MODELS[name]())
    want = model.transform(GIVEN["x"].numpy())
    with contextlib.ExitStack() as stack:
        for mode in MODES.values():
            stack.enter_context(mode())
        model.save(tmp_path / "m")
        again = estimators.load(tmp_path / "m")
    np.testing.assert_array_equal(again.transform(GIVEN["x"].numpy()), want)
    if hasattr(again, "partial_fit"):
        again.partial_fit(GIVEN["x"].numpy(), GIVEN["y"].numpy())


@pytest.mark.parametrize("where", [(a, b) for a in (False, True) for b in (False, True)])
def test_gradients_of_joint_codes_under_autocast(where):
    torch.manual_seed(0)
    model = LAYERS["JointSparseClustering"]()
    plain = copy.deepcopy(model)
    forward, backward = (torch.autocast("cpu", torch.bfloat16, enabled=on) for on in where)
    with forward:
        loss = model.loss(model.encode(GIVEN["x"], GIVEN["L"]))
    with backward:
        loss.backward()
    plain.loss(plain.encode(GIVEN["x"], GIVEN["L"])).backward()
    for one, two in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


def test_what_was_made_in_inference_mode_is_refused_by_name():
    with torch.inference_mode():
        encoder = nn.DeepL0Encoder(N, P)
        joint = LAYERS["JointSparseClustering"]()
    with pytest.raises(ValueError, match=r"DeepL0Encoder cannot be trained: its parameter W was"):
        training.fit_to_codes(encoder, GIVEN["x"], GIVEN["a"], **OPTIONS)
    with pytest.raises(ValueError, match=r"JointSparseClustering .* parameter D was made in"):
        joint.fit(GIVEN["x"], GIVEN["L"])
