"""Encoder layers: thin modules over the operators."""

from .baseline import BaselineEncoder
from .encoders import DeepL0Encoder, DeepMSparseEncoder
from .heads import ClusterHead
from .htp import DeepHTPEncoder
from .joint import JointSparseClustering
from .schedules import SigmaSchedule
from .soft import LISTA
from .tagnet import TAGNet

__all__ = [
    "LISTA",
    "BaselineEncoder",
    "ClusterHead",
    "DeepHTPEncoder",
    "DeepL0Encoder",
    "DeepMSparseEncoder",
    "JointSparseClustering",
    "SigmaSchedule",
    "TAGNet",
]
