"""Least squares on given supports by the Gram matrix: the operator behind
:func:`deepl0_kernels.solvers.htp` and what else refits."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ..backends import implementation
from . import registration

registration.define(
    "least_squares",
    "(Tensor gram, Tensor right, Tensor support, float floor) -> Tensor",
    lambda gram, right, support, floor: right.new_empty(right.shape),
)
registration.differentiate("least_squares")
registration.serve("least_squares", reference.least_squares, low=None)
registration.vmap_rows("least_squares", rows=(1, 2), batch_dims=(0,))


# What a block of the CUDA kernel holds: csrc/cuda/least_squares.h.
_MOST_PLACES = 154


def least_squares(gram: Tensor, right: Tensor, support: Tensor, floor: float) -> Tensor:
    """The solutions on the rows of a support; see the reference. Not differentiable."""
    beyond = None
    if support.shape[1] > _MOST_PLACES:
        beyond = f"the GPU kernel takes s <= {_MOST_PLACES}"
    return implementation("least_squares", gram, beyond)(gram, right, support, floor)
