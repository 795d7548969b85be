"""Stages without S: against float64, stage by stage, and the form with S; their gradients."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

import deepl0_kernels as dk
from python_tests.ops.test_encode import BACKENDS, assert_top_m_stage
from python_tests.oracle import same_bits


def problem(batch, n, p, dtype=torch.float32, seed=0):
    """x, W, D, bias and three steps; W is not D' but near it."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    D = torch.nn.functional.normalize(randn(n, p), dim=0)
    W = 0.7 * D.t() + 0.02 * randn(p, n)
    step = torch.tensor([0.9, 0.6, 0.8], dtype=torch.float64)
    operands = (randn(batch, n), W, D, 0.05 * randn(p), step)
    return tuple(t.to(dtype) for t in operands)


def settling(batch, n, p, dtype):
    """The same with W and bias so small that codes settle, also those of thresholds, of which the
    last result is one that leaves a part of the entries."""
    x, W, D, bias, step = problem(batch, n, p, dtype)
    bound = torch.linalg.matrix_norm(D, 2).item() ** 2
    return x, W / bound, D, bias / bound, step, 0.6 / bound


def pre_activation(x, W, D, bias, step, z) -> tuple[Tensor, Tensor]:
    """u = z + step W (x - D z) + bias in float64, and the bound of float32's error: that of the
    residual goes through |W| (docs/numerics.md)."""
    x, W, D, bias, z = (t.double() for t in (x, W, D, bias, z))
    terms = x.shape[1] + int((z != 0).sum(1).max() if z.numel() else 0) + 6
    magnitude = step * (x.abs() + z.abs() @ D.abs().t()) @ W.abs().t() + bias.abs() + z.abs()
    return z + step * (x - z @ D.t()) @ W.t() + bias, terms * 2.0**-24 * magnitude


def by_columns(t: Tensor) -> Tensor:
    return t.t().contiguous().t()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(
    ("batch", "n", "p", "m"),
    [(1, 16, 24, (5, 5, 5)), (64, 24, 128, (10, 4, 12)), (130, 30, 90, (0, 90, 7)),
     (70, 24, 4500, (20, 20, 20)), (3, 24, 4500, (9, 30, 5)), (600, 16, 4200, (8, 8, 8))],
)  # fmt: skip
def test_every_stage_follows_from_the_one_before(backend, positive, batch, n, p, m):
    x, W, D, bias, step = problem(batch, n, p, seed=p)
    z, swaps = torch.zeros(batch, p), 0
    for k in range(1, 4):
        u, bound = pre_activation(x, W, D, bias, step[k - 1].double(), z)
        with dk.use_backend(backend):
            code = dk.encode_top_m(
                x, W, None, m[:k], num_stages=k, D=D, bias=bias, step=step[:k], positive=positive
            )
        swaps += assert_top_m_stage(u, bound, code, m[k - 1], positive)
        z = code.to_dense()
    assert swaps <= 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("positive", [False, True])
def test_the_same_function_as_with_s(backend, positive):
    def forms(x, W, D):
        yield torch.eye(60, dtype=torch.float64) - W @ D, None
        yield None, D

    options = dict(num_stages=4, positive=positive)
    with dk.use_backend(backend):
        # Steps so large that every stage has another support.
        x, W, D, bias, _ = problem(40, 12, 60, torch.float64)
        codes = [dk.encode_top_m(x, W, S, 7, D=d, bias=bias, **options) for S, d in forms(x, W, D)]
        first = dk.encode_top_m(x, W, None, 7, num_stages=1, bias=bias, positive=positive)
        x, W, D, bias, _, theta = settling(40, 12, 60, torch.float64)
        dense = [dk.encode_l0(x, W, S, theta, D=d, bias=bias, **options) for S, d in forms(x, W, D)]
        z = dk.encode_l0(x, W, None, theta, num_stages=1, bias=bias, positive=positive)
    assert (codes[0].indices != first.indices).any(-1).all()
    assert torch.equal(codes[0].indices, codes[1].indices)
    torch.testing.assert_close(codes[0].values, codes[1].values, rtol=1e-12, atol=1e-12)
    assert 0.1 < (dense[0] != 0).double().mean() < 0.7
    assert ((dense[0] != 0) != (z != 0)).any()
    torch.testing.assert_close(*dense, rtol=1e-12, atol=1e-12)


def integers(batch=70, n=24, p=4500):
    """Sums of them are exact in float32, and ties abound."""
    g = torch.Generator().manual_seed(2)
    x, W, D = (torch.randint(-2, 3, s, generator=g).float() for s in ((batch, n), (p, n), (n, p)))
    return x, W, D / 4, torch.randint(-3, 3, (p,), generator=g).float()


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, by_columns])
@pytest.mark.parametrize("batch", [1, 33, 70])
def test_ties_go_to_the_lowest_index(batch, layout, positive):
    x, W, D, bias = integers(batch)
    # Most units never positive: fewer than m entries are, and zeros fill the code.
    for b in (bias, bias - 30):
        args = dict(num_stages=2, D=layout(D), bias=b, positive=positive)
        got = dk.encode_top_m(x, W, None, (20, 15), **args)
        with dk.use_backend("reference"):
            want = dk.encode_top_m(x.double(), W.double(), None, (20, 15),
                                   **args | dict(D=D.double(), bias=b.double()))  # fmt: skip
        assert torch.equal(got.indices, want.indices)
        assert torch.equal(got.values.double(), want.values)
        assert not positive or not torch.signbit(got.values).any()


