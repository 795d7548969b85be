"""Cases of layers under DDP and FSDP2: ``python -m python_tests.distributed.wrapped 2 4``."""

from __future__ import annotations

import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from deepl0_kernels import nn
from deepl0_kernels.distributed import gather_units, shard_units
from python_tests.distributed import spawn
from python_tests.distributed.operators import whole

N, P, M, ROWS = 12, 42, 5, 8  # rows of a rank; most units are not used

LAYERS = {
    "l0": lambda: nn.DeepL0Encoder(N, P, bias=True),
    "l0_factored": lambda: nn.DeepL0Encoder(N, P, 3, tied=False, factored=True, steps=0.7),
    "m_sparse": lambda: nn.DeepMSparseEncoder(N, P, M),
    "m_sparse_factored": lambda: nn.DeepMSparseEncoder(
        N, P, (M, 3), bias=True, positive=True, factored=True, steps=0.8
    ),
    "lista": lambda: nn.LISTA(N, P),
}


def layer(name):
    torch.manual_seed(2)
    return LAYERS[name]()


def batch(steps=1):
    """All vectors of all ranks, and this one's."""
    g = torch.Generator().manual_seed(5)
    x = torch.randn(steps, dist.get_world_size(), ROWS, N, generator=g)
    return x.flatten(1, 2), x[:, dist.get_rank()]


def loss(model, x):
    return model(x).square().sum(-1).mean()


def expected(name, x):
    """Gradients of one process on the whole batch, of float64 weights too."""
    one = layer(name)
    for part in x:
        loss(one, part).backward()
    return {key: p.grad for key, p in one.named_parameters()}


def close(model, gradients, **tolerance):
    for key, parameter in model.named_parameters():
        key = key.removeprefix("module.").removeprefix("_orig_mod.").removeprefix("module.")
        found = whole(parameter.grad)
        torch.testing.assert_close(found, gradients[key], rtol=1e-4, atol=1e-5, **tolerance)


def gradients_are_those_of_one_process():
    every, mine = batch()
    for name in LAYERS:
        gradients = expected(name, every)
        ddp = DistributedDataParallel(layer(name))
        loss(ddp, mine[0]).backward()
        close(ddp, gradients)
        sharded = layer(name)
        fully_shard(sharded)
        loss(sharded, mine[0]).backward()
        close(sharded, gradients)


def accumulation_and_recomputation():
    every, mine = batch(2)
    for name in ("l0", "m_sparse_factored"):
        gradients = expected(name, every)
        ddp = DistributedDataParallel(layer(name))
        with ddp.no_sync():
            loss(ddp, mine[0]).backward()
        loss(ddp, mine[1]).backward()
        close(ddp, gradients)
        sharded = layer(name)
        fully_shard(sharded)
        sharded.set_requires_gradient_sync(False)
        loss(sharded, mine[0]).backward()
        sharded.set_requires_gradient_sync(True)
        z = checkpoint(sharded, mine[1], use_reentrant=False)
        z.square().sum(-1).mean().backward()
        close(sharded, gradients)


def mixed_precision():
    """Weights in bfloat16 where they are used, gradients reduced in float32."""
    every, mine = batch()
    for name in ("l0", "m_sparse"):
        one = layer(name).to(torch.bfloat16)
        loss(one, every[0].bfloat16()).backward()
        sharded = layer(name)
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        fully_shard(sharded, mp_policy=policy)
        z = sharded(mine[0])
        assert z.dtype == torch.bfloat16
        z.float().square().sum(-1).mean().backward()
        for key, parameter in sharded.named_parameters():
            assert parameter.grad.dtype == torch.float32
            found, wanted = whole(parameter.grad), one.get_parameter(key).grad.float()
            assert (found - wanted).norm() <= 0.05 * wanted.norm() + 1e-3, key


