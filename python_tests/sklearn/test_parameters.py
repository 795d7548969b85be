"""What set_params changes after a fit: nothing that is fitted, the next fit, or a named refusal."""

from __future__ import annotations

import json
import pickle
import re

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("safetensors")
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from deepl0_kernels import sklearn as estimators
from deepl0_kernels.sklearn import (
    DeepL0Classifier,
    DeepL0Clusterer,
    DeepL0Transformer,
    IHTSparseCoder,
    load,
)

N, P = 6, 10
RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, N)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)
ATOMS = RNG.standard_normal((P, N)).astype(np.float32)
SHORT = dict(epochs=1, min_steps=4, batch_size=16, dictionary_epochs=1, random_state=0)
DEEP = {
    "m_sparse": dict(m=3, **SHORT),
    "l0": dict(lam=0.4, **SHORT),
    "given": dict(m=3, dictionary=ATOMS, **SHORT),
}
MAKE = {
    f"{cls.__name__}-{kind}": lambda cls=cls, options=options: cls(code_size=P, **options)
    for cls in (DeepL0Transformer, DeepL0Classifier, DeepL0Clusterer)
    for kind, options in DEEP.items()
} | {
    "IHTSparseCoder-m": lambda: IHTSparseCoder(code_size=P, m=3, min_steps=4, random_state=0),
    "IHTSparseCoder-lam": lambda: IHTSparseCoder(code_size=P, lam=0.2, min_steps=4, random_state=0),
}
every = pytest.mark.parametrize("name", MAKE)

# Another admissible value of every parameter.
OTHER = dict(
    code_size=7, m=5, lam=0.7, num_stages=3, tied=False, grad="ste", dictionary=ATOMS[:7] + 1,
    dictionary_epochs=2, epochs=2, batch_size=7, lr=0.05, min_steps=9, sparse_output=True,
    random_state=5, n_clusters=4, balance=0.3, init="l1", step="normalized", tol=1e-2,
    transform_max_iter=3, positive_code=True,
)  # fmt: skip
# What a partial_fit takes up at once; what is no part of a model; the rest is refused there.
AT_ONCE = {"lr", "batch_size", "random_state", "sparse_output"}
OF_FIT = {"dictionary_epochs", "epochs", "min_steps"}


def fitted(name: str):
    return MAKE[name]().fit(X, Y)


def other(model, parameter: str):
    """Another value of a parameter, or its absence where that is another model."""
    if parameter == "init" and isinstance(model, DeepL0Clusterer):
        return Y
    if parameter in ("m", "dictionary") and getattr(model, parameter) is not None:
        return None
    if parameter == "code_size" and model.get_params().get("dictionary") is not None:
        return None
    return OTHER[parameter]


def answers(model) -> dict[str, np.ndarray]:
    methods = ("transform", "predict", "predict_proba", "decision_function")
    found = {name: getattr(model, name)(X) for name in methods if hasattr(model, name)}
    codes = found["transform"]
    found["transform"] = codes.toarray() if sparse.issparse(codes) else codes
    return found


def assert_same(one, two) -> None:
    assert one.keys() == two.keys()
    for method in one:
        np.testing.assert_array_equal(one[method], two[method], err_msg=method)


def test_every_estimator_is_here():
    assert {type(make()).__name__ for make in MAKE.values()} == set(estimators.__all__) - {"load"}


@every
def test_no_parameter_reaches_what_is_fitted(name, tmp_path):
    model = fitted(name)
    want, path = answers(model), tmp_path / "model.safetensors"
    for parameter, value in model.get_params().items():
        changed = other(model, parameter)
        model.set_params(**{parameter: changed})
        assert_same(answers(model), want)
        model.save(path)
        again = load(path)
        assert_same(answers(again), want)
        assert_same(answers(pickle.loads(pickle.dumps(model))), want)
        np.testing.assert_equal(again.get_params()[parameter], changed)
        model.set_params(**{parameter: value})
    # All at once: nothing of the present parameters is asked for.
    model.set_params(**{key: other(model, key) for key in model.get_params()})
    assert_same(answers(model), want)
    model.save(path)
    assert_same(answers(load(path)), want)


@every
def test_a_file_of_before_there_were_nonnegative_codes(name, tmp_path):
    model, path = fitted(name), tmp_path / "model.safetensors"
    model.save(path)
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    values = json.loads(metadata["values"])
    del values["positive_code"], values["_fitted"]["json"]["positive_code"]
    save_file(tensors, path, metadata | {"values": json.dumps(values)})
    old = load(path)
    assert_same(answers(old), answers(model))
    assert old.get_params()["positive_code"] is False
    if hasattr(old, "partial_fit"):
        assert_same(answers(old.partial_fit(X, Y)), answers(model.partial_fit(X, Y)))


@every
def test_a_changed_parameter_acts_at_the_next_fit(name):
    model = fitted(name)
    for parameter in model.get_params():
        changed = {parameter: other(model, parameter)}
        if parameter == "dictionary" and changed["dictionary"] is not None:
            changed["code_size"] = None
        again = clone(model).set_params(**changed)
        fresh = clone(again).fit(X, Y)
        model_again = pickle.loads(pickle.dumps(model)).set_params(**changed).fit(X, Y)
        assert_same(answers(model_again), answers(fresh))


