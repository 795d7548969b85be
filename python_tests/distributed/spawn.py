"""Ranks on 127.0.0.1 that run the cases of a module, all of them in one group.

``python -m MODULE WORLD...`` forks the ranks of one world after the other, so that what takes
longest, the imports, is done once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import torch
import torch._dynamo  # what DTensor imports at its first use: once, before the forks
import torch.distributed as dist


def environment(**more: str) -> dict[str, str]:
    return dict(os.environ, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", **more)


def run(module: str, *words: object, seconds: float = 600) -> None:
    """The cases of a module, in worlds of these sizes; what ranks print is in the failure."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def serve(cases: Mapping[str, Callable[[], None]]) -> None:
    """Run the cases in every world that the command line names; words among them choose cases."""
    worlds = [int(word) for word in sys.argv[1:] if word.isdigit()]
    only = [word for word in sys.argv[1:] if not word.isdigit()]
    chosen = {name: case for name, case in cases.items() if not only or name in only}
    torch.set_num_threads(1)
    for world in worlds:
        with tempfile.TemporaryDirectory() as folder:
            if not _all_pass(world, Path(folder), chosen):
                sys.exit(f"world of {world}: failed")


def _all_pass(world: int, folder: Path, cases: Mapping[str, Callable[[], None]]) -> bool:
    ranks = []
    for rank in range(world):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                code = _rank(rank, world, folder, cases)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        ranks.append(pid)
    codes = [os.waitpid(pid, 0)[1] for pid in ranks]
    return not any(codes)


def _rank(rank: int, world: int, folder: Path, cases: Mapping[str, Callable[[], None]]) -> int:
    """A case that fails on a rank is printed; all wait for each other and go on."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'at'}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=120),
    )
    failed = False
    for name, case in cases.items():
        torch.manual_seed(0)
        begin, error = time.perf_counter(), None
        try:
            case()
        except Exception:
            error = traceback.format_exc()
            print(f"rank {rank} of {world}: {name}\n{error}", flush=True)
        dist.barrier()
        failed = failed or error is not None
        if rank == 0:
            print(f"{name}, {world} ranks: {time.perf_counter() - begin:.1f} s", flush=True)
    dist.destroy_process_group()
    return int(failed)
