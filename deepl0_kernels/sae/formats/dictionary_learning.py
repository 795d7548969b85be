"""saprmarks dictionary_learning: config.json and ae.pt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model import SparseAutoencoder
from .reading import Settings, Tensors, of_torch

CFG, WEIGHTS = "config.json", "ae.pt"
_TRAINING_STATE = {"step", "ae", "optimizer", "config", "norm_factor"}


def read(folder: Path) -> SparseAutoencoder:
    """``load_dictionary``, without its rescaling of an AutoEncoder's atoms to norm 1.

    config.json must be there: a TopK and a BatchTopK autoencoder have the same weights.
    """
    cfg = Settings.of_file(folder / CFG).inner("trainer")
    name = cfg.word("dict_class", tuple(_CLASSES))
    n, p = cfg.integer("activation_dim"), cfg.integer("dict_size")
    weights = of_torch(folder / WEIGHTS)
    if weights.values.keys() == _TRAINING_STATE:
        raise ValueError(
            f"{weights.path} is the backup of a training, whose biases are those of activations "
            f"divided by norm_factor = {weights.values['norm_factor']!r}; its end writes ae.pt anew"
        )
    sae = _CLASSES[name](cfg, weights, n, p)
    weights.done()
    return sae


def _linear(weights: Tensors, n: int, p: int) -> tuple[Tensor, Tensor, Tensor]:
    """W, D and bias of the two torch.nn.Linear."""
    W = weights.weight("encoder.weight", p, n)
    return W, weights.weight("decoder.weight", n, p), weights.weight("encoder.bias", p)


def _transposed(weights: Tensors, n: int, p: int) -> tuple[Tensor, Tensor, Tensor]:
    """W, D and bias of the classes with parameters of their own."""
    W = weights.weight("W_enc", n, p).t()
    return W, weights.weight("W_dec", p, n).t(), weights.weight("b_enc", p)


def _relu(cfg: Settings, weights: Tensors, n: int, p: int) -> SparseAutoencoder:
    W, D, bias = _linear(weights, n, p)
    b_dec = weights.weight("bias", n)
    return SparseAutoencoder.from_weights(W, D, bias, b_dec, selection="relu")


def _relu_new(cfg: Settings, weights: Tensors, n: int, p: int) -> SparseAutoencoder:
    W, D, bias = _linear(weights, n, p)
    b_dec = weights.weight("decoder.bias", n)
    return SparseAutoencoder.from_weights(
        W, D, bias, b_dec, selection="relu", apply_b_dec_to_input=False
    )


def _top_k(cfg: Settings, weights: Tensors, n: int, p: int) -> SparseAutoencoder:
    W, D, bias = _linear(weights, n, p)
    m = _same_k(cfg, weights, p)
    weights.drop("threshold")  # encodes with it only when asked to
    return SparseAutoencoder.from_weights(W, D, bias, weights.weight("b_dec", n), m=m)


def _batch_top_k(cfg: Settings, weights: Tensors, n: int, p: int) -> SparseAutoencoder:
    W, D, bias = _linear(weights, n, p)
    _same_k(cfg, weights, p)
    return _one_threshold(weights, W, D, bias, weights.weight("b_dec", n))


def _matryoshka(cfg: Settings, weights: Tensors, n: int, p: int) -> SparseAutoencoder:
    W, D, bias = _transposed(weights, n, p)
    _same_k(cfg, weights, p)
    sizes = weights.tensor("group_sizes")
    if int(sizes.sum()) != p:
        raise ValueError(f"{weights.path}: group_sizes must sum to {p}, got {sizes.tolist()}")
    return _one_threshold(weights, W, D, bias, weights.weight("b_dec", n))


def _jump_relu(cfg: Settings, weights: Tensors, n: int, p: int) -> SparseAutoencoder:
    W, D, bias = _transposed(weights, n, p)
    options: dict[str, Any] = dict(selection="threshold", sigma=0.0, apply_b_dec_to_input=False)
    b_dec, theta = weights.weight("b_dec", n), weights.thresholds("threshold", p)
    return SparseAutoencoder.from_weights(W, D, bias, b_dec, theta, **options)


def _one_threshold(
    weights: Tensors, W: Tensor, D: Tensor, bias: Tensor, b_dec: Tensor
) -> SparseAutoencoder:
    """Of a training over batches: what encodes a vector by itself is its one threshold."""
    theta = torch.full_like(bias, weights.level("threshold"))
    return SparseAutoencoder.from_weights(
        W, D, bias, b_dec, theta, selection="threshold", sigma=0.0
    )


def _same_k(cfg: Settings, weights: Tensors, p: int) -> int:
    m = cfg.entries("k", p)
    if "k" in weights and (saved := weights.number("k")) != m:
        raise cfg.wrong("k", f"that of {WEIGHTS}, {saved:g}", m)
    return m


_CLASSES = {
    "AutoEncoder": _relu,
    "AutoEncoderNew": _relu_new,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jump_relu,
}
