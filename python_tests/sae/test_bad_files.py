"""Nothing is mis-read in silence: each refusal names file, entry and value."""

from __future__ import annotations

import json
import os
import pickle
import re

import numpy as np
import pytest
import torch

pytest.importorskip("safetensors")

from deepl0_kernels import sae
from python_tests.sae import samples
from python_tests.sae.samples import K, N, P, numbers
from python_tests.sae.test_readers import OLD

MISSING = object()


def refused(path, *parts, format=None, error=ValueError):
    with pytest.raises(error) as caught:
        sae.load(path, format)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def changed(cfg, more):
    return {k: v for k, v in (cfg | more).items() if v is not MISSING}


@pytest.mark.parametrize(
    ("architecture", "more", "parts"),
    [
        ("gated", {}, ["architecture", "'gated'", "two encoders"]),
        ("matching_pursuit", {}, ["architecture", "'matching_pursuit'", "omp"]),
        ("temporal", {}, ["architecture", "'temporal'"]),
        ("jumprelu_transcoder", dict(d_out=N), ["architecture", "'jumprelu_transcoder'"]),
        ("topk", dict(architecture=MISSING), ["architecture is missing"]),
        ("topk", dict(architecture=["topk"]), ["architecture", "['topk']"]),
        ("topk", dict(normalize_activations="expected_average_only_in"), ["expected_average"]),
        ("topk", dict(normalize_activations="covariance_whitening"), ["covariance_whitening"]),
        ("topk", dict(normalize_activations="other"), ["normalize_activations", "'other'"]),
        ("topk", dict(reshape_activations="hook_q"), ["reshape_activations", "'hook_q'"]),
        ("topk", dict(apply_b_dec_to_input="yes"), ["apply_b_dec_to_input", "'yes'"]),
        ("topk", dict(apply_b_dec_to_input=1), ["apply_b_dec_to_input", "got 1"]),
        ("topk", dict(k=P + 1), [f"k must be at most the code size {P}, got {P + 1}"]),
        ("topk", dict(k=0), ["k must be an integer >= 1, got 0"]),
        ("topk", dict(k=2.5), ["k must be an integer", "2.5"]),
        ("topk", dict(k=True), ["k must be an integer", "True"]),
        ("topk", dict(k=MISSING), ["k is missing"]),
        ("topk", dict(d_in=N + 1), ["W_enc must have shape"]),
        ("topk", dict(d_sae=0), ["d_sae must be an integer >= 1, got 0"]),
        ("topk", dict(d_sae="40"), ["d_sae must be an integer", "'40'"]),
        ("topk", dict(dtype="int8"), ["dtype", "'int8'"]),
        ("topk", dict(dtype=32), ["dtype", "32"]),
        ("topk", dict(metadata=[]), ["metadata", "[]"]),
        ("topk", dict(metadata={"sae_lens_version": "new"}), ["sae_lens_version", "'new'"]),
        ("topk", dict(finetuning_scaling_factor=True), ["finetuning_scaling_factor"]),
        ("topk", dict(a_new_option=3), ["unknown entries", "a_new_option", "3"]),
        ("topk", dict(rescale_acts_by_decoder_norm=None), ["rescale_acts_by_decoder_norm"]),
        ("standard", dict(rescale_acts_by_decoder_norm=True), ["rescale_acts_by_decoder_norm"]),
        ("jumprelu", dict(rescale_acts_by_decoder_norm=True), ["rescale_acts_by_decoder_norm"]),
    ],
)
def test_saelens_cfg(tmp_path, architecture, more, parts):
    own = {"threshold": numbers(P, seed=5).abs()} if "jumprelu" in architecture else {}
    cfg = changed(samples.saelens_cfg(architecture), more)
    samples.write_saelens(tmp_path, cfg, samples.saelens_state(**own))
    refused(tmp_path, str(tmp_path / "cfg.json") if "W_enc" not in parts[0] else "", *parts)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (dict(activation_fn_str="tanh-relu"), ["activation_fn", "'tanh-relu'"]),
        (dict(activation_fn_str="topk"), ["k is missing"]),
        (
            dict(activation_fn_str="topk", activation_fn_kwargs={"k": 4, "signed": True}),
            ["signed = True"],
        ),
        (
            dict(activation_fn_str="topk", activation_fn_kwargs={"k": 4, "alpha": 2}),
            ["unknown entries", "alpha"],
        ),
        (
            dict(architecture="jumprelu", activation_fn="topk", activation_fn_kwargs={"k": 4}),
            ["activation_fn", "'topk'"],
        ),
        (dict(normalize_activations=True), ["expected_average_only_in"]),
        (dict(normalize_activations="expected_average_only_in"), ["expected_average_only_in"]),
        (dict(finetuning_scaling_factor=True), ["finetuning_scaling_factor = True"]),
        (dict(architecture="gated"), ["'gated'"]),
        (dict(dtype=MISSING), ["dtype is missing"]),
        (dict(sae_lens_version=["5"]), ["sae_lens_version"]),
    ],
)
def test_saelens_cfg_before_version_6(tmp_path, more, parts):
    samples.write_saelens(tmp_path, changed(OLD, more), samples.saelens_state())
    refused(tmp_path, str(tmp_path / "cfg.json"), *parts)


