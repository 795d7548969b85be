"""encode_top_m and encode_l0 against float64, stage by stage, and their gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import deepl0_kernels as dk
from python_tests.oracle import same_bits
from python_tests.rounding import ENCODERS, HALF_TYPES, check_rounding

BACKENDS = ("reference", "cpu")


def problem(batch, n, p, seed=0, dtype=torch.float32, stages=None, scale=0.3):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, n, generator=g, dtype=torch.float64)
    W = torch.randn(p, n, generator=g, dtype=torch.float64) / n**0.5
    shape = (p, p) if stages is None else (stages, p, p)
    S = torch.randn(shape, generator=g, dtype=torch.float64) * scale / p**0.5
    theta = torch.rand(p, generator=g, dtype=torch.float64) + 0.3
    return tuple(t.to(dtype) for t in (x, W, S, theta))


def pre_activation(x, W, z, S, bias=None) -> tuple[Tensor, Tensor]:
    """u = x W' + bias + z S' in float64, and the bound of float32's error (docs/numerics.md)."""
    x, W, z, S = (t.double() for t in (x, W, z, S))
    b = torch.zeros(len(W)).double() if bias is None else bias.double()
    terms = x.shape[1] + int((z != 0).sum(1).max() if z.numel() else 0) + 3
    magnitude = x.abs() @ W.abs().t() + b.abs() + z.abs() @ S.abs().t()
    return x @ W.t() + b + z @ S.t(), terms * 2.0**-24 * magnitude


def assert_top_m_stage(
    u: Tensor, bound: Tensor, code: dk.SparseCode, m: int, positive: bool = False
) -> int:
    """The code is the top m of u, or of max(u, 0); a swap is excused only between entries within
    their bounds."""
    u = dk.reference.thresholds.positive_part(u) if positive else u
    exact = dk.reference.top_m(u, m)[1]
    chosen = torch.zeros_like(u, dtype=torch.bool).scatter(-1, code.indices, True)
    expected = torch.zeros_like(chosen).scatter(-1, exact, True)
    weakest = torch.where(chosen, u.abs() + bound, torch.inf).amin(-1)
    strongest = torch.where(chosen, 0.0, u.abs() - bound).amax(-1)
    assert (weakest >= strongest).all()
    error = (code.values.double() - u.gather(-1, code.indices)).abs()
    assert (error <= bound.gather(-1, code.indices)).all()
    assert (code.indices.diff(dim=-1) > 0).all()
    return int((chosen != expected).sum()) // 2


def assert_encoder_is_the_iteration(x, W, S, m, num_stages, bias=None, positive=False) -> int:
    """Every stage of the float32 encoder follows from its own stage before."""
    p, swaps = W.shape[0], 0
    z = torch.zeros(x.shape[0], p)
    for k in range(1, num_stages + 1):
        matrix = S if S is None or S.dim() == 2 else S[: k - 1]
        if k == 1:
            matrix = None
            u, bound = pre_activation(x, W, z, torch.zeros(p, p), bias)
        else:
            u, bound = pre_activation(x, W, z, S if S.dim() == 2 else S[k - 2], bias)
        code = dk.encode_top_m(x, W, matrix, m, num_stages=k, bias=bias, positive=positive)
        assert code.size == p
        swaps += assert_top_m_stage(u, bound, code, m, positive)
        z = code.to_dense()
    return swaps


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("batch", "n", "p", "m", "num_stages"),
    [(1, 16, 24, 5, 2), (3, 256, 512, 32, 2), (64, 64, 128, 10, 4), (130, 100, 300, 150, 2),
     (257, 33, 129, 7, 3), (5, 8, 1, 1, 3), (9, 20, 40, 40, 2), (600, 32, 512, 32, 2),
     (300, 16, 2048, 20, 2),
     (2, 16, 2048, 20, 3), (40, 7, 50, 49, 10)],
)  # fmt: skip
def test_top_m_stages(backend, batch, n, p, m, num_stages):
    x, W, S, _ = problem(batch, n, p, seed=p)
    bias = torch.linspace(-0.7, 0.5, p)[torch.randperm(p)]
    with dk.use_backend(backend):
        swaps = assert_encoder_is_the_iteration(x, W, S, m, num_stages)
        swaps += assert_encoder_is_the_iteration(x, W, S, m, num_stages, bias, True)
        swaps += assert_encoder_is_the_iteration(x, W, S, m, 1, bias)
    assert swaps <= 2  # near-ties within rounding are rare; they are not the rule


