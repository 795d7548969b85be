"""The processes of a job, as torchrun starts them; or this one alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..ops import checks

_T = TypeVar("_T")


@dataclass(frozen=True)
class Ranks:
    """Who takes part in a training; ``with`` closes it where nothing is raised.

    Attributes:
        mesh: ``DeviceMesh`` with the dimensions "data", whose ranks share a batch, and "units",
            whose ranks share a dictionary; None: one process.
        first: whether this is the rank that writes files and reports.

    Example:
        >>> from deepl0_kernels import distributed
        >>> distributed.Ranks().first  # one process
        True
    """

    mesh: Any = None
    first: bool = True

    @property
    def data(self) -> Any:
        """The group of the ranks that share a batch, None where there is one."""
        return None if self.mesh is None or self.mesh.size(0) == 1 else self.mesh.get_group("data")

    @property
    def units(self) -> Any:
        """The mesh of the ranks that share a dictionary, None where there is one."""
        return None if self.mesh is None or self.mesh.size(1) == 1 else self.mesh["units"]

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # after an error of this rank alone, leaving could be waiting for others
            self.close()

    def once(self, do: Callable[[], _T]) -> _T:
        """What ``do()`` returns on the first rank, on all of them; what it raises too.

        Args:
            do: called on the first rank alone. Its result must be picklable.
        """
        if self.mesh is None:
            return do()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = do()
            except Exception as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def close(self) -> None:
        """Leave the process group and end its threads: the last call before the process ends.

        A thread of Gloo that lets go of a tensor while the interpreter ends aborts the process.
        """
        if self.mesh is not None:
            dist.destroy_process_group()
            # A group joins its threads when nothing holds it. The mesh does (torch >= 2.10), and
            # DTensor's caches hold the mesh.
            getattr(self.mesh, "_pg_registry", {}).clear()


def launched(units: int = 1, timeout: float = 1800.0) -> Ranks:
    """The ranks that torchrun started: the environment says so; else this process alone.

    Args:
        units: > 0, ranks that share a dictionary; it divides the number of processes, and the
            others share a batch.
        timeout: > 0, seconds after which a rank that waits for another one gives up, with an error.

    Gloo on CPUs, NCCL where there is a GPU for each local rank.

    Raises:
        TypeError, ValueError: units is no such number.

    Example:
        >>> from deepl0_kernels import distributed
        >>> with distributed.launched() as ranks:  # torchrun started nothing here
        ...     ranks.first, ranks.units
        (True, None)
    """
    units = checks.integer("units", units, 1)
    timeout = checks.positive("timeout", timeout)
    world = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    if world % units:
        raise ValueError(f"units must divide the number of processes = {world}, got {units}")
    if "RANK" not in os.environ or (world == 1 and not dist.is_torchelastic_launched()):
        return Ranks()
    # Defaults of its functions keep the group there is when torch imports it, best none.
    import_module("torch.distributed.nn.functional")
    from torch.distributed.device_mesh import init_device_mesh

    local = int(os.environ.get("LOCAL_RANK", 0))
    per_host = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    device = (
        "cuda" if torch.cuda.is_available() and torch.cuda.device_count() >= per_host else "cpu"
    )
    if device == "cuda":
        torch.cuda.set_device(local)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo", timeout=timedelta(seconds=timeout)
    )
    mesh = init_device_mesh(device, (world // units, units), mesh_dim_names=("data", "units"))
    return Ranks(mesh, dist.get_rank() == 0)
