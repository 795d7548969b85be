"""Cases of sharded dictionaries: ``python -m python_tests.distributed.operators 2 4``."""

from __future__ import annotations

import random
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import deepl0_kernels as dk
from bench.scale import Traffic
from python_tests.distributed import spawn

# From here on one process screens, too: the bits are those of its own kernel.
P, N, B = 4201, 24, 33


def meshes():
    """All shapes of meshes of this world: one dimension, and two."""
    world = dist.get_world_size()
    yield init_device_mesh("cpu", (world,), mesh_dim_names=("units",))
    if world == 4:
        yield init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))


def whole(t):
    """All of a DTensor. (full_tensor of torch 2.13 hangs where two cuts are uneven.)"""
    if not hasattr(t, "full_tensor"):
        return t
    if any(p.is_replicate() for p in t.placements) or t.device_mesh.size() == 1:
        return t.full_tensor()
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, t.to_local())
    return torch.cat(parts, t.placements[0].dim)


def sharded(mesh, dim, t):
    """A leaf of the same values, its dimension ``dim`` over all of the mesh."""
    if t is None:
        return None
    placed = distribute_tensor(t.detach(), mesh, [Shard(dim)] * mesh.ndim)
    return placed.requires_grad_(t.requires_grad)


def data(p=P, n=N, batch=B, dtype=torch.float32, exact=False):
    """x, W, bias, D; exact: small integers, whose sums have no rounding."""

    def draw(*shape):
        if exact:
            return torch.randint(-3, 4, shape).to(dtype)
        return torch.randn(shape, dtype=torch.float64).to(dtype)

    return (t.requires_grad_() for t in (draw(batch, n), draw(p, n), draw(p), draw(n, p)))


def gradients(*leaves):
    found = [None if t is None or t.grad is None else whole(t.grad).clone() for t in leaves]
    for t in leaves:
        if t is not None:
            t.grad = None
    return found