def test_rows_and_units_that_are_not_finite():
    x, W, D, bias, _ = problem(70, 24, 4500)
    x[3, 5], x[9] = torch.nan, 0
    x[11, 2] = torch.inf
    W[77, 1], W[4321], bias[99] = torch.inf, torch.nan, torch.nan
    W[2016:2048] = torch.nan  # a whole group of units
    code = dk.encode_top_m(x, W, None, 40, num_stages=1, D=D, bias=bias)
    with dk.use_backend("reference"):
        want = dk.encode_top_m(x, W, None, 40, num_stages=1, D=D, bias=bias)
    assert torch.equal(code.values.isnan(), want.values.isnan())
    finite = torch.tensor([i not in (3, 11) for i in range(70)])
    assert torch.equal(code.indices[finite], want.indices[finite])


@pytest.mark.parametrize("positive", [False, True])
def test_batch_invariant(positive):
    """Over a large dictionary a row's code has the same bits alone, in any batch, any threads."""
    x, W, D, bias, step = problem(70, 24, 4500)

    def encode(rows):
        return dk.encode_top_m(
            rows, W, None, 20, num_stages=3, D=D, bias=bias, step=step, positive=positive
        )

    whole, threads = encode(x), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        parts = [encode(x[i : i + size]) for i, size in ((0, 1), (1, 2), (3, 29), (32, 38))]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.cat([c.indices for c in parts]), whole.indices)
    assert same_bits(torch.cat([c.values for c in parts]), whole.values)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [0, 1, 100])
def test_dtypes_and_leading_dimensions(batch, dtype):
    x, W, D, bias, step = problem(2 * batch, 24, 200, dtype)
    x, step = x.reshape(2, batch, 24), step.to(torch.promote_types(dtype, torch.float32))
    options = dict(num_stages=3, D=D, bias=bias, step=step, positive=True)
    codes, dense = [], []
    for backend in BACKENDS:
        with dk.use_backend(backend):
            codes.append(dk.encode_top_m(x, W, None, (9, 12, 8), **options))
            dense.append(dk.encode_l0(x, W, None, 0.5, sigma=0.2, **options))
    want, got = codes
    assert got.values.shape == (2, batch, 8)
    assert got.values.dtype == dtype
    same = (got.indices == want.indices).all(-1)
    assert same.float().sum() >= 0.98 * same.numel()
    tolerance = {8: 1e-12, 4: 1e-5, 2: 2.0**-7}[dtype.itemsize]
    torch.testing.assert_close(got.values[same], want.values[same], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(*dense, rtol=tolerance, atol=5 * tolerance)


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, by_columns])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(("batch", "p"), [(3, 60), (150, 60), (40, 4500)])
def test_gradients_equal_the_reference(batch, p, positive, layout):
    dtype = torch.float32 if p > 1000 else torch.float64
    x, W, D, bias, step, theta = settling(batch, 16, p, dtype)
    weights = torch.randn(batch, 11, dtype=dtype, generator=torch.Generator().manual_seed(1))
    grads = []
    for backend in BACKENDS:
        leaves = [t.clone().requires_grad_() for t in (x, W, layout(D), bias, step)]
        xs, Ws, Ds, b, s = leaves
        with dk.use_backend(backend):
            code = dk.encode_top_m(
                xs, Ws, None, (9, 14, 11), num_stages=3, D=Ds, bias=b, step=s, positive=positive
            )
            dense = dk.encode_l0(
                xs,
                Ws,
                None,
                theta,
                num_stages=3,
                sigma=0.3,
                D=Ds,
                bias=b,
                step=s,
                positive=positive,
            )
        assert 0.05 < (dense != 0).double().mean() < 0.7
        loss = (code.values * weights).sum() + dense.square().sum() / 2
        grads.append(torch.autograd.grad(loss, leaves))
        assert grads[-1][2].stride() == leaves[2].stride()
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    for want, got in zip(*grads, strict=True):
        assert (got - want).norm() <= tolerance * want.norm()


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("factored", [False, True])
def test_an_entry_of_zero_at_a_threshold_of_zero_has_a_gradient(factored, positive):
    """Among codes so sparse that the backward goes by supports, in which it does not stand."""
    torch.manual_seed(0)
    x, W = torch.randn(9, 4).double(), torch.randn(40, 4).double()
    D, bias, theta = 0.01 * torch.randn(4, 40).double(), torch.zeros(40).double(), torch.zeros(40)
    W[5], bias[7], theta[:] = 0, 50, 20
    S = 0.01 * torch.randn(40, 40).double()
    theta[5] = S[5] = 0
    W.requires_grad_()
    bias.requires_grad_()
    found = []
    for backend in BACKENDS:
        with dk.use_backend(backend):
            z = dk.encode_l0(
                x, W, None if factored else S, theta.double(), num_stages=3, grad="hard",
                D=D if factored else None, bias=bias, positive=positive,
            )  # fmt: skip
        assert torch.equal(z != 0, (torch.arange(40) == 7).expand(9, 40))
        found.append(torch.autograd.grad((z * torch.arange(1, 41)).sum(), (W, bias)))
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want)
    assert (found[0][1][5] != 0) == (not positive)


