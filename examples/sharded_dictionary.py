# %% [markdown]
# # A dictionary in two processes
#
# A dictionary that does not fit into one process is cut by atoms, as a DTensor. Every process
# selects the m largest correlations among its own atoms; the m largest of all are among these
# candidates, so a second selection over 2 m numbers is exact. Only candidates travel: 2 m numbers a
# signal, not p.

# %%
import os
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import deepl0_kernels as dk

N, P, M, BATCH, WORLD = 128, 16_384, 32, 512, 2


# %%
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Signals [BATCH, N], and a dictionary's transpose [P, N], the same in every process."""
    generator = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(P, N, generator=generator), dim=1)
    return torch.randn(BATCH, N, generator=generator), W


def encode_shard(rank: int, rendezvous: str) -> None:
    """One process: its atoms' best entries, then the best of all."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD)
    x, W = problem()
    mesh = init_device_mesh("cpu", (WORLD,))
    shard = distribute_tensor(W, mesh, [Shard(0)])  # this process keeps P / 2 rows of it

    start = time.perf_counter()
    code = dk.encode_top_m(x, shard, None, M, num_stages=1)
    seconds = time.perf_counter() - start

    if rank == 0:
        whole = dk.encode_top_m(x, W, None, M, num_stages=1)
        same = bool((code.indices == whole.indices).all())
        print(f"{WORLD} processes, {P // WORLD:,} of {P:,} atoms each, {BATCH} signals")
        print(f"supports equal to one process's: {same}")
        print(f"largest difference of a value: {(code.values - whole.values).abs().max():.1e}")
        print(f"sent: {8 * M} bytes a signal; all of u: {4 * P:,}")
        if "TIMES" in os.environ:
            print(f"{1e6 * seconds / BATCH:.1f} us a signal")
    dist.destroy_process_group()


# %%
if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(encode_shard, (os.path.join(folder, "rendezvous"),), nprocs=WORLD)
