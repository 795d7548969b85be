"""TopK and AbsTopK of SAELens, computed by this package's operators; needs
``deepl0-kernels[saelens]``.

Importing this module registers the architectures ``deepl0_topk`` and ``deepl0_abstopk`` with
SAELens, for training and for inference. Each class is SAELens's own, with its configuration, hooks,
training and files; what changes is how codes, reconstructions and their gradients are computed.

>>> from deepl0_kernels.sae.saelens import DeepL0AbsTopKTrainingSAEConfig  # doctest: +SKIP
>>> cfg = DeepL0AbsTopKTrainingSAEConfig(d_in=384, d_sae=8192, k=32)  # doctest: +SKIP

**Files** name the architecture that they hold, ``topk`` or ``abstopk``: SAELens reads them without
this package. ``DeepL0TopKSAE.load_from_disk`` and ``.from_pretrained`` read any file of TopK.

**Dense tensors of [B, d_sae].** With ``use_sparse_activations``, the default of the training
configurations, no training step forms one: activations are coalesced ``torch.sparse_coo`` tensors,
which SAELens's trainer takes, and so is ``hidden_pre`` of a step's output, of the selected units
alone. One is formed where SAELens's interface asks for it: without ``use_sparse_activations``, as
for inference by default, where the product with ``W_dec`` is dense too; for hooks on
``hook_sae_acts_post``; and for hooks on ``hook_sae_acts_pre``, with which encoding is SAELens's
own. Optimiser and clipping of gradients are the trainer's, over all of the weights.

``W_enc`` is stored by columns, a unit's weights beside each other, and is contiguous in files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._files import write_atomically
from .._optional import require
from ..ops import SparseCode, decode, encode_top_m

require("sae_lens", __name__, extra="saelens")

from sae_lens import (  # noqa: E402 - the error above names the extra
    AbsTopKSAE,
    AbsTopKSAEConfig,
    AbsTopKTrainingSAE,
    AbsTopKTrainingSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    register_sae_class,
    register_sae_training_class,
)
from sae_lens.registry import get_sae_class  # noqa: E402

__all__ = [
    "DeepL0AbsTopKSAE",
    "DeepL0AbsTopKSAEConfig",
    "DeepL0AbsTopKTrainingSAE",
    "DeepL0AbsTopKTrainingSAEConfig",
    "DeepL0TopKSAE",
    "DeepL0TopKSAEConfig",
    "DeepL0TopKTrainingSAE",
    "DeepL0TopKTrainingSAEConfig",
]


# -- configurations


class _Config:
    """Mixed in before a configuration of SAELens: a name of its own, and theirs in files."""

    _theirs: type

    @classmethod
    def architecture(cls) -> str:
        return f"deepl0_{cls._theirs.architecture()}"  # type: ignore[attr-defined]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> Any:
        """The configuration in a dict, as of a ``cfg.json``, of our name or of SAELens's.

        Args:
            config_dict: entries; those that are no fields are passed over, as SAELens does.

        Raises:
            ValueError: another architecture.
        """
        own = cls.architecture()
        known = (own, cls._theirs.architecture())  # type: ignore[attr-defined]
        if (named := config_dict.get("architecture", own)) not in known:
            raise ValueError(f"architecture must be one of {list(known)}, got {named!r}")
        return super().from_dict({**config_dict, "architecture": own})  # type: ignore[misc]

    def of_files(self) -> dict[str, Any]:
        """What SAELens's own configuration of the same fields would write."""
        theirs = self._theirs
        names = {f.name for f in fields(theirs)}
        cfg = {k: v for k, v in self.to_dict().items() if k in names}  # type: ignore[attr-defined]
        return cfg | {"architecture": theirs.architecture()}  # type: ignore[attr-defined]


class _TrainingConfig(_Config):
    def get_inference_config_class(self) -> type:
        """That of SAELens: it is what ``save_inference_model`` writes."""
        return get_sae_class(self._theirs.architecture())[1]  # type: ignore[attr-defined]


