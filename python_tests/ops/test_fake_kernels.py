"""Every output of every operator has the layout that its fake kernel promises: torch.compile and
torch.export build on it, early exits (an empty batch, no entry) and gradient masks included."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import deepl0_kernels  # noqa: F401  registers the operators

N, P = 5, 12
BATCHES, STAGES, MOST = (0, 1, 2), (1, 2, 3), (0, 1, P)
# One that is computed as it is, one that is cast on the way.
DTYPES = (torch.float32, torch.bfloat16)

FAILURES_SHOWN = 5


def by_columns(t: torch.Tensor) -> torch.Tensor:
    return t.transpose(-1, -2).contiguous().transpose(-1, -2)


def strided(t: torch.Tensor) -> torch.Tensor:
    """Neither plain nor transposed."""
    return t.repeat_interleave(2, -1)[..., ::2]


def gaps_in_columns(t: torch.Tensor) -> torch.Tensor:
    return by_columns(t.repeat_interleave(2, -2))[..., ::2, :]


LAYOUTS = (torch.Tensor.contiguous, by_columns, strided, gaps_in_columns)


def randn(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


def code(dtype, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and ascending indices [*lead, m]."""
    lead, m = shape[:-1], shape[-1]
    at = torch.rand(*lead, P).argsort(-1)[..., :m].sort(-1).values
    return randn(*shape, dtype=dtype), at


def thetas(stages: int = 0):
    yield torch.tensor(0.5)
    yield torch.full((P,), 0.5)
    if stages:
        yield torch.full((stages, P), 0.5)


def elementwise(dtype, batch):
    for u in (randn(batch, P, dtype=dtype), randn(P, batch, dtype=dtype).t(),
              randn(2, batch, 3, P, dtype=dtype).transpose(0, 2)):  # fmt: skip
        for theta in thetas():
            yield "threshold", u, theta, 0.3, "positive_helu"
            for mask in range(4):
                yield "threshold_backward", u.clone(), u, theta, 0.3, "helu", mask
        for m, positive in itertools.product(MOST, (False, True)):
            yield "top_m", u, m, positive
            yield "keep_top_m", u, m, positive
            yield "batch_top_m", u, m, positive
            values, indices = torch.ops.deepl0.top_m(u, m, positive)
            yield "unpool", values, indices, P
        yield "apply_mask", u, torch.ops.deepl0.keep_top_m(u, 3, False)[1]


def steps(dtype, stages):
    """What S may be for so many stages."""
    shapes = [(P, P)] + [(stages - 1, P, P)] * (stages > 1)
    for shape, layout in itertools.product(shapes, LAYOUTS):
        yield layout(randn(*shape, dtype=dtype))
    if stages == 1:
        yield None
    if stages > 2:
        for layout in LAYOUTS[:2]:
            yield layout(randn(P, P, dtype=dtype)).expand(stages - 1, P, P)


def encoders(dtype, batch):
    for layout in LAYOUTS:
        x, W = layout(randn(batch, N, dtype=dtype)), layout(randn(P, N, dtype=dtype))
        z, s = randn(batch, P, dtype=dtype), layout(randn(P, P, dtype=dtype))
        for theta in thetas():
            for name in ("threshold_stage", "threshold_stage_saving"):
                for bias in (None, randn(P, dtype=dtype)):
                    yield name, x, W, z, s, bias, theta, 0.3, "helu"
        for m in MOST:
            yield "top_m_stage", x, W, z, s, randn(P, dtype=dtype), m, True
        values, indices = code(dtype, batch, 3)
        if dtype == torch.float32:
            for m in MOST:
                yield "shard_top_m", x, W, randn(P, dtype=dtype), values, indices, m, True
        D = layout(randn(N, P, dtype=dtype))
        yield "decode", values, indices, D
        for m, mask in itertools.product(MOST, range(4)):
            yield "decode_backward", x, *code(dtype, batch, m), D, mask
            values, indices = code(dtype, batch, m)
            yield "refit_backward", values, x, D, indices, mask
        yield "refit", x, D, indices
    x, W = randn(batch, N, dtype=dtype), randn(P, N, dtype=dtype)
    for stages in STAGES:
        for S in steps(dtype, stages):
            grad, saved = randn(batch, P, dtype=dtype), torch.randn(stages, batch, P)
            *_, per_stage = thetas(stages)
            for name in ("encode_l0", "encode_l0_saving"):
                yield name, x, W, S, randn(P, dtype=dtype), per_stage, stages, 0.3, "helu"
            for mask in (0, 1, 2, 4, 8, 16, 31):
                yield "encode_l0_backward", grad, saved, x, W, S, per_stage, 0.3, "ste", mask
            for m in MOST:
                for name in ("encode_top_m", "encode_top_m_saving"):
                    yield name, x, W, S, randn(P, dtype=dtype), m, stages, True
                (v, i), before = code(dtype, batch, m), code(torch.float32, stages - 1, batch, m)
                for mask in (0, 1, 2, 4, 8, 15):
                    yield "encode_top_m_backward", v, v.relu(), i, *before, x, W, S, mask