@settings(max_examples=40)
@given(
    batch=st.integers(0, 70), n=st.integers(1, 40), p=st.integers(1, 150),
    num_stages=st.integers(1, 4),
    per_stage=st.booleans(), positive=st.booleans(), shift=st.sampled_from((None, -1.0, 0.0, 0.3)),
    seed=st.integers(0, 1000), data=st.data(),
)  # fmt: skip
def test_top_m_on_any_shape(batch, n, p, num_stages, per_stage, positive, shift, seed, data):
    m = data.draw(st.integers(0, p))
    x, W, S, theta = problem(batch, n, p, seed, stages=num_stages - 1 if per_stage else None)
    bias = None if shift is None else theta - 0.8 + shift
    assert_encoder_is_the_iteration(x, W, S, m, num_stages, bias, positive)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("p", "m"), [(64, 8), (200, 90), (512, 32)])
@pytest.mark.parametrize("batch", [1, 100])
def test_top_m_equals_the_reference(batch, p, m, dtype):
    x, W, S, _ = problem(batch, 48, p, seed=1, dtype=dtype)
    got = dk.encode_top_m(x, W, S, m, num_stages=3)
    with dk.use_backend("reference"):
        want = dk.encode_top_m(x, W, S, m, num_stages=3)
    assert got.values.dtype == dtype
    same = (got.indices == want.indices).all(-1)
    assert same.float().mean() > 0.98
    tolerance = {8: 1e-12, 4: 1e-5, 2: 2.0**-7}[dtype.itemsize]
    torch.testing.assert_close(got.values[same], want.values[same], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_codes_of_half_types_are_rounded_between_stages(encoder, dtype, backend):
    with dk.use_backend(backend):
        check_rounding(encoder, dtype, "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sigma", [0.0, 0.2])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(
    ("batch", "n", "p", "num_stages", "theta_scale"),
    [(1, 16, 24, 2, 1.0), (64, 256, 512, 2, 2.0), (130, 30, 70, 4, 0.2), (300, 20, 513, 3, 3.0),
     (7, 5, 1, 3, 1.0)],
)  # fmt: skip
def test_l0_stages(backend, sigma, positive, batch, n, p, num_stages, theta_scale):
    x, W, S, theta = problem(batch, n, p, seed=p)
    bias = theta.flip(0) - 0.9 if positive else None
    theta = theta * theta_scale
    with dk.use_backend(backend):
        z = torch.zeros(batch, p)
        for k in range(1, num_stages + 1):
            u, bound = pre_activation(x, W, z, S if k > 1 else torch.zeros(p, p), bias)
            z = dk.encode_l0(
                x, W, S, theta, num_stages=k, sigma=sigma, bias=bias, positive=positive
            )
            kind = "positive_helu" if positive else "helu"
            want = dk.reference.threshold(u, theta.double(), sigma, kind)
            slope = 1 / sigma if sigma else 1.0
            near = (u.abs() - theta.double()).abs() <= bound + 2.0**-22 * theta.double()
            error = (z.double() - want).abs()
            assert (near | (error <= (bound + 2.0**-22 * u.abs()) * slope)).all()
            assert near.sum() <= 2 + 1e-3 * near.numel()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_stage", [False, True])
@pytest.mark.parametrize(
    ("batch", "n", "p", "m", "num_stages"),
    [(3, 5, 8, 3, 2), (1, 4, 6, 2, 3), (4, 3, 5, 5, 2), (5, 4, 12, 8, 4)],
)
def test_top_m_gradcheck(backend, per_stage, batch, n, p, m, num_stages):
    x, W, S, _ = problem(
        batch, n, p, 3, torch.float64, num_stages - 1 if per_stage else None, scale=1.0
    )
    args = [t.requires_grad_() for t in (x, W, S)]
    with dk.use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda x, W, S: dk.encode_top_m(x, W, S, m, num_stages=num_stages).values, args
        )
        assert torch.autograd.gradcheck(
            lambda x, W: dk.encode_top_m(x, W, None, m, num_stages=1).to_dense(), args[:2]
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("theta_shape", ["scalar", "vector", "per_stage"])
@pytest.mark.parametrize("sigma", [0.0, 0.4])
@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_l0_gradcheck(backend, theta_shape, sigma, num_stages):
    x, W, S, theta = problem(4, 5, 8, 5, torch.float64, scale=1.0)
    theta = {"scalar": theta[0], "vector": theta, "per_stage": theta.expand(num_stages, 8).clone()}[
        theta_shape
    ]
    args = [t.clone().requires_grad_() for t in (x, W, S, theta)]
    with dk.use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda x, W, S, t: dk.encode_l0(x, W, S, t, num_stages=num_stages, sigma=sigma),
            args,
            atol=1e-6,
        )


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("per_stage", [False, True])
@pytest.mark.parametrize(
    ("batch", "n", "p", "m", "num_stages"),
    [(200, 64, 256, 16, 2), (70, 32, 100, 45, 3), (33, 16, 600, 8, 2)],
)
def test_top_m_gradients_of_the_kernel_equal_those_of_the_reference(
    per_stage, by_columns, batch, n, p, m, num_stages
):
    problem64 = problem(batch, n, p, 7, torch.float64, num_stages - 1 if per_stage else None)[:3]
    if by_columns:
        problem64 = (*problem64[:2], problem64[2].mT.contiguous().mT)
    grads = {}
    for backend, dtype in (
        ("reference", torch.float64),
        ("cpu", torch.float64),
        ("cpu", torch.float32),
    ):
        args = [t.detach().to(dtype, copy=True).requires_grad_() for t in problem64]
        with dk.use_backend(backend):
            code = dk.encode_top_m(*args, m, num_stages=num_stages)
        (code.values * torch.arange(1, m + 1, dtype=dtype)).sum().backward()
        grads[backend, dtype] = code.indices, [a.grad for a in args]
    want_indices, want = grads["reference", torch.float64]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        indices, got = grads["cpu", dtype]
        rows = (indices == want_indices).all(-1)
        assert rows.all(), "choose a seed without near-ties: one support flip moves the gradients"
        for a, b in zip(got, want, strict=True):
            assert (a.double() - b).norm() <= tolerance * b.norm(), dtype


