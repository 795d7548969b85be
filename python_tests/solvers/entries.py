"""Every public function and class of the solvers, called on one problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deepl0_kernels import solvers
from deepl0_kernels.solvers import (
    DictionaryLearner,
    TaskDrivenDictionary,
    cosamp,
    elastic_net,
    fista,
    graph_laplacian,
    graph_sparse_code,
    htp,
    iht,
    iht_m,
    knn_affinity,
    learn_dictionary,
    omp,
    polish,
    support_margin,
)


def laplacian(x: Tensor) -> Tensor:
    """Of a ring of as many signals."""
    N = len(x)
    near = torch.eye(N, dtype=x.dtype).roll(1, 0)
    return graph_laplacian((near + near.T).to_sparse())


# Solvers of one problem: (x, D, weight) -> result, where the weight goes with ||x||^k.
CODES: dict[str, tuple[Callable[..., Any], float, int]] = {
    "omp": (lambda x, D, w: omp(x, D, 4), 0, 0),
    "htp": (lambda x, D, w: htp(x, D, 4), 0, 0),
    "cosamp": (lambda x, D, w: cosamp(x, D, 4), 0, 0),
    "iht_m": (lambda x, D, w: iht_m(x, D, 4, max_iter=100), 0, 0),
    "iht_m normalized": (lambda x, D, w: iht_m(x, D, 4, step="normalized", max_iter=50), 0, 0),
    "iht": (lambda x, D, w: iht(x, D, w, max_iter=100), 0.1, 2),
    "iht normalized": (lambda x, D, w: iht(x, D, w, step="normalized", max_iter=50), 0.1, 2),
    "iht accelerated": (lambda x, D, w: iht(x, D, w, step="accelerated", max_iter=50), 0.1, 2),
    "fista": (lambda x, D, w: fista(x, D, w, max_iter=100), 1e-2, 1),
    "elastic_net": (lambda x, D, w: elastic_net(x, D, w, 1e-4, max_iter=100), 1e-2, 1),
    "graph_sparse_code": (
        lambda x, D, w: graph_sparse_code(x, D, laplacian(x), w, 0.5, max_iter=100),
        1e-2,
        1,
    ),
    "omp positive": (lambda x, D, w: omp(x, D, 4, positive=True), 0, 0),
    "iht_m positive": (lambda x, D, w: iht_m(x, D, 4, max_iter=100, positive=True), 0, 0),
    "iht positive": (lambda x, D, w: iht(x, D, w, max_iter=100, positive=True), 0.1, 2),
    "fista positive": (lambda x, D, w: fista(x, D, w, max_iter=100, positive=True), 1e-2, 1),
    "elastic_net positive": (
        lambda x, D, w: elastic_net(x, D, w, 1e-4, max_iter=100, positive=True),
        1e-2,
        1,
    ),
}


def _trained(x: Tensor, D: Tensor, positive: bool):
    net = TaskDrivenDictionary(D, 2, lam=0.1, lam2=0.01, max_iter=50, positive=positive)
    y = torch.arange(len(x)) % 2
    first = net.fit_head(x, y, max_iter=5)
    losses = net.fit(x, y, epochs=2, batch_size=10)
    with torch.inference_mode(False), torch.enable_grad():
        plain = x.clone()
    return net.D.detach().clone(), net.head.weight.detach().clone(), first, losses, net(plain)


def _gradient(x: Tensor, D: Tensor):
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone()
        net = TaskDrivenDictionary(D, 2, lam=0.1, lam2=0.01, max_iter=50)
        with torch.no_grad():
            side = torch.linspace(-1, 1, net.head.weight.numel(), dtype=x.dtype)
            net.head.weight.copy_(side.view(2, -1))
        loss = net.loss(x, torch.arange(len(x)) % 2)
        loss.backward()
    return loss.detach(), net.D.grad, net.head.weight.grad


def _streamed(x: Tensor, D: Tensor):
    found = []
    kinds = (dict(m=2), dict(method="l1", lam=0.1), dict(method="mod", m=2))
    for kind in (*kinds, *(kind | dict(positive=True) for kind in kinds)):
        learner = DictionaryLearner(12, **kind)
        first = learner.partial_fit(x)
        again = DictionaryLearner(12, **kind)
        again.load_state_dict(learner.state_dict())
        found += [first, again.partial_fit(x), again.result().D, again.result().coherence]
    return found


def _learned(x: Tensor, D: Tensor):
    result = learn_dictionary(x, 12, m=2, epochs=2, batch_size=10)
    return result.D, result.loss, result.coherence, result.squared_norm


SIGNS = (False, True)  # positive

# (x [N, n], D) -> tensors and numbers, for N >= 20.
ENTRIES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "DictionaryLearner": _streamed,
    "TaskDrivenDictionary": lambda x, D: (
        _trained(x, D, False),
        _trained(x, D, True),
        _gradient(x, D),
    ),
    "cosamp": lambda x, D: cosamp(x, D, 3),
    "eigengap": lambda x, D: solvers.eigengap(laplacian(x), 2),
    "elastic_net": lambda x, D: [elastic_net(x, D, 0.1, 0.01, positive=s) for s in SIGNS],
    "fista": lambda x, D: [fista(x, D, 0.1, positive=s) for s in SIGNS],
    "graph_laplacian": lambda x, D: laplacian(x),
    "graph_sparse_code": lambda x, D: graph_sparse_code(x, D, laplacian(x), 0.1, 0.5),
    "htp": lambda x, D: htp(x, D, 3),
    "iht": lambda x, D: [
        iht(x, D, 0.1, step=step, positive=s) for step in ("lipschitz", "normalized") for s in SIGNS
    ],
    "iht_m": lambda x, D: [
        iht_m(x, D, 3, init=init, positive=s) for init in ("zero", "l1") for s in SIGNS
    ],
    "knn_affinity": lambda x, D: knn_affinity(x, 3),
    "learn_dictionary": _learned,
    "omp": lambda x, D: [omp(x, D, 3, positive=s) for s in SIGNS],
    "polish": lambda x, D: [
        polish(x, D, omp(x, D, 5).code, **problem) for problem in (dict(m=3), dict(lam=0.1))
    ],
    "squared_norm": lambda x, D: solvers.squared_norm(D),
    "analytic_weights": lambda x, D: solvers.analytic_weights(D),
    "support_margin": lambda x, D: support_margin(x, D, omp(x, D, 3).code, m=3),
}
