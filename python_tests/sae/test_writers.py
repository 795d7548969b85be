"""What is written: read again, and byte for byte what the projects write."""

from __future__ import annotations

import json
import os
import stat

import pytest
import torch

pytest.importorskip("safetensors")

from safetensors.torch import load_file

from deepl0_kernels import sae
from python_tests.sae import forwards, samples
from python_tests.sae.samples import N, P, numbers
from python_tests.sae.test_readers import OLD, SAELENS, state_of

X = numbers(30, N, seed=9)


def weights(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def equal(model, other):
    assert model.options() == other.options()
    assert model.metadata == other.metadata
    own, theirs = weights(model), weights(other)
    assert own.keys() == theirs.keys()
    for name, tensor in own.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize(("architecture", "more"), SAELENS)
def test_saelens_files_come_back_byte_for_byte(tmp_path, architecture, more):
    cfg, state = samples.saelens_cfg(architecture, **more), state_of(architecture)
    first = samples.write_saelens(tmp_path / "first", cfg, state)
    sae.save(sae.load(first), tmp_path / "second")
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "second" / name).read_bytes() == (first / name).read_bytes()


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_saelens_files_of_other_dtypes(tmp_path, dtype):
    state = samples.saelens_state(threshold=numbers(P, seed=5).abs())
    state = {key: tensor.to(getattr(torch, dtype)) for key, tensor in state.items()}
    cfg = samples.saelens_cfg("jumprelu", dtype=dtype, reshape_activations="hook_z")
    first = samples.write_saelens(tmp_path / "first", cfg, state)
    sae.save(sae.load(first), tmp_path / "second")
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "second" / name).read_bytes() == (first / name).read_bytes()


def test_thresholds_of_0_stay_thresholds(tmp_path):
    state = samples.saelens_state(threshold=torch.zeros(P))
    first = samples.write_saelens(tmp_path / "1", samples.saelens_cfg("jumprelu"), state)
    sae.save(sae.load(first), tmp_path / "2")
    assert "threshold" in load_file(tmp_path / "2" / "sae_weights.safetensors")


def test_saelens_takes_what_is_written_for_version_6(tmp_path):
    """handle_config_defaulting takes files without such a version for older ones."""
    sae.save(sae.SparseAutoencoder(N, P, m=4), tmp_path / "own")
    old = samples.write_saelens(tmp_path / "old", OLD, samples.saelens_state())
    sae.save(sae.load(old), tmp_path / "new")
    for folder, known in (("own", {}), ("new", {"model_name": "gpt2-small"})):
        cfg = json.loads((tmp_path / folder / "cfg.json").read_text())
        assert int(cfg["metadata"]["sae_lens_version"].split(".")[0]) >= 6
        assert cfg["metadata"].items() >= known.items()
        # The fields of its configuration classes, and no other.
        own = ["k", "rescale_acts_by_decoder_norm"] if cfg["architecture"] == "topk" else []
        assert list(cfg) == [
            "d_in",
            "d_sae",
            "dtype",
            "device",
            "apply_b_dec_to_input",
            "normalize_activations",
            "reshape_activations",
            "metadata",
            *own,
            "architecture",
        ]


def test_what_is_read_from_others_is_written_for_saelens(tmp_path):
    """Through their forward: a sparsify SAE and an OpenAI SAE computed by SAELens's."""
    samples.write_sparsify(tmp_path / "a", samples.sparsify_cfg(), samples.sparsify_state())
    torch.save(samples.openai_state("TopK"), tmp_path / "b.pt")
    for path in (tmp_path / "a", tmp_path / "b.pt"):
        model = sae.load(path)
        sae.save(model, tmp_path / "out")
        cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
        state = load_file(tmp_path / "out" / "sae_weights.safetensors")
        with torch.no_grad():
            torch.testing.assert_close(model(X), forwards.saelens(cfg, state, X)[1])


