"""The operators at production sizes: bits, streams, graphs, compilation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deepl0_kernels as dk
from deepl0_kernels.cuda import library
from deepl0_kernels.ops.registration import installed_floors
from python_tests.cuda.test_encode import check as check_stages
from python_tests.oracle import STYLES, hostile, same_bits, same_values
from python_tests.triton.test_top_m import check, expect

HALF = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, *HALF)
GPU = torch.device("cuda")
FLOORS = installed_floors()


@pytest.mark.parametrize("p", [1, 31, 33, 128, 511, 512, 1000, 1025, 4096, 8191, 26880, 26881,
                               60000, 131072])  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_selection_bit_for_bit(floor, dtype, p):
    for i, m in enumerate(sorted({0, 1, min(p, 5), min(p, 32), p // 3, p - 1, p})):
        for rows in (1, 1000 if p < 600 else 9):
            for style in (STYLES[(i + p + rows) % len(STYLES)], "normal"):
                check(hostile((rows, p), dtype, p + m, style), m, "cuda")


@pytest.mark.parametrize("p", [1025, 2303, 4096, 8191, 26881, 131072, 300000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("floor", ["cuda"], indirect=True)
@pytest.mark.skipif("cuda" not in FLOORS, reason="built without CUDA kernels (nvcc was missing)")
def test_rows_that_are_read_once_bit_for_bit(floor, dtype, p):
    """Of few rows and of many; in random order, and in one that raises the bar at every step."""
    with library.rows_read_once():
        for m in (1, 30, p // 40):
            for rows in (1, 9, 300 if p < 30000 else 70):
                for style in (STYLES[(m + p + rows) % len(STYLES)], "normal"):
                    check(hostile((rows, p), dtype, p + m, style), m, "cuda")
            check(hostile((3, p), dtype, m, "few_special").sort(-1).values, m, "cuda")


@pytest.mark.parametrize("m", [32, 64, 256, 1000])
@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("floor", ["cuda"], indirect=True)
@pytest.mark.skipif("cuda" not in FLOORS, reason="built without CUDA kernels (nvcc was missing)")
def test_candidates_of_long_rows(floor, once, m):
    """So many of them that they are selected from in parts as well; or by a warp."""
    with library.rows_read_once(once):
        for dtype in (torch.float32, torch.bfloat16):
            check(hostile((1, 1 << 20), dtype, m, "normal"), m, "cuda")
            check(hostile((3, 200_001), dtype, m, "ties")[:, 1:], m, "cuda")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_style(floor, dtype, style):
    for p in (77, 300, 900, 5000, 40000):
        check(hostile((3, p), dtype, p, style), p // 4, "cuda")


def small(*shape: int, low: int = -3, high: int = 4, keep: float = 1.0) -> Tensor:
    """Integers, most of them zero if ``keep`` says so: sums are exact, selections alike."""
    return (torch.randint(low, high, shape) * (torch.rand(shape) < keep)).float()


def encoded(leaves: list[Tensor], m: int, stages: int, positive: bool) -> tuple[Tensor, ...]:
    """Code and gradients, whose sums are exact too."""
    *leaves, bias = leaves
    code = dk.encode_top_m(*leaves, m, num_stages=stages, bias=bias, positive=positive)
    grad = (torch.arange(code.values.numel(), device=GPU) % 5 - 2).view_as(code.values)
    wanted = [*(leaves if stages > 1 else leaves[:2]), bias]
    return (
        code.values,
        code.indices,
        *torch.autograd.grad(code.values, wanted, grad.to(code.values.dtype)),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "n", "p", "m", "stages"),
    [
        (9000, 256, 128, 32, 2), (9001, 256, 256, 32, 3), (8999, 100, 512, 32, 2),
        (33, 256, 512, 10, 4), (700, 64, 1000, 20, 2), (257, 64, 2048, 32, 3),
        (65, 32, 16384, 32, 1), (64, 32, 6000, 32, 2), (1, 64, 777, 7, 2),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("layout", "positive"),
    [("plain", False), ("transposed", False), ("steps", False), ("plain", True)],
)
def test_encoder_and_its_gradients_are_exact(
    floor, dtype, batch, n, p, m, stages, layout, positive
):
    shape = (stages - 1, p, p) if layout == "steps" else (p, p)
    x, W, S = small(batch, n, keep=0.2), small(p, n, keep=0.2), small(*shape, keep=2 / p).sign()
    leaves = [t.to(GPU, dtype).requires_grad_() for t in (x, W, S)]
    if layout == "transposed":
        leaves[2] = S.to(GPU, dtype).t().contiguous().t().requires_grad_()
    bias = (torch.arange(p) % 7 - 3 - 30 * positive * (torch.arange(p) >= m // 2)).to(GPU, dtype)
    leaves.append(bias.requires_grad_())
    ours = encoded(leaves, m, stages, positive)
    assert dk.last_call().backend == floor
    with dk.use_backend("reference"):
        want = encoded([t.double().detach().requires_grad_() for t in leaves], m, stages, positive)
    for got, expected in zip(ours, want, strict=True):
        assert torch.equal(got, expected.to(got.dtype))


def code_and_values(x: Tensor, W: Tensor, b: Tensor, m: int, positive: bool):
    """A screened code, and all that float64 has in its place."""
    code = dk.encode_top_m(x, W, None, m, num_stages=1, bias=b, positive=positive)
    u = x.double() @ W.double().t() + b
    return code, u.clamp(min=0) if positive else u


@pytest.mark.parametrize(
    ("batch", "n", "p", "m"),
    [(4096, 256, 4096, 32), (1000, 300, 16384, 64), (129, 33, 2049, 16), (1, 64, 5000, 1),
     (300, 768, 70000, 512), (70, 4096, 4096, 20)],
)  # fmt: skip
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("floor", ["cuda"], indirect=True)
@pytest.mark.skipif("cuda" not in FLOORS, reason="built without CUDA kernels (nvcc was missing)")
def test_a_screened_stage(floor, batch, n, p, m, positive):
    """Nothing larger than what is in a code, up to the rounding of float32, was left out; of sums
    without rounding the code is the reference's; a row has one code in any batch."""
    g = torch.Generator(device=GPU).manual_seed(p)
    x = torch.randn(batch, n, device=GPU, generator=g)
    W = torch.randn(p, n, device=GPU, generator=g)
    near = W[:1] * (1 + 2.0**-12 * torch.randn(p, n, device=GPU, generator=g))
    b = torch.randn(p, device=GPU, generator=g) - int(positive)
    with library.stages_screened():
        for units in (W, near):
            code, u = code_and_values(x, units, b, m, positive)
            chosen = u.gather(1, code.indices)
            rounding = (
                2.0**-22
                * (n / 32 + 8)
                * (x.norm(dim=1, keepdim=True) * units.norm(dim=1).max() + b.abs().max())
            )
            assert (code.values - chosen).abs().le(rounding).all()
            best = u.abs().topk(m).values
            assert (
                (chosen.abs().sort(1, descending=True).values - best).abs().le(2 * rounding).all()
            )
            assert (code.indices.diff(dim=1) > 0).all()
            for rows in (slice(0, 1), slice(batch // 2, batch), slice(0, batch, 3)):
                part = code_and_values(x[rows], units, b, m, positive)[0]
                assert torch.equal(part.indices, code.indices[rows])
                assert same_bits(part.values, code.values[rows])
        xs, Ws = (small(*s, keep=0.2).to(GPU) for s in ((batch, n), (p, n)))
        bias = (torch.arange(p, device=GPU) % 7 - 3.0).float()
        code, u = code_and_values(xs, Ws, bias, m, positive)
        values, indices = dk.reference.top_m(u.float(), m)
        assert torch.equal(code.indices, indices)
        assert torch.equal(code.values, values)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("floor", ["cuda"], indirect=True)
@pytest.mark.skipif("cuda" not in FLOORS, reason="built without CUDA kernels (nvcc was missing)")
def test_a_screened_stage_of_hostile_rows(floor, style):
    """Whatever stands in a row or a unit, others keep their codes; NaN comes first."""
    x, W, b = (hostile(s, torch.float32, i, style).to(GPU)
               for i, s in enumerate(((70, 64), (3000, 64), (3000,))))  # fmt: skip
    calm_x, calm_w = torch.randn(70, 64, device=GPU), torch.randn(3000, 64, device=GPU)
    with library.stages_screened():
        calm = dk.encode_top_m(calm_x, calm_w, None, 20, num_stages=1)
        mixed = dk.encode_top_m(torch.cat([x, calm_x]), calm_w, None, 20, num_stages=1)
        assert torch.equal(mixed.indices[70:], calm.indices)
        assert same_bits(mixed.values[70:], calm.values)
        for one, units, bias in ((x, W, b), (calm_x, W, None), (calm_x, calm_w, b)):
            code = dk.encode_top_m(one, units, None, 20, num_stages=1, bias=bias)
            u = one.double() @ units.double().t() + (0 if bias is None else bias.double())
            nans = u.isnan().sum(1).clamp(max=20)
            assert (code.values.isnan().sum(1) >= nans).all()


@pytest.mark.parametrize("p", [100, 128, 256, 300, 512])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_the_encoder_in_one_launch_stage_by_stage(p, stages):
    x, W = torch.randn(20000, 100).bfloat16(), torch.randn(p, 100).bfloat16()
    S = (torch.randn(p, p) / 8).bfloat16()
    arguments = [t.to(GPU) for t in (x, W, S)]
    with dk.use_backend("cuda"):
        out = torch.ops.deepl0.encode_top_m_saving(*arguments, None, 20, stages, False)
    rows = torch.randint(len(x), (300,))
    values, indices, saved, before = (t.cpu() for t in out)
    part = values[rows], indices[rows], saved[:, rows], before[:, rows]
    check_stages(x[rows], W, S, 20, stages, part)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "n", "p", "m"),
    [(300, 64, 512, [32, 32]), (65, 32, 16384, [32, 64, 16]), (1, 7, 90, [0, 5])],
)
@pytest.mark.parametrize("by_columns", [False, True])
def test_the_factored_encoder_and_its_gradients_are_exact(floor, dtype, batch, n, p, m, by_columns):
    x, W, D = small(batch, n, keep=0.2), small(p, n, keep=0.2), small(n, p, keep=0.02).sign()
    D = D.t().contiguous().t() if by_columns else D
    bias = (torch.arange(p) % 7 - 3).float()
    found = []
    for backend, to in ((floor, dtype), ("reference", torch.float64)):
        with dk.use_backend(backend):
            leaves = [t.to(GPU, to).requires_grad_() for t in (x, W, D, bias)]
            more = dict(D=leaves[2], bias=leaves[3], num_stages=len(m))
            code = dk.encode_top_m(*leaves[:2], None, m, positive=True, **more)
            grad = (torch.arange(code.values.numel(), device=GPU) % 5 - 2).view_as(code.values)
            grads = torch.autograd.grad(code.values, leaves, grad.to(to))
            found.append((code.values, code.indices, *grads))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(
            got, want.to(got.dtype), rtol=1e-5 if dtype == torch.float32 else 1e-2,
            atol=1e-5 * max(1.0, float(want.abs().max())) if want.numel() else 0,
        )  # fmt: skip


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(
    ("batch", "n", "p", "m"), [(300, 64, 16384, [32, 64]), (70, 32, 4096, [5])]
)
@pytest.mark.parametrize("floor", ["cuda"], indirect=True)
@pytest.mark.skipif("cuda" not in FLOORS, reason="built without CUDA kernels (nvcc was missing)")
def test_screened_factored_stages_are_exact(floor, batch, n, p, m, positive):
    x, W, D = small(batch, n, keep=0.2), small(p, n, keep=0.2), small(n, p, keep=0.02).sign()
    found = []
    for backend, to in ((floor, torch.float32), ("reference", torch.float64)):
        with dk.use_backend(backend), library.stages_screened():
            x_, W_, D_, b = (t.to(GPU, to) for t in (x, W, D, (torch.arange(p) % 7 - 3).float()))
            more = dict(D=D_, bias=b, num_stages=len(m), positive=positive)
            code = dk.encode_top_m(x_, W_, None, m, **more)
            found.append((code.values.double(), code.indices))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stages", [1, 2])
