"""``encode_dataset`` by several ranks: ``python -m python_tests.distributed.datasets 2``."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import deepl0_kernels as dk
from deepl0_kernels import sae
from deepl0_kernels.distributed import Ranks
from python_tests.distributed import spawn

N, P, M, ROWS = 6, 40, 4, 10  # rows of a part
PARTS = 9


class Late(Ranks):
    """Of which all but the first go on when that one has written a part."""

    def once(self, do):
        found = super().once(do)
        begin = time.monotonic()
        while not self.first and not list(Path(self.out).glob("*.parquet")):
            assert time.monotonic() - begin < 60
            time.sleep(0.01)
        return found


def every_part_is_coded_once():
    """By the ranks in turn, whoever of them is late."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("data", "units"))
    with tempfile.TemporaryDirectory() as own:
        folder = [own]
        dist.broadcast_object_list(folder, src=0)
        source, out = Path(folder[0]) / "x.npy", Path(folder[0]) / "out"
        x, model = torch.randn(PARTS * ROWS, N), sae.SparseAutoencoder(N, P, M)
        ranks = Late(mesh, dist.get_rank() == 0)
        object.__setattr__(ranks, "out", out)
        if ranks.first:
            np.save(source, x.numpy())
        dist.barrier()
        told = dk.encode_dataset(source, model, out, rows=ROWS, ranks=ranks)
        dist.barrier()
        mine = len(range(dist.get_rank(), PARTS, dist.get_world_size()))
        assert told["parts_coded"] == mine, told
        assert told["rows_coded"] == mine * ROWS, told
        found = dk.SparseCode.from_parquet(out)
        assert torch.equal(found.indices, model.encode(x).indices)
        again = dk.encode_dataset(source, model, out, rows=ROWS, ranks=ranks)
        assert again == {"rows": len(x), "parts": PARTS, "rows_coded": 0, "parts_coded": 0}
        dist.barrier()


CASES = {"every_part_is_coded_once": every_part_is_coded_once}

if __name__ == "__main__":
    spawn.serve(CASES)
