"""Cases of trainings that ranks share: ``python -m python_tests.distributed.training 2 4``."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from deepl0_kernels import nn, sae
from deepl0_kernels.distributed import gather_units, shard_units
from python_tests.distributed import spawn

N, P, M = 12, 61, 3
OPTIONS = dict(steps=12, batch=32, lr=3e-3, dead_after=96, every=4)


def activations() -> sae.Activations:
    g = torch.Generator().manual_seed(3)
    atoms = torch.nn.functional.normalize(torch.randn(40, N, generator=g), dim=1)
    z = torch.rand(400, 40, generator=g) * (torch.rand(400, 40, generator=g) < 0.08)
    return sae.Activations(z @ atoms + 0.1)


def model(stages: int) -> sae.SparseAutoencoder:
    torch.manual_seed(1)
    return sae.SparseAutoencoder(N, P, M, num_stages=stages, positive=stages == 1)


def meshes():
    """units alone, data alone, both, and units over two dimensions."""
    world = dist.get_world_size()
    shapes = [(2, 2)] if world == 4 else [(1, world), (world, 1)]
    for shape in shapes:
        yield init_device_mesh("cpu", shape, mesh_dim_names=("data", "units")), False
    if world == 4:
        yield init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner")), True


def trained(own, mesh, both, **options):
    """fit, its units and batches over the mesh; whole again."""
    x = activations()
    units = mesh if both else mesh["units"]
    if units.size() > 1:
        shard_units(own, units)
    data = None if both or mesh.size(0) == 1 else mesh.get_group("data")
    history = sae.fit(own, x, data=data, **{**OPTIONS, **options})
    gather_units(own)
    return history


def the_same_training_as_one_process():
    for stages in (1, 2)[: 1 if dist.get_world_size() > 2 else 2]:
        one = model(stages)
        history = sae.fit(one, activations(), **OPTIONS)
        assert history[:, 5].max() > 0 or stages > 1  # dead units, whose loss is a part of it
        for mesh, both in meshes():
            own = model(stages)
            found = trained(own, mesh, both)
            torch.testing.assert_close(found, history, rtol=1e-4, atol=1e-5)
            for (name, a), b in zip(own.named_parameters(), one.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: n + m)
            told = [None] * dist.get_world_size()
            dist.all_gather_object(told, {k: v.tolist() for k, v in own.state_dict().items()})
            assert all(one == told[0] for one in told)


def a_checkpoint_goes_on_in_another_world():
    """Of one process in all shapes of meshes, of each of these in one process; to the same bits in
    the world that it was made in."""
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder, src=0)
    single = Path(folder[0]) / f"{dist.get_rank()}.pt"
    whole = sae.fit(model(1), activations(), **OPTIONS)
    for i, (mesh, both) in enumerate(meshes()):
        through = trained(model(1), mesh, both)
        shared = Path(folder[0]) / f"shared{i}.pt"
        _interrupted(lambda at: trained(model(1), mesh, both, checkpoint=at), shared)  # noqa: B023
        if dist.get_rank() == 0:  # another file for one that goes on alone
            single.write_bytes(shared.read_bytes())
        dist.barrier()
        alone = single if dist.get_rank() == 0 else None
        assert torch.equal(trained(model(1), mesh, both, checkpoint=shared), through)
        if alone is not None:
            found = sae.fit(model(1), activations(), checkpoint=alone, **OPTIONS)
            torch.testing.assert_close(found, through, rtol=1e-4, atol=1e-5)
        other = Path(folder[0]) / f"other{i}.pt"
        if dist.get_rank() == 0:
            _interrupted(
                lambda at: sae.fit(model(1), activations(), checkpoint=at, **OPTIONS), other
            )
        dist.barrier()
        found = trained(model(1), mesh, both, checkpoint=other)
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)


class _StopError(Exception):
    pass


def _interrupted(run, path):
    """Up to the checkpoint of step 8 of 12."""
    true, steps = sae.SparseAdam.step, 0

    def step(self, closure=None):
        nonlocal steps
        if steps == 9:
            raise _StopError
        steps += 1
        return true(self, closure)

    sae.SparseAdam.step = step
    try:
        run(path)
    except _StopError:
        pass
    else:
        raise AssertionError("not interrupted")
    finally:
        sae.SparseAdam.step = true


def what_does_not_shard_is_refused():
    mesh = next(meshes())[0]["units"]
    for module in (
        sae.SparseAutoencoder(N, P, selection="relu"),
        sae.SparseAutoencoder(N, P, M, scale_by_norms=True),
        sae.SparseAutoencoder(N, P, selection="threshold"),
        nn.DeepMSparseEncoder(N, P, M),  # its S couples all units
        nn.DeepL0Encoder(N, P, factored=True),
        torch.nn.Linear(3, 3),
    ):
        before = copy.deepcopy(module.state_dict())
        try:
            shard_units(module, mesh)
        except ValueError:
            assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
        else:
            raise AssertionError(module)
    data = init_device_mesh("cpu", (dist.get_world_size(),))
    try:
        sae.fit(model(1), activations(), **{**OPTIONS, "batch": 31}, data=data.get_group())
    except ValueError as error:
        assert "batch must be divided" in str(error)  # noqa: PT017
    else:
        raise AssertionError


CASES = {
    case.__name__: case
    for case in (
        the_same_training_as_one_process,
        a_checkpoint_goes_on_in_another_world,
        what_does_not_shard_is_refused,
    )
}

if __name__ == "__main__":
    spawn.serve(CASES)