@pytest.mark.parametrize("kind", ["helu", "ste", "ste_theta", "hard"])
def test_l0_gradients_of_the_kernel_equal_those_of_the_reference(kind):
    for theta_scale in (0.3, 2.5):
        problem64 = problem(150, 40, 90, 11, torch.float64)
        problem64 = (*problem64[:3], problem64[3] * theta_scale)
        grads = {}
        for backend in BACKENDS:
            args = [t.clone().requires_grad_() for t in problem64]
            with dk.use_backend(backend):
                z = dk.encode_l0(*args, num_stages=3, sigma=0.25, grad=kind)
            z.square().sum().backward()
            grads[backend] = [a.grad for a in args]
        for a, b in zip(grads["cpu"], grads["reference"], strict=True):
            assert (a - b).norm() <= 1e-12 * b.norm().clamp(min=1e-30), kind


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(threads):
    x, W, S, theta = problem(500, 64, 256, 1)

    def run():
        outs = []
        args = [t.clone().requires_grad_() for t in (x, W, S, theta)]
        code = dk.encode_top_m(*args[:3], 16)
        z = dk.encode_l0(*args, sigma=0.1)
        outs += torch.autograd.grad(code.values.sum(), args[:3]) + torch.autograd.grad(
            z.sum(), args
        )
        return [code.values, code.indices, z, *outs]

    want = run()
    torch.set_num_threads(threads)
    try:
        again = run()
    finally:
        torch.set_num_threads(1)
    for a, b in zip(want, again, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(want, run(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_leading_dimensions_strides_and_empty_batches(backend):
    x, W, S, theta = problem(24, 10, 20)
    with dk.use_backend(backend):
        want = dk.encode_top_m(x, W, S, 6)
        z = dk.encode_l0(x, W, S, theta)
        got = dk.encode_top_m(x.reshape(2, 3, 4, 10), W, S, 6)
        assert torch.equal(got.indices, want.indices.reshape(2, 3, 4, 6))
        single = dk.encode_top_m(x[0], W, S, 6)
        assert single.values.shape == (6,)
        assert dk.encode_l0(x[0], W, S, theta).shape == (20,)
        assert dk.encode_top_m(x[:0], W, S, 6).values.shape == (0, 6)
        assert dk.encode_l0(x[:0], W, S, theta).shape == (0, 20)
        assert dk.encode_top_m(x, W, S, 0).to_dense().abs().sum() == 0
        strided = [t.t().contiguous().t() for t in (x, W, S)]
        torch.testing.assert_close(dk.encode_top_m(*strided, 6).to_dense(), want.to_dense())
        torch.testing.assert_close(dk.encode_l0(*strided, theta), z)
        wide = torch.randn(24, 30)
        wide[:, 5:15] = x
        torch.testing.assert_close(
            dk.encode_top_m(wide[:, 5:15], W, S, 6).to_dense(), want.to_dense()
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_beyond_the_cache_by_rows_or_by_columns(dtype):
    """S is taken in column panels, copied out of either layout: the same bits, the right ones."""
    x, W, S, theta = problem(160, 16, 1024, seed=4, dtype=dtype)
    by_columns = S.t().contiguous().t()
    for encode in (
        lambda S: dk.encode_top_m(x, W, S, 40, num_stages=3),
        lambda S: dk.encode_l0(x, W, S, 3 * theta, num_stages=3),
    ):
        got, want = encode(by_columns), encode(S)
        with dk.use_backend("reference"):
            other = encode(by_columns)
        if isinstance(got, dk.SparseCode):
            assert got == want
            assert (got.indices == other.indices).all(-1).float().mean() > 0.98
            got, other = got.to_dense(), other.to_dense()
        else:
            assert same_bits(got, want)
            assert 0 < (got != 0).float().mean() < 0.2
        kept = ((got != 0) == (other != 0)).all(-1)
        assert kept.float().mean() > 0.95
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(got[kept], other[kept], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_signals_of_no_entries_and_codes_of_no_units(backend):
    S, theta = torch.eye(4), torch.ones(4)
    with dk.use_backend(backend):
        for lead in ((), (3,), (2, 3), (0, 3)):
            x = torch.zeros(*lead, 0)
            assert dk.encode_l0(x, torch.zeros(4, 0), S, theta).shape == (*lead, 4)
            code = dk.encode_top_m(x, torch.zeros(4, 0), S, 2)
            assert torch.equal(code.indices, torch.arange(2).expand(*lead, 2))
            empty = dk.encode_top_m(torch.zeros(*lead, 5), torch.zeros(0, 5), torch.zeros(0, 0), 0)
            assert empty.to_dense().shape == (*lead, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch_has_zero_gradients(backend):
    x, W, S, theta = problem(0, 10, 20)
    args = [t.requires_grad_() for t in (x, W, S, theta)]
    with dk.use_backend(backend):
        (dk.encode_top_m(*args[:3], 6).values.sum() + dk.encode_l0(*args).sum()).backward()
    assert all(a.grad.shape == a.shape and not a.grad.any() for a in args)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_signals_give_nan_codes(backend):
    x, W, S, theta = problem(3, 10, 20)
    x[1, 3] = float("nan")
    with dk.use_backend(backend):
        assert dk.encode_l0(x, W, S, theta)[1].isnan().all()
        code = dk.encode_top_m(x, W, S, 6)
        assert code.values[1].isnan().all()
        assert code.values[[0, 2]].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dict(x=torch.randn(4, 11)), ValueError, ("W must have shape", "11")),
        (dict(W=torch.randn(20)), ValueError, ("W must have shape", "(20,)")),
        (dict(S=torch.randn(20, 19)), ValueError, ("S must have shape", "(20, 19)")),
        (dict(S=torch.randn(3, 20, 20)), ValueError, ("S must have shape", "(3, 20, 20)")),
        (dict(S=None), ValueError, ("S must be given when num_stages > 1",)),
        (
            dict(W=torch.randn(20, 10).double()),
            ValueError,
            ("W must have the dtype of x", "float64"),
        ),
        (
            dict(S=torch.randn(20, 20, device="meta")),
            ValueError,
            ("S must be on the device of x", "meta"),
        ),
        (dict(num_stages=0), ValueError, ("num_stages must be >= 1", "0")),
        (dict(num_stages=1.5), TypeError, ("num_stages must be an integer", "1.5")),
        (dict(x=torch.randn(4, 10).int()), ValueError, ("x must be", "int32")),
        (dict(x=None), TypeError, ("x must be a tensor", "NoneType")),
    ],
)
def test_bad_operands_are_named(backend, change, error, words):
    x, W, S, theta = problem(4, 10, 20)
    given = dict(x=x, W=W, S=S, num_stages=2) | change
    stages = given.pop("num_stages")
    with dk.use_backend(backend):
        for call in (
            lambda: dk.encode_top_m(*given.values(), 6, num_stages=stages),
            lambda: dk.encode_l0(*given.values(), theta, num_stages=stages),
        ):
            with pytest.raises(error) as caught:
                call()
            assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_thresholds_and_sizes_are_named(backend):
    x, W, S, theta = problem(4, 10, 20)
    with dk.use_backend(backend):
        with pytest.raises(ValueError, match=r"m must be >= 0 and <= p = 20, got 21"):
            dk.encode_top_m(x, W, S, 21)
        with pytest.raises(ValueError, match=r"theta must be > 0, got -1.0"):
            dk.encode_l0(x, W, S, -1.0)
        with pytest.raises(ValueError, match=r"theta must have shape.*num_stages.*\(3, 20\)"):
            dk.encode_l0(x, W, S, torch.ones(3, 20))
        with pytest.raises(ValueError, match=r"grad must be one of.*'soft'"):
            dk.encode_l0(x, W, S, theta, grad="soft")
    for bad in (-1, 0, "nan"):
        theta[7] = float(bad)
        for call in (
            lambda: dk.encode_l0(x, W, S, theta),
            lambda: dk.threshold_stage(x, W, torch.zeros(4, 20), S, theta),
            lambda: dk.helu(S, theta),
        ):
            with pytest.raises(RuntimeError, match=rf"theta must be > 0, got {bad} at position 7"):
                call()


def test_saved_memory_is_sparse():
    """What a training call keeps: the K stages' values and indices, not a dense [B, p]."""
    x, W, S, _ = problem(64, 32, 512)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        dk.encode_top_m(x, W.requires_grad_(), S.requires_grad_(), 16, num_stages=3)
    inputs = {t.data_ptr() for t in (x, W, S)}
    extra = sum(t.numel() * t.element_size() for t in kept if t.data_ptr() not in inputs)
    assert extra <= 3 * 64 * 16 * (8 + 4)


def test_sparse_code():
    x, W, S, _ = problem(5, 10, 20)
    code = dk.encode_top_m(x, W, S, 4)
    dense = code.to_dense()
    assert (dense != 0).sum() == 20
    assert torch.equal(code.to_csr().to_dense(), dense)
    empty = dk.encode_top_m(x, W, S, 0)
    assert torch.equal(empty.to_csr().to_dense(), torch.zeros(5, 20))
    with pytest.raises(ValueError, match=r"to_csr needs a code \[B, m\]"):
        dk.encode_top_m(x[None], W, S, 4).to_csr()
    leaves, spec = torch.utils._pytree.tree_flatten(code)
    assert same_bits(torch.utils._pytree.tree_unflatten(leaves, spec).values, code.values)


def test_what_the_kernel_would_not_refuse_is_refused():
    """On plain CPU tensors the kernel checks first; these it would take, or never see."""
    x, W = torch.randn(3, 4), torch.randn(5, 4)
    with pytest.raises(ValueError, match="W must be on the device of x"):
        dk.encode_top_m(x, W.to("meta"), None, 2, num_stages=1)
    with pytest.raises(TypeError, match="m must be an integer, got True"):
        dk.encode_top_m(x, W, None, True, num_stages=1)
    with pytest.raises(ValueError, match="theta must be on"):
        dk.encode_l0(x, W, None, torch.ones(5, device="meta"), num_stages=1)
    with pytest.raises(ValueError, match="num_stages must be >= 1, got 0"):
        dk.encode_top_m(x, W, None, 2, num_stages=0)


@pytest.mark.parametrize("per_stage", [False, True])
@pytest.mark.parametrize(("p", "m"), [(40, 3), (40, 20), (700, 20)])
def test_every_entry_of_every_gradient_is_written(p, m, per_stage):
    """Deterministic mode fills new tensors with NaN; none of it may show."""
    x, W, S, theta = problem(50, 12, p, stages=2 if per_stage else None)

    def gradients():
        args = [t.clone().requires_grad_() for t in (x, W, S, theta)]
        code = dk.encode_top_m(*args[:3], m, num_stages=3)
        z = dk.encode_l0(*args, num_stages=3, sigma=0.3)
        found = dk.decode(code, args[1].t()).square().sum() + z.square().sum()
        return torch.autograd.grad(found, args)

    want = gradients()
    torch.use_deterministic_algorithms(True)
    try:
        got = gradients()
    finally:
        torch.use_deterministic_algorithms(False)
    for g, w in zip(got, want, strict=True):
        assert g.isfinite().all()
        assert torch.equal(g, w)


@pytest.mark.parametrize("size", [(64, 16), (256, 300), (512, 64)])
def test_threads_change_no_bit_at_any_size_and_density(size):
    """No product gets a remainder of a few rows, and rows that are not sparse are not a few."""
    p, n = size
    torch.manual_seed(0)
    W, S = torch.randn(p, n) / n**0.5, torch.randn(p, p) * (0.3 / p**0.5)
    for batch in (17, 33, 129, 257, 259, 700):
        x = torch.randn(batch, n)
        for theta in (2.0, 1.4, 1.2, 1.1, 0.8):  # densities from .05 to .45
            found = []
            for threads in (1, 2, 3, 5):
                torch.set_num_threads(threads)
                try:
                    code = dk.encode_top_m(x, W, S, p // 16)
                    found.append([code.values, code.indices, dk.encode_l0(x, W, S, theta)])
                finally:
                    torch.set_num_threads(1)
            for again in found[1:]:
                for a, b in zip(again, found[0], strict=True):
                    assert torch.equal(a, b), (batch, theta)
