"""The checks before a GPU launch, on the calls of the fuzzer: they let valid calls pass, and what
they let pass the reference can compute."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings

from deepl0_kernels import reference
from deepl0_kernels.backends import GPU
from deepl0_kernels.ops.operands import CHECKS
from python_tests.ops import fuzzing
from python_tests.ops.test_fuzz import FUZZ, careless_calls, valid_calls


def test_every_operator_of_a_gpu_has_checks():
    assert set(CHECKS) == {name for floor in GPU.values() for name in floor.operators}


def arguments(recipe: dict) -> list:
    """Those of a call without float64, which has few GPU kernels."""
    if recipe["op"] not in GPU["cuda"].double:
        recipe = json.loads(json.dumps(recipe).replace("float64", "float32"))
    return [fuzzing.build(a) if isinstance(a, dict) else a for a in recipe["args"]]


def check_operands(op: str, args: list) -> None:
    """As the launcher does, which is told whether to save."""
    CHECKS[op](*args, *([True] if f"{op}_saving" in fuzzing.ORACLES else []))


@pytest.mark.parametrize("op", CHECKS)
def test_valid_calls_pass(op):
    @settings(FUZZ, max_examples=100)
    @given(valid_calls(op))
    def check(recipe):
        check_operands(op, arguments(recipe))

    check()


@pytest.mark.parametrize("op", CHECKS)
def test_what_passes_can_be_computed(op):
    @settings(FUZZ, max_examples=300)
    @given(careless_calls(op))
    def check(recipe):
        args = arguments(recipe)
        try:
            check_operands(op, args)
        except (ValueError, TypeError) as error:
            if not str(error):
                raise
            return
        indices = [a for a in args if isinstance(a, torch.Tensor) and a.dtype == torch.int64]
        if all(fuzzing.distinct(a) and (a.abs() < 1000).all() for a in indices):
            try:
                fuzzing.ORACLES[op](*args)
            except (RuntimeError, IndexError) as error:
                # The last: values of theta, for which no check waits for the device.
                allowed = (
                    "out of bounds",
                    "out of range",
                    "allocate memory",
                    "overflowed",
                    "theta",
                )
                if not any(words in str(error) for words in allowed):
                    raise

    check()


def test_float64_is_refused_by_name():
    u = torch.zeros(3, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="u must be float32, float16 or bfloat16 on a GPU"):
        CHECKS["top_m"](u, 2, False)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_a_step_that_the_dtype_cannot_hold_is_refused(backend, step):
    x, D = torch.zeros(2, 3), torch.zeros(3, 4)
    code = torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.int64)
    calls = {
        "fista": (x, D, None, 0.1, step, 0.0, 3, True),
        "iht_l0": (x, D, None, 0.1, step, 0.0, 3, True),
        "iht_top_m": (x, D, *code, 1, step, 0.0, 3, True),
    }
    for name, args in calls.items():
        call = getattr(reference if backend == "reference" else torch.ops.deepl0, name)
        with pytest.raises(RuntimeError, match=r"step must be > 0 and within the range"):
            call(*args)
        if step == 1e300:
            wide = [a.double() if torch.is_tensor(a) and a.is_floating_point() else a for a in args]
            assert call(*wide)[0].shape[0] == 2