def test_encode_l0_and_its_gradients_are_exact(dtype, stages):
    x, W, S = small(3000, 64, keep=0.2), small(300, 64, keep=0.2), small(300, 300, keep=0.01).sign()
    theta = torch.full((300,), 2.5)  # 2 is on the ramp
    found = []
    for backend, to in (("triton", dtype), ("reference", torch.float64)):
        with dk.use_backend(backend):
            leaves = [t.to(GPU, to).requires_grad_() for t in (x, W, S)]
            leaves.append(theta.to(GPU, torch.promote_types(to, torch.float32)).requires_grad_())
            z = dk.encode_l0(*leaves, num_stages=stages, sigma=0.5)
            grad = (torch.arange(z.numel(), device=GPU) % 5 - 2).view_as(z).to(z.dtype)
            wanted = [t for i, t in enumerate(leaves) if stages > 1 or i != 2]
            found.append((z, *torch.autograd.grad(z, wanted, grad)))
    for got, want in zip(*found, strict=True):
        assert torch.equal(got, want.to(got.dtype))
    assert found[0][-1].any()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", ["helu", "soft", "positive_ste"])
@pytest.mark.parametrize(
    ("batch", "n", "p", "stages"),
    [(3000, 64, 300, 2), (4096, 256, 512, 3), (130, 257, 1000, 3), (1, 7, 90, 1), (70, 600, 5, 2)],
)
@pytest.mark.parametrize("floor", ["cuda"], indirect=True)
@pytest.mark.skipif("cuda" not in FLOORS, reason="built without CUDA kernels (nvcc was missing)")
def test_fused_stages_of_encode_l0(floor, dtype, kind, batch, n, p, stages):
    """Sums without rounding are exact; of others z is the threshold of u, and u that of float64
    from the code before, up to float32's rounding."""
    for exact in (True, False):
        if exact:
            x, W, S = small(batch, n, keep=5 / n), small(p, n), small(p, p, keep=2 / p).sign()
        else:
            x, W, S = torch.randn(batch, n), torch.randn(p, n) / n**0.5, torch.randn(p, p) / p**0.5
        x, W, S, b = (t.to(GPU, dtype) for t in (x, W, S, (torch.arange(p) % 7 - 3).float()))
        theta = (torch.arange(p, device=GPU) % 3) + 0.5
        args = (x, W, S if stages > 1 else None, b, theta, stages, 0.5, kind)
        with library.stages_fused():
            z, saved = torch.ops.deepl0.encode_l0_saving(*args)
            assert same_bits(torch.ops.deepl0.encode_l0(*args), z)
        code, size = None, x.double().abs() @ W.double().t().abs() + b.double().abs()
        for u in saved:
            want = x.double() @ W.double().t() + b.double()
            bound = 0 if exact else 2.0**-22 * (n + p) * size
            if code is not None:
                want += code.double() @ S.double().t()
                bound += (
                    0
                    if exact
                    else 2.0**-22 * (n + p) * (code.double().abs() @ S.double().t().abs())
                )
            assert ((u.double() - want).abs() <= bound).all()
            code = dk.reference.threshold(u, theta, 0.5, kind).to(dtype)
        assert same_values(z, code)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("batch", "n", "p", "m"), [(4096, 256, 512, 32), (300, 100, 20000, 64),
                                                    (1, 7, 90, 5)])  # fmt: skip
