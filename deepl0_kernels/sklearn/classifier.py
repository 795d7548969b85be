"""A deep l0 encoder and a softmax layer as a classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..training import Classifier, fit_to_classes
from .deep import DeepEstimator, training


class DeepL0Classifier(ClassifierMixin, DeepEstimator):
    """An encoder and a linear layer, trained end to end with the softmax cross-entropy.

    Args:
        code_size: p; None: 2 n, or what the dictionary has.
        m: nonzeros of a code (Deep M-Sparse); None: Deep l0-Regularized with ``lam``.
        lam: of ``1/2 ||x - D a||^2 + lam ||a||_0``, without m.
        num_stages: K. tied: one S and one theta for all stages.
        grad: derivatives of the thresholds, without m: see :func:`deepl0_kernels.helu`.
        dictionary: [p, n] to start from, a row an atom; None: learned in ``fit``.
        dictionary_epochs, epochs, batch_size, lr: of the trainings (Adam, one-cycle rate).
        min_steps: little data are passed over until so many steps are made.
        sparse_output: SciPy CSR in place of dense codes.
        random_state: of everything random.

    Attributes:
        classes_: labels in ascending order.
        components_: [p, n], the dictionary that the encoder started from.
        network_: the trained module, signals to logits. encoder_: its first part.
        loss_: mean cross-entropy of each epoch, or of each call of ``partial_fit``.
        n_features_in_, feature_names_in_: of the training data.

    ``transform`` gives the codes.

    Raises:
        ValueError: from ``fit``, an argument out of range, named with its value.

    Source: Wang, Ling, Huang 2016, section 5.
    """

    classes_: np.ndarray
    network_: Classifier

    def fit(self, X, y) -> DeepL0Classifier:
        """Learn from X [N, n] and labels y [N]."""
        self._forget()
        x, y = self._labelled(X, y, reset=True)
        self.classes_ = unique_labels(y)
        seed = self._seed()
        with training(seed):
            self._begin(x, seed)
            target = torch.from_numpy(np.searchsorted(self.classes_, y))
            self.loss_ = fit_to_classes(self.network_, x, target, **self._options(len(x), seed))
        return self

    def partial_fit(self, X, y, classes: Any = None) -> DeepL0Classifier:
        """One epoch over X [N, n] and y [N].

        The first call learns the dictionary from its X, and must know all ``classes``.
        """
        first = not self.__sklearn_is_fitted__()
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit")
        x, y = self._labelled(X, y, reset=first)
        known = self.classes_ if classes is None else unique_labels(np.asarray(classes))
        if not first and not np.array_equal(known, self.classes_):
            raise ValueError(f"classes must be those of the first call, {self.classes_}")
        unknown = np.setdiff1d(y, known)
        if len(unknown):
            raise ValueError(f"y must be among classes {known}, got {unknown}")
        seed = self._seed()
        with training(seed):
            if first:
                self.classes_ = known
                self._begin(x, seed)
                self.loss_ = []
            target = torch.from_numpy(np.searchsorted(known, y))

            def loss(rows: Tensor) -> Tensor:
                return cross_entropy(self.network_(x[rows]), target[rows])

            self.loss_.append(self._one_pass(self.network_, loss, len(x), seed))
        return self

    def decision_function(self, X):
        """Logits [N, classes]; of two classes the second's minus the first's [N]."""
        logits = self._logits(X).numpy()
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X):
        """Probabilities [N, classes], columns in the order of ``classes_``."""
        return self._logits(X).softmax(1).numpy()

    def predict_log_proba(self, X):
        """Logarithms of :meth:`predict_proba`."""
        return self._logits(X).log_softmax(1).numpy()

    def predict(self, X):
        """The most probable label [N]."""
        best = self._logits(X).argmax(1).numpy()  # also checks that there is a fit
        return self.classes_[best]

    def _logits(self, X) -> Tensor:
        x = self._signals(X)
        with torch.no_grad():
            return self.network_(x)

    def _labelled(self, X, y, *, reset: bool) -> tuple[Tensor, np.ndarray]:
        if y is None:
            raise ValueError("a classifier requires y to be passed, but the target y is None")
        x, y = self._signals(X, y, reset=reset)
        check_classification_targets(y)
        return x, y

    def _begin(self, x: Tensor, seed: int) -> None:
        self._start(x, seed)
        self._attach()

    def _attach(self) -> None:
        self.network_ = Classifier(self.encoder_, len(self.components_), len(self.classes_))

    _module_names = ("network_",)

    def _fresh_modules(self) -> dict[str, nn.Module]:
        self.encoder_ = self._fresh_encoder()
        self._attach()
        return {"network_": self.network_}
