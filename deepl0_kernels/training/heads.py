"""The start of a clustering of codes: k-means, and a logistic regression on what it found."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .._isolation import isolated
from .._optional import require
from ..nn import ClusterHead
from ..ops import checks

RIDGE = 1e-3


def start_head(
    codes: Tensor, clusters: int, seed: int, ridge: float = RIDGE, inits: int = 10
) -> ClusterHead:
    """A :class:`ClusterHead` that assigns codes [N, p] as k-means does, as far as lines can.

    Its weights minimise the mean cross-entropy against k-means' labels plus ``ridge / 2 ||w||^2``
    (L-BFGS, 100 iterations at most). Without the ridge weights of separable clusters would grow
    until every entropy is 0 and nothing is left to train. k-means starts ``inits`` times, from
    ``seed``.

    Raises:
        TypeError, ValueError: codes that are no matrix, fewer codes than clusters, a number out of
            range; named with the value seen.
        ModuleNotFoundError: scikit-learn is missing.

    Example:
        >>> from deepl0_kernels import training
        >>> training.start_head(torch.randn(30, 8), clusters=3, seed=0)(torch.randn(2, 8)).shape
        torch.Size([2, 3])
    """
    _check(codes, ridge)
    clusters = checks.integer("clusters", clusters, 1, len(codes), "N")
    seed = checks.integer("seed", seed, 0, 2**32 - 1, "2**32 - 1")
    inits = checks.integer("inits", inits, 1)
    cluster = require("sklearn.cluster", "k-means")
    means = cluster.KMeans(clusters, n_init=inits, random_state=seed)
    means.fit(codes.detach().cpu().numpy())
    return logistic_head(
        codes, torch.from_numpy(means.labels_).long().to(codes.device), clusters, ridge
    )


@isolated(grad=True)
def logistic_head(
    codes: Tensor, labels: Tensor, clusters: int, ridge: float = RIDGE
) -> ClusterHead:
    """The head of the multinomial logistic regression, without intercept, of codes [N, p].

    Args:
        labels: [N] int64 in 0 .. clusters - 1. ridge: >= 0, as in :func:`start_head`.

    Raises:
        TypeError, ValueError: as in :func:`start_head`; labels that do not fit.

    Example:
        >>> from deepl0_kernels import training
        >>> head = training.logistic_head(torch.randn(30, 8), torch.arange(30) % 3, clusters=3)
        >>> head(torch.randn(2, 8)).shape
        torch.Size([2, 3])
    """
    _check(codes, ridge)
    clusters = checks.integer("clusters", clusters, 1)
    most = checks.labels("labels", labels, len(codes))
    if most >= clusters:
        raise ValueError(f"labels must be < clusters = {clusters}, got {most}")
    codes = codes.detach()
    head = ClusterHead(codes.shape[1], clusters).to(codes)
    torch.nn.init.zeros_(head.weight)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(head.logits(codes), labels) + ridge / 2 * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return head


def _check(codes: Tensor, ridge: float) -> None:
    checks.floating("codes", codes)
    if codes.dim() != 2:
        raise ValueError(f"codes must have shape [N, p], got {checks.shape(codes)}")
    checks.nonnegative("ridge", ridge)
