"""A deep l0 encoder as a transformer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._isolation import isolated
from ..training import fit_to_codes
from .deep import DeepEstimator, seeded


class DeepL0Transformer(DeepEstimator):
    """Codes by an encoder that is trained to predict the optimal ones.

    ``fit`` learns a dictionary, finds the optimal codes of the training data by
    :func:`deepl0_kernels.solvers.iht` from the l1 solution, and regresses them.

    Args:
        {shared}

    Attributes:
        components_: [p, n], the dictionary. encoder_: the trained module.
        loss_: mean squared error a signal of each epoch, or of each call of ``partial_fit``.
        n_features_in_, feature_names_in_: of the training data.

    Raises:
        TypeError, ValueError: from ``fit``, an argument out of range, named with its value.

    Source: Wang, Ling, Huang 2016.

    Example:
        >>> from deepl0_kernels.sklearn import DeepL0Transformer
        >>> x = torch.randn(64, 6).numpy()
        >>> quick = dict(dictionary_epochs=1, epochs=1, min_steps=1, random_state=0)
        >>> model = DeepL0Transformer(code_size=8, m=2, **quick)
        >>> (model.fit_transform(x) != 0).sum(1).max()
        np.int64(2)
    """

    @isolated(grad=True)
    def fit(self, X: Any, y: Any = None) -> DeepL0Transformer:
        """Learn dictionary and encoder from X [N, n]; y is ignored."""
        x, seed = self._signals(X, reset=True), self._seed()
        with seeded(seed):
            D, encoder = self._start(x, seed)
            codes = self._problem().optimal(x, D).dense
            losses = fit_to_codes(encoder, x, codes, **self._options(len(x), seed))
        self._keep(D, encoder_=encoder, loss_=losses)
        return self

    @isolated(grad=True)
    def partial_fit(self, X: Any, y: Any = None) -> DeepL0Transformer:
        """One epoch over X [N, n]; y is ignored.

        The first call learns the dictionary from its X; it stays, so that codes keep their meaning.
        """
        first = not self.__sklearn_is_fitted__()
        x, seed = self._signals(X, reset=first), self._seed()
        if not first:
            self._check_unchanged()
        with seeded(seed), self._whole(first):
            if first:
                D, encoder = self._start(x, seed)
                self._keep(D, encoder_=encoder, loss_=[])
            D = x.new_tensor(self.components_).T
            codes = self._problem().optimal(x, D).dense

            def loss(rows: Tensor) -> Tensor:
                return (self.encoder_(x[rows]) - codes[rows]).square().sum() / len(rows)

            self.loss_.append(self._one_pass(self.encoder_, loss, len(x), seed))
        return self
