"""The estimators in use: solvers' codes, pipelines, grids, frames, sparse output, files."""

from __future__ import annotations

import copy
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from scipy import sparse
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import deepl0_kernels as dk
from deepl0_kernels.sklearn import (
    DeepL0Classifier,
    DeepL0Clusterer,
    DeepL0Transformer,
    IHTSparseCoder,
    load,
)
from python_tests.solvers.problems import planted

SHORT = dict(dictionary_epochs=2, epochs=2, min_steps=80, random_state=0)
FAST = dict(dictionary_epochs=1, epochs=1)
ESTIMATORS = [
    IHTSparseCoder(code_size=40, m=5, min_steps=80, random_state=0),
    DeepL0Transformer(40, lam=0.5, grad="ste", **SHORT),
    DeepL0Classifier(40, m=8, **SHORT),
    DeepL0Clusterer(10, 40, m=8, **SHORT),
]


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """400 digits of 64 pixels, float32 of variance 1."""
    x, y = load_digits(return_X_y=True)
    x = x[:400].astype(np.float32)
    return (x - x.mean()) / x.std(), y[:400]


@pytest.mark.parametrize(
    ("options", "solve"),
    [
        (dict(m=4), lambda x, D: dk.solvers.iht_m(x, D, 4, init="l1")),
        (dict(lam=0.1), lambda x, D: dk.solvers.iht(x, D, 0.1, init="l1")),
    ],
)
def test_the_codes_are_the_solvers(options, solve):
    x, D, _ = planted()
    coder = IHTSparseCoder(D.T.numpy(), init="l1", **options).fit(x.numpy())
    want = solve(x, D).dense.numpy()
    np.testing.assert_allclose(coder.transform(x.numpy()), want, atol=1e-12)
    coder.set_params(sparse_output=True)
    codes = coder.transform(x.numpy())
    assert sparse.issparse(codes)
    np.testing.assert_allclose(codes.toarray(), want, atol=1e-12)
    assert codes.nnz == (want != 0).sum()
    np.testing.assert_allclose(coder.inverse_transform(codes), want @ D.T.numpy())
    with pytest.raises(ValueError, match="50 columns, one an atom, got 3"):
        coder.inverse_transform(np.ones((2, 3)))


@pytest.mark.parametrize("kind", [dict(m=4), dict(lam=0.1)])
def test_positive_codes(kind, tmp_path):
    x, D, _ = planted()
    coder = IHTSparseCoder(D.T.numpy(), init="l1", positive_code=True, **kind).fit(x.numpy())
    solve = dk.solvers.iht_m if "m" in kind else dk.solvers.iht
    want = solve(x, D, *kind.values(), init="l1", positive=True).dense.numpy()
    codes = coder.transform(x.numpy())
    np.testing.assert_allclose(codes, want, atol=1e-12)
    assert (codes >= 0).all()
    assert codes.any()
    coder.save(tmp_path / "coder.safetensors")
    np.testing.assert_array_equal(load(tmp_path / "coder.safetensors").transform(x.numpy()), codes)
    # CSR holds no zeros, though a code has m entries.
    against = -np.abs(D.T.numpy())
    coder = IHTSparseCoder(against, sparse_output=True, positive_code=np.True_, **kind)
    codes = coder.fit(x.numpy()).transform(np.abs(x.numpy()))
    assert codes.nnz == 0
    assert codes.shape == (40, 50)
    with pytest.raises(TypeError, match="positive_code must be True or False, got 'yes'"):
        IHTSparseCoder(D.T.numpy(), positive_code="yes").fit(x.numpy())


def test_a_dictionary_is_learned_for_positive_codes(digits):
    x, _ = digits
    model = IHTSparseCoder(code_size=20, m=5, positive_code=True, min_steps=5, random_state=0).fit(
        x
    )
    options = dict(m=5, epochs=6, batch_size=256, seed=model._seed())
    D = dk.solvers.learn_dictionary(torch.from_numpy(x), 20, positive=True, **options).D
    np.testing.assert_array_equal(model.components_, D.T.numpy())
    signed = dk.solvers.learn_dictionary(torch.from_numpy(x), 20, **options).D
    assert not torch.allclose(D, signed, atol=0.01)


