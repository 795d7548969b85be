"""What is not served is refused by name: no value comes back."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk

B, N, P, M = 4, 6, 24, 3
g = torch.Generator().manual_seed(3)
x, z, W = (torch.randn(shape, generator=g) for shape in ((B, N), (B, P), (P, N)))
S, D = 0.1 * torch.randn(P, P, generator=g), torch.randn(N, P, generator=g)
theta = torch.rand(P, generator=g) + 0.1
INDICES = torch.arange(M).expand(B, M)

# Name -> function of signals and codes.
CALLS = {
    "hard_threshold": lambda x, z: dk.hard_threshold(z, theta),
    "soft_threshold": lambda x, z: dk.soft_threshold(z, theta),
    "helu": lambda x, z: dk.helu(z, theta, 0.2),
    "top_m": lambda x, z: dk.top_m(z, M),
    "keep_top_m": lambda x, z: dk.keep_top_m(z, M),
    "batch_top_m": lambda x, z: dk.batch_top_m(z, M),
    "unpool": lambda x, z: dk.unpool(z[:, :M], INDICES, P),
    "threshold_stage": lambda x, z: dk.threshold_stage(x, W, z, S, theta),
    "top_m_stage": lambda x, z: dk.top_m_stage(x, W, z, S, M),
    "encode_l0": lambda x, z: dk.encode_l0(x, W, S, theta),
    "encode_top_m": lambda x, z: dk.encode_top_m(x, W, S, M).values,
    "decode": lambda x, z: dk.decode(dk.SparseCode(z[:, :M], INDICES, P), D),
}


@pytest.mark.parametrize("name", CALLS)
def test_symbolic_trace_stops_at_the_checks(name):
    with pytest.raises(TypeError, match="must be a tensor, got Proxy"):
        torch.fx.symbolic_trace(CALLS[name])


def test_symbolic_trace_passes_layers_that_are_leaves():
    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, dk.nn.DeepL0Encoder) or super().is_leaf_module(module, name)

    model = torch.nn.Sequential(dk.nn.DeepL0Encoder(N, P), torch.nn.Linear(P, 3))
    traced = torch.fx.GraphModule(model, Leaves().trace(model))
    assert torch.equal(traced(x), model(x))


# Name -> function of what is mapped over, and that, stacked.
def stack(t):
    return torch.stack([t, t + 0.1, t + 0.2])


MAPPED = {
    "theta of helu": (lambda t: dk.helu(z, t, 0.2), stack(theta)),
    "theta of hard_threshold": (lambda t: dk.hard_threshold(z, t), stack(theta)),
    "theta of soft_threshold": (lambda t: dk.soft_threshold(z, t), stack(theta)),
    "W of threshold_stage": (lambda t: dk.threshold_stage(x, t, z, S, theta), stack(W)),
    "S of threshold_stage": (lambda t: dk.threshold_stage(x, W, z, t, theta), stack(S)),
    "theta of threshold_stage": (lambda t: dk.threshold_stage(x, W, z, S, t), stack(theta)),
    "W of top_m_stage": (lambda t: dk.top_m_stage(x, t, z, S, M), stack(W)),
    "S of top_m_stage": (lambda t: dk.top_m_stage(x, W, z, t, M), stack(S)),
    "W of encode_l0": (lambda t: dk.encode_l0(x, t, S, theta), stack(W)),
    "S of encode_l0": (lambda t: dk.encode_l0(x, W, t, theta), stack(S)),
    "theta of encode_l0": (lambda t: dk.encode_l0(x, W, S, t), stack(theta)),
    "W of encode_top_m": (lambda t: dk.encode_top_m(x, t, S, M).values, stack(W)),
    "S of encode_top_m": (lambda t: dk.encode_top_m(x, W, t, M).values, stack(S)),
    "D of decode": (lambda t: dk.decode(dk.SparseCode(z[:, :M], INDICES, P), t), stack(D)),
}


@pytest.mark.parametrize("name", MAPPED)
def test_vmap_over_weights_and_thresholds_is_the_references(name):
    function, stacked = MAPPED[name]
    with pytest.raises(NotImplementedError, match="does not map over argument"):
        torch.func.vmap(function)(stacked)
    with dk.use_backend("reference"):
        want = torch.stack([function(t) for t in stacked])
        torch.testing.assert_close(torch.func.vmap(function)(stacked), want)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_vmap_over_sigma_is_refused(backend):
    with dk.use_backend(backend), pytest.raises(TypeError, match="sigma must be a number"):
        torch.func.vmap(lambda s: dk.helu(z, theta, s))(torch.tensor([0.1, 0.2]))
