"""Hostile and valid calls of the operators on the GPU, as python_tests/ops/test_fuzz.py makes them
on the CPU: an exception that names what is wrong, or the reference's answer; never an illegal
access, which would end the process that makes the calls. Indices out of range are left out: they
stop the CUDA kernels, and the Triton kernels never follow them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings

from deepl0_kernels.backends import GPU
from python_tests.ops import fuzzing
from python_tests.ops.test_fuzz import FUZZ, Caller, careless_calls, run, valid_calls

from .conftest import FLOORS

CASES = [
    (op, f)
    for f in FLOORS
    for op in fuzzing.ORACLES
    if op.removesuffix("_saving") in GPU[f].operators
]


@pytest.fixture
def caller():
    caller = Caller()
    yield caller
    caller.close()


@pytest.mark.parametrize("calls", [careless_calls, valid_calls])
@pytest.mark.parametrize(("op", "backend"), CASES)
def test_calls(caller, op, backend, calls):
    @settings(FUZZ, max_examples=30)
    @given(calls(op))
    def check(recipe):
        text = json.dumps(recipe).replace("float64", "float32")  # has no kernels
        run(caller, json.loads(text) | dict(device="cuda", backend=backend))

    check()
