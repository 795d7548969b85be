"""The iterative methods that the encoders unroll, and dictionary learning. Batched over signals."""

from .dictionary import DictionaryLearner, DictionaryResult, learn_dictionary
from .fista import fista
from .graph import eigengap, graph_laplacian, graph_sparse_code, knn_affinity
from .iht import iht, iht_m
from .omp import omp
from .polish import polish
from .pursuit import cosamp, htp
from .result import SolverResult
from .stability import support_margin
from .step import squared_norm
from .task_driven import TaskDrivenDictionary, elastic_net
from .weights import analytic_weights

__all__ = [
    "DictionaryLearner",
    "DictionaryResult",
    "SolverResult",
    "TaskDrivenDictionary",
    "analytic_weights",
    "cosamp",
    "eigengap",
    "elastic_net",
    "fista",
    "graph_laplacian",
    "graph_sparse_code",
    "htp",
    "iht",
    "iht_m",
    "knn_affinity",
    "learn_dictionary",
    "omp",
    "polish",
    "squared_norm",
    "support_margin",
]
