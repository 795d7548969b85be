"""Dictionaries over 1 to 1,024 ranks: the plan of docs/scale.md, from counted bytes.

``python -m bench.scale`` draws its tables. Bytes are those that one step hands to collectives in a
process group that moves nothing (PyTorch's "fake" backend, tensors without data), at the sizes of
the plan; the times beside them are these bytes over published bandwidths, no measurements.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import deepl0_kernels as dk
from deepl0_kernels._files import fill

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
P, N, M, BATCH = 1 << 20, 4096, 64, 1024
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# Bytes a second that a GPU sends, published: NVLink 4 (half of 900 GB/s), InfiniBand NDR, 100 GbE.
LINKS = {"NVLink": 450e9, "InfiniBand": 50e9, "Ethernet": 12.5e9}
HOST = 8  # GPUs that NVLink connects
FLOPS = 989e12  # bfloat16, dense, H100 and H200


class Traffic(TorchDispatchMode):
    """Bytes that this rank hands to collectives, and their calls, by name; not those by which ranks
    agree that they make the same call."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = {}
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._opname.strip("_")
            sent = args[1] if name.startswith("allgather") else args[0]
            sent = sent[0] if isinstance(sent, (list, tuple)) else sent
            if sent.dtype != torch.int64:
                self.bytes[name] = self.bytes.get(name, 0) + sent.numel() * sent.element_size()
                self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def tree(ranks: int) -> tuple[int, ...]:
    """Dimensions of a mesh: hosts of 8, and these in groups of 16 at most."""
    if ranks <= HOST:
        return (ranks,)
    hosts = ranks // HOST
    return (hosts, HOST) if hosts <= 16 else (hosts // 16, 16, HOST)


def simulated(
    shape: tuple[int, ...], stages: int = 1, p: int = P, n: int = N, m: int = M, batch: int = BATCH
) -> dict[str, int]:
    """Bytes that rank 0 hands to every kind of collective in forward and backward of a step:
    encode, decode, gradients of W, bias and D. Within a process group of the "fake" backend."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh("cpu", shape)
    ranks = math.prod(shape)

    def part(dim: int, *whole: int) -> DTensor:
        local = list(whole)
        local[dim] = -(-whole[dim] // ranks)
        stride = torch.empty(whole, device="meta").stride()
        placements = [Shard(dim)] * mesh.ndim
        return DTensor.from_local(
            torch.empty(local), mesh, placements, run_check=False, shape=whole, stride=stride
        ).requires_grad_()

    with FakeTensorMode(), Traffic() as traffic:
        W, D, bias, x = part(0, p, n), part(1, n, p), part(0, p), torch.empty(batch, n)
        of_stages = D if stages > 1 else None
        code = dk.encode_top_m(x, W, None, m, bias=bias, D=of_stages, num_stages=stages)
        dk.decode(code, D).sum().backward()
    return traffic.bytes


def counted(shape: tuple[int, ...], stages: int = 1, n: int = N, m: int = M, batch: int = BATCH):
    """The same by the formulas of the page."""
    levels = sum(size > 1 for size in shape)
    if not levels:
        return {}
    sums = (1 + 2 * (stages - 1)) * 4 * n + 4 * m
    return {"allgather_base": 8 * m * batch * levels * stages, "allreduce": sums * batch}


def received(shape: tuple[int, ...]) -> list[int]:
    """Bytes of candidates that come in on every level, innermost first, in one stage."""
    return [8 * M * BATCH * (size - 1) for size in reversed(shape)]


def _link(ranks: int) -> str:
    return "NVLink" if ranks <= HOST else "InfiniBand"


def plan() -> str:
    """A row for every number of ranks: what one stage and its decoding move, and for how long."""
    rows = [
        "| ranks | products | all-reduce of [B, n] | one all-gather | its time | tree "
        "| its all-gathers | their time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for ranks in RANKS:
        products = 2 * BATCH * P / ranks * N / FLOPS
        reduce = 2 * (ranks - 1) / ranks * 4 * BATCH * N
        flat, shape = received((ranks,))[0], tree(ranks)
        levels = received(shape)
        times = [
            b / LINKS["NVLink" if i == 0 and ranks > 1 else "InfiniBand"]
            for i, b in enumerate(levels)
        ]
        rows.append(
            f"| {ranks:,} | {1e3 * products:.3f} ms | {1e3 * reduce / LINKS[_link(ranks)]:.3f} ms "
            f"| {flat / 1e6:.1f} MB | {1e3 * flat / LINKS[_link(ranks)]:.3f} ms "
            f"| {' x '.join(map(str, shape))} | {sum(levels) / 1e6:.1f} MB "
            f"| {1e3 * sum(times):.3f} ms |"
        )
    return "\n".join(rows)


def links() -> str:
    """What one link does with the volume of a step."""
    rows = ["| | a GPU sends | all-reduce of [B, n], 2 x 16.8 MB | candidates of 64 ranks |",
            "|---|---|---|---|"]  # fmt: skip
    for name, rate in LINKS.items():
        reduce, gather = 2 * 4 * BATCH * N / rate, received((64,))[0] / rate
        rows.append(
            f"| {name} | {rate / 1e9:g} GB/s | {1e3 * reduce:.2f} ms | {1e3 * gather:.2f} ms |"
        )
    return "\n".join(rows)


def simulation() -> str:
    """Bytes of steps in process groups that move nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    rows = ["| mesh | stages | bytes of all-gathers | bytes of all-reduces |", "|---|---|---|---|"]
    for shape in ((8,), (64,), (8, 8), (1024,), (8, 16, 8)):
        ranks = math.prod(shape)
        dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
        try:
            for stages in (1, 2):
                found = simulated(shape, stages)
                assert found == counted(shape, stages), (shape, stages, found)
                rows.append(
                    f"| {' x '.join(map(str, shape))} | {stages} "
                    f"| {found['allgather_base']:,} | {found['allreduce']:,} |"
                )
        finally:
            dist.destroy_process_group()
    return "\n".join(rows)


def parts() -> dict[str, str]:
    """The tables of the page."""
    return {"plan": plan(), "links": links(), "simulation": simulation()}


if __name__ == "__main__":
    fill(PAGE, parts())