def test_files_of_before_there_were_positive_codes(digits, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    from safetensors import safe_open

    x, _ = digits
    model, path = IHTSparseCoder(x[:9], m=2).fit(x), tmp_path / "model.safetensors"
    want = model.transform(x)
    model.save(path)
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    values = json.loads(metadata["values"])
    del values["positive_code"], values["_fitted"]["json"]["positive_code"]
    for _ in range(2):
        safetensors.save_file(tensors, path, metadata=metadata | {"values": json.dumps(values)})
        again = load(path)
        assert again.positive_code is False
        np.testing.assert_array_equal(again.transform(x), want)
        values.pop("_fitted", None)


@pytest.mark.parametrize("kind", [DeepL0Transformer, DeepL0Classifier, DeepL0Clusterer])
@pytest.mark.parametrize("options", [dict(m=8), dict(lam=0.3)])
def test_nonnegative_codes(digits, kind, options):
    x, y = digits
    model = kind(code_size=40, positive_code=True, **options, **SHORT).fit(x, y)
    codes = model.transform(x)
    assert (codes >= 0).all()
    assert (codes > 0).sum(1).mean() > 2
    assert model.encoder_.positive
    if kind is DeepL0Transformer:  # atoms keep their signs, which signals of both need
        assert np.square(x - model.inverse_transform(codes)).mean() < 0.8 * np.square(x).mean()
    signed = clone(model).set_params(positive_code=False).fit(x, y)
    assert (signed.transform(x) < 0).any()
    if hasattr(model, "partial_fit"):
        assert (model.partial_fit(x, y).transform(x) >= 0).all()


def test_the_encoder_learns_the_optimal_codes(digits):
    x, _ = digits
    model = DeepL0Transformer(80, m=8, epochs=10, min_steps=200, random_state=0).fit(x)
    codes = model.transform(x)
    assert ((codes != 0).sum(1) == 8).all()
    D = torch.from_numpy(model.components_).T
    best = dk.solvers.iht_m(torch.from_numpy(x), D, 8, init="l1", max_iter=5000).dense.numpy()
    untrained = dk.nn.DeepMSparseEncoder.from_dictionary(D, 8)(torch.from_numpy(x))

    def error(a):
        return np.square(a - best).sum()

    assert error(codes) < 0.7 * error(untrained.detach().numpy())


def test_a_pipeline_classifies_and_a_grid_chooses(digits):
    x, y = digits
    names = np.array([f"digit {k}" for k in range(10)], dtype=object)
    y = names[y]
    model = make_pipeline(StandardScaler(), DeepL0Classifier(80, **SHORT))
    grid = {"deepl0classifier__m": [2, 16]}
    search = GridSearchCV(model, grid, cv=2).fit(x[:300], y[:300])
    assert set(search.best_estimator_.classes_) == set(names)
    assert search.score(x[300:], y[300:]) > 0.8
    # Trained end to end, two nonzeros do about as well as sixteen: either may win.
    assert search.cv_results_["mean_test_score"].min() > 0.75
    assert search.best_params_["deepl0classifier__m"] in (2, 16)


def test_probabilities_are_the_decisions(digits):
    x, y = digits
    for keep in (y < 10, y < 2):
        model = DeepL0Classifier(40, m=8, **SHORT).fit(x[keep], y[keep])
        proba, decision = model.predict_proba(x), model.decision_function(x)
        np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
        np.testing.assert_allclose(np.exp(model.predict_log_proba(x)), proba, rtol=1e-5)
        if keep.all():
            assert (model.classes_[decision.argmax(1)] == model.predict(x)).all()
        else:
            assert decision.shape == (len(x),)
            np.testing.assert_allclose(1 / (1 + np.exp(-decision)), proba[:, 1], atol=1e-5)


def test_partial_fit_goes_on(digits):
    x, y = digits
    model = DeepL0Classifier(40, m=8, lr=1e-2, batch_size=32, **SHORT)
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        model.partial_fit(x, y)
    model.partial_fit(x[:200], y[:200], classes=range(10))
    first = model.loss_[0]
    D = model.components_
    for _ in range(8):
        model.partial_fit(x[200:], y[200:])
    assert model.components_ is D
    assert len(model.loss_) == 9
    assert model.loss_[-1] < 0.3 * first
    assert model.score(x[200:], y[200:]) > 0.9
    with pytest.raises(ValueError, match=r"y must be among classes.*got \[11\]"):
        model.partial_fit(x[:1], [11])
    with pytest.raises(ValueError, match="classes must be those of the first call"):
        model.partial_fit(x, y, classes=[0, 1])

    encoder = DeepL0Transformer(40, m=8, lr=1e-2, batch_size=32, **SHORT)
    for _ in range(6):
        encoder.partial_fit(x)
    assert encoder.loss_[-1] < 0.8 * encoder.loss_[0]


@pytest.mark.parametrize("clip", [1.0, 1e9])
def test_partial_fit_clips_gradients_to_norm_1(digits, clip):
    """The pass by hand is partial_fit's, and is another without clipping."""
    x = digits[0] * np.geomspace(0.1, 30, 400, dtype=np.float32)[:, None]
    options = dict(SHORT, batch_size=32, lr=1e-2)
    model = DeepL0Transformer(40, m=8, **options).fit(x)
    encoder = copy.deepcopy(model.encoder_)
    signals, D = torch.from_numpy(x), torch.from_numpy(model.components_).T
    codes = dk.solvers.iht_m(signals, D, 8, init="l1", max_iter=5_000).dense
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-2)
    seed = int(np.random.RandomState(0).randint(2**31))
    order = torch.randperm(400, generator=torch.Generator().manual_seed(seed))
    for rows in order.split(32):
        optimizer.zero_grad()
        ((encoder(signals[rows]) - codes[rows]).square().sum() / len(rows)).backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), clip)
        optimizer.step()
    model.partial_fit(x)
    same = torch.allclose(encoder.W, model.encoder_.W, atol=1e-6)
    assert same == (clip == 1.0)


