"""Each reader against the forward of its project, written out."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("safetensors")

import deepl0_kernels as dk
from deepl0_kernels import sae
from python_tests.sae import forwards, samples
from python_tests.sae.samples import K, N, P, numbers

X = numbers(60, N, seed=9)


def same(model, x, expected):
    """Codes and reconstructions of ``model`` are the expected ones, supports bit for bit."""
    z, out = expected
    code = model.encode(x)
    dense = code.to_dense() if isinstance(code, dk.SparseCode) else code
    assert torch.equal(dense != 0, z != 0)
    assert (z != 0).any()
    torch.testing.assert_close(dense, z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x), out, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(model.decode(code, like=x), out, rtol=1e-5, atol=1e-4)


SAELENS = [
    ("standard", {}),
    ("topk", {}),
    ("topk", dict(apply_b_dec_to_input=False)),
    ("topk", dict(rescale_acts_by_decoder_norm=True)),
    ("topk", dict(normalize_activations="layer_norm")),
    ("topk", dict(normalize_activations="constant_norm_rescale")),
    ("abstopk", {}),
    ("abstopk", dict(rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=False)),
    ("jumprelu", {}),
    ("jumprelu", dict(apply_b_dec_to_input=False, normalize_activations="layer_norm")),
]


def state_of(architecture):
    if architecture != "jumprelu":
        return samples.saelens_state()
    return samples.saelens_state(threshold=2 * numbers(P, seed=5))  # some are negative


@pytest.mark.parametrize(("architecture", "more"), SAELENS)
def test_saelens(tmp_path, architecture, more):
    cfg, state = samples.saelens_cfg(architecture, **more), state_of(architecture)
    model = sae.load(samples.write_saelens(tmp_path / "a", cfg, state))
    assert not model.training
    assert model.source.startswith("saelens: ")
    assert model.D.t().is_contiguous()
    with torch.no_grad():
        same(model, X, forwards.saelens(cfg, state, X))
        same(model, X.view(3, 20, N), forwards.saelens(cfg, state, X.view(3, 20, N)))


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_saelens_of_heads(tmp_path, architecture):
    cfg = samples.saelens_cfg(architecture, reshape_activations="hook_z")
    state = state_of(architecture)
    model = sae.load(samples.write_saelens(tmp_path, cfg, state))
    x = X.view(60, 3, N // 3)
    with torch.no_grad():
        same(model, x, forwards.saelens(cfg, state, x))
    assert model(x).shape == x.shape
    with pytest.raises(ValueError, match=r"x must have shape \[..., heads, n / heads\]"):
        model(X)


def test_an_entry_that_equals_its_threshold_is_dropped(tmp_path):
    state = {
        "W_enc": torch.eye(2),
        "W_dec": torch.eye(2),
        "b_enc": torch.zeros(2),
        "b_dec": torch.zeros(2),
        "threshold": torch.tensor([1.0, 0.0]),
    }
    cfg = samples.saelens_cfg("jumprelu", d_in=2, d_sae=2)
    model = sae.load(samples.write_saelens(tmp_path, cfg, state))
    above = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)).item()
    x = torch.tensor([[1.0, 0.0], [above, -1.0], [0.5, 1e-30]])
    expected = torch.tensor([[0.0, 0.0], [above, 0.0], [0.0, 1e-30]])
    assert torch.equal(model.encode(x), expected)
    assert torch.equal(forwards.jump_relu(x, state["threshold"]), expected)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_saelens_of_a_training_over_batches(tmp_path, architecture, scaled):
    more = {"matryoshka_widths": [8, P]} if architecture.startswith("matryoshka") else {}
    cfg = samples.saelens_cfg(
        architecture,
        k=float(K),
        rescale_acts_by_decoder_norm=scaled,
        topk_threshold_lr=0.01,
        decoder_init_norm=0.1,
        **more,
    )
    state = samples.saelens_state(topk_threshold=torch.tensor(2.5, dtype=torch.double))
    model = sae.load(samples.write_saelens(tmp_path, cfg, state))
    with torch.no_grad():
        same(model, X, forwards.saelens(*forwards.batch_top_k_for_inference(cfg, state), X))


OLD = dict(
    d_in=N,
    d_sae=P,
    dtype="torch.float32",
    device="cuda",
    hook_point="blocks.3.hook_resid_pre",
    hook_point_layer=3,
    hook_point_head_index=None,
    model_name="gpt2-small",
    context_size=128,
    prepend_bos=True,
    l1_coefficient=0.001,
    lr=4e-4,
    use_ghost_grads=False,
    normalize_activations="none",
    finetuning_scaling_factor=False,
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, samples.saelens_cfg("standard")),
        (
            dict(activation_fn_str="relu", normalize_activations=None),
            samples.saelens_cfg("standard"),
        ),
        (dict(normalize_activations=False), samples.saelens_cfg("standard")),
        (
            dict(activation_fn_str="topk", activation_fn_kwargs={"k": 4}),
            samples.saelens_cfg("topk", k=4),
        ),
        (
            dict(architecture="topk", activation_fn="topk", activation_fn_kwargs={"k": 4}),
            samples.saelens_cfg("topk", k=4),
        ),
        (
            dict(architecture="jumprelu", apply_b_dec_to_input=False, sae_lens_version="5.10.0"),
            samples.saelens_cfg("jumprelu", apply_b_dec_to_input=False),
        ),
        (dict(hook_point="blocks.3.attn.hook_z"), None),
    ],
)
def test_saelens_before_version_6(tmp_path, old, new):
    """As handle_pre_6_0_config turns them into those of version 6."""
    new = new or samples.saelens_cfg("standard", reshape_activations="hook_z")
    state = state_of(new["architecture"])
    model = sae.load(samples.write_saelens(tmp_path, OLD | old, state))
    x = X.view(60, 3, 4) if model.flatten_heads else X
    with torch.no_grad():
        same(model, x, forwards.saelens(new, state, x))
    assert model.metadata["model_name"] == "gpt2-small"
    assert model.metadata["hook_name"].startswith("blocks.3.")


def test_saelens_factors_that_are_1_are_nothing(tmp_path):
    state = samples.saelens_state(scaling_factor=torch.ones(P))
    model = sae.load(samples.write_saelens(tmp_path, OLD, state))
    cfg = samples.saelens_cfg("standard")
    with torch.no_grad():
        same(model, X, forwards.saelens(cfg, state, X))


def test_saelens_weights_are_of_the_dtype_that_cfg_says(tmp_path):
    cfg = samples.saelens_cfg("topk", dtype="bfloat16")
    model = sae.load(samples.write_saelens(tmp_path, cfg, samples.saelens_state()))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(X.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "more",
    [{}, dict(signed=True), dict(num_latents=0, expansion_factor=P // N), dict(multi_topk=True)],
)
def test_sparsify(tmp_path, more):
    cfg, state = samples.sparsify_cfg(**more), samples.sparsify_state()
    if "num_latents" in more:
        p = N * cfg["expansion_factor"]
        state = {k: v[:p].contiguous() if k != "b_dec" else v for k, v in state.items()}
    model = sae.load(samples.write_sparsify(tmp_path, cfg, state))
    assert model.source.startswith("sparsify: ")
    with torch.no_grad():
        same(model, X, forwards.sparsify(cfg, state, X))


DICTIONARIES = [
    "AutoEncoder",
    "AutoEncoderNew",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder",
]


@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionary_learning(tmp_path, name):
    state = samples.dictionary_learning_state(name)
    model = sae.load(samples.write_dictionary_learning(tmp_path, name, state))
    assert model.source.startswith("dictionary_learning: ")
    with torch.no_grad():
        same(model, X, forwards.dictionary_learning(name, state, X))


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("by_file", [False, True])
def test_gemma_scope(tmp_path, small, by_file):
    state = samples.gemma_state()
    arrays = {key.replace("W", "w") if small else key: t.numpy() for key, t in state.items()}
    np.savez(tmp_path / "params.npz", **arrays)
    model = sae.load(tmp_path / "params.npz" if by_file else tmp_path)
    assert model.source.startswith("gemma_scope: ")
    with torch.no_grad():
        same(model, X, forwards.gemma_scope(state, X))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("activation", [None, "ReLU", "TopK"])
def test_openai(tmp_path, activation, tied):
    state = samples.openai_state(activation, tied)
    torch.save(state, tmp_path / "5.pt")
    model = sae.load(tmp_path / "5.pt")
    assert model.source.startswith("openai: ")
    with torch.no_grad():
        same(model, X, forwards.openai(state, X))
    if tied:  # two parameters now, each with a memory of its own
        assert model.W.data_ptr() != model.D.data_ptr()


def test_what_is_named_is_found_from_each_of_its_files(tmp_path):
    folder = samples.write_saelens(tmp_path, samples.saelens_cfg("topk"), samples.saelens_state())
    for path in (folder, folder / "cfg.json", str(folder / "sae_weights.safetensors")):
        assert sae.load(path).source == f"saelens: {folder}"


def test_reading_in_inference_mode_gives_what_can_be_trained(tmp_path):
    folder = samples.write_saelens(tmp_path, samples.saelens_cfg("topk"), samples.saelens_state())
    with torch.inference_mode():
        model = sae.load(folder)
    model.loss(X).loss.backward()
    assert model.D.grad.t().is_contiguous()


def test_without_safetensors_the_extra_is_named(tmp_path):
    """And what needs none is read."""
    torch.save(samples.openai_state("TopK"), tmp_path / "5.pt")
    samples.write_saelens(tmp_path / "a", samples.saelens_cfg("topk"), samples.saelens_state())
    code = f"""
