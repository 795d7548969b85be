"""Reference floor: every operator in pure PyTorch, written to be read.

The functions have the signatures of the registered operators ``torch.ops.deepl0.*``, run on any
device, in any floating dtype (float64 included), and are differentiable, twice, by PyTorch's own
autograd (but for iht_* and fista, whose result is a constant). They are the oracle of every test
and the ``"reference"`` backend.
"""

from .batch_top_m import batch_top_m
from .decode import decode
from .encode import encode_l0, encode_top_m
from .encode_factored import encode_l0_factored, encode_top_m_factored
from .fista import fista
from .iht import iht_l0, iht_top_m
from .least_squares import least_squares
from .omp import omp
from .refit import refit
from .shard import shard_top_m
from .sparse_adam import sparse_adam_
from .stage import threshold_stage, top_m_stage
from .thresholds import threshold, threshold_backward
from .top_m import apply_mask, keep_top_m, top_m, unpool

__all__ = [
    "apply_mask",
    "batch_top_m",
    "decode",
    "encode_l0",
    "encode_l0_factored",
    "encode_top_m",
    "encode_top_m_factored",
    "fista",
    "iht_l0",
    "iht_top_m",
    "keep_top_m",
    "least_squares",
    "omp",
    "refit",
    "shard_top_m",
    "sparse_adam_",
    "threshold",
    "threshold_backward",
    "threshold_stage",
    "top_m",
    "top_m_stage",
    "unpool",
]