def compiled():
    if dist.get_world_size() > 2:
        return
    every, mine = batch()
    name = "m_sparse"
    gradients = expected(name, every)
    model = torch.compile(DistributedDataParallel(layer(name)), backend="aot_eager")
    loss(model, mine[0]).backward()
    close(model, gradients)
    mesh = init_device_mesh("cpu", (2,))
    own = layer("m_sparse_factored")
    shard_units(own, mesh)
    whole_graph = torch.compile(own, backend="aot_eager", fullgraph=True)
    x = every[0]
    loss(whole_graph, x).backward()
    for key, gradient in expected("m_sparse_factored", every).items():
        found = _whole_units(own.get_parameter(key).grad)
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-5)


def units_under_ddp():
    """A mesh of batches and units: the dictionary is cut, its gradients are averaged over data."""
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "units"))
    g = torch.Generator().manual_seed(5)
    x = torch.randn(world // 2, ROWS, N, generator=g)
    name = "m_sparse_factored"
    gradients = expected(name, x.flatten(0, 1)[None])
    own = layer(name)
    shard_units(own, mesh["units"])
    loss(own, x[mesh.get_local_rank("data")]).backward()
    for parameter in own.parameters():
        grad = parameter.grad
        here = grad.to_local() if hasattr(grad, "to_local") else grad
        dist.all_reduce(here, group=mesh.get_group("data"))
        here /= world // 2
    for key, parameter in own.named_parameters():
        torch.testing.assert_close(
            _whole_units(parameter.grad), gradients[key], rtol=1e-4, atol=1e-5
        )
    before = {key: p.detach() for key, p in layer(name).named_parameters()}
    gather_units(own)
    assert all(torch.equal(p, before[key]) for key, p in own.named_parameters())


def _whole_units(t):
    from deepl0_kernels.ops import placements

    return placements.whole(t) if placements.is_dtensor(t) else t


def checkpoints_in_another_world():
    """torch.distributed.checkpoint: written by all ranks under FSDP2, read by two, by one under
    DDP's names, and as a dictionary whose units are sharded; training goes on to the same loss."""
    world, name = dist.get_world_size(), "m_sparse_factored"
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder, src=0)
    g = torch.Generator().manual_seed(6)
    x = torch.randn(3, 4 * world, N, generator=g)

    def step(model, optimizer, rows):
        optimizer.zero_grad()
        out = loss(model, rows)
        out.backward()
        optimizer.step()
        return out.detach()

    def adam(model):
        return torch.optim.Adam(model.parameters(), lr=0.01)

    one = layer(name)
    optimizer = adam(one)
    losses = [step(one, optimizer, rows) for rows in x]
    sharded = layer(name)
    fully_shard(sharded)
    optimizer = adam(sharded)
    for rows in x[:2]:  # every rank has all rows, so that any world has the same gradients
        step(sharded, optimizer, rows)
    weights, state = get_state_dict(sharded, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder[0])

    def loaded(model, group=None):
        optimizer = adam(model)
        weights, state = get_state_dict(model, optimizer)
        held = {"model": weights, "optimizer": state}
        dcp.load(held, checkpoint_id=folder[0], process_group=group)
        set_state_dict(
            model,
            optimizer,
            model_state_dict=held["model"],
            optim_state_dict=held["optimizer"],
        )
        return optimizer

    half = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("others", "few"))["few"]
    fewer, units, alone = (layer(name) for _ in range(3))
    fully_shard(fewer, mesh=half)
    shard_units(units, init_device_mesh("cpu", (world,)))
    for model in (fewer, units, alone):
        found = step(model, loaded(model), x[2])
        torch.testing.assert_close(found, losses[2], rtol=1e-5, atol=1e-6)


CASES = {
    case.__name__: case
    for case in (
        gradients_are_those_of_one_process,
        accumulation_and_recomputation,
        mixed_precision,
        compiled,
        units_under_ddp,
        checkpoints_in_another_world,
    )
}

if __name__ == "__main__":
    spawn.serve(CASES)
