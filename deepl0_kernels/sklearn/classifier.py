"""A deep l0 encoder and a softmax layer as a classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import _check_sample_weight
from torch import Tensor, nn

from .._isolation import isolated
from ..training import Classifier, cross_entropies, fit_to_classes
from .deep import DeepEstimator, seeded


class DeepL0Classifier(ClassifierMixin, DeepEstimator):
    """An encoder and a linear layer, trained end to end with the softmax cross-entropy.

    Args:
        {shared}

    Attributes:
        classes_: labels in ascending order.
        components_: [p, n], the dictionary that the encoder started from.
        network_: the trained module, signals to logits. encoder_: its first part.
        loss_: mean cross-entropy, weighted, of each epoch, or of each call of ``partial_fit``.
        n_features_in_, feature_names_in_: of the training data.

    ``transform`` gives the codes.

    Raises:
        TypeError, ValueError: from ``fit``, an argument out of range, named with its value.

    Source: Wang, Ling, Huang 2016, section 5.

    Example:
        >>> from deepl0_kernels.sklearn import DeepL0Classifier
        >>> x, y = torch.randn(64, 6).numpy(), [0, 1] * 32
        >>> quick = dict(dictionary_epochs=1, epochs=1, min_steps=1, random_state=0)
        >>> model = DeepL0Classifier(code_size=8, m=2, **quick)
        >>> model.fit(x, y).predict(x).shape, model.transform(x).shape
        ((64,), (64, 8))
    """

    classes_: np.ndarray
    network_: Classifier

    @isolated(grad=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> DeepL0Classifier:
        """Learn from X [N, n] and labels y [N].

        Args:
            sample_weight: [N] or a number, >= 0 and not all 0: the loss is the weighted mean.

        A signal of weight 0 is as good as absent, its class too, to the last bit; a common factor
        of all weights makes no difference but of rounding. An integer weight repeats a signal in
        the loss of an epoch, so that it is a repetition where ``batch_size`` takes all signals and
        the dictionary is given; elsewhere in expectation, as the signals of a batch are drawn once
        each. The dictionary is learned from signals that count alike.
        """
        x, y, weights = self._labelled(X, y, sample_weight, reset=True)
        classes, seed = unique_labels(y), self._seed()
        if weights is not None:
            weights = weights / weights.mean()
        with seeded(seed):
            D, encoder = self._start(x, seed)
            network = Classifier(encoder, D.shape[1], len(classes))
            target = torch.from_numpy(np.searchsorted(classes, y))
            options = self._options(len(x), seed)
            losses = fit_to_classes(network, x, target, weights, **options)
        self._keep(D, encoder_=encoder, network_=network, classes_=classes, loss_=losses)
        return self

    @isolated(grad=True)
    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> DeepL0Classifier:
        """One epoch over X [N, n] and y [N].

        The first call learns the dictionary from its X, and must know all ``classes``. A changed
        ``lr``, ``batch_size`` or ``random_state`` acts from the next call on; a change of what the
        model is made of (code_size, dictionary, m, lam, num_stages, tied, grad, positive_code) is a
        ValueError.

        Args:
            sample_weight: as in :meth:`fit`, but taken as they are: they multiply the loss of each
                signal, and a call of small weights moves the model less than one of large ones as
                far as Adam lets it.
        """
        first = not self.__sklearn_is_fitted__()
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit")
        if not first:
            self._check_unchanged()
        x, y, weights = self._labelled(X, y, sample_weight, reset=first)
        known = self.classes_ if classes is None else unique_labels(np.asarray(classes))
        if not first and not np.array_equal(known, self.classes_):
            raise ValueError(f"classes must be those of the first call, {self.classes_}")
        unknown = np.setdiff1d(y, known)
        if len(unknown):
            raise ValueError(f"y must be among classes {known}, got {unknown}")
        seed = self._seed()
        with seeded(seed), self._whole(first):
            if first:
                D, encoder = self._start(x, seed)
                network = Classifier(encoder, D.shape[1], len(known))
                self._keep(D, encoder_=encoder, network_=network, classes_=known, loss_=[])
            target = torch.from_numpy(np.searchsorted(known, y))
            loss = cross_entropies(self.network_, x, target, weights)
            self.loss_.append(self._one_pass(self.network_, loss, len(x), seed))
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits [N, classes] of X [N, n]; of two classes the second's minus the first's [N]."""
        logits = self._logits(X).numpy()
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities [N, classes] of X [N, n], columns in the order of ``classes_``."""
        return self._logits(X).softmax(1).numpy()

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of :meth:`predict_proba` of X [N, n]."""
        return self._logits(X).log_softmax(1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label [N] of X [N, n]."""
        best = self._logits(X).argmax(1).numpy()  # also checks that there is a fit
        return self.classes_[best]

    @isolated(grad=False)
    def _logits(self, X: Any) -> Tensor:
        x = self._signals(X)  # also checks that there is a fit
        return self.network_(x)

    def _labelled(
        self, X, y, sample_weight, *, reset: bool
    ) -> tuple[Tensor, np.ndarray, Tensor | None]:
        """Signals, labels and weights of all signals whose weight is not 0."""
        if y is None:
            raise ValueError("a classifier requires y to be passed, but the target y is None")
        x, y = self._signals(X, y, reset=reset)
        check_classification_targets(y)
        if sample_weight is None:
            return x, y, None
        weights = _check_sample_weight(
            sample_weight, x.numpy(), dtype=x.numpy().dtype, ensure_non_negative=True
        )
        present = weights != 0
        return x[torch.from_numpy(present)], y[present], torch.from_numpy(weights[present])

    _module_names = ("network_",)

    def _fresh_modules(self) -> dict[str, nn.Module]:
        modules = super()._fresh_modules()
        p, classes = len(self.components_), len(self.classes_)
        return {**modules, "network_": Classifier(modules["encoder_"], p, classes)}