def test_clusters_are_those_of_k_means_or_better(digits):
    x, y = digits
    model = DeepL0Clusterer(10, 80, m=8, lr=1e-3, **SHORT).fit(x)
    assert model.loss_[-1] < model.loss_[0]
    assert (model.predict(x) == model.labels_).all()
    assert (model.predict_proba(x).argmax(1) == model.labels_).all()
    plain = KMeans(10, n_init=10, random_state=0).fit_predict(x)
    ours, theirs = (adjusted_rand_score(y, labels) for labels in (model.labels_, plain))
    assert ours > 0.8 * theirs
    # Labels given to fit change nothing.
    again = clone(model).fit(x, y)
    np.testing.assert_array_equal(again.labels_, model.labels_)


def test_a_clusterer_starts_from_the_labels_it_is_given(digits, tmp_path):
    x, y = digits
    given = np.random.default_rng(0).permutation(y)
    plain = DeepL0Clusterer(10, 80, m=8, lr=1e-3, **SHORT).fit(x)

    def of_classes(labels):
        model = clone(plain).set_params(init=labels).fit(x)
        return model, adjusted_rand_score(y, model.labels_)

    # The classes themselves are no clusters that k-means finds, and stay; noise does not come near.
    model, ours = of_classes(y)
    assert ours > adjusted_rand_score(y, plain.labels_) + 0.2
    assert (model.labels_ == y).mean() > 0.9  # number by number
    assert of_classes(given)[1] < 0.4
    path = tmp_path / "clusterer.safetensors"
    model.save(path)
    again = load(path)
    np.testing.assert_array_equal(again.init, y)
    np.testing.assert_array_equal(again.predict(x), model.labels_)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_frames_files_and_pickles(estimator, digits, tmp_path):
    pandas = pytest.importorskip("pandas")
    x, y = digits
    frame = pandas.DataFrame(x, columns=[f"pixel {i}" for i in range(64)])
    model = clone(estimator).fit(frame, y)
    codes = model.transform(frame)
    assert codes.dtype == np.float32
    names = model.get_feature_names_out()
    assert list(names[:2]) == [f"{type(model).__name__.lower()}{i}" for i in (0, 1)]
    method = "predict_proba" if hasattr(model, "predict_proba") else "transform"
    want = getattr(model, method)(frame)
    model.save(tmp_path / "model.safetensors")
    for other in (pickle.loads(pickle.dumps(model)), load(tmp_path / "model.safetensors")):
        assert other.get_params() == model.get_params()
        assert list(other.feature_names_in_) == list(frame.columns)
        np.testing.assert_array_equal(getattr(other, method)(frame), want)
        np.testing.assert_array_equal(other.transform(frame), codes)
        with pytest.raises(ValueError, match="feature names"):
            other.transform(frame[frame.columns[::-1]])
    named = model.set_output(transform="pandas").transform(frame)
    assert list(named.columns) == list(names)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_same_seed_gives_the_same_model(digits):
    x, y = digits[0][:150], digits[1][:150]
    before = torch.random.get_rng_state()
    for estimator in (clone(e).set_params(min_steps=20) for e in ESTIMATORS):
        one, two = (clone(estimator).fit(x, y).transform(x) for _ in range(2))
        np.testing.assert_array_equal(one, two)
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.inference_mode():
        np.testing.assert_array_equal(clone(estimator).fit(x).transform(x), two)


def test_bad_signals_are_named(digits):
    x, y = digits
    holed = x.copy()
    holed[3, 4] = np.nan
    for estimator in ESTIMATORS:
        model = clone(estimator).set_params(min_steps=1)
        with pytest.raises(ValueError, match="Input X contains NaN"):
            model.fit(holed, y)
        with pytest.raises(TypeError, match="Sparse data was passed for X"):
            model.fit(sparse.csr_matrix(x), y)
        with pytest.raises(ValueError, match=r"Found array with 0 sample\(s\)"):
            model.fit(x[:0], y[:0])
        with pytest.raises(NotFittedError):
            model.transform(x)
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        DeepL0Classifier(batch_size=0).partial_fit(x, y, classes=range(10))


