"""What the projects whose files are read compute, written out in torch after their sources.

Each takes a state dict as the project's file has it and activations x, and gives codes, dense, and
reconstructions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]
Forward = tuple[Tensor, Tensor]


def top_k(u: Tensor, k: int) -> Tensor:
    """torch.topk, then ReLU, then scatter."""
    values, indices = torch.topk(u, k, dim=-1, sorted=False)
    return torch.zeros_like(u).scatter_(-1, indices, values.relu())


def abs_top_k(u: Tensor, k: int) -> Tensor:
    indices = torch.topk(u.abs(), k, dim=-1, sorted=False).indices
    return torch.zeros_like(u).scatter_(-1, indices, u.gather(-1, indices))


def jump_relu(u: Tensor, threshold: Tensor) -> Tensor:
    return u.relu() * (u > threshold).to(u.dtype)


def saelens(cfg: dict, state: State, x: Tensor) -> Forward:
    """sae_lens.saes 6.54: SAE.process_sae_in, then encode and decode of each architecture."""
    shape = x.shape
    if cfg["reshape_activations"] == "hook_z":
        x = x.flatten(-2)
    mean = std = coefficient = None
    if cfg["normalize_activations"] == "layer_norm":
        mean = x.mean(dim=-1, keepdim=True)
        x = x - mean
        std = x.std(dim=-1, keepdim=True)
        x = x / (std + 1e-5)
    elif cfg["normalize_activations"] == "constant_norm_rescale":
        coefficient = (cfg["d_in"] ** 0.5) / x.norm(dim=-1, keepdim=True)
        x = x * coefficient
    sae_in = x - state["b_dec"] * cfg["apply_b_dec_to_input"]
    u = sae_in @ state["W_enc"] + state["b_enc"]
    norms = state["W_dec"].norm(dim=-1)
    scaled = cfg.get("rescale_acts_by_decoder_norm", False)
    if scaled:
        u = u * norms
    z = {
        "standard": lambda: u.relu(),
        "topk": lambda: top_k(u, cfg["k"]),
        "abstopk": lambda: abs_top_k(u, cfg["k"]),
        "jumprelu": lambda: jump_relu(u, state["threshold"]),
    }[cfg["architecture"]]()
    out = (z * (1 / norms) if scaled else z) @ state["W_dec"] + state["b_dec"]
    if std is not None:
        out = out * std + mean
    if coefficient is not None:
        out = out / coefficient
    return z, out.reshape(shape)


def batch_top_k_for_inference(cfg: dict, state: State) -> tuple[dict, State]:
    """BatchTopKTrainingSAE.process_state_dict_for_saving_inference: the JumpReLU it becomes."""
    state = dict(state)
    if cfg["rescale_acts_by_decoder_norm"]:
        norms = state["W_dec"].norm(dim=-1).clamp(min=1e-8)
        state["b_enc"] = state["b_enc"] * norms
        state["W_dec"] = state["W_dec"] / norms.unsqueeze(1)
        state["W_enc"] = state["W_enc"] * norms.unsqueeze(1).T
    threshold = state.pop("topk_threshold").item()
    state["threshold"] = torch.ones_like(state["b_enc"]) * threshold
    cfg = {**cfg, "architecture": "jumprelu", "rescale_acts_by_decoder_norm": False}
    return cfg, state


def sparsify(cfg: dict, state: State, x: Tensor) -> Forward:
    """sparsify.SparseCoder.encode and decode; ``signed`` of its versions that had it."""
    x = x - state["b_dec"]
    u = functional.linear(x, state["encoder.weight"], state["encoder.bias"])
    z = abs_top_k(u, cfg["k"]) if cfg.get("signed") else top_k(u.relu(), cfg["k"])
    return z, z @ state["W_dec"] + state["b_dec"]


def dictionary_learning(name: str, state: State, x: Tensor) -> Forward:
    """encode and decode of the classes of dictionary_learning.dictionary and .trainers."""
    if name == "AutoEncoder":
        u = functional.linear(x - state["bias"], state["encoder.weight"], state["encoder.bias"])
        z = u.relu()
        return z, functional.linear(z, state["decoder.weight"]) + state["bias"]
    if name == "AutoEncoderNew":
        z = functional.linear(x, state["encoder.weight"], state["encoder.bias"]).relu()
        return z, functional.linear(z, state["decoder.weight"], state["decoder.bias"])
    if name in ("AutoEncoderTopK", "BatchTopKSAE"):
        u = functional.linear(x - state["b_dec"], state["encoder.weight"], state["encoder.bias"])
        u = u.relu()
        z = top_k(u, int(state["k"])) if name == "AutoEncoderTopK" else u * (u > state["threshold"])
        return z, functional.linear(z, state["decoder.weight"]) + state["b_dec"]
    if name == "MatryoshkaBatchTopKSAE":
        u = ((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"]).relu()
        z = u * (u > state["threshold"])
        return z, z @ state["W_dec"] + state["b_dec"]
    assert name == "JumpReluAutoEncoder"
    u = x @ state["W_enc"] + state["b_enc"]
    z = (u * (u > state["threshold"])).relu()
    return z, z @ state["W_dec"] + state["b_dec"]


def gemma_scope(state: State, x: Tensor) -> Forward:
    """The JumpReLU of Gemma Scope's tutorial: b_dec is not taken from the input."""
    u = x @ state["W_enc"] + state["b_enc"]
    z = (u > state["threshold"]) * u.relu()
    return z, z @ state["W_dec"] + state["b_dec"]


def openai(state: dict, x: Tensor) -> Forward:
    """sparse_autoencoder.Autoencoder: layer norm where the activation is TopK."""
    is_top_k = state.get("activation", "ReLU") == "TopK"
    mean = std = None
    if is_top_k:
        mean = x.mean(dim=-1, keepdim=True)
        x = x - mean
        std = x.std(dim=-1, keepdim=True)
        x = x / (std + 1e-5)
    u = functional.linear(x - state["pre_bias"], state["encoder.weight"], state["latent_bias"])
    z = top_k(u, state["activation_state_dict"]["k"]) if is_top_k else u.relu()
    decoder = state.get("decoder.weight")
    if decoder is None:
        decoder = state["encoder.weight"].t()
    out = functional.linear(z, decoder) + state["pre_bias"]
    return z, out if std is None else out * std + mean
