"""reset_parameters: on meta, sharded, parametrized, pruned."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize, prune

from deepl0_kernels import nn
from python_tests.nn.layers import CALLS, LAYERS, signals

every = pytest.mark.parametrize("name", LAYERS)
# What is not made of numbers, but started from data.
FROM_DATA = {"JointSparseClustering"}


def drawn(name: str):
    torch.manual_seed(3)
    return LAYERS[name]()


def call(name: str, layer) -> torch.Tensor:
    return CALLS.get(name, lambda layer, x: layer(x))(layer.eval(), signals(name))


def test_every_layer_has_one():
    public = {n for n in nn.__all__ if issubclass(getattr(nn, n), torch.nn.Module)}
    here = {type(make()).__name__ for make in LAYERS.values()}
    assert public == here | FROM_DATA
    assert all(hasattr(make(), "reset_parameters") for make in LAYERS.values())


@every
def test_a_reset_is_a_new_layer(name):
    layer, fresh = drawn(name), drawn(name)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(3)
    layer.reset_parameters()
    for key, parameter in fresh.named_parameters():
        assert torch.equal(layer.get_parameter(key), parameter), key
        assert layer.get_parameter(key).requires_grad


@every
def test_meta_then_real(name):
    with torch.device("meta"):
        layer = LAYERS[name]()
        layer.reset_parameters()
    assert all(p.is_meta for p in layer.parameters())
    layer.to_empty(device="cpu")
    torch.manual_seed(3)
    layer.reset_parameters()
    assert torch.equal(call(name, layer), call(name, drawn(name)))


@pytest.mark.parametrize("world", [1, 2])
def test_sharded(world, tmp_path):
    environment = dict(os.environ, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "python_tests.nn.ranks", str(rank), str(world), tmp_path / "at"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(errors)


class _Doubled(torch.nn.Module):
    def forward(self, half):
        return 2 * half

    def right_inverse(self, value):
        return value / 2


class _OneWay(torch.nn.Module):
    def forward(self, half):
        return 2 * half


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "baseline"])
@pytest.mark.parametrize("wrap", ["doubled", "weight_norm"])
def test_parametrized(name, wrap):
    fresh, layer = drawn(name), drawn(name)
    for key, parameter in fresh.named_parameters():
        if wrap == "doubled":
            parametrize.register_parametrization(layer, key, _Doubled())
        elif parameter.dim() == 2:
            parametrizations.weight_norm(layer, key)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(1.0)
    torch.manual_seed(3)
    layer.reset_parameters()
    for key, parameter in fresh.named_parameters():
        torch.testing.assert_close(getattr(layer, key), parameter)


def test_what_cannot_be_set_is_named():
    layer = drawn("l0")
    parametrize.register_parametrization(layer, "W", _OneWay())
    with pytest.raises((RuntimeError, NotImplementedError), match="right_inverse"):
        layer.reset_parameters()
    layer = prune.identity(drawn("head"), "weight")
    with pytest.raises(RuntimeError, match=r"ClusterHead\.weight is not a parameter any more"):
        layer.reset_parameters()
