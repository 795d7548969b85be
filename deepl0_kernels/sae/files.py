"""Loading and saving autoencoders, by format."""

from __future__ import annotations

import logging
from os import PathLike
from pathlib import Path

from .._isolation import isolated
from ..ops import checks
from .formats import FORMATS, Format
from .model import SparseAutoencoder

_log = logging.getLogger(__name__)


@isolated(grad=True)
def load(path: str | PathLike[str], format: str | None = None) -> SparseAutoencoder:
    """The autoencoder in files of this package or of others. Nothing in them is executed.

    Args:
        path: the file or folder.
        format: "saelens" (cfg.json, sae_weights.safetensors), "sparsify" (cfg.json,
            sae.safetensors), "dictionary_learning" (config.json, ae.pt), "gemma_scope"
            (params.npz), "openai" (a .pt file) or "deepl0" (a .safetensors file of ours); None:
            the one that has these names. ``sae.source`` says which it was.

    Returns:
        :class:`SparseAutoencoder` in evaluation mode, on the CPU, in the dtype of the weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the files are damaged, of no or of several formats, or hold what this package
            would compute otherwise; the message names file, entry and value.

    Formats in safetensors need that package; if it is missing, the error names the extra.

    Example:
        >>> import tempfile
        >>> from deepl0_kernels import sae
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sae.save(sae.SparseAutoencoder(16, 64, m=4), folder, format="saelens")
        ...     model = sae.load(folder)
        >>> model.code_size
        64
    """
    path = checks.path("path", path)
    if format is not None:
        checks.one_of("format", format, tuple(FORMATS))
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    format = _known_by_name(path) if format is None else format
    chosen = FORMATS[format]
    where = chosen.folder(path)
    if where is None and path.is_file() and (chosen.suffix or not chosen.files):
        where = path  # its name may be any where the format is said
    if where is None:
        raise FileNotFoundError(
            f"{path} has no {format} in it: that is {_names(chosen)}; there is {_here(path)}"
        )
    sae = chosen.read(where)
    sae.source = f"{format}: {where}"
    _log.info("read %s as %s", where, format)
    return sae.eval()


def _known_by_name(path: Path) -> str:
    """The format whose names are there; all names of a folder say more than the end of one."""
    found = [name for name, format in FORMATS.items() if format.folder(path)]
    found = found or [name for name, format in FORMATS.items() if format.file(path)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{path} holds files of {found}: say which, with format=")
    known = "; ".join(f"{name}: {_names(format)}" for name, format in FORMATS.items())
    raise ValueError(f"{path} has the names of no known format ({known}); got {_here(path)}")


def _names(format: Format) -> str:
    whole = " and ".join(format.files)
    return " or ".join(filter(None, [whole, format.suffix and f"a file *{format.suffix}"]))


def _here(path: Path) -> list[str]:
    return sorted(child.name for child in path.iterdir())[:20] if path.is_dir() else [path.name]


@isolated(grad=False)
def save(sae: SparseAutoencoder, path: str | PathLike[str], format: str = "saelens") -> None:
    """Write an autoencoder, every file whole or not at all.

    Args:
        sae: what to write.
        path: the folder, of "saelens" and "sparsify", or the file, of "deepl0". What is there is
            replaced.
        format: "saelens", which SAELens 6 loads; "sparsify"; or "deepl0", which holds every form.

    Raises:
        TypeError: sae is not a :class:`SparseAutoencoder`.
        ValueError: the format is not written, or has no place for this form, which is named.

    Example:
        >>> import os, tempfile
        >>> from deepl0_kernels import sae
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sae.save(sae.SparseAutoencoder(16, 64, m=4), folder, format="saelens")
        ...     sorted(os.listdir(folder))
        ['cfg.json', 'sae_weights.safetensors']
    """
    if not isinstance(sae, SparseAutoencoder):
        raise TypeError(f"sae must be a SparseAutoencoder, got {type(sae).__name__}")
    written = tuple(name for name, format in FORMATS.items() if format.write)
    checks.one_of("format", format, written)
    write = FORMATS[format].write
    assert write is not None
    write(sae, checks.path("path", path))