@pytest.mark.parametrize("more", [{}, dict(signed=True)])
def test_sparsify(tmp_path, more):
    cfg, state = samples.sparsify_cfg(**more), samples.sparsify_state()
    first = samples.write_sparsify(tmp_path / "first", cfg, state)
    sae.save(sae.load(first), tmp_path / "second", format="sparsify")
    second = tmp_path / "second"
    assert json.loads((second / "cfg.json").read_text()) == cfg
    assert load_file(second / "sae.safetensors").keys() == state.keys()
    for key, tensor in load_file(second / "sae.safetensors").items():
        assert torch.equal(tensor, state[key])
    equal(sae.load(first), sae.load(second))


@pytest.mark.parametrize(
    "options",
    [
        dict(m=4),
        dict(m=[6, 4, 3], num_stages=3, positive=False, apply_b_dec_to_input=False),
        dict(m=4, scale_by_norms=True, normalize="layer_norm", flatten_heads=True),
        dict(selection="threshold", theta=0.3, sigma=0.1, num_stages=2),
        dict(selection="relu", normalize="constant_norm_rescale"),
    ],
)
def test_our_own_format_holds_every_form(tmp_path, options):
    model = sae.SparseAutoencoder(N, P, **options)
    model.metadata = {"model_name": "none", "layers": [1, 2]}
    path = tmp_path / "new" / "model.safetensors"
    sae.save(model, path, format="deepl0")
    back = sae.load(path)
    assert back.source == f"deepl0: {path}"
    equal(model, back)


@pytest.mark.parametrize(
    ("options", "format", "message"),
    [
        (dict(m=4, num_stages=2), "saelens", "saelens has one stage, got num_stages = 2"),
        (dict(m=4, num_stages=2), "sparsify", "sparsify has num_stages = 1, got 2"),
        (dict(selection="relu"), "sparsify", "sparsify has selection = 'top_m', got 'relu'"),
        (dict(m=4, normalize="layer_norm"), "sparsify", "sparsify has normalize = 'none'"),
        (dict(m=4, scale_by_norms=True), "sparsify", "sparsify has scale_by_norms = False"),
        (dict(m=4, apply_b_dec_to_input=False), "sparsify", "apply_b_dec_to_input = True"),
        (dict(m=4), "openai", r"format must be one of \('saelens', 'sparsify', 'deepl0'\)"),
        (dict(m=4), "nothing", "format must be one of"),
    ],
)
def test_what_a_format_has_no_place_for_is_refused(tmp_path, options, format, message):
    model = sae.SparseAutoencoder(N, P, **options)
    with pytest.raises(ValueError, match=message):
        sae.save(model, tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


def test_only_autoencoders_are_written(tmp_path):
    with pytest.raises(TypeError, match="sae must be a SparseAutoencoder, got Linear"):
        sae.save(torch.nn.Linear(2, 2), tmp_path)


@pytest.mark.parametrize("format", ["saelens", "sparsify"])
def test_interrupted_writing_leaves_nothing_that_could_be_misread(tmp_path, format, monkeypatch):
    """New weights never stand beside another autoencoder's cfg.json."""
    sae.save(sae.SparseAutoencoder(N, P, m=4), tmp_path, format=format)
    replace, calls = os.replace, []

    def broken(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("no space left")
        replace(source, target)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no space left"):
        sae.save(sae.SparseAutoencoder(N, P, m=5), tmp_path, format=format)
    assert len(calls) == 2
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="no known format"):
        sae.load(tmp_path)


def test_metadata_that_json_cannot_hold_fails_before_anything_is_written(tmp_path):
    model = sae.SparseAutoencoder(N, P, m=4)
    sae.save(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model.metadata = {"x": object()}
    with pytest.raises(TypeError, match="object is not JSON serializable"):
        sae.save(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_have_ordinary_modes(tmp_path):
    umask = os.umask(0)
    os.umask(umask)
    sae.save(sae.SparseAutoencoder(N, P, m=4), tmp_path)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