def codes_have_the_bits_of_one_process():
    for positive in (False, True):
        for dtype in (torch.float32, torch.bfloat16):
            x, W, bias, _ = data(dtype=dtype)
            with torch.no_grad():  # ties across shards, of all kinds
                W[5] = W[-3] = W[P // 2] = W[P // 4]
                bias[[5, -3, P // 2, P // 4]] = 4.0
                x[2], x[3, 1], x[4, 0] = 0.0, torch.nan, torch.inf
                W[7], W[P - 7, 2], bias[P - 9] = 0.0, torch.inf, -torch.inf
            one = dk.encode_top_m(x, W, None, 9, bias=bias, positive=positive, num_stages=1)
            for mesh in meshes():
                w, b = sharded(mesh, 0, W), sharded(mesh, 0, bias)
                code = dk.encode_top_m(x, w, None, 9, bias=b, positive=positive, num_stages=1)
                as_bits = torch.int16 if dtype == torch.bfloat16 else torch.int32
                assert torch.equal(code.indices, one.indices)
                assert torch.equal(code.values.view(as_bits), one.values.view(as_bits))


def gradients_of_weights_have_the_bits_of_one_process():
    x, W, bias, _ = data()
    one = dk.encode_top_m(x, W, None, 9, bias=bias, num_stages=1)
    weight = torch.randn(B, 9)
    (one.values * weight).sum().backward()
    expected = gradients(x, W, bias)
    for mesh in meshes():
        w, b = sharded(mesh, 0, W), sharded(mesh, 0, bias)
        code = dk.encode_top_m(x, w, None, 9, bias=b, num_stages=1)
        (code.values * weight).sum().backward()
        gx, gW, gb = gradients(x, w, b)
        assert torch.equal(gW, expected[1])
        assert torch.equal(gb, expected[2])
        torch.testing.assert_close(gx, expected[0])


def shards_have_the_bits_of_each_other():
    """Of a dictionary so small that one process forms its products otherwise."""
    x, W, bias, _ = data(p=100)
    world = dist.get_world_size()
    solo = init_device_mesh("cpu", (world, 1), mesh_dim_names=("others", "solo"))["solo"]
    found = []
    for mesh in (solo, *meshes()):
        w, b = sharded(mesh, 0, W), sharded(mesh, 0, bias)
        code = dk.encode_top_m(x, w, None, 9, bias=b, num_stages=1)
        code.values.square().sum().backward()
        found.append((code.values, code.indices, *gradients(w, b)))
    one = dk.encode_top_m(x, W, None, 9, bias=bias, num_stages=1)
    assert torch.equal(one.indices, found[0][1])
    torch.testing.assert_close(one.values, found[0][0])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def exact_sums_have_the_bits_of_one_process():
    """Any p, m, stages, sign, dtype: where no sum is rounded all of it is equal, x_hat too."""
    draw = random.Random(1)
    world = dist.get_world_size()
    for trial in range(12):
        torch.manual_seed(trial)
        p = draw.choice([1, 2, 3, world, world + 1, 7, 2 * world + 1, 30, 61])
        K = draw.choice([1, 1, 2, 3])
        m = [draw.randint(0, min(p, 5)) for _ in range(K)] if K > 1 else draw.randint(0, p)
        dtype = draw.choice([torch.float32, torch.float64])
        positive, batch = draw.random() < 0.5, draw.choice([0, 1, 5])
        x, W, bias, D = data(p, 4, batch, dtype, exact=True)
        bias = bias if draw.random() < 0.5 else None
        step = (
            torch.full((K,), 2.0, dtype=dtype, requires_grad=True) if draw.random() < 0.4 else None
        )
        if K == 1:
            step = None
        options = dict(num_stages=K, positive=positive, step=step)
        d = D if K > 1 else None
        one = dk.encode_top_m(x, W, None, m, bias=bias, D=d, **options)
        out = dk.decode(one, D)
        weight, other = torch.randint(-2, 3, out.shape), torch.randint(-2, 3, one.values.shape)
        ((out * weight).sum() + (one.values * other).sum()).backward()
        expected = gradients(x, W, bias, D, step)
        for mesh in meshes():
            w, b, atoms = (sharded(mesh, i, t) for i, t in ((0, W), (0, bias), (1, D)))
            code = dk.encode_top_m(x, w, None, m, bias=b, D=atoms if K > 1 else None, **options)
            assert code == one, (trial, p, m)
            again = dk.decode(code, atoms)
            assert torch.equal(again, out), (trial, p, m)
            ((again * weight).sum() + (code.values * other).sum()).backward()
            for name, a, e in zip("xWbDs", gradients(x, w, b, atoms, step), expected, strict=True):
                assert (a is None) == (e is None), (trial, name)
                assert a is None or torch.equal(a, e), (trial, name, p, m, K, a, e)


def stages_agree_within_rounding():
    x, W, _, D = data()
    D = (D / D.norm(dim=0)).detach().requires_grad_()
    W = D.t().detach().clone().requires_grad_()
    step = torch.tensor([0.9, 0.5, 0.7], requires_grad=True)
    options = dict(num_stages=3, step=step)
    one = dk.encode_top_m(x, W, None, [9, 5, 9], D=D, **options)
    out = dk.decode(one, D)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    expected = gradients(x, W, D, step)
    for mesh in meshes():
        w, atoms = sharded(mesh, 0, W), sharded(mesh, 1, D)
        code = dk.encode_top_m(x, w, None, [9, 5, 9], D=atoms, **options)
        assert torch.equal(code.indices, one.indices)
        torch.testing.assert_close(code.values, one.values)
        again = dk.decode(code, atoms)
        torch.testing.assert_close(again, out)
        (again * weight).sum().backward()
        for a, e in zip(gradients(x, w, atoms, step), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


def what_travels():
    """An all-gather of 8 B m bytes a stage, an all-reduce of 4 B n bytes for each but the first."""
    mesh, m, K = next(meshes()), 9, 3
    x, W, bias, D = data(p=4096)
    w, b, atoms = sharded(mesh, 0, W), sharded(mesh, 0, bias), sharded(mesh, 1, D)
    x = x.detach()
    with Traffic() as forward:
        code = dk.encode_top_m(x, w, None, m, bias=b, D=atoms, num_stages=K)
    assert forward.bytes == {"allgather_base": 8 * B * m * K, "allreduce": 4 * B * N * (K - 1)}
    assert forward.calls == {"allgather_base": K, "allreduce": K - 1}
    with Traffic() as decoded:
        out = dk.decode(code, atoms)
    assert decoded.bytes == {"allreduce": 4 * B * N}
    with Traffic() as backward:
        out.sum().backward()
    assert backward.bytes == {"allreduce": 4 * B * N * (K - 1) + 4 * B * m}


def data_and_units():
    """x over one dimension of the mesh, units over the other: gradients are sums over both."""
    if dist.get_world_size() < 4:
        return
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "units"))
    x, W, bias, D = data(p=101, batch=8, exact=True)
    step = torch.ones(2, requires_grad=True)
    one = dk.encode_top_m(x, W, None, 5, bias=bias, D=D, num_stages=2, step=step)
    out = dk.decode(one, D)
    weight = torch.randint(-2, 3, out.shape).float()
    (out * weight).sum().backward()
    expected = gradients(x, W, bias, D, step)

    def place(t, *placements):
        return distribute_tensor(t.detach(), mesh, placements).requires_grad_()

    rows, every = Shard(0), Replicate()
    xs, w, b = place(x, rows, every), place(W, every, Shard(0)), place(bias, every, Shard(0))
    d, s = place(D, every, Shard(1)), place(step, every, every)
    code = dk.encode_top_m(xs, w, None, 5, bias=b, D=d, num_stages=2, step=s)
    assert code.values.placements == (rows, every)
    assert torch.equal(whole(code.values), one.values)
    assert torch.equal(whole(code.indices), one.indices)
    again = dk.decode(code, d)
    assert torch.equal(whole(again), out)
    (again.to_local() * distribute_tensor(weight, mesh, (rows, every)).to_local()).sum().backward()
    for name, a, e in zip("xWbDs", gradients(xs, w, b, d, s), expected, strict=True):
        assert torch.equal(a, e), (name, a, e)
    # Nothing but the batch is spread: the same rule.
    w, b = place(W, every, every), place(bias, every, every)
    code = dk.encode_top_m(place(x, rows, rows), w, None, 5, bias=b, num_stages=1)
    one = dk.encode_top_m(x, W, None, 5, bias=bias, num_stages=1)
    assert torch.equal(whole(code.values), one.values)
    code.values.to_local().sum().backward()
    one.values.sum().backward()
    for a, e in zip(gradients(w, b), gradients(W, bias), strict=True):
        assert torch.equal(a, e)


def refused(call, *words):
    """Every rank gets a ValueError with these words."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def bad_calls_are_refused_on_every_rank():
    rank = dist.get_rank()
    mesh = next(meshes())
    x, W, bias, D = (t.detach() for t in data(p=40))
    w, b, d = sharded(mesh, 0, W), sharded(mesh, 0, bias), sharded(mesh, 1, D)

    def encode(x=x, w=w, m=3, S=None, **options):
        return dk.encode_top_m(x, w, S, m, **{"num_stages": 1, **options})

    refused(lambda: encode(m=3 + (rank == 1)), "m must be the same on all ranks", "0: 3", "1: 4")
    refused(lambda: encode(x=x[: 30 + rank]), "the shape of x must be the same on all ranks")
    refused(lambda: encode(x=x.double() if rank else x), "dtype" if rank else "rank 1 was refused")
    refused(lambda: encode(bias=b if rank else None), "what is given must be the same")
    refused(lambda: encode(x=x.clone().requires_grad_(rank == 0)), "what wants a gradient must be")
    refused(lambda: encode(m=41 if rank == 1 else 3), "m must be >= 0 and <= p = 40, got 41")
    refused(lambda: encode(m=41), "m must be >= 0 and <= p = 40, got 41")
    refused(lambda: encode(positive=rank == 0), "positive must be the same")
    refused(lambda: encode(bias=bias), "bias must be sharded as W is, got a plain tensor")
    refused(lambda: encode(S=torch.eye(40), num_stages=2), "S must be None", "couples")
    refused(lambda: encode(num_stages=2), "num_stages must be 1 without D")
    refused(lambda: encode(step=1.0), "step must be None without D")
    refused(lambda: encode(D=D, num_stages=2), "D must be sharded as W is")
    refused(
        lambda: encode(D=sharded(mesh, 0, D), num_stages=2), "D must be placed as (Shard(dim=1)"
    )
    refused(lambda: encode(w=sharded(mesh, 1, W)), "W must have the placements Shard(0)")
    refused(lambda: encode(w=sharded(mesh, rank == 0, W)), "W must have the placements Shard(0)")
    refused(lambda: encode(num_stages=0 if rank == 0 else 1), "num_stages must be >= 1, got 0")
    far = DTensor.from_local(torch.empty(1, 6), mesh, [Shard(0)], run_check=False,
                             shape=torch.Size((2**31, 6)), stride=(6, 1))  # fmt: skip
    refused(lambda: encode(w=far), "p must be <= 2**31 - 1", "got 2147483648")
    refused(lambda: encode(x=sharded(mesh, 0, x)), "x must be sharded over its batch alone")
    refused(lambda: encode(w=W, x=sharded(mesh, 0, x)), "W must be a DTensor")
    refused(lambda: dk.encode_l0(x, w, None, 1.0, num_stages=1), "encode_l0 takes plain tensors")
    code = encode()
    refused(lambda: dk.decode(code, sharded(mesh, 0, D)), "D must have the placements Shard(1)")
    bad = dk.SparseCode(code.values, code.indices + (rank == 0), 40)
    bad.indices[0, -1] = 40 if rank == 0 else 0
    other = dk.SparseCode(code.values, code.indices, 40 + (rank == 1))
    refused(lambda: dk.decode(other, d), "D must have shape [n, p] with p = 41, got (24, 40)")
    refused(lambda: dk.decode(bad, d), "code.indices must be in [0, p) with p = 40")
    assert encode() == code  # and the next call finds all ranks in step


def ambient_modes():
    """Autocast, inference mode, no gradient: as in one process."""
    x, W, bias, D = data()
    mesh = next(meshes())
    w, b, d = sharded(mesh, 0, W), sharded(mesh, 0, bias), sharded(mesh, 1, D)
    with torch.autocast("cpu", torch.bfloat16):
        one = dk.encode_top_m(x, W, None, 9, bias=bias, num_stages=1)
        code = dk.encode_top_m(x, w, None, 9, bias=b, num_stages=1)
        assert code == one
        assert code.values.dtype == torch.bfloat16
        out = dk.decode(code, d)
        torch.testing.assert_close(out, dk.decode(one, D), rtol=2e-2, atol=2e-2)
        out.float().sum().backward()
    assert w.grad.dtype == torch.float32
    with torch.inference_mode():
        one = dk.encode_top_m(x, W, None, 9, num_stages=1)
    with torch.no_grad():
        code = dk.encode_top_m(x, w, None, 9, num_stages=1)
    assert torch.equal(code.values, one.values)
    assert not code.values.requires_grad


def who_waits_in_vain_gives_up_by_the_timeout():
    """What no check can reach: a call that the other ranks never make."""
    group = dist.new_group(timeout=timedelta(seconds=1))
    mesh = DeviceMesh.from_group(group, "cpu")
    x, W, *_ = (t.detach() for t in data(p=40))
    w = sharded(mesh, 0, W)
    if dist.get_rank() == 0:
        begin = time.perf_counter()
        with pytest.raises(RuntimeError, match=r"[Tt]imed out|closed|timeout"):
            dk.encode_top_m(x, w, None, 2, num_stages=1)
        assert time.perf_counter() - begin < 10
    dist.barrier()


CASES = {
    case.__name__: case
    for case in (
        codes_have_the_bits_of_one_process,
        gradients_of_weights_have_the_bits_of_one_process,
        shards_have_the_bits_of_each_other,
        exact_sums_have_the_bits_of_one_process,
        stages_agree_within_rounding,
        what_travels,
        data_and_units,
        bad_calls_are_refused_on_every_rank,
        ambient_modes,
        who_waits_in_vain_gives_up_by_the_timeout,
    )
}

if __name__ == "__main__":
    spawn.serve(CASES)
