"""Tests on the machine's GPU, of both floors that serve it; without one nothing is collected.

(What needs no GPU to be tested stands in python_tests/cuda and python_tests/triton.)
"""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.ops.registration import installed_floors

FLOORS = installed_floors() if torch.cuda.is_available() else ()
if not FLOORS:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(params=FLOORS)
def floor(request):
    """Every operator that the floor has is served by it; new tensors hold NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    with dk.use_backend(request.param):
        yield request.param
    torch.use_deterministic_algorithms(False)