def with_nan(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[5] = torch.nan
    return tensor


@pytest.mark.parametrize(
    ("architecture", "more", "parts"),
    [
        ("topk", dict(W_enc=MISSING), ["W_enc is missing"]),
        ("topk", dict(b_dec=MISSING), ["b_dec is missing"]),
        ("jumprelu", {}, ["threshold is missing"]),
        ("topk", dict(threshold=torch.ones(P)), ["unknown entries ['threshold']"]),
        ("standard", dict(W_skip=torch.ones(N, N)), ["unknown entries ['W_skip']"]),
        ("topk", dict(W_enc=numbers(P, N)), ["W_enc must have shape", f"[{P}, {N}]"]),
        ("topk", dict(W_dec=numbers(P, N + 1)), ["W_dec must have shape", f"[{P}, {N + 1}]"]),
        ("topk", dict(b_enc=numbers(P, 1)), ["b_enc must have shape", f"[{P}, 1]"]),
        ("topk", dict(b_dec=with_nan(numbers(N))), ["b_dec must be finite", "nan at 5"]),
        ("topk", dict(W_dec=torch.full((P, N), torch.inf)), ["W_dec must be finite", "inf at 0"]),
        ("topk", dict(b_dec=torch.ones(N, dtype=torch.int32)), ["b_dec", "int32"]),
        ("jumprelu", dict(threshold=torch.full((P,), -1.0)), ["threshold is -1"]),
        ("jumprelu", dict(threshold=torch.tensor(0.5)), ["threshold must have shape"]),
        ("jumprelu", dict(threshold=with_nan(numbers(P))), ["threshold must be finite"]),
        ("batchtopk", {}, ["topk_threshold is missing"]),
        ("batchtopk", dict(topk_threshold=torch.tensor(-1.0)), ["topk_threshold", "-1.0"]),
        ("batchtopk", dict(topk_threshold=torch.tensor(0.0)), ["topk_threshold", "got 0"]),
        ("batchtopk", dict(topk_threshold=torch.tensor(torch.nan)), ["topk_threshold", "nan"]),
        ("batchtopk", dict(topk_threshold=torch.ones(2)), ["topk_threshold", "one entry"]),
        ("standard", dict(scaling_factor=torch.full((P,), 2.0)), ["scaling_factor", "2.0"]),
        ("topk", dict(finetuning_scaling_factor=torch.zeros(P)), ["finetuning_scaling_factor"]),
    ],
)
def test_saelens_weights(tmp_path, architecture, more, parts):
    state = changed(samples.saelens_state(), more)
    samples.write_saelens(tmp_path, samples.saelens_cfg(architecture), state)
    refused(tmp_path, str(tmp_path / "sae_weights.safetensors"), *parts)


def test_weights_that_overflow_the_dtype_of_cfg(tmp_path):
    state = samples.saelens_state(b_enc=torch.full((P,), 1e6))
    samples.write_saelens(tmp_path, samples.saelens_cfg("topk", dtype="float16"), state)
    refused(tmp_path, "b_enc must be finite as torch.float16, from torch.float32, got inf")


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (dict(activation="groupmax"), ["activation", "'groupmax'"]),
        (dict(transcode=True), ["transcode = True"]),
        (dict(skip_connection=True), ["skip_connection = True"]),
        (dict(k=P + 1), ["k must be at most", f"{P + 1}"]),
        (dict(k=MISSING), ["k is missing"]),
        (dict(d_in=MISSING), ["d_in is missing"]),
        (dict(signed="no"), ["signed", "'no'"]),
        (dict(num_latents=-1), ["num_latents", "-1"]),
        (dict(new=1), ["unknown entries", "new"]),
    ],
)
def test_sparsify_cfg(tmp_path, more, parts):
    cfg = changed(samples.sparsify_cfg(), more)
    samples.write_sparsify(tmp_path, cfg, samples.sparsify_state())
    refused(tmp_path, str(tmp_path / "cfg.json"), *parts)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (dict(W_dec=MISSING), ["W_dec is missing"]),
        (dict(W_skip=torch.zeros(N, N)), ["unknown entries ['W_skip']"]),
        (dict(W_dec=numbers(N, P)), ["W_dec must have shape"]),
        (dict(b_dec=numbers(N).half()), ["b_dec must be torch.float32", "float16"]),
    ],
)
def test_sparsify_weights(tmp_path, more, parts):
    state = changed(samples.sparsify_state(), more)
    samples.write_sparsify(tmp_path, samples.sparsify_cfg(), state)
    refused(tmp_path, str(tmp_path / "sae.safetensors"), *parts)


