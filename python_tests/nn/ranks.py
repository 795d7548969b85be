"""One process of ``python -m python_tests.nn.ranks RANK WORLD FILE``: layers that are sharded.

Built on meta, sharded, made real, reset: what a rank ends with is checked against the same layer in
one piece, and is the same on all ranks although their seeds are not.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from python_tests.nn.layers import CALLS, LAYERS, signals


def reset(module: torch.nn.Module) -> None:
    """As FSDP and its users do."""
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()


def check(name: str, rank: int) -> None:
    with torch.device("meta"):
        layer = LAYERS[name]()
    fully_shard(layer)
    layer.to_empty(device="cpu")
    for parameter in layer.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    torch.manual_seed(rank)
    reset(layer)
    torch.manual_seed(0)
    whole = LAYERS[name]()
    if name != "baseline":  # nn.Linear draws as it likes
        for key, parameter in layer.named_parameters():
            assert torch.equal(parameter.full_tensor(), whole.get_parameter(key)), (name, key)
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, [p.full_tensor().tolist() for p in layer.parameters()])
    assert all(values == everyone[0] for values in everyone), name
    z = CALLS.get(name, lambda layer, x: layer(x))(layer.eval(), signals(name))
    z.sum().backward()
    assert z.isfinite().all(), name


if __name__ == "__main__":
    rank, world, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world)
    for name in LAYERS:
        check(name, rank)
    dist.destroy_process_group()
