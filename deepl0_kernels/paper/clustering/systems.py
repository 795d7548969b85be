"""The rows of Tables 6 and 7: how each system clusters."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..._optional import require
from ...nn import ClusterHead, JointSparseClustering, TAGNet
from ...solvers import graph_laplacian, graph_sparse_code, knn_affinity
from ...training import Clusters, fit_to_clusters, logistic_head, minimise, start_head
from .. import deep
from ..deep import DEEP
from .protocol import Protocol

K_MEANS = "k-means on signals"
SPECTRAL = "spectral clustering"
JOINT = "Joint sparse coding and clustering"
SOFT_MAX, MARGIN = f"{JOINT}, soft-max", f"{JOINT}, max-margin"
TAGNET = "Graph-regularised deep clustering (TAGnet)"
LEARNED = (SOFT_MAX, MARGIN, TAGNET, *DEEP)
METHODS = (K_MEANS, SPECTRAL, *LEARNED)


class Assigned(NamedTuple):
    """What a system found.

    Attributes:
        labels: [N] int64 clusters. start: the same before training; None without any.
        features: [N, .], what was clustered: codes, or the signals.
        losses: of each epoch.
    """

    labels: Tensor
    start: Tensor | None
    features: Tensor
    losses: list[float]


def k_means(x: Tensor, clusters: int, protocol: Protocol, seed: int) -> Tensor:
    """Clusters [N] of signals [N, n]."""
    cluster = require("sklearn.cluster", "k-means", extra="sklearn")
    means = cluster.KMeans(clusters, n_init=protocol.inits, random_state=seed)
    return torch.from_numpy(means.fit(x.numpy()).labels_).long()


def spectral(x: Tensor, clusters: int, protocol: Protocol, seed: int) -> Tensor:
    """Clusters [N] of signals [N, n] by the normalised cut of their graph."""
    cluster = require("sklearn.cluster", "spectral clustering", extra="sklearn")
    scipy = require("scipy.sparse", "spectral clustering", extra="sklearn")
    V = knn_affinity(x, protocol.neighbours)
    rows, columns = V.indices().numpy()
    values = V.values().double().numpy()
    affinity = scipy.csr_matrix((values, (rows, columns)), shape=tuple(V.shape))
    found = cluster.SpectralClustering(
        clusters, affinity="precomputed", n_init=protocol.inits, random_state=seed
    )
    with warnings.catch_warnings():
        # Parts that no edge joins are clusters by themselves, which is what is looked for.
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        return torch.from_numpy(found.fit(affinity).labels_).long()


def fit(
    method: str,
    protocol: Protocol,
    D: Tensor,
    x: Tensor,
    clusters: int,
    seed: int,
    progress: bool,
    description: str,
) -> Assigned:
    """Train ``method``, one of ``LEARNED``, on x [N, n] from the dictionary D [n, p]."""

    def begin(codes: Tensor) -> ClusterHead:
        """The head that every system starts from."""
        # Codes of different systems differ in scale; the ridge is to mean the same for all.
        ridge = protocol.ridge * codes.square().sum(1).mean().item()
        if protocol.start == "kmeans":
            return start_head(codes, clusters, seed, ridge, protocol.inits)
        return logistic_head(codes, spectral(x, clusters, protocol, seed), clusters, ridge)

    if method in (SOFT_MAX, MARGIN):
        return _joint(method, protocol, D, x, begin, progress)
    options: dict[str, Any] = dict(
        lr=protocol.lr,
        clip=protocol.clip,
        seed=seed,
        progress=progress,
        description=description,
    )
    encoder: nn.Module
    if method == TAGNET:
        L = graph_laplacian(knn_affinity(x, protocol.neighbours))
        encoder = TAGNet.from_graph(D, L, protocol.lam, protocol.alpha, protocol.num_stages)
        inputs: tuple[Tensor, ...] = (x, L)
    else:
        encoder = deep.encoder(method, protocol, D)
        options.update(sigma_factor=protocol.sigma_factor, sigma_floor=protocol.sigma_floor)
        inputs = (x,)
    encoder.eval()
    with torch.no_grad():
        codes = encoder(*inputs)
    head = begin(codes)
    with torch.no_grad():
        first = head.predict(codes)
    network = Clusters(encoder, head)
    if method == TAGNET:
        losses = minimise(
            network,
            lambda rows: head.entropy(encoder(*inputs), protocol.balance),
            len(x),
            epochs=protocol.tagnet_steps,
            batch_size=len(x),
            **options,
        )
    else:
        losses = fit_to_clusters(
            network,
            x,
            balance=protocol.balance,
            epochs=protocol.epochs,
            batch_size=min(protocol.batch_size, len(x)),
            **options,
        )
    with torch.no_grad():
        codes = encoder(*inputs)
        return Assigned(head.predict(codes), first, codes, losses)


def _joint(method: str, protocol: Protocol, D: Tensor, x: Tensor, begin, progress) -> Assigned:
    L = graph_laplacian(knn_affinity(x, protocol.neighbours))
    codes = graph_sparse_code(
        x, D, L, protocol.lam, protocol.alpha, protocol.joint_lam2,
        tol=protocol.joint_tol, max_iter=protocol.joint_max_iter,
    ).dense  # fmt: skip
    head = begin(codes)
    with torch.no_grad():
        first = head.predict(codes)
    entropy = method == SOFT_MAX
    model = JointSparseClustering(
        D,
        head,
        protocol.lam,
        protocol.alpha,
        protocol.joint_lam2,
        protocol.joint_nu,
        loss="entropy" if entropy else "margin",
        balance=protocol.balance if entropy else 0.0,
        tol=protocol.joint_tol,
        max_iter=protocol.joint_max_iter,
    )
    losses = model.fit(x, L, iterations=protocol.joint_steps, lr=protocol.lr, progress=progress)
    with torch.no_grad():
        codes = model.encode(x, L, codes)
        return Assigned(model.head.predict(codes), first, codes, losses)
