"""The cost model: a formula for every kernel, predictions that no roof contradicts, the page."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from deepl0_kernels import triton as floor
from deepl0_kernels.triton.table import Config

from . import cost, cost_page
from .cost import DEVICES, EFFICIENCY, Cost
from .recording import recording

H100, A100 = DEVICES
CASES = list(cost_page.cases())


def launches(case):
    with recording("sm90") as jobs:
        case.call()
    return jobs


def kernels_in_the_sources() -> set[str]:
    return {
        node.name
        for path in Path(floor.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }


def test_every_kernel_has_a_formula():
    assert set(cost.FORMULAS) == kernels_in_the_sources()


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
def test_no_prediction_beats_a_roof(device):
    for case in CASES:
        steps = cost_page.steps_of(case, device)
        total = sum(s.prediction.seconds for s in steps)
        assert total > cost_page.roof(case, device), case
        assert total >= len(steps) * device.launch
        for step in steps:
            p = step.prediction
            assert p.seconds >= p.dram / device.dram / EFFICIENCY["DRAM"]
            assert p.seconds >= p.l2 / device.l2 / EFFICIENCY["L2"]


def test_the_model_sees_the_launches():
    for case in CASES:
        assert len(cost_page.steps_of(case, H100)) >= len(launches(case)) > 0, case


def test_the_slowest_roof_bounds():
    idle = dict(programs=1 << 20, slots=1 << 10, device=H100)
    assert cost.predict(Cost(3.35e9, 0, {}), **idle).seconds == pytest.approx(1e-3 / 0.85 + 3e-6)
    assert cost.predict(Cost(3.35e9, 0, {"half": 989e12}), **idle).bound == "half"
    one = cost.predict(Cost(3.35e9, 0, {}), programs=66, slots=132, device=H100)
    assert one.seconds == pytest.approx(2e-3 / 0.85 + 3e-6)  # half of the device is idle
    # Operands of twice the size of L2, read ten times: half of every read comes from DRAM.
    reread = cost.predict(Cost(100e6, 1e9, {}, reread=1e9, resident=100e6), **idle)
    assert reread.dram == pytest.approx(5e8)


def test_the_formula_of_a_product():
    """The stage kernel at B = p = n = 512 in bfloat16, counted by hand."""
    case = cost_page.encoder_l0(512, 512, 2, torch.bfloat16)
    (job,) = launches(case)
    found = cost.FORMULAS[job.kernel.__name__](cost.Arguments(job))
    assert found.operations["half"] == 2 * 512 * 512 * 256
    z_product = {"half": 2, "tf32": 4}
    unit = "tf32" if "tf32" in found.operations else "fp32"
    if unit == "tf32":
        assert found.operations["tf32"] == z_product["tf32"] * 512 * 512 * 512
    assert found.dram == 2 * (512 * 256 + 512 * 256 + 512 * 512 + 512 * 512)
    assert isinstance(job.config, Config)


def test_the_committed_page_is_the_model():
    assert cost_page.PATH.read_text() == cost_page.page(), (
        "python -m python_tests.triton.cost_page --write"
    )
