"""scikit-learn's own checks of the estimators."""

from __future__ import annotations

from unittest import SkipTest

import pytest

pytest.importorskip("sklearn")
from sklearn.utils.estimator_checks import parametrize_with_checks

from deepl0_kernels.sklearn import (
    DeepL0Classifier,
    DeepL0Clusterer,
    DeepL0Transformer,
    IHTSparseCoder,
)

# Batches are drawn from the signals in their order, and the dictionary counts each once: an integer
# weight repeats a signal exactly under the conditions of test_weights.py.
NOT_EXACT = {
    "check_sample_weight_equivalence_on_dense_data": "the order of the signals decides the batches"
}

SHORT = dict(dictionary_epochs=1, epochs=1, min_steps=5)


@parametrize_with_checks(
    [
        IHTSparseCoder(dictionary_epochs=1, min_steps=5, transform_max_iter=100),
        DeepL0Transformer(m=1, **SHORT),
        DeepL0Transformer(m=1, positive_code=True, **SHORT),
        # scikit-learn asks for an accuracy of 0.83, which takes some steps.
        DeepL0Classifier(m=2, lr=0.1, dictionary_epochs=1, epochs=1, min_steps=20),
        DeepL0Clusterer(m=2, **SHORT),
    ],
    expected_failed_checks=lambda estimator: (
        NOT_EXACT if isinstance(estimator, DeepL0Classifier) else {}
    ),
)
def test_scikit_learns_checks(estimator, check):
    try:
        check(estimator)
    except SkipTest as reason:
        # Arrays of other libraries, which the estimators do not claim to take.
        if "SCIPY_ARRAY_API" not in str(reason):
            raise
