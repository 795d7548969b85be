"""Autocast, grad mode, inference mode and default dtype do not reach what is isolated."""

from __future__ import annotations

import pytest
import torch

from deepl0_kernels._isolation import isolated


def modes() -> tuple:
    return (
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )


@pytest.fixture
def hostile():
    """All modes at once."""
    torch.set_default_dtype(torch.float64)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        yield modes()
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("grad", [None, False, True])
def test_modes_within_and_after(hostile, grad):
    seen = isolated(grad)(modes)()
    if grad:
        assert seen == (False, torch.float32, True, False)
    else:
        assert seen == (False, torch.float32, False, True)
    assert modes() == hostile


@pytest.mark.parametrize("grad", [None, False, True])
def test_modes_are_given_back_after_an_error(hostile, grad):
    @isolated(grad)
    def fails():
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert modes() == hostile


def test_a_solver_has_no_gradient_and_a_derivative_keeps_it():
    w = torch.ones(3, requires_grad=True)
    assert not isolated(False)(lambda w: w * 2)(w).requires_grad
    assert isolated()(lambda w: w * 2)(w).requires_grad
    with torch.no_grad():
        assert not isolated()(lambda w: w * 2)(w).requires_grad


def test_a_training_takes_tensors_of_inference_mode():
    @isolated(True)
    def train(x, *, y):
        w = torch.zeros(3, requires_grad=True)
        ((x @ w - y) ** 2).sum().backward()
        return w.grad

    with torch.inference_mode():
        x, y = torch.randn(5, 3), torch.randn(5)
        grad = train(x, y=y)
    torch.testing.assert_close(grad, -2 * (y.clone() @ x.clone()))


@pytest.mark.parametrize("grad", [None, False])
def test_one_graph_and_no_autocast_in_it(grad):
    torch._dynamo.reset()
    compiled = torch.compile(isolated(grad)(torch.matmul), fullgraph=True, backend="aot_eager")
    a = torch.randn(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(a, a).dtype == torch.float32
    assert compiled(a, a).dtype == torch.float32
