"""Sparse autoencoders over the package's operators: theirs read, ours trained.

>>> import tempfile
>>> from deepl0_kernels import sae
>>> with tempfile.TemporaryDirectory() as folder:
...     sae.save(sae.SparseAutoencoder(384, 512, m=32), folder)  # as SAELens does
...     model = sae.load(folder)

Files in safetensors need ``deepl0-kernels[sae]``.
"""

from __future__ import annotations

from .activations import Activations
from .evaluation import Evaluation, evaluate
from .files import load, save
from .losses import DeadUnits, Losses, fvu, l0
from .model import SparseAutoencoder
from .optimizer import SparseAdam
from .training import fit

__all__ = [
    "Activations",
    "DeadUnits",
    "Evaluation",
    "Losses",
    "SparseAdam",
    "SparseAutoencoder",
    "evaluate",
    "fit",
    "fvu",
    "l0",
    "load",
    "save",
]
