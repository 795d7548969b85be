"""Files between SAELens's objects and ours, both ways, of every architecture it has."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from safetensors.torch import load_file
from torch import Tensor

import deepl0_kernels as dk
from deepl0_kernels import sae
from python_tests.sae.client.runs import INFERENCE, PAIRS

pytestmark = pytest.mark.saelens

N, P, K = 24, 80, 6
READ = ("standard", "topk", "abstopk", "jumprelu")
BATCH = ("batchtopk", "matryoshka_batchtopk")  # trainings alone
FORMS = [
    {},
    dict(apply_b_dec_to_input=False),
    dict(normalize_activations="layer_norm"),
    dict(normalize_activations="constant_norm_rescale", apply_b_dec_to_input=False),
    dict(reshape_activations="hook_z"),
    dict(rescale_acts_by_decoder_norm=True),
    dict(rescale_acts_by_decoder_norm=False),
    dict(dtype="float64"),
]


def cases(registry, architectures):
    """Architectures and the options that they have."""
    found = []
    for architecture in architectures:
        names = {f.name for f in dataclasses.fields(registry[architecture][1])}
        found += [(architecture, options) for options in FORMS if options.keys() <= names]
    return found


def theirs(registry, architecture, **options):
    """An object of SAELens with weights at random."""
    cls, config = registry[architecture]
    names = {f.name for f in dataclasses.fields(config)}
    given = {"k": K, "matryoshka_widths": [20, P], "d_out": N}
    if architecture.endswith("transcoder"):
        options["apply_b_dec_to_input"] = False
    own = {key: value for key, value in given.items() if key in names}
    sae = cls(config(d_in=N, d_sae=P, **own, **options))
    generator = torch.Generator().manual_seed(3)
    for name, tensor in sae.state_dict().items():
        scale = {"W_enc": N**-0.5, "W_dec": 1.0, "topk_threshold": 0.0}.get(name, 0.3)
        tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
        if name == "topk_threshold":
            tensor.fill_(1.2)
        if name == "threshold" and registry is SAE_TRAINING_CLASS_REGISTRY:
            tensor.abs_()  # as its steps make them
    return sae.eval()


def vectors(like) -> Tensor:
    x = torch.randn(50, N, generator=torch.Generator().manual_seed(9)).to(like.dtype)
    return x.view(50, 4, N // 4) if like.hook_z_reshaping_mode else x


def same(model, other, x):
    """Codes and reconstructions of one of ours and of one of SAELens, supports exactly."""
    with torch.no_grad():
        code, expected = model.encode(x), other.encode(x)
        dense = code.to_dense() if isinstance(code, dk.SparseCode) else code
        assert torch.equal(dense != 0, expected != 0)
        assert (expected != 0).any()
        torch.testing.assert_close(dense, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(x), other(x), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("architecture", "options"), cases(SAE_CLASS_REGISTRY, READ))
def test_inference_files(architecture, options, tmp_path):
    original = theirs(SAE_CLASS_REGISTRY, architecture, **options)
    original.cfg.metadata.hook_name = "blocks.3.attn.hook_z"
    original.save_model(tmp_path / "theirs")
    model, x = sae.load(tmp_path / "theirs"), vectors(original)
    same(model, original, x)
    sae.save(model, tmp_path / "ours")
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    back = SAE.load_from_disk(tmp_path / "ours")
    assert back.cfg == original.cfg
    same(model, back, x)


@pytest.mark.parametrize(
    ("architecture", "options"), cases(SAE_TRAINING_CLASS_REGISTRY, [*READ, *BATCH])
)
def test_training_files(architecture, options, tmp_path):
    """Checkpoints, and what a training leaves; of selections over a batch, the JumpReLU that
    SAELens makes of them is what both stand for."""
    original = theirs(SAE_TRAINING_CLASS_REGISTRY, architecture, **options)
    original.save_model(tmp_path / "checkpoint")
    original.save_inference_model(tmp_path / "final")
    final = SAE.load_from_disk(tmp_path / "final")
    x = vectors(final)
    same(sae.load(tmp_path / "final"), final, x)
    checkpoint = sae.load(tmp_path / "checkpoint")
    if architecture in BATCH:
        same(checkpoint, final, x)
    elif checkpoint.flatten_heads:  # which a training leaves to its store of activations
        torch.testing.assert_close(checkpoint(x), final(x), rtol=1e-5, atol=2e-5)
    else:
        same(checkpoint, TrainingSAE.load_from_disk(tmp_path / "checkpoint"), vectors(original))
    for name in ("checkpoint", "final"):
        sae.save(sae.load(tmp_path / name), tmp_path / "again" / name)
        back = SAE.load_from_disk(tmp_path / "again" / name)
        torch.testing.assert_close(back(vectors(back)), final(x), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("registry", [SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY])
def test_other_architectures_are_refused_by_name(registry, tmp_path):
    ours = {f"deepl0_{kind}" for kind in PAIRS}
    others = registry.keys() - {*READ, *BATCH} - ours - {"temporal"}  # which needs more to be made
    assert "matching_pursuit" in others
    for architecture in others:
        theirs(registry, architecture).save_model(tmp_path / architecture)
        with pytest.raises(ValueError, match=rf"architecture must be.*{architecture}"):
            sae.load(tmp_path / architecture)


def test_statistics_that_no_file_holds_are_refused(tmp_path):
    for normalize in ("expected_average_only_in", "covariance_whitening"):
        original = theirs(SAE_CLASS_REGISTRY, "topk", normalize_activations=normalize)
        original.save_model(tmp_path)
        with pytest.raises(ValueError, match=normalize):
            sae.load(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        dict(m=K),
        dict(m=K, positive=False, scale_by_norms=True, apply_b_dec_to_input=False),
        dict(m=K, normalize="layer_norm"),
        dict(m=K, positive=False, normalize="constant_norm_rescale"),
        dict(m=P),
        dict(selection="threshold", theta=0.3),
        dict(selection="relu", flatten_heads=True),
    ],
)
def test_saelens_reads_what_was_made_here(options, tmp_path):
    model = sae.SparseAutoencoder(N, P, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    sae.save(model.eval(), tmp_path)
    back = SAE.load_from_disk(tmp_path)
    same(model, back, vectors(back))


@pytest.mark.parametrize("kind", INFERENCE)
@pytest.mark.parametrize("options", FORMS)
def test_our_classes_write_what_theirs_do(kind, options, tmp_path):
    original = theirs(SAE_CLASS_REGISTRY, kind, **options)
    original.save_model(tmp_path / "theirs")
    mine = INFERENCE[kind][1].load_from_disk(tmp_path / "theirs")
    assert type(mine) is INFERENCE[kind][1]
    same(mine, original, x := vectors(original))
    mine.save_model(tmp_path / "ours")
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    same(SAE.load_from_disk(tmp_path / "ours"), original, x)
    # By name, from a dict, as SAELens makes them.
    named = SAE.from_dict(original.cfg.to_dict() | {"architecture": f"deepl0_{kind}"})
    assert type(named) is INFERENCE[kind][1]


@pytest.mark.parametrize("kind", PAIRS)
def test_our_training_classes_write_what_theirs_do(kind, tmp_path):
    original = theirs(SAE_TRAINING_CLASS_REGISTRY, kind)
    original.save_model(tmp_path / "theirs")
    mine = PAIRS[kind][1][0].load_from_disk(tmp_path / "theirs")
    assert not mine.cfg.use_sparse_activations  # the file says so
    for way in ("save_model", "save_inference_model"):
        for name, one in (("theirs", original), ("ours", mine)):
            getattr(one, way)(tmp_path / name)
        read = [load_file(tmp_path / n / "sae_weights.safetensors") for n in ("theirs", "ours")]
        assert read[0].keys() == read[1].keys()
        for key, tensor in read[0].items():
            assert torch.equal(read[1][key], tensor)
        cfgs = [json.loads((tmp_path / n / "cfg.json").read_text()) for n in ("theirs", "ours")]
        assert cfgs[1]["metadata"].pop("training_architecture") == f"deepl0_{kind}"
        assert cfgs[0]["metadata"].pop("training_architecture") == kind
        assert cfgs[0] == cfgs[1]


@pytest.mark.parametrize("kind", INFERENCE)
def test_our_classes_refuse_other_architectures(kind, tmp_path):
    theirs(SAE_CLASS_REGISTRY, "jumprelu").save_model(tmp_path)
    for cls in (INFERENCE[kind][1], PAIRS[kind][1][0]):
        with pytest.raises(ValueError, match=r"architecture must be.*jumprelu"):
            cls.load_from_disk(tmp_path)


def test_the_norms_fold_into_the_same_function():
    original = theirs(SAE_CLASS_REGISTRY, "topk", rescale_acts_by_decoder_norm=True)
    mine = INFERENCE["topk"][1].from_dict(original.cfg.to_dict())
    mine.load_state_dict(original.state_dict())
    assert mine.W_enc.t().is_contiguous()
    for one in (mine, original):
        one.fold_W_dec_norm()
    same(mine, original, vectors(original))
