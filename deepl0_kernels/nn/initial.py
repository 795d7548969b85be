"""Values for the parameters of a layer, wherever and however they are held."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


@torch.no_grad()
def assign(module: nn.Module, name: str, value: Tensor) -> None:
    """Give the parameter ``name`` of ``module`` the values of ``value``, a whole, plain tensor.

    A parameter that is sharded (a DTensor) takes its part of what rank 0 has drawn, so that ranks
    need not share a seed; a parametrized one is set through its parametrization.

    Raises:
        RuntimeError: ``name`` is no parameter any more, but something that a hook computes.
    """
    if parametrize.is_parametrized(module, name):
        setattr(module, name, value.to(getattr(module, name)))
        return
    parameter = module._parameters.get(name)
    if parameter is None:
        raise RuntimeError(
            f"{type(module).__name__}.{name} is not a parameter any more, but computed by a hook: "
            "remove it (torch.nn.utils.prune.remove, remove_weight_norm) before the values are set"
        )
    if hasattr(parameter, "device_mesh"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        value = value.to(parameter.dtype)
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
    parameter.copy_(value)


def device_of_draws(parameter: Tensor) -> str:
    """Draws are made on the CPU, so that a seed gives the same on every device; meta has none."""
    return "meta" if parameter.is_meta else "cpu"
