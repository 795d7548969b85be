"""Units sharded by NCCL in a world of one: the codes of the plain operators."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import deepl0_kernels as dk


@pytest.fixture
def mesh(tmp_path):
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/at", rank=0, world_size=1)
    yield init_device_mesh("cuda", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stages", [1, 2])
def test_one_rank(mesh, dtype, stages):
    """Small integers: no sum is rounded, so that all of it is equal."""

    def draw(*shape):
        keep = torch.rand(*shape, device="cuda") < 0.2
        values = torch.randint(-1, 2, shape, device="cuda") * keep
        return values.to(dtype).requires_grad_()

    x, W, bias, D = draw(65, 16), draw(700, 16), draw(700), draw(16, 700)
    leaves = [
        distribute_tensor(t.detach(), mesh, [Shard(d)]) for t, d in ((W, 0), (bias, 0), (D, 1))
    ]
    leaves = [t.requires_grad_() for t in leaves]
    results = []
    for w, b, d in ((W, bias, D), leaves):
        of_stages = d if stages > 1 else None
        code = dk.encode_top_m(x, w, None, 5, bias=b, D=of_stages, num_stages=stages)
        out = dk.decode(code, d)
        out.sum().backward()
        grads = [t.grad.full_tensor() if hasattr(t.grad, "full_tensor") else t.grad
                 for t in (x, w, b, d)]  # fmt: skip
        results.append((code.values, code.indices, out, *grads))
        x.grad = None
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
