"""Ranks on 127.0.0.1, by gloo: the cases of operators, training, wrapped and datasets.py."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
import torch

from deepl0_kernels.ops.units import Units
from python_tests.distributed import spawn


def test_two_and_four_ranks():
    spawn.run("python_tests.distributed", 2, 4)


@pytest.mark.parametrize("units", [1, 2])
def test_no_thread_of_gloo_outlives_close(units):
    """One that still drops a tensor when the interpreter ends aborts the process."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    at = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "python_tests.distributed.ending", str(units)]
    ranks = [
        subprocess.Popen(
            command, env=spawn.environment(RANK=rank, LOCAL_RANK=rank, **at),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    for rank in ranks:
        said = rank.communicate(timeout=240)[0]
        assert rank.returncode == 0, said
        assert said.splitlines()[-1] == "[]", said


@pytest.mark.parametrize("p", [0, 1, 5, 8, 61])
@pytest.mark.parametrize("sizes", [(1,), (3,), (8,), (2, 2), (3, 1, 2)])
def test_units_are_cut_as_dtensor_cuts_them(p, sizes):
    places = [()]
    for size in sizes:
        places = [(*at, i) for at in places for i in range(size)]
    expected = [torch.arange(p)]
    for size in sizes:
        cut = [list(torch.chunk(part, size)) if len(part) else [] for part in expected]
        expected = [c for part in cut for c in [*part, *[torch.arange(0)] * (size - len(part))]]
    for place, want in zip(places, expected, strict=True):
        units = Units(p, [(None, s, i) for s, i in zip(sizes, place, strict=True)])
        assert list(range(units.offset, units.offset + units.count)) == want.tolist()
        dead = torch.tensor([i for i in (0, 3, 4, 7, 40, 60) if i < p], dtype=torch.int64)
        some, mine = units.some(dead)
        assert (mine + units.offset).tolist() == [i for i in dead.tolist() if i in want]
        assert sum(some.levels[0].counts) == some.p == len(dead)


@pytest.mark.parametrize("p", [3, 40])
def test_own_entries_are_filled_up_with_other_units(p):
    units = Units(4 * p, [(None, 4, 2)])
    indices = torch.rand(50, 4 * p).argsort(1)[:, : min(9, p)].sort(1).values
    own = units.own(indices)
    assert (own.local.diff(dim=1) > 0).all()
    assert 0 <= own.local.min() <= own.local.max() < p
    for row, local, present in zip(indices, own.local, own.present, strict=True):
        mine = [i - 2 * p for i in row.tolist() if 2 * p <= i < 3 * p]
        assert local[present].tolist() == mine