def test_saving_refuses_what_it_cannot_hold(digits, tmp_path):
    x, _ = digits
    path = tmp_path / "model.safetensors"
    with pytest.raises(NotFittedError):
        IHTSparseCoder().save(path)
    random = np.random.RandomState(0)
    model = IHTSparseCoder(x[:9], random_state=random).fit(x)
    with pytest.raises(TypeError, match="'random_state': 'RandomState'"):
        model.save(path)
    assert not list(tmp_path.iterdir())


def test_loading_names_what_is_wrong(digits, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError):
        load(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load(path)
    safetensors.save_file({"a": torch.ones(1)}, path, metadata={"estimator": "Path"})
    with pytest.raises(ValueError, match="holds no estimator"):
        load(path)
    x, y = digits
    DeepL0Classifier(m=2, **SHORT).fit(x, y).save(path)
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    del tensors["network_.head.bias"]
    safetensors.save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"(?s)is damaged.*head\.bias"):
        load(path)


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (IHTSparseCoder(m=200, code_size=20), "m must be >= 1"),
        (IHTSparseCoder(lam=-1.0), r"lam must be a finite number > 0, got -1\.0"),
        (IHTSparseCoder(np.ones((5, 3))), r"n = 64 features, got \(5, 3\)"),
        (IHTSparseCoder(np.ones((5, 64)), code_size=7), "code_size must be the dictionary's 5"),
        (DeepL0Transformer(0), "code_size must be >= 1, got 0"),
        (DeepL0Classifier(epochs=0), "epochs must be >= 1, got 0"),
        (DeepL0Classifier(lr=-1.0, **FAST), r"lr must be a finite number > 0, got -1\.0"),
        (DeepL0Classifier(grad="soft", m=3, **FAST), "grad must be one of .* got 'soft'"),
        (DeepL0Classifier(num_stages=0, **FAST), "num_stages must be >= 1, got 0"),
        (DeepL0Clusterer(2, balance=-1.0, **FAST), r"balance must be .* got -1\.0"),
        (IHTSparseCoder(np.full((5, 64), np.nan)), r"(?s)NaN.*dictionary|dictionary.*NaN"),
        (DeepL0Clusterer(500), "must be at least n_clusters = 500"),
        (DeepL0Clusterer(2, init="spectral"), r"init must be one of \('kmeans',\), got 'spectral'"),
        (DeepL0Clusterer(2, init=[0, 1]), r'"kmeans" or \[N\] = \[.*integers, got int64 \(2,\)'),
        (DeepL0Clusterer(2, init=np.zeros(400)), "integers, got float64"),
        (DeepL0Clusterer(2, init=np.arange(400)), r"n_clusters - 1 = 1, got 0 \.\. 399"),
    ],
)
def test_bad_parameters_are_named(estimator, words, digits):
    x, y = digits
    with pytest.raises(ValueError, match=words):
        estimator.set_params(min_steps=1).fit(x, y).transform(x)


def test_the_example_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = (part for part in readme.split("```") if "deepl0_kernels.sklearn import" in part)
    names: dict = {}
    exec(example.removeprefix("python"), names)
    assert names["model"].score(names["x"][1200:], names["y"][1200:]) > 0.88
    assert names["codes"].shape == (1797, 128)
    assert (names["codes"].getnnz(1) == 16).all()


def test_without_scikit_learn_it_says_what_to_install():
    code = "import sys; sys.modules['sklearn'] = None; import deepl0_kernels.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "deepl0_kernels.sklearn needs sklearn" in done.stderr
    assert "pip install 'deepl0-kernels[sklearn]'" in done.stderr


def test_every_parameter_is_in_the_documentation():
    for estimator in (DeepL0Classifier, DeepL0Clusterer, DeepL0Transformer, IHTSparseCoder):
        text = estimator.__doc__.partition("Args:")[2].partition("Attributes:")[0]
        assert "{" not in text
        for name in estimator().get_params():
            assert re.search(rf"\b{name}\b[\w, ]*:", text), (estimator, name)


def test_what_depends_on_the_dictionary_alone_is_worked_out_once(monkeypatch, tmp_path):
    calls = []
    eigvalsh = torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda A: calls.append(1) or eigvalsh(A))
    rng = np.random.default_rng(0)
    x, atoms = rng.normal(size=(20, 6)), rng.normal(size=(8, 6))
    model = IHTSparseCoder(atoms, m=2).fit(x)
    model.save(tmp_path / "coder.safetensors")
    for coder in (model, load(tmp_path / "coder.safetensors")):
        calls.clear()
        codes = np.concatenate([coder.transform(x[i : i + 1]) for i in range(5)])
        assert len(calls) == 1
        coder.components_ = coder.components_ * 2
        np.testing.assert_allclose(coder.transform(x[:5]), codes / 2, rtol=1e-9)
        assert len(calls) == 2
