"""Formulas of flops, by PyTorch's counter."""

from __future__ import annotations

import subprocess
import sys

import torch

import deepl0_kernels as dk

B, N, P, M, K = 7, 5, 16, 3, 3


def count(call) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def operands(*wanted: str) -> dict[str, torch.Tensor]:
    shapes = dict(x=(B, N), W=(P, N), S=(P, P), D=(N, P), z=(B, P))
    return {k: torch.randn(s).requires_grad_(k in wanted) for k, s in shapes.items()}


def test_every_operator_has_a_formula():
    from torch.utils.flop_counter import flop_registry

    names = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("deepl0::")
    }
    assert all(getattr(torch.ops.deepl0, name) in flop_registry for name in names)


def test_forward():
    t = operands()
    assert count(lambda: dk.encode_l0(t["x"], t["W"], t["S"], 0.5, num_stages=K)) == (
        2 * B * P * (N + (K - 1) * P)
    )
    code = dk.encode_top_m(t["x"], t["W"], t["S"], M)
    assert count(lambda: dk.encode_top_m(t["x"], t["W"], t["S"], M, num_stages=K)) == (
        2 * B * P * (N + (K - 1) * M)
    )
    assert count(lambda: dk.decode(code, t["D"])) == 2 * B * M * N
    assert count(lambda: dk.top_m_stage(t["x"], t["W"], t["z"], t["S"], M)) == 2 * B * P * (N + P)
    assert count(lambda: dk.helu(t["x"], 0.5)) == 0


def test_backward_counts_what_is_asked_for():
    for wanted, products in ((("W",), N), (("x", "W"), 2 * N)):
        t = operands(*wanted)
        code = dk.encode_top_m(t["x"], t["W"], t["S"], M, num_stages=K)
        assert count(lambda c=code: c.values.sum().backward()) == (
            2 * B * ((K - 1) * M * M + K * M * products)
        )
    t = operands("D")
    code = dk.encode_top_m(t["x"], t["W"], t["S"], M)
    out = dk.decode(code, t["D"])
    assert count(lambda: out.sum().backward()) == 2 * B * M * N
    t = operands("S")
    z = dk.encode_l0(t["x"], t["W"], t["S"], 0.5, num_stages=K)
    # The descent ends at the second stage: nothing below asks for more.
    assert count(lambda: z.sum().backward()) == 2 * B * ((K - 2) + (K - 1)) * P * P


def test_a_solver_counts_its_iterations():
    x, D = torch.randn(B, N), torch.nn.functional.normalize(torch.randn(N, P), dim=0)
    args = (x, D, None, 0.1, 0.05, 1e-9, 4, False)
    assert count(lambda: torch.ops.deepl0.fista(*args)) == 2 * 4 * B * min(P * P, 2 * N * P)


def test_the_counter_is_not_imported_before_it_is_asked_for():
    code = (
        "import sys, torch, deepl0_kernels as dk\n"
        "assert 'torch.utils.flop_counter' not in sys.modules\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        "with FlopCounterMode(display=False) as c: dk.encode_l0(torch.ones(2, 3), torch.ones(4, 3),"
        " None, 0.5, num_stages=1)\n"
        "assert c.get_total_flops() == 48, c.get_total_flops()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_counter_may_have_been_imported_before():
    """As torch._dynamo.testing, and with it many a library, does."""
    code = (
        "import torch.utils.flop_counter as counting, torch, deepl0_kernels as dk\n"
        "with counting.FlopCounterMode(display=False) as c: dk.encode_l0(torch.ones(2, 3),"
        " torch.ones(4, 3), None, 0.5, num_stages=1)\n"
        "assert c.get_total_flops() == 48, c.get_total_flops()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
