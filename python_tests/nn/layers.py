"""One of every layer that can be made without data, and how it is called."""

from __future__ import annotations

import torch

from deepl0_kernels import nn
from deepl0_kernels.solvers import graph_laplacian

N, P, M = 12, 21, 5

LAYERS = {
    "l0": lambda: nn.DeepL0Encoder(N, P),
    "l0_untied": lambda: nn.DeepL0Encoder(N, P, 3, tied=False),
    "l0_factored": lambda: nn.DeepL0Encoder(
        N, P, 3, tied=False, bias=True, factored=True, steps=(1, 0.7, 0.5)
    ),
    "l0_soft": lambda: nn.DeepL0Encoder(N, P, 3, inside="soft"),
    "m_sparse": lambda: nn.DeepMSparseEncoder(N, P, M),
    "m_sparse_factored": lambda: nn.DeepMSparseEncoder(
        N, P, (M, 3), bias=True, positive=True, factored=True, steps=0.8
    ),
    "m_sparse_soft": lambda: nn.DeepMSparseEncoder(
        N, P, M, 3, positive=True, factored=True, steps=0.8, inside="soft"
    ),
    "htp": lambda: nn.DeepHTPEncoder(N, P, M, 3, steps=0.8, momentum=0.2),
    "m_sparse_one_stage": lambda: nn.DeepMSparseEncoder(N, P, M, num_stages=1),
    "lista": lambda: nn.LISTA(N, P),
    "tagnet": lambda: nn.TAGNet(N, P, gamma=0.1, bias=True, positive=True),
    "head": lambda: nn.ClusterHead(P, 4),
    "baseline": lambda: nn.BaselineEncoder(N, P, readout=True),
}


def signals(name: str, rows: int = 6) -> torch.Tensor:
    g = torch.Generator().manual_seed(7)
    return torch.randn(rows, P if name == "head" else N, generator=g)


def _on_a_ring(layer, x: torch.Tensor) -> torch.Tensor:
    ring = torch.eye(len(x)).roll(1, 0)
    return layer(x, graph_laplacian((ring + ring.T).to_sparse()))


# Layers that are not called with signals alone.
CALLS = {"tagnet": _on_a_ring}
