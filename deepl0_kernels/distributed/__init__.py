"""Dictionaries whose units are spread over ranks, and the ranks that torchrun started.

>>> from deepl0_kernels import distributed  # doctest: +SKIP
>>> ranks = distributed.launched(units=4)  # doctest: +SKIP
>>> distributed.shard_units(model, ranks.mesh["units"])  # doctest: +SKIP

What travels, and when it pays: docs/scale.md.
"""

from __future__ import annotations

from .dataset import encode_dataset
from .ranks import Ranks, launched
from .sharding import gather_units, shard_units

__all__ = ["Ranks", "encode_dataset", "gather_units", "launched", "shard_units"]