@pytest.mark.parametrize(
    ("name", "trainer", "weights", "parts"),
    [
        ("GatedAutoEncoder", {}, {}, ["dict_class", "'GatedAutoEncoder'"]),
        ("AutoEncoderTopK", dict(k=K + 1), {}, ["k must be that of ae.pt, 5, got 6"]),
        ("AutoEncoderTopK", {}, dict(k=torch.tensor(P + 1)), ["k must be that of ae.pt, 41"]),
        ("BatchTopKSAE", {}, dict(threshold=torch.tensor(-1.0)), ["threshold", "-1.0", "measured"]),
        ("BatchTopKSAE", {}, dict(threshold=MISSING), ["threshold is missing"]),
        (
            "MatryoshkaBatchTopKSAE",
            {},
            dict(threshold=torch.tensor(-1.0)),
            ["threshold", "-1.0", "measured"],
        ),
        ("MatryoshkaBatchTopKSAE", {}, dict(group_sizes=torch.ones(3)), ["group_sizes"]),
        ("JumpReluAutoEncoder", {}, dict(threshold=torch.full((P,), -1.0)), ["threshold is -1"]),
        ("AutoEncoder", {}, dict(extra=torch.ones(1)), ["unknown entries ['extra']"]),
        ("AutoEncoder", dict(dict_size=P + 1), {}, ["encoder.weight must have shape"]),
        ("AutoEncoder", {}, {"bias": [0.0] * N}, ["bias must be a dense tensor, got list"]),
        ("AutoEncoder", {}, {"bias": torch.zeros(N).to_sparse()}, ["bias must be a dense tensor"]),
    ],
)
def test_dictionary_learning(tmp_path, name, trainer, weights, parts):
    known = name if name != "GatedAutoEncoder" else "AutoEncoder"
    state = changed(samples.dictionary_learning_state(known), weights)
    samples.write_dictionary_learning(tmp_path, name, state, **trainer)
    refused(tmp_path, str(tmp_path), *parts)


def test_dictionary_learning_backup_of_a_training(tmp_path):
    """Its biases belong to activations that were divided by the factor."""
    inner = samples.dictionary_learning_state("AutoEncoder")
    state = {"step": 1, "ae": inner, "optimizer": {}, "config": {}, "norm_factor": 3.5}
    samples.write_dictionary_learning(tmp_path, "AutoEncoder", state)
    refused(tmp_path, "ae.pt", "norm_factor = 3.5")