import sys
sys.modules["safetensors"] = sys.modules["safetensors.torch"] = None
from deepl0_kernels import sae
model = sae.load({str(tmp_path / "5.pt")!r})
for call in (lambda: sae.load({str(tmp_path / "a")!r}), lambda: sae.save(model, "nowhere")):
    try:
        call()
    except ModuleNotFoundError as error:
        assert "pip install 'deepl0-kernels[sae]'" in str(error), error
        print("named")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "named\nnamed\n", done.stderr


def test_without_saelens_the_extra_is_named():
    code = """
import sys
sys.modules["sae_lens"] = None
try:
    import deepl0_kernels.sae.saelens
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "needs sae_lens: pip install 'deepl0-kernels[saelens]'" in done.stdout, done.stderr


def test_real_activations(minilm, tmp_path):
    """A slice of a transformer's residual stream through a file and back, against the forward."""
    with np.load(minilm) as file:
        x = torch.from_numpy(file["test"][:256]).float()
    n, p = x.shape[1], 1024
    model = sae.SparseAutoencoder(n, p, m=24, positive=False)
    with torch.no_grad():
        model.b_dec.copy_(x.mean(0))
    sae.save(model, tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    from safetensors.torch import load_file

    state = load_file(tmp_path / "sae_weights.safetensors")
    with torch.no_grad():
        same(sae.load(tmp_path), x, forwards.saelens(cfg, state, x))