def test_gradcheck():
    *operands, theta = settling(4, 5, 12, torch.float64)
    leaves = [t.requires_grad_() for t in operands]

    def sparse(x, W, D, bias, step):
        return dk.encode_top_m(
            x, W, None, (3, 5, 4), num_stages=3, D=D, bias=bias, step=step
        ).values

    def dense(x, W, D, bias, step):
        return dk.encode_l0(
            x, W, None, theta, num_stages=3, sigma=0.4, D=D, bias=bias, step=step, positive=True
        )

    for function in (sparse, dense):
        assert torch.autograd.gradcheck(function, leaves)


def test_what_is_saved_is_sparse():
    """Between forward and backward: operands, values and indices, nothing of [B, p] or [B, n]."""
    x, W, D, bias, _ = problem(64, 24, 4500)
    W.requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        dk.encode_top_m(x, W, None, 8, num_stages=3, D=D, bias=bias, positive=True)
    operands = {t.data_ptr() for t in (x, W, D)}
    sizes = [t.numel() for t in saved if t.data_ptr() not in operands]
    assert sum(sizes) == 2 * 3 * 64 * 8


@pytest.mark.parametrize("positive", [False, True])
def test_compile_and_export(positive):
    x, W, D, bias, step = problem(20, 8, 40)

    class Model(torch.nn.Module):
        def forward(self, x):
            code = dk.encode_top_m(
                x, W, None, (4, 6), num_stages=2, D=D, bias=bias, step=step[:2], positive=positive
            )
            dense = dk.encode_l0(x, W, None, 0.4, D=D, bias=bias, step=0.7, positive=positive)
            return code.values, code.indices, dense

    want, dynamic = Model()(x), {"x": {0: torch.export.Dim("batch")}}
    compiled = torch.compile(Model(), fullgraph=True, dynamic=True, backend="aot_eager")
    program = torch.export.export(Model(), (x,), dynamic_shapes=dynamic).module()
    for model in (compiled, program):
        for got, expected in zip(model(x), want, strict=True):
            assert torch.equal(got, expected)
        assert model(x[:7])[0].shape == (7, 6)
    mapped = torch.vmap(Model())(x.reshape(4, 5, 8))
    assert torch.equal(mapped[1].reshape(20, 6), want[1])


BAD = {
    "D and S": (dict(S=torch.zeros(9, 9)), "S must be None where D is given, got (9, 9)"),
    "shape of D": (dict(D=torch.zeros(9, 5)), "D must have shape [n, p] = (5, 9), got (9, 5)"),
    "dtype of D": (dict(D=torch.zeros(5, 9).double()), "D must have the dtype of x"),
    "shape of bias": (dict(bias=torch.zeros(5)), "bias must have shape [p] = (9,), got (5,)"),
    "dtype of bias": (dict(bias=torch.zeros(9).double()), "bias must have the dtype of x"),
    "number of m": (dict(m=(1, 2, 3)), "m must have num_stages = 2 entries, got 3: (1, 2, 3)"),
    "an m": (dict(m=(1, 10)), "m must be >= 0 and <= p = 9, got 10"),
    "step 0": (dict(step=0.0), "step must be a finite number > 0, got 0.0"),
    "a step": (dict(step=[1.0, -2.0]), "step must be a finite number > 0, got -2.0"),
    "tensor step": (dict(step=torch.tensor([1.0, 0.0])), "step must be > 0, got 0.0 in stage 1"),
    "number of steps": (dict(step=[1.0]), "step must have shape [num_stages] = (2,), got (1,)"),
    "step without D": (dict(D=None, S=torch.zeros(9, 9), step=0.5),
                       "step must be None without D, got 0.5"),
    "m without D": (dict(D=None, S=torch.zeros(9, 9), m=(1, 2)),
                    "m must be one number without D, got (1, 2)"),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_named(what, backend):
    changes, words = BAD[what]
    args = dict(S=None, D=torch.zeros(5, 9), m=2, bias=None, step=None) | changes
    x, W, S, m = torch.zeros(3, 5), torch.zeros(9, 5), args.pop("S"), args.pop("m")
    with dk.use_backend(backend), pytest.raises(ValueError, match=re.escape(words)):
        dk.encode_top_m(x, W, S, m, **args)
    if m == 2:
        with dk.use_backend(backend), pytest.raises(ValueError, match=re.escape(words)):
            dk.encode_l0(x, W, S, 0.5, **args)


def test_positive_must_be_a_bool():
    with pytest.raises(TypeError, match="positive must be True or False, got 1"):
        dk.encode_top_m(torch.zeros(3, 5), torch.zeros(9, 5), None, 2, num_stages=1, positive=1)
