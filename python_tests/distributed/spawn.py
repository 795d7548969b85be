"""Processes on 127.0.0.1 that run the cases of a module, all of them in one group."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def environment(**more: str) -> dict[str, str]:
    return dict(os.environ, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", **more)


def run(module: str, world: int, folder: Path, seconds: float = 240) -> None:
    """``python -m module RANK WORLD FILE`` for every rank; what they print is in the failure."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), str(world), folder / f"at{world}"],
            env=environment(),
            stderr=subprocess.STDOUT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        said = [rank.communicate(timeout=seconds)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(said)


def serve(cases: Mapping[str, Callable[[], None]]) -> None:
    """Of a rank: run the cases; one that fails on a rank is told to all, which go on."""
    rank, world, path, *only = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{path}",
        rank=int(rank),
        world_size=int(world),
        timeout=timedelta(seconds=60),
    )
    failed = False
    for name, case in cases.items():
        if only and name not in only:
            continue
        torch.manual_seed(0)
        error = None
        try:
            case()
        except Exception:
            error = traceback.format_exc()
            print(f"rank {rank}: {name}\n{error}", flush=True)
        errors: list = [None] * int(world)
        dist.all_gather_object(errors, error)
        failed = failed or any(errors)
    dist.destroy_process_group()
    sys.exit(failed)
