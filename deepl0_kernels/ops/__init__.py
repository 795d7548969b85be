"""Operator floor: schema, fake kernel, derivatives and docstring of every public operator."""

# Register the operators behind the solvers and the optimiser.
from . import fista as fista
from . import flops, registration
from . import iht as iht
from . import least_squares as least_squares
from . import omp as omp
from . import shard as shard
from . import sparse_adam as sparse_adam
from .batch_top_m import batch_top_m
from .decode import decode
from .encode import encode_l0, encode_top_m
from .plan import Plan, prepare
from .refit import refit
from .sparse_code import SparseCode
from .stage import threshold_stage, top_m_stage
from .thresholds import hard_threshold, helu, soft_threshold
from .top_m import keep_top_m, top_m, unpool

flops.register_when_imported()

if floors := registration.installed_floors():
    _gpu_kernels = registration.serve_natively("cuda", floors)

__all__ = [
    "Plan",
    "SparseCode",
    "batch_top_m",
    "decode",
    "encode_l0",
    "encode_top_m",
    "hard_threshold",
    "helu",
    "keep_top_m",
    "prepare",
    "refit",
    "soft_threshold",
    "threshold_stage",
    "top_m",
    "top_m_stage",
    "unpool",
]