def test_dictionary_learning_needs_its_config(tmp_path):
    """Else a TopK could not be told from a BatchTopK."""
    samples.write_dictionary_learning(
        tmp_path, "AutoEncoderTopK", samples.dictionary_learning_state("AutoEncoderTopK")
    )
    (tmp_path / "config.json").unlink()
    refused(tmp_path, "no known format", "ae.pt")
    refused(tmp_path, "config.json", "ae.pt", format="dictionary_learning", error=FileNotFoundError)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (dict(threshold=MISSING), ["threshold is missing"]),
        (dict(threshold=-np.ones(P, np.float32)), ["threshold is -1"]),
        (dict(W_dec=np.ones((N, P), np.float32)), ["W_dec must have shape"]),
        (dict(b_enc=np.full(P, np.nan, np.float32)), ["b_enc must be finite"]),
        (dict(b_enc=np.ones(P, np.float64)), ["b_enc must be torch.float32", "float64"]),
        (dict(b_enc=np.ones(P, np.int64)), ["b_enc", "int64"]),
        (dict(w_enc=np.ones((N, P), np.float32)), ["differ in a capital"]),
        (dict(other=np.ones(2)), ["unknown entries ['other']"]),
        (dict(b_enc=np.array([object()] * P)), ["cannot be read"]),
    ],
)
def test_gemma_scope(tmp_path, more, parts):
    state = {key: tensor.numpy() for key, tensor in samples.gemma_state().items()}
    np.savez(tmp_path / "params.npz", **changed(state, more))
    refused(tmp_path, str(tmp_path / "params.npz"), *parts)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (dict(activation="Identity"), ["activation", "'Identity'"]),
        (dict(activation="JumpReLU"), ["activation", "'JumpReLU'"]),
        (dict(activation_state_dict={"k": P + 1, "postact_fn": "ReLU"}), ["k must be at most"]),
        (dict(activation_state_dict={"k": K, "postact_fn": "Identity"}), ["'Identity'"]),
        (dict(activation_state_dict={"k": K}), ["postact_fn is missing"]),
        (dict(activation_state_dict={"k": K, "postact_fn": "ReLU", "x": 1}), ["unknown entries"]),
        (dict(activation_state_dict=3), ["activation_state_dict", "3"]),
        (dict(activation="ReLU"), ["activation_state_dict must be empty"]),
        ({"pre_bias": MISSING}, ["pre_bias is missing"]),
        ({"decoder.weight": MISSING}, ["decoder.weight is missing"]),
        (
            {"decoder.weight": MISSING, "decoder.linear.weight": numbers(P, N, seed=8)},
            ["decoder.linear.weight must equal encoder.weight"],
        ),
        ({"decoder.bias": torch.zeros(N)}, ["unknown entries ['decoder.bias']"]),
    ],
)
def test_openai(tmp_path, more, parts):
    path = tmp_path / "7.pt"
    torch.save(changed(samples.openai_state("TopK"), more), path)
    refused(path, str(path), *parts)


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL"],)


def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL", str(tmp_path / "executed"))
    path = tmp_path / "7.pt"
    torch.save({**samples.openai_state("ReLU"), "more": Evil()}, path)
    refused(path, str(path), "cannot be read")
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    refused(path, str(path), "cannot be read")
    folder = tmp_path / "folder"
    samples.write_dictionary_learning(folder, "AutoEncoder", {"bias": Evil()})
    refused(folder, "ae.pt", "cannot be read")
    np.savez(tmp_path / "params.npz", W_enc=np.array([Evil()], dtype=object))
    refused(tmp_path / "params.npz", "params.npz", "cannot be read")
    assert not (tmp_path / "executed").exists()


