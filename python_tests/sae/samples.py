"""Autoencoders in files as the projects write them, small and at random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

N, P, K = 12, 40, 5


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 7 * len(shape) + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def saelens_state(**more: Tensor) -> dict[str, Tensor]:
    return {
        "W_enc": numbers(N, P, seed=1),
        "W_dec": numbers(P, N, seed=2),
        "b_enc": 0.3 * numbers(P, seed=3),
        "b_dec": 0.3 * numbers(N, seed=4),
        **more,
    }


def saelens_cfg(architecture: str, **more: Any) -> dict[str, Any]:
    """``SAEConfig.to_dict()`` of 6.54.12: fields in their order, architecture last."""
    own = {"k": K, "rescale_acts_by_decoder_norm": False} if "topk" in architecture else {}
    cfg = {
        "d_in": N,
        "d_sae": P,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "sae_lens_training_version": "6.54.12",
            "model_name": "gpt2",
            "hook_name": "blocks.3.hook_resid_post",
        },
        **own,
        "architecture": architecture,
    }
    return cfg | more


def write_saelens(folder: Path, cfg: dict, state: dict[str, Tensor]) -> Path:
    """``SAE.save_model``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


def sparsify_state() -> dict[str, Tensor]:
    return {
        "encoder.weight": numbers(P, N, seed=1),
        "encoder.bias": 0.3 * numbers(P, seed=3),
        "W_dec": numbers(P, N, seed=2),
        "b_dec": 0.3 * numbers(N, seed=4),
    }


def sparsify_cfg(**more: Any) -> dict[str, Any]:
    cfg = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": P,
        "k": K,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": N,
    }
    return cfg | more


def write_sparsify(folder: Path, cfg: dict, state: dict[str, Tensor]) -> Path:
    """``SparseCoder.save_to_disk``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # As safetensors.torch.save_model.
    save_file(state, folder / "sae.safetensors", metadata={"format": "pt"})
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


def dictionary_learning_state(name: str) -> dict[str, Tensor]:
    W, D = numbers(P, N, seed=1), numbers(P, N, seed=2)
    bias, b_dec = 0.3 * numbers(P, seed=3), 0.3 * numbers(N, seed=4)
    linear = {"encoder.weight": W, "encoder.bias": bias, "decoder.weight": D.t().contiguous()}
    own = {"W_enc": W.t().contiguous(), "b_enc": bias, "W_dec": D, "b_dec": b_dec}
    k = torch.tensor(K, dtype=torch.int)
    return {
        "AutoEncoder": lambda: {"bias": b_dec, **linear},
        "AutoEncoderNew": lambda: {**linear, "decoder.bias": b_dec},
        "AutoEncoderTopK": lambda: (
            {"b_dec": b_dec, "k": k, "threshold": torch.tensor(-1.0)} | linear
        ),
        "BatchTopKSAE": lambda: {"b_dec": b_dec, "k": k, "threshold": torch.tensor(1.5)} | linear,
        "MatryoshkaBatchTopKSAE": lambda: (
            own | {"k": k, "threshold": torch.tensor(1.5), "group_sizes": torch.tensor([8, P - 8])}
        ),
        "JumpReluAutoEncoder": lambda: own | {"threshold": 2 * numbers(P, seed=5)},
    }[name]()


def write_dictionary_learning(folder: Path, name: str, state: dict, **more: Any) -> Path:
    """The end of ``trainSAE``."""
    folder.mkdir(parents=True, exist_ok=True)
    trainer = {"dict_class": name, "activation_dim": N, "dict_size": P, "k": K, "lr": 1e-3}
    config = {"trainer": trainer | more, "buffer": {"ctx_len": 128}}
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    torch.save(state, folder / "ae.pt")
    return folder


def gemma_state() -> dict[str, Tensor]:
    return saelens_state(threshold=numbers(P, seed=5).abs())


def openai_state(activation: str | None, tied: bool = False) -> dict[str, Any]:
    """``Autoencoder.state_dict()``; None: of before it named its activation."""
    W = numbers(P, N, seed=1)
    state: dict[str, Any] = {
        "pre_bias": 0.3 * numbers(N, seed=4),
        "latent_bias": 0.3 * numbers(P, seed=3),
        "stats_last_nonzero": torch.zeros(P, dtype=torch.long),
        "latents_activation_frequency": torch.ones(P),
        "latents_mean_square": torch.zeros(P),
        "encoder.weight": W,
    }
    state |= {"decoder.linear.weight": W} if tied else {"decoder.weight": numbers(N, P, seed=2)}
    if activation is not None:
        state["activation"] = activation
        top_k = {"k": K, "postact_fn": "ReLU"}
        state["activation_state_dict"] = top_k if activation == "TopK" else {}
    return state
