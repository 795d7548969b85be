"""Least squares on the support of a code: values, gradients, dependence, edges, memory, use."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import deepl0_kernels as dk
from deepl0_kernels.reference.refit import supports

B, N, P, M = 12, 10, 24, 4


def problem(dtype=torch.float64, rows=B, n=N, p=P, m=M, seed=0):
    """Signals, atoms of many norms, and supports."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, n, generator=g, dtype=torch.float64)
    D = torch.randn(n, p, generator=g, dtype=torch.float64)
    D = D * torch.logspace(-2, 2, p, dtype=torch.float64)
    indices = torch.rand(rows, p, generator=g).argsort(1)[:, :m].sort(1).values
    return x.to(dtype), D.to(dtype), indices


def by_lstsq(x, D, indices):
    """Of atoms that are independent; -1 is no atom."""
    x, D = x.detach(), D.detach()
    values = torch.zeros(indices.shape, dtype=torch.float64)
    for row, signal, at in zip(values, x.double(), indices, strict=True):
        on = at >= 0
        if on.any():
            A = D.double()[:, at[on]]
            size = A.norm(dim=0)
            row[on] = torch.linalg.lstsq(A / size, signal[:, None]).solution[:, 0] / size
    return values


def by_autograd(x, D, indices, grad):
    """Gradients through a pseudoinverse, in float64."""
    x, D = (t.detach().double().requires_grad_() for t in (x, D))
    size = D.detach().norm(dim=0)
    atoms = (D / size).t()[indices].mT
    values = (torch.linalg.pinv(atoms) @ x[:, :, None])[..., 0] / size[indices]
    return torch.autograd.grad(values, (x, D), grad.double())


def distance(got, want) -> float:
    return ((got.double() - want).norm() / want.norm()).item()


# What rounding of the operands to a dtype, once of the result, and a condition below 100 leave.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
BY_COLUMNS = lambda t: t.t().contiguous().t()  # noqa: E731


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, BY_COLUMNS])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_values_and_gradients(dtype, layout):
    x, D, indices = problem(dtype)
    x, D = layout(x).requires_grad_(), layout(D).requires_grad_()
    code = dk.refit(x, D, indices)
    assert (code.values.dtype, code.size) == (dtype, P)
    assert torch.equal(code.indices, indices)
    sizes = D.detach().norm(dim=0)[indices].double()  # values of small atoms are large
    want = by_lstsq(x, D, indices)
    assert distance(code.values * sizes, want * sizes) < TOLERANCE[dtype]
    grad = (torch.randn(B, M) * sizes).to(dtype)
    got = torch.autograd.grad(code.values, (x, D), grad)
    assert [g.dtype for g in got] == [dtype] * 2
    assert got[1].stride() == D.stride()
    grad_x, grad_D = by_autograd(x, D, indices, grad)
    sizes = D.detach().norm(dim=0).double()
    assert distance(got[0], grad_x) < TOLERANCE[dtype]
    assert distance(got[1] * sizes, grad_D * sizes) < TOLERANCE[dtype]


@pytest.mark.parametrize("m", [0, 1, M, N])
def test_gradients_by_differences(m):
    x, D, indices = problem(rows=3, m=m)
    D = D / D.norm(dim=0)
    leaves = x.requires_grad_(), D.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, D: dk.refit(x, D, indices).values, leaves)


def test_all_atoms_and_more_atoms_than_numbers():
    x, D, _ = problem(p=N - 2)
    every = torch.arange(N - 2).expand(B, -1)
    torch.testing.assert_close(dk.refit(x, D, every).values, by_lstsq(x, D, every))
    x, D, _ = problem()
    x.requires_grad_()
    code = dk.refit(x, D / D.norm(dim=0), torch.arange(P).expand(B, -1))
    assert ((code.values != 0).sum(1) == N).all()
    torch.testing.assert_close(dk.decode(code, D / D.norm(dim=0)), x)
    (grad,) = torch.autograd.grad(code.values.square().sum(), x)
    assert grad.isfinite().all()


