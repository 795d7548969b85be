"""EleutherAI sparsify: cfg.json and sae.safetensors."""

from __future__ import annotations

import json
from pathlib import Path

from ..._files import write_atomically
from ..model import SparseAutoencoder
from .reading import Settings, of_safetensors, safetensors_of

CFG, WEIGHTS = "cfg.json", "sae.safetensors"


def read(folder: Path) -> SparseAutoencoder:
    """``SparseCoder.load_from_disk``."""
    cfg = Settings.of_file(folder / CFG)
    n = cfg.integer("d_in")
    latents = cfg.integer("num_latents", 0, 0)
    factor = cfg.integer("expansion_factor", 0, 32)
    p = latents or n * factor
    m = cfg.entries("k", p)
    cfg.word("activation", ("topk",), "topk")
    positive = not cfg.boolean("signed", False)
    cfg.absent("transcode", "it predicts another layer than its input's")
    cfg.absent("skip_connection", "there is no place for W_skip")
    cfg.drop("normalize_decoder", "multi_topk")  # of training
    cfg.done()

    weights = of_safetensors(folder / WEIGHTS)
    W = weights.weight("encoder.weight", p, n)
    bias = weights.weight("encoder.bias", p)
    D = weights.weight("W_dec", p, n).t()
    b_dec = weights.weight("b_dec", n)
    weights.done()
    return SparseAutoencoder.from_weights(W, D, bias, b_dec, m=m, positive=positive)


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """``SparseCoder.save_to_disk``."""
    own = sae.options()
    needs = dict(
        selection="top_m",
        num_stages=1,
        apply_b_dec_to_input=True,
        normalize="none",
        scale_by_norms=False,
        flatten_heads=False,
    )
    for key, value in needs.items():
        if own[key] != value:
            raise ValueError(f"sparsify has {key} = {value!r}, got {own[key]!r}")
    tensors = {
        "encoder.weight": sae.W.detach(),
        "encoder.bias": sae.bias.detach(),
        "W_dec": sae.D.detach().t().contiguous(),
        "b_dec": sae.b_dec.detach(),
    }
    cfg = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": sae.code_size,
        "k": sae.m[0],
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        # Known to the versions that had signed codes; others would read these as positive.
        **({} if sae.positive else {"signed": True}),
        "d_in": sae.in_features,
    }
    module = safetensors_of(f"writing {WEIGHTS}")
    data = module.save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CFG).unlink(missing_ok=True)
    write_atomically(folder / WEIGHTS, data)
    write_atomically(folder / CFG, json.dumps(cfg).encode())
