"""Encoder layers: thin modules over the operators."""

from .baseline import BaselineEncoder
from .encoders import LISTA, DeepL0Encoder, DeepMSparseEncoder
from .heads import ClusterHead
from .schedules import SigmaSchedule

__all__ = [
    "LISTA",
    "BaselineEncoder",
    "ClusterHead",
    "DeepL0Encoder",
    "DeepMSparseEncoder",
    "SigmaSchedule",
]