def test_the_code_of_a_pursuit_is_refitted_to_itself():
    """Also where it ended early: what it has left over is no part of the support."""
    x, D, _ = problem(torch.float32)
    x[:5] = D.t()[:5] - D.t()[1:6]
    D[:, 20] = D[:, 3]
    found = dk.solvers.omp(x, D, 6, tol=1e-5)
    assert found.iterations.min() < 6 == found.iterations.max()
    code = dk.refit(x, D, found.code)
    assert torch.equal(code.values == 0, found.code.values == 0)
    torch.testing.assert_close(code.values, found.code.values, rtol=1e-3, atol=1e-5)
    kept = found.code.values.masked_fill(found.code.values == 0, -0.0)
    assert torch.equal(dk.refit(x, D, dk.SparseCode(kept, found.code.indices, P)).values,
                       code.values)  # fmt: skip


def test_dependent_atoms_are_0_as_those_of_htp_are():
    x, D, _ = problem()
    D[:, 5], D[:, 6] = 3 * D[:, 4], 0.0
    D[:, 8] = D[:, 7] / D[:, 7].norm() + D[:, 4] / D[:, 4].norm()
    indices = torch.tensor([[4, 5, 7, 9], [4, 6, 7, 9], [4, 7, 8, 9], [1, 2, 3, 7]] * 3)
    rest = torch.tensor([[4, -1, 7, 9], [4, -1, 7, 9], [4, -1, 8, 9], [1, 2, 3, 7]] * 3)
    leaves = x.requires_grad_(), D.requires_grad_()
    code = dk.refit(*leaves, indices)
    zero = (code.values == 0).sum(1)
    assert torch.equal(zero, torch.tensor([1, 1, 1, 0] * 3))
    fit = dk.decode(code, D)
    want = dk.SparseCode(by_lstsq(x, D, rest).to(D), indices, P)
    torch.testing.assert_close(fit, dk.decode(want, D))
    # What is left is differentiated as it stands: the others' gradient, none for what is 0.
    at = torch.where(code.values == 0, -1, indices)
    grads = torch.autograd.grad(code.values.sum(), leaves)
    values = torch.ops.deepl0.refit(*leaves, at)
    for a, b in zip(grads, torch.autograd.grad(values.sum(), leaves), strict=True):
        torch.testing.assert_close(a, b)
    assert grads[1][:, 6].abs().max() == 0
    solver = dk.solvers.htp(x, D, 4, max_iter=1).code
    again = dk.refit(x, D, solver)
    torch.testing.assert_close(again.values, solver.values)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_nan_and_the_others_are_themselves(bad):
    x, D, indices = problem(torch.float32)
    want = dk.refit(x, D, indices).values
    x[2, 1] = bad
    atom = int(indices[7, 0])
    D[3, atom] = bad
    rows = (indices == atom).any(1) | (torch.arange(B) == 2)
    indices[2, 0] = -1
    x, D = x.requires_grad_(), D.requires_grad_()
    values = torch.ops.deepl0.refit(x, D, indices)
    assert torch.equal(values[~rows], want[~rows])
    assert torch.equal(values[rows].isnan(), indices[rows] >= 0)
    assert values[2, 0] == 0
    grad_x, grad_D = torch.autograd.grad(values.sum(), (x, D))
    assert torch.equal(grad_x.isnan().all(1), rows)
    assert torch.equal(grad_x.isnan().any(1), rows)
    used = torch.zeros(P, dtype=torch.bool)
    used[indices[rows][indices[rows] >= 0]] = True
    assert torch.equal(grad_D.isnan().any(0), used)


