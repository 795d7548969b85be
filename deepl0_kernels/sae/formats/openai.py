"""OpenAI sparse_autoencoder: one .pt file, a ReLU, or a TopK of vectors in layer norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..model import SparseAutoencoder
from .reading import Settings, Tensors, of_torch

_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def read(path: Path) -> SparseAutoencoder:
    """``Autoencoder.from_state_dict``, without its ReLU in the place of what it does not know."""
    weights = of_torch(path)
    W = weights.weight("encoder.weight", None, None)
    p, n = W.shape
    if "decoder.linear.weight" in weights:
        # A tied decoder is the encoder, under a second name.
        if not weights.weight("decoder.linear.weight", p, n).equal(W):
            raise ValueError(f"{path}: decoder.linear.weight must equal encoder.weight")
        D = W.t()
    else:
        D = weights.weight("decoder.weight", n, p)
    bias, b_dec = weights.weight("latent_bias", p), weights.weight("pre_bias", n)
    options = _activation(weights, p)
    weights.drop(*_STATISTICS)
    weights.done()
    return SparseAutoencoder.from_weights(W, D, bias, b_dec, **options)


def _activation(weights: Tensors, p: int) -> dict[str, Any]:
    found = {"activation": weights.values.pop("activation", "ReLU")}
    state = weights.values.pop("activation_state_dict", {})
    cfg = Settings(weights.path, found)
    if cfg.word("activation", ("ReLU", "TopK")) == "ReLU":
        if state:
            raise cfg.wrong("activation_state_dict", "empty of a ReLU", state)
        return dict(selection="relu")
    if not isinstance(state, dict):
        raise cfg.wrong("activation_state_dict", "a dictionary", state)
    inner = Settings(weights.path, state)
    m = inner.entries("k", p)
    inner.word("postact_fn", ("ReLU",))
    inner.done()
    return dict(m=m, normalize="layer_norm")