def factored(dtype, batch):
    x, W, bias = (randn(*s, dtype=dtype) for s in ((batch, N), (P, N), (P,)))
    for stages, layout in itertools.product(STAGES, LAYOUTS):
        D = layout(randn(N, P, dtype=dtype))
        *_, theta = thetas(stages)
        for b, step in ((None, None), (bias, torch.full((stages,), 0.5))):
            for name in ("encode_l0_factored", "encode_l0_factored_saving"):
                yield name, x, W, D, b, step, theta, stages, 0.3, "helu"
            grad, saved = randn(batch, P, dtype=dtype), torch.randn(stages, batch, P)
            for mask in (0, 1, 2, 4, 8, 16, 32, 63):
                yield ("encode_l0_factored_backward", grad, saved, x, W, D, step, theta, 0.3,
                       "positive_ste", mask)  # fmt: skip
            for last in MOST:
                m = [*range(2, stages + 1), last]
                for name in ("encode_top_m_factored", "encode_top_m_factored_saving"):
                    yield name, x, W, D, b, step, m, True
                v, i = code(dtype, batch, last)
                below = [code(torch.float32, batch, entries) for entries in m[:-1]]
                empty = [torch.empty(0)], [torch.empty(0, dtype=torch.int64)]
                saved = (torch.cat([t.flatten() for t in part])
                         for part in (zip(*below, strict=True) if below else empty))  # fmt: skip
                saved = tuple(saved)
                for mask in (0, 1, 2, 4, 8, 16, 31):
                    yield ("encode_top_m_factored_backward", v, v.relu(), i, *saved, x, W, D, step,
                           m, mask)  # fmt: skip


def solvers(dtype, batch):
    dtype = torch.float64 if dtype == torch.bfloat16 else dtype
    x = randn(batch, N, dtype=dtype)
    for layout in LAYOUTS:
        D = layout(torch.nn.functional.normalize(randn(N, P, dtype=dtype), dim=0))
        fixed = (0.1, 1e-6, 4)
        for m in (1, 3, N):
            yield "omp", x, D, m, 1e-6
            yield "omp", x, D, m, 1e-6, True
        gram = layout(torch.eye(P, dtype=torch.float64))
        for m in MOST:
            right, at = code(torch.float64, batch, m)
            yield "least_squares", gram, layout(right), layout(at), 1e-5
        for m in MOST:
            yield "iht_top_m", x, D, None, None, m, *fixed, False
            yield "iht_top_m", x, D, *code(dtype, batch, m), m, *fixed, False
            yield "iht_top_m", x, D, None, None, m, *fixed, False, True
        for start in (None, randn(batch, P, dtype=dtype)):
            yield "iht_l0", x, D, start, 0.1, *fixed, False
            yield "fista", x, D, start, 0.1, *fixed, False
            yield "fista", x, D, None, 0.1, *fixed, False, True
            yield "iht_l0", x, D, None, 0.1, *fixed, False, True


def layout_of(t: torch.Tensor):
    """What a consumer may rely on: the stride of a dimension of one entry says nothing."""
    strides = tuple(s for s, n in zip(t.stride(), t.shape, strict=True) if n != 1)
    return tuple(t.shape), strides, t.dtype, t.device.type, t.storage_offset()


def bytes_of(t: torch.Tensor) -> int:
    return t.untyped_storage().nbytes()


CASES = {f.__name__: f for f in (elementwise, encoders, factored, solvers)}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("of", CASES)
def test_outputs_are_as_the_fake_kernels_say(of, dtype, batch):
    torch.manual_seed(0)
    wrong, seen = [], 0
    mode = FakeTensorMode()
    for name, *args in CASES[of](dtype, batch):
        operator = getattr(torch.ops.deepl0, name)
        real = operator(*args)
        with mode:
            fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args]
            fake = operator(*fakes)
        if isinstance(real, torch.Tensor):
            real, fake = (real,), (fake,)
        assert len(real) == len(fake)
        inputs = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for i, (a, b) in enumerate(zip(real, fake, strict=True)):
            seen += 1
            same = layout_of(a) == layout_of(b) and bytes_of(a) == bytes_of(b)
            alias = a.numel() > 0 and a.untyped_storage().data_ptr() in inputs
            if not same or alias:
                shapes = [tuple(a.shape) if isinstance(a, torch.Tensor) else a for a in args]
                wrong.append((name, i, shapes, layout_of(a), layout_of(b), bytes_of(a), alias))
    assert not wrong, f"{len(wrong)} of {seen}, such as {wrong[:FAILURES_SHOWN]}"
    assert seen


def test_every_operator_of_the_cpu_is_asked():
    asked = {name for of in CASES.values() for name, *_ in of(torch.float32, 1)}
    listed = [
        name
        for key in ("CPU", "CompositeExplicitAutograd")
        for name in torch._C._dispatch_get_registrations_for_dispatch_key(key)
    ]
    names = {name.split("::")[1].split(".")[0] for name in listed if name.startswith("deepl0::")}
    # One that works in place has no output.
    assert {n for n in names if getattr(torch.ops.deepl0, n).default._schema.returns} == asked