def test_shapes():
    x, D, indices = problem(torch.float32)
    code = dk.refit(x, D, indices)
    cube = dk.refit(x.reshape(3, 4, N), D, code.__class__(
        code.values.reshape(3, 4, M), indices.reshape(3, 4, M), P))  # fmt: skip
    assert torch.equal(cube.values.flatten(0, 1), code.values)
    torch.testing.assert_close(dk.refit(x[0], D, indices[0]).values, code.values[0])
    empty = dk.refit(x[:0].requires_grad_(), D.requires_grad_(), indices[:0])
    assert empty.values.shape == (0, M)
    assert torch.autograd.grad(empty.values.sum(), D)[0].abs().sum() == 0
    wide = torch.randn(B, 2 * N)
    torch.testing.assert_close(
        dk.refit(wide[:, ::2], D, indices).values,
        dk.refit(wide[:, ::2].contiguous(), D, indices).values,
    )
    with dk.use_backend("reference"):
        assert dk.refit(x[:0], D, indices[:0]).values.shape == (0, M)


def test_the_same_bits_in_every_batch_and_run():
    x, D, indices = problem(torch.float32, rows=2000, n=60, m=20)
    leaves = x.requires_grad_(), D.requires_grad_()

    def run():
        values = dk.refit(*leaves, indices).values
        return values, *torch.autograd.grad(values.square().sum(), leaves)

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)
    few = dk.refit(x[1003:1005], D, indices[1003:1005]).values
    torch.testing.assert_close(few, run()[0][1003:1005])


def test_elsewhere_gradients_are_summed_by_index_put(monkeypatch):
    """The way of devices other than the CPU."""
    module = sys.modules["deepl0_kernels.ops.refit"]
    _, D, indices = problem()
    sides, values = torch.randn(B, N).double(), torch.randn(B, M).double()
    want = module._sum_of_products(sides, values, indices, D)
    monkeypatch.setattr(module, "_AT_ONCE_ELSEWHERE", 100)

    class Elsewhere(torch.Tensor):
        is_cpu = False

    got = module._sum_of_products(sides, values, indices, D.as_subclass(Elsewhere))
    torch.testing.assert_close(got.as_subclass(torch.Tensor), want)


def test_nothing_grows_as_batch_times_atoms():
    """Neither [B, m, n] nor [p, p] nor [B, p]; beside what is given and returned, a few MiB."""
    rows, n, p, m = 4096, 32, 4096, 8
    x, D, indices = problem(torch.float32, rows, n, p, m)
    x, D = x.requires_grad_(), D.requires_grad_()
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(t, torch.Tensor):
                    largest = max(largest, t.untyped_storage().nbytes())
            return out

    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        dk.refit(x, D, indices)
    assert sorted(t.numel() for t in saved) == sorted(t.numel() for t in (x, D, indices))
    assert supports(x, D, indices).atoms.nbytes == 8 * rows * m * n
    below = torch.ops.deepl0.refit.default.redispatch
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    with Watch():  # inside the operators
        below(keys, x.detach(), D.detach(), indices)
        torch.ops.deepl0.refit_backward.default.redispatch(
            keys, torch.ones(rows, m), x.detach(), D.detach(), indices, 3
        )
    assert largest <= max(4 * 2**20, 4 * 2 * rows * n, D.nbytes)
    assert largest < 8 * rows * m * n / 2
    assert largest >= 2**20  # it has seen the inside


def test_compiled_whole():
    torch._dynamo.reset()
    x, D, indices = problem(torch.float32)
    leaves = x.requires_grad_(), D.requires_grad_()

    def loss(x, D, indices):
        code = dk.refit(x, D, indices)
        return (x - dk.decode(code, D)).square().sum() + code.values.square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (B, 7):
        args = (leaves[0][:rows].detach().requires_grad_(), leaves[1], indices[:rows])
        got, want = (torch.autograd.grad(f(*args), args[:2]) for f in (compiled, loss))
        torch.testing.assert_close(got, want)