@dataclass
class DeepL0TopKSAEConfig(_Config, TopKSAEConfig):
    """SAELens's ``TopKSAEConfig`` for :class:`DeepL0TopKSAE`.

    Args:
        use_sparse_activations: codes are ``torch.sparse_coo`` tensors, and decoding is sparse too.
    """

    _theirs = TopKSAEConfig
    use_sparse_activations: bool = False


@dataclass
class DeepL0AbsTopKSAEConfig(_Config, AbsTopKSAEConfig):
    """SAELens's ``AbsTopKSAEConfig`` for :class:`DeepL0AbsTopKSAE`.

    Args:
        use_sparse_activations: codes are ``torch.sparse_coo`` tensors, and decoding is sparse too.
    """

    _theirs = AbsTopKSAEConfig
    use_sparse_activations: bool = False


@dataclass
class DeepL0TopKTrainingSAEConfig(_TrainingConfig, TopKTrainingSAEConfig):
    """SAELens's ``TopKTrainingSAEConfig`` for :class:`DeepL0TopKTrainingSAE`.

    Args:
        use_sparse_activations: False: activations are dense, [B, d_sae], and their decoding too.
    """

    _theirs = TopKTrainingSAEConfig
    use_sparse_activations: bool = True


@dataclass
class DeepL0AbsTopKTrainingSAEConfig(_TrainingConfig, AbsTopKTrainingSAEConfig):
    """SAELens's ``AbsTopKTrainingSAEConfig`` for :class:`DeepL0AbsTopKTrainingSAE`.

    Args:
        use_sparse_activations: False: activations are dense, [B, d_sae], and their decoding too.
    """

    _theirs = AbsTopKTrainingSAEConfig
    use_sparse_activations: bool = True


# -- autoencoders


class _OnOperators:
    """Mixed in before a class of SAELens: its codes and reconstructions by our operators."""

    _config: type
    _positive: bool

    # What SAELens's class has, for type checkers.
    cfg: Any
    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter
    hook_dict: dict[str, nn.Module]

    @classmethod
    def get_sae_config_class_for_architecture(cls, architecture: str) -> type:
        return cls._config  # which refuses other architectures

    @classmethod
    def get_sae_class_for_architecture(cls, architecture: str) -> type:
        return cls

    def initialize_weights(self) -> None:
        super().initialize_weights()  # type: ignore[misc]
        self.W_enc = nn.Parameter(_by_columns(self.W_enc.detach()))

    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)  # type: ignore[misc]
        state_dict["W_enc"] = _by_columns(state_dict["W_enc"])

    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving(state_dict)  # type: ignore[misc]
        state_dict["W_enc"] = state_dict["W_enc"].contiguous()

    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """Weights and configuration into a folder, as SAELens's own class writes them."""
        weights, cfg = super().save_model(path)  # type: ignore[misc]
        write_atomically(cfg, json.dumps(self.cfg.of_files()).encode())
        return weights, cfg

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstructions [..., d_in] of activations [..., d_sae], dense or as of ``encode``."""
        code = _code_of(feature_acts)
        if code is None:
            return super().decode(feature_acts)  # type: ignore[misc]
        if self.cfg.rescale_acts_by_decoder_norm:
            code = _unscaled(code, _norms(self.W_dec))
        out = self.hook_sae_recons(decode(code, self.W_dec.t()) + self.b_dec)  # type: ignore
        out = self.run_time_activation_norm_fn_out(out)  # type: ignore[attr-defined]
        return self.reshape_fn_out(out, self.d_head)  # type: ignore[attr-defined]

    def _hooked(self, name: str) -> bool:
        # Not the attribute: while the error term is computed, that is another module, and then the
        # way of computing must be the same, or near-ties would show as an error.
        hook = self.hook_dict[name]
        return bool(hook._forward_hooks or hook._backward_hooks)

    def _sparse(self) -> bool:
        # Backward hooks of PyTorch fail on sparse tensors, so a hook point gets dense ones.
        wanted = getattr(self.cfg, "use_sparse_activations", False)
        return wanted and not self._hooked("hook_sae_acts_post")

    def _units(self, some: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Weights [p, n] and biases as they are ranked, and atoms [p, n], of all units or some."""
        W, bias, atoms = self.W_enc.t(), self.b_enc, self.W_dec
        if some is not None:
            W, bias, atoms = (t.index_select(0, some) for t in (W, bias, atoms))  # type: ignore
        if self.cfg.rescale_acts_by_decoder_norm:
            norms = atoms.norm(dim=-1)
            W, bias = W * norms[:, None], bias * norms
        return W, bias, atoms

    def _code(self, sae_in: Tensor) -> SparseCode:
        W, bias, _ = self._units()
        return _one_stage(sae_in, W, bias, self.cfg.k, self._positive)


