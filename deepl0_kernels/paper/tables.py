"""The paper's tables: who computes which."""

from __future__ import annotations

from .classification.study import Classification
from .clustering.study import Clustering
from .codes.study import Codes
from .study import Study

STUDIES: tuple[Study, ...] = (Codes(), Classification(), Clustering())
