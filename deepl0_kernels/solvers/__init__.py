"""The iterative methods that the encoders unroll, and dictionary learning. Batched over signals."""

from .dictionary import DictionaryResult, learn_dictionary
from .fista import fista
from .iht import iht, iht_m
from .omp import omp
from .pursuit import cosamp, htp
from .result import SolverResult
from .step import squared_norm
from .task_driven import TaskDrivenDictionary, elastic_net

__all__ = [
    "DictionaryResult",
    "SolverResult",
    "TaskDrivenDictionary",
    "cosamp",
    "elastic_net",
    "fista",
    "htp",
    "iht",
    "iht_m",
    "learn_dictionary",
    "omp",
    "squared_norm",
]