def test_decode_and_its_gradients_are_exact(floor, dtype, transposed, batch, n, p, m):
    indices = torch.rand(batch, p).argsort(1)[:, :m].to(GPU)
    D = small(n, p)
    D = D.t().contiguous().t() if transposed else D
    grad = small(batch, n).to(GPU)
    found = []
    for backend, to in ((floor, dtype), ("reference", torch.float64)):
        with dk.use_backend(backend):
            v, d = (t.to(GPU, to).requires_grad_() for t in (small_values(batch, m), D))
            out = dk.decode(dk.SparseCode(v, indices, p), d)
            found.append((out, *torch.autograd.grad(out, (v, d), grad.to(to))))
    for got, want in zip(*found, strict=True):
        assert torch.equal(got, want.to(got.dtype))


def small_values(batch: int, m: int) -> Tensor:
    return (torch.arange(batch * m) % 7 - 3).float().view(batch, m)


CALLS = ("top_m", "keep_top_m", "encode_top_m", "factored", "decode")


def problem(name: str, p: int = 700):
    """A call of the operator, with gradients, as a function of one tensor [500, p]."""
    W = torch.randn(p, p, device=GPU) / p**0.5
    S = torch.randn(p, p, device=GPU) / p

    def training(x):
        w, s = W.clone().requires_grad_(), S.clone().requires_grad_()
        code = dk.encode_top_m(x, w, s, 20)
        return code.values, code.indices, *torch.autograd.grad(code.values.square().sum(), (w, s))

    def factored(x):
        w, d = W.clone().requires_grad_(), W.t().clone().requires_grad_()
        more = dict(D=d, bias=S[0], positive=True)
        code = dk.encode_top_m(x, w, None, 20, **more)
        return code.values, code.indices, *torch.autograd.grad(code.values.square().sum(), (w, d))

    def decoding(x):
        values, indices = dk.top_m(x, 20)
        v, d = values.detach().requires_grad_(), W.clone().requires_grad_()
        out = dk.decode(dk.SparseCode(v, indices, p), d)
        return out, *torch.autograd.grad(out.square().sum(), (v, d))

    return {
        "top_m": lambda x: dk.top_m(x, 20),
        "keep_top_m": lambda x: (dk.keep_top_m(x, 20),),
        "encode_top_m": training,
        "factored": factored,
        "decode": decoding,
    }[name]


