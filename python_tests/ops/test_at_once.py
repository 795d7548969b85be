"""Ordinary calls go to their kernel past the dispatcher (csrc/call.cpp): what does not change."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import deepl0_kernels as dk
from deepl0_kernels import _C

B, N, P, M = 4, 5, 12, 3


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def negated(t: torch.Tensor) -> torch.Tensor:
    """The same values, behind PyTorch's bit for a sign that is yet to be applied."""
    found = torch.complex(torch.zeros_like(t), -t).conj().imag
    assert found.is_neg()
    assert torch.equal(found, t)
    return found


def test_a_sign_that_is_yet_to_be_applied_is_applied():
    u, x, W, S = randn(B, P), randn(B, N), randn(P, N), randn(P, P)
    for given, expected in zip(dk.top_m(negated(u), M), dk.top_m(u, M), strict=True):
        assert torch.equal(given, expected)
    code = dk.encode_top_m(x, W, S, M)
    for operands in ((negated(x), W, S), (x, negated(W), S), (x, W, negated(S))):
        given = dk.encode_top_m(*operands, M)
        torch.testing.assert_close(given.values, code.values)
        assert torch.equal(given.indices, code.indices)
    u.requires_grad_()
    grad = randn(B, M)
    out = dk.top_m(u, M)[0]
    expected = torch.autograd.grad(out, u, grad, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(out, u, negated(grad))[0], expected)


def test_zeros_without_memory_are_zeros():
    values, indices = dk.top_m(torch._efficientzerotensor((B, P)), M)
    assert torch.equal(values, torch.zeros(B, M))
    assert indices.tolist() == [[0, 1, 2]] * B


def test_what_has_no_memory_of_its_own_is_refused():
    with pytest.raises(ValueError, match="u must be dense"):
        dk.top_m(randn(B, P).to_sparse(), M)
    with pytest.raises(ValueError, match="W must be on"):
        dk.encode_top_m(randn(B, N), torch.empty(P, N, device="meta"), None, M, num_stages=1)


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Functions, Operators])
def test_a_mode_sees_the_operators(mode):
    u = randn(B, P).requires_grad_()
    with mode() as watching:
        values, _ = dk.top_m(u, M)
        values.sum().backward()
    assert any("deepl0" in name and "top_m" in name for name in watching.seen)
    assert torch.equal(u.grad != 0, dk.keep_top_m(u, M) != 0)


def test_a_profiler_sees_the_operators():
    u = randn(B, P)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        dk.top_m(u, M)
    assert "deepl0::top_m" in {event.name for event in recorded.events()}


def test_arguments_and_results_are_given_back():
    u, x, W, S, D = randn(B, P), randn(B, N), randn(P, N), randn(P, P), randn(N, P)
    bias, step = randn(P), torch.ones(2)
    given = u, x, W, S, D, bias, step
    counts = [t._use_count() for t in given]
    for _ in range(2):
        results = [
            *dk.top_m(u, M),
            dk.helu(u, torch.ones(P), 0.5),
            dk.encode_top_m(x, W, S, M, bias=bias).values,
            dk.encode_top_m(x, W, None, [M, M], D=D, step=step).values,
            torch.ops.deepl0.unpool(*dk.top_m(u, M), P),
        ]
        with pytest.raises(ValueError, match="m must"):
            dk.top_m(u, P + 1)
        with pytest.raises(ValueError, match="W must"):
            dk.encode_top_m(x, W.t(), S, M)
    assert [t._use_count() for t in given] == counts
    assert all(t._use_count() == 1 for t in results)


def test_kernels_go_by_their_names():
    with pytest.raises(ValueError, match="no kernel of the name top_n"):
        _C.Native("top_n", 0, "tib", 2, lambda *args: None)
    top_m = _C.Native("top_m", 0, "tib", 2, lambda *args, **named: "otherwise")
    u = randn(B, P)
    assert torch.equal(top_m(u, M, False)[1], dk.top_m(u, M)[1])
    for other in ((u, M), (u, float(M), False), (u, True, False), (u, M, 0), (u[None].neg, M, 0)):
        assert top_m(*other) == "otherwise"
    assert top_m(u, m=M, positive=False) == "otherwise"
    with pytest.raises(RuntimeError, match="m must be"):
        top_m(u, -1, False)


def test_errors_of_a_kernel_come_alone():
    """What a refused call raises is worded by name, and no other error stands behind it."""
    with pytest.raises(ValueError, match="m must be") as error:
        dk.top_m(randn(B, P), P + 1)
    assert error.value.__context__ is None
