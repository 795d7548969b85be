"""Gemma Scope: params.npz, a JumpReLU."""

from __future__ import annotations

from pathlib import Path

import torch

from ..model import SparseAutoencoder
from .reading import Tensors, guarded

WEIGHTS = "params.npz"


def read(path: Path) -> SparseAutoencoder:
    """A params.npz, or the folder that holds it."""
    path = path / WEIGHTS if path.is_dir() else path
    weights = Tensors(path, guarded(path, "an archive of NumPy", lambda: _arrays(path)))
    W = weights.weight("W_enc", None, None)
    n, p = W.shape
    D = weights.weight("W_dec", p, n).t()
    bias, b_dec = weights.weight("b_enc", p), weights.weight("b_dec", n)
    theta = weights.thresholds("threshold", p)
    weights.done()
    return SparseAutoencoder.from_weights(
        W.t(),
        D,
        bias,
        b_dec,
        theta,
        selection="threshold",
        sigma=0.0,
        apply_b_dec_to_input=False,
    )


def _arrays(path: Path) -> dict[str, torch.Tensor]:
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        # Some releases write w_enc and w_dec.
        named = {"W_" + key[2:] if key.startswith("w_") else key: file[key] for key in file.files}
        if len(named) != len(file.files):
            raise ValueError(f"keys that differ in a capital alone: {sorted(file.files)}")
    return {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in named.items()}
