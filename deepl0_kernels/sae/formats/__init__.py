"""The files of others, and one of our own: one module a format, one table of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..model import SparseAutoencoder
from . import dictionary_learning, gemma_scope, openai, own, saelens, sparsify


class Format(NamedTuple):
    """How a format is known, read and written.

    Attributes:
        read: of the folder, or of the file where there is one alone.
        write: to such a path; None: it is not written.
        files: names that a folder of it holds. suffix: how the name of a single file ends.
    """

    read: Callable[[Path], SparseAutoencoder]
    write: Callable[[SparseAutoencoder, Path], None] | None = None
    files: tuple[str, ...] = ()
    suffix: str = ""

    def folder(self, path: Path) -> Path | None:
        """The folder with all its files that ``path`` is, or is one of the files of."""
        if not path.is_dir() and path.name in self.files:
            path = path.parent
        whole = self.files and path.is_dir() and all((path / f).is_file() for f in self.files)
        return path if whole else None

    def file(self, path: Path) -> Path | None:
        """``path`` if its name ends as that of a single file of this format."""
        return path if self.suffix and path.is_file() and path.name.endswith(self.suffix) else None


FORMATS = {
    "saelens": Format(saelens.read, saelens.write, files=(saelens.CFG, saelens.WEIGHTS)),
    "sparsify": Format(sparsify.read, sparsify.write, files=(sparsify.CFG, sparsify.WEIGHTS)),
    "dictionary_learning": Format(
        dictionary_learning.read, files=(dictionary_learning.CFG, dictionary_learning.WEIGHTS)
    ),
    "gemma_scope": Format(gemma_scope.read, files=(gemma_scope.WEIGHTS,), suffix=".npz"),
    "openai": Format(openai.read, suffix=".pt"),
    "deepl0": Format(own.read, own.write, suffix=".safetensors"),
}
