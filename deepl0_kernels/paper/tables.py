"""The paper's tables: who computes which."""

from __future__ import annotations

from pathlib import Path

from .classification.study import Classification
from .clustering.study import Clustering
from .codes.study import Codes
from .recovery.study import Recovered
from .study import Study

STUDIES: tuple[Study, ...] = (Codes(), Classification(), Clustering(), Recovered())


def studies_in(folder: Path) -> tuple[Study, ...]:
    """Those that a run holds; of nothing the first, which says what to run."""
    there = [study for study in STUDIES if (folder / f"{study.name}.json").exists()]
    return tuple(there) or STUDIES[:1]