def test_vmap():
    x, D, indices = problem()
    want = dk.refit(x, D, indices).values
    got = torch.vmap(lambda x, i: dk.refit(x, D, i).values)(x, indices)
    torch.testing.assert_close(got, want)

    def loss(x, D, i):
        return dk.refit(x, D, i).values.square().sum()

    # A gradient in D of every sample, of dependent atoms among them.
    D = D.clone()
    D[:, indices[0, 1]] = D[:, indices[0, 0]]
    each = torch.vmap(torch.func.grad(loss, argnums=1), in_dims=(0, None, 0))(x, D, indices)
    D.requires_grad_()
    torch.testing.assert_close(each.sum(0), torch.autograd.grad(loss(x, D, indices), D)[0])


def test_twice_by_the_reference_alone():
    x, D, indices = problem(rows=2)
    D = D / D.norm(dim=0)
    leaves = x.requires_grad_(), D.requires_grad_()

    def values(x, D):
        return dk.refit(x, D, indices).values

    (grad,) = torch.autograd.grad(values(*leaves).square().sum(), D, create_graph=True)
    with pytest.raises(RuntimeError, match="refit: double backward is not implemented"):
        grad.sum().backward()
    with dk.use_backend("reference"):
        assert torch.autograd.gradgradcheck(values, leaves)


def test_under_autocast_it_is_float32():
    x, D, indices = problem(torch.float32)
    want = dk.refit(x.bfloat16().float(), D, indices).values
    with torch.autocast("cpu", torch.bfloat16):
        got = dk.refit(x.bfloat16(), D, indices).values
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


def test_a_step_of_a_matching_pursuit_autoencoder_lowers_the_loss():
    x, D, _ = problem(torch.float32, rows=200)
    D = torch.nn.functional.normalize(D, dim=0).requires_grad_()
    losses = []
    for _ in range(4):
        with torch.no_grad():
            support = dk.solvers.omp(x, D, M).code
        loss = (x - dk.decode(dk.refit(x, D, support), D)).square().sum(1).mean()
        losses.append(loss.item())
        (grad,) = torch.autograd.grad(loss, D)
        with torch.no_grad():
            D.copy_(torch.nn.functional.normalize(D - 0.3 * grad, dim=0))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]
    # At the minimum over the values the envelope theorem gives it without them.
    code = dk.refit(x, D, support)
    whole = torch.autograd.grad((x - dk.decode(code, D)).square().sum(), D)[0]
    fixed = dk.SparseCode(code.values.detach(), code.indices, P)
    part = torch.autograd.grad((x - dk.decode(fixed, D)).square().sum(), D)[0]
    torch.testing.assert_close(whole, part, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dict(x=torch.ones(B, N + 1)), ValueError, r"D must have shape \[n, p\] with n = 11, got"),
        (dict(x=[1.0]), TypeError, "x must be a tensor, got list"),
        (dict(D=torch.ones(N, P).double()), ValueError, "D must have the dtype of x"),
        (dict(D=torch.ones(N)), ValueError, r"D must have shape .* got \(10,\)"),
        (dict(support=torch.ones(B, M)), ValueError, "support must be int64, got torch.float32"),
        (dict(support=[1]), TypeError, "support must be a SparseCode or a tensor, got list"),
        (dict(support=torch.zeros(B - 1, 2).long()), ValueError, r"\(12,\) .* got \(11, 2\)"),
        (dict(support=torch.full((B, 1), P)), ValueError, r"in \[0, p\) with p = 24, got 24"),
        (dict(support=torch.full((B, 1), -1)), ValueError, r"in \[0, p\) with p = 24, got -1"),
        (
            dict(support=dk.SparseCode(torch.ones(B, 1), torch.zeros(B, 1).long(), P + 1)),
            ValueError,
            "support must have size p = 24, got 25",
        ),
    ],
)
def test_errors(change, error, words):
    x, D, support = problem(torch.float32)
    with pytest.raises(error, match=words):
        dk.refit(**{**dict(x=x, D=D, support=support), **change})
