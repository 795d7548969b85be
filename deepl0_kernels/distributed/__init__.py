"""Dictionaries whose units are spread over ranks, and the ranks that torchrun started.

>>> from deepl0_kernels import distributed, sae
>>> model = sae.SparseAutoencoder(16, 64, m=4)
>>> ranks = distributed.launched()  # under torchrun its processes, here one
>>> if ranks.units is not None:
...     distributed.shard_units(model, ranks.units)

What travels, and when it pays: docs/scale.md.
"""

from __future__ import annotations

from .dataset import encode_dataset as encode_dataset
from .ranks import Ranks, launched
from .sharding import gather_units, shard_units

__all__ = ["Ranks", "gather_units", "launched", "shard_units"]
