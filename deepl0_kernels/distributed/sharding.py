"""A module's units over the ranks of a mesh, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import checks, placements

# Parameters that have a unit in every row, or in every column. Others are the same on every rank.
_DIMENSIONS = {"W": 0, "bias": 0, "atoms": 0, "D": 1}
_NOT_SHARDED = ("S", "log_theta", "theta")


@torch.no_grad()
def shard_units(module: nn.Module, mesh: Any) -> None:
    """Leave every rank its part of the units of an encoder or autoencoder, in place.

    Args:
        module: a :class:`deepl0_kernels.nn.DeepMSparseEncoder` of one stage or factored, or a
            :class:`deepl0_kernels.sae.SparseAutoencoder` with "top_m"; the same on all ranks.
        mesh: ``DeviceMesh`` whose dimensions all cut the units, outermost first.

    W, bias and the atoms become DTensors, cut as ``distribute_tensor`` cuts them; what has no units
    (b_dec, log_step) stays a plain tensor, and has the same gradient on every rank.

    Raises:
        TypeError: module or mesh is none.
        ValueError: the module couples its units (S), has thresholds (soft ones inside, too) or
            ranks by norms, or its parameters are DTensors already.

    Example:
        >>> import torch.distributed as dist  # a world of one process; torchrun starts more
        >>> from deepl0_kernels import distributed, sae
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        >>> model = sae.SparseAutoencoder(16, 64, m=4)
        >>> distributed.shard_units(model, mesh)
        >>> model.W.placements
        (Shard(dim=0),)
        >>> distributed.gather_units(model)
        >>> dist.destroy_process_group()
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

    checks.module("module", module)
    own = dict(module.named_parameters(recurse=False))
    if own.get("log_theta") is not None and getattr(module, "inside", "hard") != "hard":
        raise ValueError(
            f"{type(module).__name__} must have inside='hard' where its units are sharded, got "
            f"{module.inside!r} of {module.num_stages} stages"
        )
    if found := [name for name in _NOT_SHARDED if own.get(name) is not None]:
        raise ValueError(
            f"{type(module).__name__} must select the top m in one stage or be factored where its "
            f"units are sharded, got the parameter {found[0]} {checks.shape(own[found[0]])}"
        )
    if "W" not in own:
        raise ValueError(f"module must have units W [p, n], got {type(module).__name__}")
    if getattr(module, "selection", "top_m") != "top_m" or getattr(module, "scale_by_norms", False):
        raise ValueError(
            "an autoencoder whose units are sharded must have selection='top_m' and "
            f"scale_by_norms=False, got {module}"
        )
    if placements.is_dtensor(*own.values()):
        raise ValueError("module must have plain parameters to be sharded, got DTensors")
    checks.instance("mesh", mesh, DeviceMesh, "a DeviceMesh")
    units = placements.units_of(own["W"].shape[0], mesh, range(mesh.ndim))
    for name, dim in _DIMENSIONS.items():
        parameter = own.get(name)
        if parameter is None:
            continue
        whole = parameter.detach()
        mine = whole.narrow(dim, units.offset, units.count)
        mine = mine.t().clone(memory_format=torch.contiguous_format).t() if dim else mine.clone()
        part = DTensor.from_local(
            mine.to(mesh.device_type),
            mesh,
            [Shard(dim)] * mesh.ndim,
            run_check=False,
            shape=whole.shape,
            stride=whole.stride(),
        )
        setattr(module, name, nn.Parameter(part, parameter.requires_grad))


@torch.no_grad()
def gather_units(module: nn.Module) -> None:
    """Give every rank all units again, as plain parameters, in place: the inverse of
    :func:`shard_units`.

    Args:
        module: of every rank; each then has the memory of all units.

    Example:
        >>> import torch.distributed as dist  # a world of one process; torchrun starts more
        >>> from deepl0_kernels import distributed, sae
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> model = sae.SparseAutoencoder(16, 64, m=4)
        >>> distributed.shard_units(model, dist.device_mesh.init_device_mesh("cpu", (1,)))
        >>> distributed.gather_units(model)
        >>> type(model.W).__name__, model.W.shape
        ('Parameter', torch.Size([64, 16]))
        >>> dist.destroy_process_group()
    """
    checks.module("module", module)
    for name, parameter in list(module.named_parameters(recurse=False)):
        if placements.is_dtensor(parameter):
            plain = nn.Parameter(placements.whole(parameter), parameter.requires_grad)
            setattr(module, name, plain)


def part_of(t: Tensor, like: Tensor) -> Tensor:
    """``t``, whole, as ``like`` is held: this rank's part of it as a DTensor, or itself."""
    if not placements.is_dtensor(like):
        return t
    from torch.distributed.tensor import DTensor

    given: Any = like
    dim = next(p.dim for p in given.placements if p.is_shard())
    units = placements.units_of_tensor(given)
    local = given.to_local()
    mine = torch.empty_like(local).copy_(t.narrow(dim, units.offset, units.count))
    return DTensor.from_local(
        mine, given.device_mesh, given.placements, run_check=False, shape=t.shape, stride=t.stride()
    )