@pytest.mark.parametrize("name", CALLS)
def test_the_same_bits_every_time(floor, name):
    x, call = torch.randn(500, 700, device=GPU), problem(name)
    first = call(x)
    for _ in range(5):
        for a, b in zip(call(x), first, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", CALLS)
def test_the_current_stream(floor, name):
    """Input that arrives late on a side stream is waited for, without a wait of the host."""
    late, call = torch.randn(500, 700, device=GPU), problem(name)
    want = call(late)
    x, side = torch.zeros_like(late), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # a tenth of a second
        x.copy_(late)
        got = call(x)
        assert not side.query()
    side.synchronize()
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CALLS)
def test_a_graph_holds_it(floor, name):
    x, call = torch.randn(500, 700, device=GPU), problem(name)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(2):
            call(x)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = call(x)
    for seed in range(3):
        torch.manual_seed(seed)
        x.copy_(torch.randn_like(x))
        graph.replay()
        for a, b in zip(held, call(x), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_as_a_whole_with_any_batch(floor, dtype):
    W = (torch.randn(600, 64, device=GPU) / 8).to(dtype).requires_grad_()
    S = (torch.randn(600, 600, device=GPU) / 600).to(dtype).requires_grad_()

    def loss(x):
        code = dk.encode_top_m(x, W, S, 20)
        kept = dk.keep_top_m(code.to_dense(), 10)
        return (dk.decode(code, W.t()) - x).square().sum() + kept.abs().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    for batch in (5, 64, 300):
        x = torch.randn(batch, 64, device=GPU).to(dtype)
        got, want = (torch.autograd.grad(f(x), (W, S)) for f in (compiled, loss))
        for a, b in zip(got, want, strict=True):
            scale = float(b.abs().max())
            torch.testing.assert_close(a, b, rtol=0, atol=scale * (2e-2 if dtype in HALF else 1e-5))


def test_float64_is_the_reference(floor):
    u = torch.randn(5, 90, dtype=torch.float64, device=GPU)
    values, indices = dk.top_m(u, 7)
    want, at = dk.reference.top_m(u.cpu(), 7)
    assert torch.equal(indices.cpu(), at)
    assert torch.equal(values.cpu(), want)


@pytest.mark.parametrize("kind", ["helu", "hard", "soft", "ste", "ste_theta"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_thresholds_bit_for_bit(kind, dtype):
    for shape in ((3000, 500), (7, 33), (2, 9000)):
        for style in STYLES:
            u = hostile(shape, dtype, 1, style)
            theta = torch.rand(shape[1]) + 0.5
            sigma = 0.0 if kind in ("hard", "soft") else 0.25
            got = torch.ops.deepl0.threshold(u.to(GPU), theta.to(GPU), sigma, kind).cpu()
            want = dk.reference.threshold(u, theta, sigma, kind)
            if style == "denormal" or sigma:
                torch.testing.assert_close(
                    got, want, rtol=2 * torch.finfo(dtype).eps, atol=0.0, equal_nan=True
                )
            else:
                assert same_values(got, want)


def test_expected_bits_are_of_the_reference():
    u = hostile((4, 90), torch.float32, 3, "few_special")
    values, indices, _ = expect(u, 9)
    found = dk.top_m(u.to(GPU), 9)
    assert same_bits(found[0].cpu(), values)
    assert torch.equal(found[1].cpu(), indices)