class _Inference(_OnOperators):
    def encode(self, x: Tensor) -> Tensor:
        """Activations [..., d_sae] of x [..., d_in]."""
        if self._hooked("hook_sae_acts_pre"):
            return super().encode(x)  # type: ignore[misc]
        code = self._code(self.process_sae_in(x))  # type: ignore[attr-defined]
        acts = _coo(code) if self._sparse() else code.to_dense()
        return self.hook_sae_acts_post(acts)  # type: ignore[attr-defined]


class _Training(_OnOperators):
    # ``compile_sae`` compiles this, and torch.compile takes no sparse tensors: it stays as it is.
    @torch.compiler.disable
    def training_forward_pass(self, step_input: Any) -> Any:
        return super().training_forward_pass(step_input)  # type: ignore[misc]

    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Activations [..., d_sae] and pre-activations, those of the selected units alone."""
        if self._hooked("hook_sae_acts_pre"):
            return super().encode_with_hidden_pre(x)  # type: ignore[misc]
        sae_in = self.process_sae_in(x)  # type: ignore[attr-defined]
        code = self._code(sae_in)
        selected = _coo(code)
        selected.sae_in = sae_in  # type: ignore[attr-defined]  # for the auxiliary loss
        acts = selected if self._sparse() else code.to_dense()
        return self.hook_sae_acts_post(acts), selected  # type: ignore[attr-defined]

    def calculate_aux_loss(
        self, step_input: Any, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """What the dead units leave of the residual, as SAELens weighs it. O(B n d) for d of them.

        Args:
            step_input: of the step. feature_acts, hidden_pre: of ``encode_with_hidden_pre``.
            sae_out: of ``decode``.
        """
        mask, sae_in = step_input.dead_neuron_mask, getattr(hidden_pre, "sae_in", None)
        normalized = self.cfg.normalize_activations in ("constant_norm_rescale", "layer_norm")
        if sae_in is None or mask is None or normalized or not mask.any():
            return super().calculate_aux_loss(  # type: ignore[misc]
                step_input=step_input,
                feature_acts=feature_acts,
                hidden_pre=hidden_pre,
                sae_out=sae_out,
            )
        residual = (step_input.sae_in - sae_out).detach()
        dead = mask.nonzero()[:, 0]
        k_aux = residual.shape[-1] // 2
        W, bias, atoms = self._units(dead)
        scaled = self.cfg.rescale_acts_by_decoder_norm
        if len(dead) <= k_aux:  # all of them, whatever they are
            acts = nn.functional.linear(sae_in, W, bias)
            recons = (acts / _norms(atoms) if scaled else acts) @ atoms
        else:
            code = _largest(sae_in, W, bias, k_aux, self._positive)
            recons = decode(_unscaled(code, _norms(atoms)) if scaled else code, atoms.t())
        recons = self.reshape_fn_out(recons, self.d_head)  # type: ignore[attr-defined]
        loss = (recons - residual).pow(2).sum(dim=-1).mean()
        weight = self.cfg.aux_loss_coefficient * min(len(dead) / k_aux, 1.0)
        return {"auxiliary_reconstruction_loss": weight * loss}


class DeepL0TopKSAE(_Inference, TopKSAE):
    """SAELens's ``TopKSAE`` on this package's operators, architecture ``deepl0_topk``."""

    _config, _positive = DeepL0TopKSAEConfig, True


class DeepL0AbsTopKSAE(_Inference, AbsTopKSAE):
    """SAELens's ``AbsTopKSAE`` on this package's operators, architecture ``deepl0_abstopk``."""

    _config, _positive = DeepL0AbsTopKSAEConfig, False


class DeepL0TopKTrainingSAE(_Training, TopKTrainingSAE):
    """SAELens's ``TopKTrainingSAE`` on this package's operators, architecture ``deepl0_topk``."""

    _config, _positive = DeepL0TopKTrainingSAEConfig, True


class DeepL0AbsTopKTrainingSAE(_Training, AbsTopKTrainingSAE):
    """SAELens's ``AbsTopKTrainingSAE`` on this package's operators, architecture
    ``deepl0_abstopk``."""

    _config, _positive = DeepL0AbsTopKTrainingSAEConfig, False


for _sae in (DeepL0TopKSAE, DeepL0AbsTopKSAE):
    register_sae_class(_sae._config.architecture(), _sae, _sae._config)
for _sae in (DeepL0TopKTrainingSAE, DeepL0AbsTopKTrainingSAE):
    register_sae_training_class(_sae._config.architecture(), _sae, _sae._config)


# -- codes


def _by_columns(W_enc: Tensor) -> Tensor:
    """[n, p] whose transpose, units by rows, is contiguous: what the encoder reads."""
    return W_enc.t().contiguous().t()


def _norms(atoms: Tensor) -> Tensor:
    """[p] of atoms [p, n], something to divide by."""
    return atoms.norm(dim=-1).clamp_min(torch.finfo(atoms.dtype).tiny)


def _unscaled(code: SparseCode, norms: Tensor) -> SparseCode:
    return SparseCode(code.values / norms[code.indices], code.indices, code.size)


def _rows(shape: torch.Size, m: int, device: torch.device) -> Tensor:
    """[dims, B m]: where the m entries of each row of a batch stand, but for their last index."""
    row = torch.arange(shape.numel(), device=device).repeat_interleave(m)
    return torch.stack(torch.unravel_index(row, shape)) if shape else row.new_empty(0, len(row))


def _coo(code: SparseCode) -> Tensor:
    """A code as a coalesced ``torch.sparse_coo`` tensor [..., p], differentiable in its values."""
    *shape, m = code.values.shape
    rows = _rows(torch.Size(shape), m, code.values.device)
    return torch.sparse_coo_tensor(
        torch.cat([rows, code.indices.reshape(1, -1)]),
        code.values.reshape(-1),
        (*shape, code.size),
        is_coalesced=True,  # indices ascend in a row
        check_invariants=False,
    )


def _code_of(acts: Tensor) -> SparseCode | None:
    """The code in a sparse tensor as of :func:`_coo`; None of any other tensor."""
    if not acts.is_sparse or not acts.is_coalesced():
        return None
    indices, values, shape = acts.indices(), acts.values(), acts.shape[:-1]
    m, left = divmod(len(values), max(shape.numel(), 1))
    if left or not torch.equal(indices[:-1], _rows(shape, m, acts.device)):
        return None
    return SparseCode(values.view(*shape, m), indices[-1].view(*shape, m), acts.shape[-1])


def _one_stage(x: Tensor, W: Tensor, bias: Tensor, m: int, positive: bool) -> SparseCode:
    return encode_top_m(x, W, None, m, num_stages=1, bias=bias, positive=positive)


def _largest(x: Tensor, W: Tensor, bias: Tensor, m: int, positive: bool) -> SparseCode:
    """The m largest pre-activations of each row: by magnitude, or, if ``positive``, by value, and
    then without the ReLU behind them, which SAELens leaves out for dead units."""
    if not positive:
        return _one_stage(x, W, bias, m, False)
    # All of them are above -bound, so that none is lost at 0; rounding is that of the bound.
    with torch.no_grad():
        bound = 1.01 * (x.norm(dim=-1).max() * W.norm(dim=-1).max() + bias.abs().max())
    code = _one_stage(x, W, bias + bound, m, True)
    return SparseCode(code.values - bound, code.indices, code.size)
