"""Sample weights of the classifier: what they mean exactly, and who passes them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier

from deepl0_kernels.sklearn import DeepL0Classifier

RNG = np.random.default_rng(1)
X = RNG.standard_normal((40, 5))
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.4)
ATOMS = RNG.standard_normal((8, 5))
WEIGHTS = RNG.random(40) + 0.1
MODEL = DeepL0Classifier(
    8, m=3, epochs=2, min_steps=6, batch_size=16, dictionary_epochs=1, random_state=0
)


def logits(model: DeepL0Classifier) -> np.ndarray:
    return model.decision_function(X)


def fit(*arguments, **parameters) -> np.ndarray:
    return logits(clone(MODEL).set_params(**parameters).fit(*arguments))


def test_weights_move_the_model_and_equal_ones_do_not():
    plain = fit(X, Y)
    np.testing.assert_allclose(fit(X, Y, np.ones(40)), plain, atol=1e-10)
    np.testing.assert_allclose(fit(X, Y, 7.0), plain, atol=1e-10)
    assert np.abs(fit(X, Y, WEIGHTS) - plain).max() > 1e-3
    np.testing.assert_allclose(fit(X, Y, 1e3 * WEIGHTS), fit(X, Y, WEIGHTS), atol=1e-8)


def test_the_loss_is_the_weighted_mean():
    one_step = dict(dictionary=ATOMS, batch_size=40, epochs=1, min_steps=1)
    model = clone(MODEL).set_params(**one_step).fit(X, Y, WEIGHTS)
    # Before the first step all classes are as likely.
    assert model.loss_ == pytest.approx([np.log(3)])
    before = model.predict_log_proba(X)[np.arange(40), Y]
    for weights in (WEIGHTS, 3 * WEIGHTS):
        again = clone(MODEL).set_params(**one_step, lr=1e-9).fit(X, Y)
        again.network_.load_state_dict(model.network_.state_dict())
        again.set_params(lr=1e-9).partial_fit(X, Y, sample_weight=weights)
        assert again.loss_[-1] == pytest.approx(-(before * weights).mean())


def test_a_weight_of_zero_is_an_absent_signal():
    weights = WEIGHTS * (np.arange(40) % 3 > 0)
    keep = weights > 0
    np.testing.assert_array_equal(fit(X, Y, weights), fit(X[keep], Y[keep], weights[keep]))
    # Its class too.
    alone = clone(MODEL).fit(X, Y, (Y != 2).astype(float))
    assert list(alone.classes_) == [0, 1]
    one, two = (clone(MODEL).fit(X, Y) for _ in range(2))
    one.partial_fit(X, Y, sample_weight=weights)
    two.partial_fit(X[keep], Y[keep], sample_weight=weights[keep])
    np.testing.assert_array_equal(logits(one), logits(two))


def test_integer_weights_repeat_signals_where_a_batch_takes_all():
    counts = RNG.integers(0, 4, 40)
    whole = dict(dictionary=ATOMS, batch_size=1000, lr=1e-2)
    repeated = fit(X.repeat(counts, 0), Y.repeat(counts), **whole)
    np.testing.assert_allclose(fit(X, Y, counts, **whole), repeated, atol=1e-8)


def test_partial_fit_takes_weights_as_they_are():
    options = dict(dictionary=ATOMS, batch_size=1000)
    one, two, three = (clone(MODEL).set_params(**options).fit(X, Y) for _ in range(3))
    for k in range(6):
        one.partial_fit(X, Y, sample_weight=10.0 ** -(2 * k) * WEIGHTS)
        two.partial_fit(X, Y, sample_weight=WEIGHTS)
        three.partial_fit(X, Y, sample_weight=WEIGHTS.tolist())
    assert np.abs(logits(one) - logits(two)).max() > 1e-3
    np.testing.assert_array_equal(logits(two), logits(three))


def test_the_score_is_weighted():
    model = clone(MODEL).fit(X, Y)
    right = model.predict(X) == Y
    assert model.score(X, Y, WEIGHTS) == pytest.approx((right * WEIGHTS).sum() / WEIGHTS.sum())


def test_ensembles_pass_them():
    boosted = AdaBoostClassifier(clone(MODEL), n_estimators=3, random_state=0).fit(X, Y)
    assert len({tuple(e.predict(X)) for e in boosted.estimators_}) > 1
    assert boosted.score(X, Y) > 0.5
    bagged = BaggingClassifier(clone(MODEL), n_estimators=2, random_state=0).fit(X, Y)
    assert bagged.predict_proba(X).shape == (40, 3)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (np.zeros(40), "at least one non-zero"),
        (-WEIGHTS, "Negative values in data passed to `sample_weight`"),
        (WEIGHTS[:5], r"sample_weight\.shape == \(5,\), expected \(40,\)"),
        (np.full(40, np.nan), "sample_weight contains NaN"),
    ],
)
def test_bad_weights_are_named(weights, words):
    for call in (clone(MODEL).fit, clone(MODEL).fit(X, Y).partial_fit):
        with pytest.raises(ValueError, match=words):
            call(X, Y, sample_weight=weights)
