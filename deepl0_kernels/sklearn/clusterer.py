"""A deep l0 encoder and a soft assignment as a clusterer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import ClusterMixin
from torch import Tensor, nn

from .._isolation import isolated
from ..nn import ClusterHead
from ..ops import checks
from ..solvers.step import weight_or_zero
from ..training import Clusters, fit_to_clusters, fit_to_codes, logistic_head, start_head
from .base import plain
from .deep import DeepEstimator, seeded


class DeepL0Clusterer(ClusterMixin, DeepEstimator):
    """An encoder and the soft assignment of eq. 12, trained to lower the assignments' entropy.

    The encoder first predicts optimal codes; k-means on its codes, or the clusters that ``init``
    gives, and logistic regression on them, start the assignment; then both move, seldom far: a good
    start is half of the result. The entropy alone is smallest with everything in one cluster, which
    ``balance`` pays against.

    Args:
        n_clusters: clusters.
        {shared}
        balance: weight of the entropy of the mean assignment.
        init: "kmeans", or [N] integers in 0 .. n_clusters - 1, the cluster of each signal that
            ``fit`` gets: those of ``sklearn.cluster.SpectralClustering``, say.

    Attributes:
        labels_: [N] int64, clusters of the training data.
        components_: [p, n], the dictionary that the encoder started from.
        network_: the trained module, signals to probabilities. encoder_: its first part.
        loss_: mean entropy of each epoch, minus ``balance`` times that of the mean assignment.
        n_features_in_, feature_names_in_: of the training data.

    ``transform`` gives the codes. There is no ``partial_fit``: the entropy of a few signals at a
    time forgets clusters that are not among them.

    Raises:
        TypeError, ValueError: from ``fit``, an argument out of range, named with its value.

    Source: Wang, Ling, Huang 2016, eq. 12.

    Example:
        >>> from deepl0_kernels.sklearn import DeepL0Clusterer
        >>> x = torch.randn(64, 6).numpy()
        >>> quick = dict(dictionary_epochs=1, epochs=1, min_steps=1, random_state=0)
        >>> model = DeepL0Clusterer(2, code_size=8, m=2, **quick)
        >>> model.fit_predict(x).shape
        (64,)
    """

    labels_: np.ndarray
    network_: Clusters

    def __init__(
        self,
        n_clusters: int = 8,
        code_size: int | None = None,
        *,
        m: int | None = None,
        lam: float = 0.5,
        num_stages: int = 2,
        tied: bool = True,
        grad: str = "helu",
        dictionary: Any = None,
        dictionary_epochs: int = 6,
        epochs: int = 20,
        batch_size: int = 128,
        lr: float = 3e-3,
        min_steps: int = 300,
        sparse_output: bool = False,
        balance: float = 0.0,
        init: Any = "kmeans",
        random_state: Any = None,
        positive_code: bool = False,
    ) -> None:
        super().__init__(
            code_size,
            m=m,
            lam=lam,
            num_stages=num_stages,
            tied=tied,
            grad=grad,
            dictionary=dictionary,
            dictionary_epochs=dictionary_epochs,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            min_steps=min_steps,
            sparse_output=sparse_output,
            random_state=random_state,
            positive_code=positive_code,
        )
        self.n_clusters = n_clusters
        self.balance = balance
        self.init = init

    @isolated(grad=True)
    def fit(self, X: Any, y: Any = None) -> DeepL0Clusterer:
        """Cluster X [N, n]; y is ignored."""
        x, seed = self._signals(X, reset=True), self._seed()
        clusters = checks.integer("n_clusters", self.n_clusters, 1)
        if len(x) < clusters:
            raise ValueError(f"n_samples = {len(x)} must be at least n_clusters = {clusters}")
        balance = weight_or_zero("balance", self.balance)
        labels = self._init_labels(len(x), clusters)
        with seeded(seed):
            D, encoder = self._start(x, seed)
            codes = self._problem().optimal(x, D).dense
            options = self._options(len(x), seed)
            fit_to_codes(encoder, x, codes, **options)
            with torch.no_grad():
                codes = encoder(x)
            if labels is None:
                head = start_head(codes, clusters, seed)
            else:
                head = logistic_head(codes, labels, clusters)
            network = Clusters(encoder, head)
            losses = fit_to_clusters(network, x, balance=balance, **options)
            with torch.no_grad():
                assigned = network(x).argmax(1).numpy()
        self._keep(D, encoder_=encoder, network_=network, loss_=losses, labels_=assigned)
        return self

    def _shape(self) -> dict[str, Any]:
        return super()._shape() | {"n_clusters": plain(self.n_clusters)}

    def _init_labels(self, count: int, clusters: int) -> Tensor | None:
        """``init`` as [N] int64; None for k-means."""
        if isinstance(self.init, str):
            checks.one_of("init", self.init, ("kmeans",))
            return None
        labels = np.asarray(self.init)
        if labels.shape != (count,) or labels.dtype.kind not in "iu":
            raise ValueError(
                f'init must be "kmeans" or [N] = [{count}] integers, '
                f"got {labels.dtype} {labels.shape}"
            )
        if labels.min() < 0 or labels.max() >= clusters:
            raise ValueError(
                f"init must be in 0 .. n_clusters - 1 = {clusters - 1}, "
                f"got {labels.min()} .. {labels.max()}"
            )
        return torch.from_numpy(labels.astype(np.int64))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities [N, n_clusters] of X [N, n], eq. 12."""
        return self._assign(X).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most probable cluster [N] int64 of X [N, n]."""
        return self._assign(X).argmax(1).numpy()

    @isolated(grad=False)
    def _assign(self, X: Any) -> Tensor:
        x = self._signals(X)  # also checks that there is a fit
        return self.network_(x)

    _module_names = ("network_",)

    def _fresh_modules(self) -> dict[str, nn.Module]:
        modules = super()._fresh_modules()
        head = ClusterHead(len(self.components_), self._fitted["n_clusters"])
        head.to(torch.from_numpy(self.components_).dtype)
        return {**modules, "network_": Clusters(modules["encoder_"], head)}