@pytest.mark.parametrize("name", [name for name in MAKE if hasattr(MAKE[name](), "partial_fit")])
def test_partial_fit_takes_up_a_parameter_or_refuses_it(name):
    model = fitted(name)
    model.partial_fit(X, Y)
    shape = set(model.get_params()) - AT_ONCE - OF_FIT
    if model.m is not None:
        shape -= {"lam", "grad"}  # of the other encoder
    for parameter in model.get_params():
        one, two = (pickle.loads(pickle.dumps(model)) for _ in range(2))
        two.set_params(**{parameter: other(model, parameter)})
        if parameter in shape:
            was, now = (
                "given" if parameter == "dictionary" and value is not None else value
                for value in (one.get_params()[parameter], two.get_params()[parameter])
            )
            told = (
                f"{parameter} was {was!r} when the model was made and is {now!r} now: partial_fit"
            )
            with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
                two.partial_fit(X, Y)
            assert_same(answers(one), answers(two))
            continue
        one.partial_fit(X, Y)
        two.partial_fit(X, Y)
        moved = not np.array_equal(one.transform(X), answers(two)["transform"])
        assert moved == (parameter in AT_ONCE - {"sparse_output"}), parameter


def test_partial_fit_after_a_file_goes_on_with_the_same_model(tmp_path):
    model = fitted("DeepL0Classifier-given")
    model.save(tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert_same(answers(again.partial_fit(X, Y)), answers(model.partial_fit(X, Y)))
    model.set_params(dictionary=ATOMS + 1)
    with pytest.raises(ValueError, match=r"dictionary was 'the first' .* is 'another' now"):
        model.partial_fit(X, Y)
    model.set_params(dictionary=ATOMS.tolist()).partial_fit(X, Y)


@every
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (dict(m=P + 1), "m must be"),
        (dict(m=None, lam=-1.0), "lam must be"),
        (dict(batch_size=0), "batch_size must be"),
        (dict(num_stages=0), "num_stages must be"),
        (dict(grad="soft"), "grad must be"),
        (dict(lr=0.0), "lr must be"),
        (dict(epochs=0), "epochs must be"),
        (dict(balance=-1.0), "balance must be"),
        (dict(tol=0.0), "tol must be"),
        (dict(step="long"), "step must be"),
        (dict(transform_max_iter=0), "^transform_max_iter must be"),
        (dict(dictionary=ATOMS[:, :-1]), "dictionary must be"),
        (dict(positive_code=1), "positive_code must be True or False, got 1"),
    ],
)
def test_a_refused_fit_leaves_the_model_as_it_was(name, bad, words, monkeypatch):
    model = fitted(name)
    if not bad.keys() <= model.get_params().keys():
        return
    want = answers(model)
    model.set_params(**bad)
    # Refused before any work.
    monkeypatch.setattr("deepl0_kernels.sklearn.base.learn_dictionary", None)
    error = TypeError if "positive_code" in bad else ValueError
    with pytest.raises(error, match=words):
        model.fit(X, Y)
    assert_same(answers(model), want)
    fresh = clone(model)
    if hasattr(fresh, "partial_fit"):
        with pytest.raises(error, match=words):
            fresh.partial_fit(X, Y, **(dict(classes=[0, 1]) if "Classifier" in name else {}))
        with pytest.raises(NotFittedError):
            fresh.transform(X)


COUNTS = {
    "code_size", "m", "num_stages", "dictionary_epochs", "epochs", "batch_size", "min_steps",
    "n_clusters", "transform_max_iter",
}  # fmt: skip


@every
def test_a_count_of_1_is_taken_and_one_of_0_is_named(name):
    model = MAKE[name]().set_params(dictionary=None)
    counts = COUNTS & model.get_params().keys()
    least = dict.fromkeys(counts, 1) | ({} if model.m else {"m": None})
    codes = clone(model).set_params(**least).fit(X, Y).transform(X)
    assert codes.shape == (len(X), 1)
    for count in counts if model.m else counts - {"m"}:
        words = rf"^({count}|max_iter) must be >= 1\b.*, got 0$"
        with pytest.raises(ValueError, match=words):
            clone(model).set_params(**{count: 0}).fit(X, Y)
    if hasattr(model, "partial_fit"):
        model.fit(X, Y).set_params(batch_size=1).partial_fit(X[:2], Y[:2])
        with pytest.raises(ValueError, match=r"^batch_size must be >= 1, got 0$"):
            model.set_params(batch_size=0).partial_fit(X, Y)


@pytest.mark.parametrize("kind", [DeepL0Classifier, DeepL0Transformer])
def test_a_first_pass_that_is_interrupted_leaves_nothing_fitted(kind, monkeypatch):
    model = kind(P, m=3, **SHORT)
    step = torch.optim.Adam.step

    def interrupted(*args, **kwargs):
        step(*args, **kwargs)
        raise KeyboardInterrupt

    arguments = (X, Y, [0, 1]) if kind is DeepL0Classifier else (X,)
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.Adam, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.partial_fit(*arguments)
    with pytest.raises(NotFittedError):
        check_is_fitted(model)
    again, fresh = model.partial_fit(*arguments), kind(P, m=3, **SHORT).partial_fit(*arguments)
    assert again.loss_ == fresh.loss_
