"""What torch's compiler, export and function transforms must make of any encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import deepl0_kernels as dk

Signals = Callable[[int, torch.dtype], Tensor]


def compiles_once(encoder: nn.Module, signals: Signals, gradients: Callable) -> None:
    """One graph for all batch sizes, with the gradients of the module."""
    torch._dynamo.reset()
    compiled = torch.compile(encoder, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (4, 9, 33):
            x = signals(rows, torch.float32)
            torch.testing.assert_close(gradients(compiled, x), gradients(encoder, x))


def exports(encoder: nn.Module, signals: Signals) -> None:
    """One program for all batch sizes, the empty one too."""
    batch = torch.export.Dim("batch", min=0, max=1000)
    program = torch.export.export(
        encoder, (signals(4, torch.float32),), dynamic_shapes={"x": {0: batch}}
    )
    for rows in (0, 1, 33):
        x = signals(rows, torch.float32)
        torch.testing.assert_close(program.module()(x), encoder(x))


def maps(encoder: nn.Module, x: Tensor) -> None:
    """Gradients of every sample add up to that of the batch; weights are mapped over as well."""
    weights = {name: p.detach() for name, p in encoder.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(encoder, weights, (x,)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    encoder(x).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(per_sample[name].sum(0), parameter.grad)
    stacked = {name: torch.stack([w, 1.1 * w]) for name, w in weights.items()}
    with dk.use_backend("reference"):
        both = torch.func.vmap(lambda w: torch.func.functional_call(encoder, w, (x,)))(stacked)
        torch.testing.assert_close(both[0], encoder(x))
    second = {name: w[1] for name, w in stacked.items()}
    torch.testing.assert_close(both[1], torch.func.functional_call(encoder, second, (x,)))
