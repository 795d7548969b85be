"""Placements of DTensors: which dimensions of a mesh cut units, and which cut a batch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .units import LARGEST, Units

_MODULE = "torch.distributed.tensor"
_PLAIN = frozenset((Tensor, torch.nn.Parameter, type(None)))


def is_dtensor(*operands: Any) -> bool:
    """Whether one of the operands is a DTensor. Nothing is imported for that."""
    for t in operands:
        if type(t) not in _PLAIN:
            break
    else:
        return False
    module = sys.modules.get(_MODULE)
    return module is not None and any(isinstance(t, module.DTensor) for t in operands)


def refuse(name: str, *operands: Any) -> None:
    """The operator ``name`` has no rule for DTensors.

    Raises:
        ValueError: one of the operands is one.
    """
    if is_dtensor(*operands):
        raise ValueError(
            f"{name} takes plain tensors, got a DTensor; encode_top_m (one stage, or D=) and "
            "decode take a dictionary whose units are sharded"
        )


def units_of(p: int, mesh: Any, dims: Iterable[int]) -> Units:
    """p units over these dimensions of a mesh."""
    return Units(p, [(mesh.get_group(i), mesh.size(i), mesh.get_local_rank(i)) for i in dims])


def units_of_tensor(t: Any) -> Units:
    """The units of a DTensor that is sharded over one of its dimensions."""
    dims = [i for i, p in enumerate(t.placements) if p.is_shard()]
    return units_of(t.shape[t.placements[dims[0]].dim], t.device_mesh, dims)


def whole(t: Any) -> Tensor:
    """A plain tensor, of the layout of this rank's part, of what is sharded over its units."""
    sharded = [p.dim for p in t.placements if p.is_shard()]
    if not sharded:
        return t.to_local()
    dim = sharded[0]
    return units_of_tensor(t).whole(t.to_local().movedim(dim, 0).contiguous()).movedim(0, dim)


class Mesh:
    """Where the operands of a call live: the mesh, which of its dimensions cut the units, and
    which cut the batch."""

    mesh: Any
    units: Any = None

    def __init__(self, name: str, dim: int) -> None:
        """name and dim: of the dictionary, and of its dimension that counts units."""
        self._name, self._dim = name, dim
        self.batch: set[int] = set()

    def of(self, dictionary: Any) -> Mesh:
        """That of a dictionary.

        Raises:
            ValueError: it is sharded otherwise than over its units.
        """
        from torch.distributed.tensor import Shard

        name, dim = self._name, self._dim
        if not is_dtensor(dictionary):
            raise ValueError(f"{name} must be a DTensor as the others are, got a plain tensor")
        placements = tuple(dictionary.placements)
        for placement in placements:
            if not (placement.is_replicate() or placement == Shard(dim)):
                raise ValueError(
                    f"{name} must have the placements Shard({dim}), its units, and Replicate(), "
                    f"got {placements}"
                )
        p = dictionary.shape[dim]
        if p > LARGEST:
            raise ValueError(f"p must be <= 2**31 - 1 where units are sharded, got {p}")
        self.mesh = dictionary.device_mesh
        self.dims = [i for i, placed in enumerate(placements) if not placed.is_replicate()]
        units = units_of(p, self.mesh, self.dims)
        if not torch.compiler.is_compiling():
            local = dictionary.to_local().shape[dim]
            if local != units.count:
                raise ValueError(
                    f"{name} must be cut as distribute_tensor does, with {units.count} units on "
                    f"this rank, got {local}"
                )
        self.units = units
        return self

    def vectors(self, x: Tensor) -> tuple[Tensor, Any]:
        """This rank's part of what has a batch, and how it is placed; None: plain."""
        if not is_dtensor(x):
            return x, None
        given: Any = x
        if given.device_mesh != self.mesh:
            raise ValueError(
                f"x must be on the mesh of {self._name}, {self.mesh}, got {given.device_mesh}"
            )
        for i, placement in enumerate(given.placements):
            batch = placement.is_shard() and 0 <= placement.dim < x.dim() - 1
            if not (placement.is_replicate() or (batch and i not in self.dims)):
                raise ValueError(
                    "x must be sharded over its batch alone, and whole over the dimensions "
                    f"{self.dims} of the mesh that cut the units, got {given.placements}"
                )
            if batch:
                self.batch.add(i)
        return given.to_local(grad_placements=given.placements), given.placements

    def weights(self, name: str, t: Tensor | None, dim: int | None) -> Tensor | None:
        """This rank's part of a weight whose dimension ``dim`` counts units; None: it has none."""
        from torch.distributed.tensor import Replicate, Shard

        if t is None:
            return None
        if is_dtensor(t):
            given: Any = t
            wanted = [
                Shard(dim) if dim is not None and i in self.dims else Replicate()
                for i in range(self.mesh.ndim)
            ]
            if given.device_mesh != self.mesh or list(given.placements) != wanted:
                raise ValueError(
                    f"{name} must be placed as {tuple(wanted)} on the mesh of {self._name}, "
                    f"{self.mesh}, got {given.placements} on {given.device_mesh}"
                )
            t = given.to_local()
        elif dim is not None and self.dims:
            raise ValueError(f"{name} must be sharded as {self._name} is, got a plain tensor")
        if self.batch and torch.is_grad_enabled() and t.requires_grad:
            groups = [self.mesh.get_group(i) for i in sorted(self.batch) if self.mesh.size(i) > 1]
            t = _SumOfGradients.apply(t, groups)
        return t

    def placed(self, t: Tensor, placements: Any, lead: Sequence[int]) -> Tensor:
        """A result of rows as the vectors came in."""
        t = t.reshape(*lead, t.shape[-1])
        if placements is None:
            return t
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(t, self.mesh, placements, run_check=False)


class _SumOfGradients(torch.autograd.Function):
    """A weight that several ranks use on batches of their own: its gradient is the sum."""

    @staticmethod
    def forward(ctx, t, groups):
        ctx.groups = groups
        return t.view_as(t)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone(memory_format=torch.preserve_format)
        flat = grad.t() if grad.dim() == 2 and not grad.is_contiguous() else grad
        for group in ctx.groups:
            dist.all_reduce(flat, group=group)
        return grad, None


def agreed(
    mesh: Mesh, dictionary: Any, prepare: Callable[[Mesh], Any], facts: Callable[[], dict]
) -> tuple[Mesh, Any]:
    """What ``prepare`` gives, if it does on every rank, and all of them have the same facts.

    Raises:
        ValueError: on every rank; what was refused or differs, and where.
    """
    error: Exception | None = None
    prepared, told = None, {}
    try:
        mesh.of(dictionary)
        prepared, told = prepare(mesh), facts()
    except (AttributeError, TypeError, ValueError) as refused:
        error = refused
    if mesh.units is None:
        # Which of several dimensions the others hear on is not known then.
        if not is_dtensor(dictionary) or dictionary.device_mesh.ndim > 1:
            assert error is not None
            raise error
        mesh.mesh, mesh.units = dictionary.device_mesh, units_of(0, dictionary.device_mesh, [0])
    mesh.units.agree(torch.device(mesh.mesh.device_type), told, error)
    return mesh, prepared


def wants_gradient(t: Any) -> bool:
    return torch.is_grad_enabled() and isinstance(t, Tensor) and t.requires_grad


def shape_here(t: Any) -> list[int]:
    return list((t.to_local() if is_dtensor(t) else t).shape)