FOLDERS = {
    "saelens": lambda path: samples.write_saelens(
        path, samples.saelens_cfg("topk"), samples.saelens_state()
    ),
    "sparsify": lambda path: samples.write_sparsify(
        path, samples.sparsify_cfg(), samples.sparsify_state()
    ),
    "dictionary_learning": lambda path: samples.write_dictionary_learning(
        path, "AutoEncoder", samples.dictionary_learning_state("AutoEncoder")
    ),
    "gemma_scope": lambda path: np.savez(
        path / "params.npz", **{k: t.numpy() for k, t in samples.gemma_state().items()}
    ),
    "openai": lambda path: torch.save(samples.openai_state("TopK"), path / "7.pt"),
    "deepl0": lambda path: sae.save(
        sae.SparseAutoencoder(N, P, m=4), path / "a.safetensors", format="deepl0"
    ),
}


@pytest.mark.parametrize("format", FOLDERS)
@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty"])
def test_damaged_files(tmp_path, format, damage):
    FOLDERS[format](tmp_path)
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    alone = format in ("openai", "deepl0")
    for path, data in whole.items():
        cut = {"truncated": data[: len(data) // 2], "foreign": b"<html>404</html>", "empty": b""}
        path.write_bytes(cut[damage])
        refused(path if alone else tmp_path, str(path))
        path.write_bytes(data)


def test_json_that_is_none_of_an_object(tmp_path):
    FOLDERS["saelens"](tmp_path)
    for text in (b"[]", b"3", b"\xff\xfe", b"[" * 10**5):
        (tmp_path / "cfg.json").write_bytes(text)
        refused(tmp_path, str(tmp_path / "cfg.json"), "JSON")


def test_several_formats_are_not_guessed_between(tmp_path):
    FOLDERS["saelens"](tmp_path)
    samples.write_dictionary_learning(
        tmp_path, "AutoEncoder", samples.dictionary_learning_state("AutoEncoder")
    )
    refused(tmp_path, "holds files of ['saelens', 'dictionary_learning']", "format=")
    assert sae.load(tmp_path, "saelens").selection == "top_m"
    assert sae.load(tmp_path, "dictionary_learning").selection == "relu"


def test_paths(tmp_path):
    refused(tmp_path / "none", "does not exist", error=FileNotFoundError)
    refused(tmp_path, "no known format", "saelens: cfg.json and sae_weights.safetensors")
    refused(tmp_path, "format must be one of", "'pickle'", format="pickle")
    for format in FOLDERS:
        refused(tmp_path, format, format=format, error=FileNotFoundError)
    (tmp_path / "a.bin").write_bytes(b"x")
    refused(tmp_path / "a.bin", "no known format", "a.bin")


def test_one_format_is_not_read_as_another(tmp_path):
    """The format that is said, over files of another one."""
    torch.save(samples.openai_state("TopK"), tmp_path / "7.pt")
    refused(tmp_path / "7.pt", "cannot be read as safetensors", format="deepl0")
    refused(tmp_path / "7.pt", "cannot be read", format="gemma_scope")
    FOLDERS["saelens"](tmp_path / "a")
    weights = tmp_path / "a" / "sae_weights.safetensors"
    refused(weights, "holds no autoencoder of deepl0_kernels.sae", format="deepl0")
    refused(weights, "cannot be read", format="openai")


def test_own_file_with_other_contents(tmp_path):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "a.safetensors"
    FOLDERS["deepl0"](tmp_path)
    state = load_file(path)
    good = {
        "format": "deepl0_kernels.sae",
        "version": "0",
        "options": json.dumps(dict(m=4)),
        "metadata": "{}",
    }
    for header, part in (
        (good | {"options": json.dumps(dict(m=P + 1))}, "m must be >= 1"),
        (good | {"options": json.dumps(dict(m=4, other=1))}, "other"),
        (good | {"options": "m=4"}, "JSON (options)"),
        (good | {"options": "[4]"}, "options must be a JSON object"),
        (good | {"more": "1"}, "unknown entries"),
        (good | {"options": json.dumps(dict(selection="threshold"))}, "theta must be given"),
    ):
        save_file(state, path, metadata=header)
        refused(path, str(path), part)
    save_file(state, path, metadata=good)
    assert re.search("m=4", repr(sae.load(path)))
