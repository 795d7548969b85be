"""SAELens: cfg.json and sae_weights.safetensors, of versions 3 to 6."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..._files import write_atomically
from ..base import NORMALIZATIONS
from ..model import SparseAutoencoder
from .reading import DTYPES, Settings, Tensors, of_safetensors, safetensors_of

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
# The version whose ``save_model`` the writer follows. Without one of 6 or later in its metadata a
# file is taken for one of an earlier form.
FOLLOWS = "6.54.12"
_TOP_M = {"topk": True, "abstopk": False}  # architecture -> positive
_BATCH = ("batchtopk", "matryoshka_batchtopk")
_ARCHITECTURES = ("standard", "topk", "abstopk", "jumprelu", *_BATCH)
_OTHERS = {
    "matching_pursuit": "its codes are no stages of a selection; deepl0_kernels.solvers.omp codes "
    "over its W_dec",
    "gated": "it has two encoders",
}
# What trains an autoencoder and says nothing about what it computes: fields of the training
# configurations of version 6.
_TRAINING = (
    "decoder_init_norm",
    "l1_coefficient",
    "lp_norm",
    "l1_warm_up_steps",
    "jumprelu_init_threshold",
    "jumprelu_bandwidth",
    "jumprelu_sparsity_loss_mode",
    "l0_coefficient",
    "l0_warm_up_steps",
    "pre_act_loss_coefficient",
    "jumprelu_tanh_scale",
    "jumprelu_ste_to_input",
    "target_l0",
    "use_sparse_activations",
    "aux_loss_coefficient",
    "topk_threshold_lr",
    "matryoshka_widths",
    "use_matryoshka_aux_loss",
)
# Entries of earlier versions that say where an autoencoder belongs; SAELens keeps the same ones.
_ABOUT = (
    "model_name",
    "hook_name",
    "model_class_name",
    "hook_head_index",
    "model_from_pretrained_kwargs",
    "prepend_bos",
    "exclude_special_tokens",
    "neuronpedia_id",
    "context_size",
    "seqpos_slice",
    "dataset_path",
    "sae_lens_version",
    "sae_lens_training_version",
)
_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}


def read(folder: Path) -> SparseAutoencoder:
    """Refuses what would change the function unseen; see :func:`deepl0_kernels.sae.load`."""
    cfg = Settings.of_file(folder / CFG)
    if _version(cfg) < 6:
        cfg = _of_before_6(cfg)
    architecture = _architecture(cfg)
    n, p = cfg.integer("d_in"), cfg.integer("d_sae")
    dtype = cfg.take("dtype")
    name = dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype
    if name not in DTYPES:
        raise cfg.wrong("dtype", f"one of {sorted(DTYPES)}", dtype)
    options: dict[str, Any] = dict(
        apply_b_dec_to_input=cfg.boolean("apply_b_dec_to_input", True),
        normalize=cfg.word(
            "normalize_activations",
            NORMALIZATIONS,
            "none",
            ": the others depend on statistics that the files do not hold; fold them in with "
            "SAELens before saving",
        ),
        flatten_heads=cfg.word("reshape_activations", ("none", "hook_z"), "none") == "hook_z",
    )
    metadata = cfg.take("metadata", {})
    scaled = cfg.boolean("rescale_acts_by_decoder_norm", False)
    if architecture in _TOP_M:
        options["m"] = cfg.entries("k", p)
        options |= dict(positive=_TOP_M[architecture], scale_by_norms=scaled)
    else:
        if scaled and architecture not in _BATCH:
            raise cfg.wrong("rescale_acts_by_decoder_norm", f"false of a {architecture}", scaled)
        cfg.drop("k")  # of a training over batches; the threshold is what is left of it
        options |= dict(selection="relu" if architecture == "standard" else "threshold", sigma=0.0)
    cfg.drop("device", *_TRAINING)
    cfg.done()

    weights = of_safetensors(folder / WEIGHTS, DTYPES[name])  # converted, as SAELens does
    _no_scaling(weights)
    W = weights.weight("W_enc", n, p).t()
    D = weights.weight("W_dec", p, n).t()
    bias, b_dec = weights.weight("b_enc", p), weights.weight("b_dec", n)
    theta = None
    if architecture == "jumprelu":
        theta = weights.thresholds("threshold", p)
    elif architecture in _BATCH:
        # As its save_inference_model: a JumpReLU, and of atoms of norm 1 if it ranked so.
        level = weights.level("topk_threshold")
        if not level:
            raise ValueError(
                f"{weights.path}: topk_threshold must be > 0, got 0: it was never measured, and "
                "codes depend on the batch without it"
            )
        theta = torch.full_like(bias, level)
        if scaled:
            norms = D.t().norm(dim=-1).clamp(min=1e-8)
            W, D, bias = W * norms[:, None], (D.t() / norms[:, None]).t(), bias * norms
    weights.done()
    sae = SparseAutoencoder.from_weights(W, D, bias, b_dec, theta, **options)
    sae.metadata = metadata
    return sae


def _version(cfg: Settings) -> int:
    """The first number of the version that wrote the file; 0 where it does not say."""
    metadata = cfg.values.get("metadata", {})
    if not isinstance(metadata, dict):
        raise cfg.wrong("metadata", "a JSON object", metadata)
    version = cfg.values.get("sae_lens_version") or metadata.get("sae_lens_version")
    head = str(version or 0).split(".")[0]
    if not head.isdecimal():
        raise cfg.wrong("sae_lens_version", "a version such as '6.0.0'", version)
    return int(head)


def _architecture(cfg: Settings) -> str:
    architecture = cfg.take("architecture")
    if architecture in _ARCHITECTURES:
        return architecture
    why = _OTHERS.get(architecture) if isinstance(architecture, str) else None
    must = f"one of {list(_ARCHITECTURES)}" + (f" ({why})" if why else "")
    raise cfg.wrong("architecture", must, architecture)


def _of_before_6(cfg: Settings) -> Settings:
    """The entries that version 6 would have, out of those of versions 3 to 5.

    What is left over there is about models, data and training: those versions are closed, and all
    that changes the function is dealt with here.
    """
    old = Settings(cfg.path, {_RENAMED.get(k, k): v for k, v in cfg.values.items()})
    new: dict[str, Any] = {}
    architecture = old.take("architecture", "standard")
    activation = old.word("activation_fn", ("relu", "topk"), "relu")
    kwargs = old.take("activation_fn_kwargs", None) or {}
    if not isinstance(kwargs, dict):
        raise old.wrong("activation_fn_kwargs", "a JSON object", kwargs)
    inner = Settings(old.path, kwargs)
    if activation == "topk" or architecture == "topk":
        if architecture not in ("standard", "topk"):
            raise old.wrong("activation_fn", f"relu with architecture {architecture!r}", activation)
        architecture = "topk"
        new["k"] = inner.take("k") if "k" in inner.values else old.take("k")
        inner.absent("signed", "entries would be ranked by magnitude")
    inner.done()
    old.absent("finetuning_scaling_factor", "fold the factors into W_dec before saving")
    normalize = old.take("normalize_activations", None)
    if isinstance(normalize, bool):
        normalize = "expected_average_only_in" if normalize else "none"
    hook = old.values.get("hook_name")
    reshape = "hook_z" if isinstance(hook, str) and "hook_z" in hook else "none"
    new |= {
        "architecture": architecture,
        "normalize_activations": "none" if normalize is None else normalize,
        "reshape_activations": old.take("reshape_activations", reshape),
        "apply_b_dec_to_input": old.take("apply_b_dec_to_input", True),
        "metadata": {key: old.values[key] for key in _ABOUT if key in old.values},
    }
    new |= {key: old.take(key) for key in ("d_in", "d_sae", "dtype")}
    return Settings(old.path, new)


def _no_scaling(weights: Tensors) -> None:
    """Factors of a finetuning: nothing if they are 1, as files of some versions have them."""
    for key in ("scaling_factor", "finetuning_scaling_factor"):
        if key in weights and not (factors := weights.tensor(key)).eq(1).all():
            raise ValueError(
                f"{weights.path}: {key} is not supported, got values from {factors.min().item()} "
                f"to {factors.max().item()}: fold them into W_dec before saving"
            )


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """What ``SAE.save_model`` writes for the same autoencoder."""
    if sae.num_stages > 1:
        raise ValueError(f"saelens has one stage, got num_stages = {sae.num_stages}")
    module = safetensors_of(f"writing {WEIGHTS}")
    tensors = {
        "W_enc": sae.W.detach().t().contiguous(),
        "W_dec": sae.D.detach().t().contiguous(),
        "b_enc": sae.bias.detach(),
        "b_dec": sae.b_dec.detach(),
    }
    own: dict[str, Any] = {}
    if sae.selection == "top_m":
        architecture = "topk" if sae.positive else "abstopk"
        own = {"k": sae.m[0], "rescale_acts_by_decoder_norm": sae.scale_by_norms}
    elif sae.theta is not None:
        architecture = "jumprelu"
        tensors["threshold"] = sae.theta.detach()
    else:
        architecture = "standard"
    metadata = dict(sae.metadata)
    if _version(Settings(folder / CFG, {"metadata": metadata})) < 6:
        known = {"sae_lens_version": FOLLOWS, "sae_lens_training_version": None}
        metadata = known | metadata | {"sae_lens_version": FOLLOWS}
    cfg = {
        "d_in": sae.in_features,
        "d_sae": sae.code_size,
        "dtype": str(sae.W.dtype).removeprefix("torch."),
        "device": str(sae.W.device),
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        "normalize_activations": sae.normalize,
        "reshape_activations": "hook_z" if sae.flatten_heads else "none",
        "metadata": metadata,
        **own,
        "architecture": architecture,
    }
    text = json.dumps(cfg).encode()
    data = module.save({key: tensor.cpu() for key, tensor in tensors.items()})
    # Weights under another's cfg.json would be read as something else: it goes first, comes last.
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CFG).unlink(missing_ok=True)
    write_atomically(folder / WEIGHTS, data)
    write_atomically(folder / CFG, text)
