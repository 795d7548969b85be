"""The encoder of bfloat16 signals, stage by stage against float64."""

from __future__ import annotations

import pytest
import torch

from deepl0_kernels import reference
from deepl0_kernels._matrices import stage_matrix
from python_tests.oracle import hostile
from python_tests.rounding import HALF_TYPES, check_rounding

from .emulator import BIG
from .test_sparse import EPS, selects

BF16 = torch.bfloat16


@pytest.fixture
def run(ops):
    """Values, indices and the codes of the earlier stages."""

    def run(x, W, S, m, stages, bias=None, positive=False):
        return ops.encode_top_m_saving(x, W, S, bias, m, stages, positive)

    return run


def bias_of(p: int) -> torch.Tensor:
    return (torch.arange(p) % 7 - 3).to(BF16)


def draw(batch: int, n: int, p: int, *steps: int) -> tuple[torch.Tensor, ...]:
    return (
        torch.randn(batch, n).to(BF16),
        torch.randn(p, n).to(BF16),
        (torch.randn(*steps, p, p) / 8).to(BF16),
    )


def check(x, W, S, m: int, stages: int, out, bias=None, positive: bool = False) -> None:
    """Every stage from the code that the stage before has left: supports up to the rounding of the
    sums, values within it."""
    values, indices, saved_values, saved_indices = out
    p = W.shape[0]
    assert saved_values.shape == saved_indices.shape == (stages - 1, len(x), m)
    x64, W64 = x.double(), W.double()
    wx, size = x64 @ W64.t(), x64.abs() @ W64.abs().t()
    if bias is not None:
        wx, size = wx + bias.double(), size + bias.double().abs()
    # A sum of N terms rounds N times.
    terms = x.shape[1] + 17
    for k in range(stages):
        last = k + 1 == stages
        u, slack = wx, terms * EPS * size
        if k > 0:
            z = reference.unpool(saved_values[k - 1], saved_indices[k - 1], p).double()
            step = stage_matrix(S, k - 1).double()
            u = wx + z @ step.t()
            slack = (terms + 3 * p) * EPS * (size + z.abs() @ step.abs().t())
        got, at = (values, indices) if last else (saved_values[k], saved_indices[k])
        u = u.clamp(min=0) if positive else u
        assert not positive or (got >= 0).all()
        assert selects(u, slack, at, m)
        assert (at.diff(dim=1) > 0).all()
        assert (
            (got.double() - u.gather(1, at)).abs() <= (slack + 2.0**-8 * u.abs()).gather(1, at)
        ).all()


@pytest.mark.parametrize(
    ("batch", "n", "p", "m", "stages"),
    [
        (1, 1, 1, 1, 3),
        (3, 16, 128, 9, 2),
        (65, 33, 100, 100, 2),
        (5, 40, 129, 40, 4),
        (2, 24, 256, 1, 3),
        (1, 70, 512, 32, 2),
        (4, 16, 301, 20, 1),
    ],
)
@pytest.mark.parametrize(("untied", "positive"), [(False, False), (True, False), (True, True)])
def test_every_stage(run, batch, n, p, m, stages, untied, positive):
    steps = (stages - 1,) if untied else ()
    x, W, S = draw(batch, n, p, *steps)
    more = (bias_of(p), True) if positive else ()
    out = run(x, W, S if stages > 1 else None, m, stages, *more)
    check(x, W, S, m, stages, out, *more)


def test_large_batches_go_by_blocks_of_rows(run, ops, force):
    x, W, S = draw(20, 16, 50)
    more = bias_of(50), True
    whole = run(x, W, S, 6, 3, *more)
    unsaved = ops.encode_top_m(x, W, S, bias_of(50), 6, 3, True)
    force("rules", 7 * 50)
    for ours, want in zip(run(x, W, S, 6, 3, *more), whole, strict=True):
        assert torch.equal(ours, want)
    for ours, want in zip(ops.encode_top_m(x, W, S, bias_of(50), 6, 3, True), unsaved, strict=True):
        assert torch.equal(ours, want)
    assert all(torch.equal(a, b) for a, b in zip(unsaved, whole, strict=False))


@pytest.mark.parametrize("encoder", ["encode_top_m", "encode_l0", "encode_top_m_factored"])
@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_codes_are_rounded_between_stages(device, encoder, dtype):
    check_rounding(encoder, dtype, device)


def test_what_is_saved_is_rounded(run):
    """Of sums, which a gather stage has, and of selections."""
    for stages in (2, 3):
        for p, m in ((90, 11), (90, 80), (1300, 20)):
            saved = run(*draw(3, 32, p), m, stages)[2]
            assert torch.equal(saved, saved.to(BF16).float())


@pytest.mark.parametrize("style", ["ties", "equal", "zero"])
def test_ties_go_to_the_lowest_index(run, style):
    x, W = hostile((6, 16), BF16, 1, style), hostile((75, 16), BF16, 2, style)
    S = (hostile((75, 75), BF16, 3, "ties") * (torch.rand(75, 75) < 0.05)).to(BF16)
    values, indices, *saved = run(x, W, S, 30, 2)
    # Small integers: every sum is exact.
    first = reference.top_m(x.float() @ W.float().t(), 30)
    assert torch.equal(saved[0][0], first[0])
    assert torch.equal(saved[1][0], first[1])
    z = reference.unpool(*first, 75)
    want = reference.top_m(x.float() @ W.float().t() + z @ S.float().t(), 30)
    assert torch.equal(indices, want[1])
    assert torch.equal(values, want[0].to(BF16))


def test_denormal_codes(run):
    """Sums of subnormal numbers are exact; nothing is flushed to zero."""
    x, W = hostile((4, 16), BF16, 1, "ties"), hostile((60, 16), BF16, 2, "ties")
    tiny = 2.0**-127
    saved = run((x * tiny).to(BF16), W, torch.eye(60).to(BF16), 20, 2)[2:]
    want = reference.top_m(x.float() @ W.float().t(), 20)
    assert torch.equal(saved[1][0], want[1])
    assert torch.equal(saved[0][0], want[0] * tiny)


def test_inf_and_nan_stay_in_their_row(run):
    x, W, S = draw(5, 16, 70)
    clean = run(x, W, S, 7, 3)
    x = x.clone()
    x[1, 3], x[3, 0] = torch.inf, torch.nan
    values, indices, *saved = run(x, W, S, 7, 3)
    for row in (0, 2, 4):
        assert torch.equal(values[row], clean[0][row])
        assert torch.equal(indices[row], clean[1][row])
    assert saved[0][0][1].isinf().all()
    assert saved[1][0][1].tolist() == list(range(7))
    assert values[3].isnan().all()
    assert indices[3].tolist() == list(range(7))
    # inf times an atom is inf, not NaN: the lower terms of inf are zero.
    z = reference.unpool(saved[0][0][1:2], saved[1][0][1:2], 70)
    signed = (S.abs() + 1) * torch.sign(z) * torch.sign(W[:, 3:4])
    assert run(x[1:2], W, signed.to(BF16), 7, 2)[0].isinf().all()


def test_nothing_kept_and_nothing_given(run):
    x, W, S = draw(3, 8, 20)
    assert run(x, W, S, 0, 2)[2].shape == (1, 3, 0)
    assert run(x[:0], W, S, 4, 2)[0].shape == (0, 4)
    out = run(x[:, :0], W[:, :0], S, 4, 2)
    assert (out[0] == 0).all()
    assert out[1].tolist() == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("kind", ["rows", "columns", "offset", "transposed"])
def test_strides(run, kind):
    x, W, S = draw(4, 32, 128)
    want = run(x, W, S, 9, 2)
    if kind == "rows":
        x = torch.cat((x, x), 1)[:, :32]
    elif kind == "columns":
        W = W.t().contiguous().t()
    elif kind == "offset":
        x = torch.cat((x.new_zeros(1), x.flatten()))[1:].view(4, 32)
        assert x.is_contiguous()
        assert x.data_ptr() % 16 == 2
    else:
        S = S.t().contiguous().t()
    for ours, other in zip(run(x, W, S, 9, 2), want, strict=True):
        assert torch.equal(ours, other)


def test_the_last_block_of_rows_may_be_selected_from_another_way(ops, emulator, force):
    """Many rows are selected from by a block each, few by segments, which want memory."""
    x, W = torch.randint(-3, 4, (3, 2)).float(), torch.randn(16400, 2)

    def codes():
        return (
            *ops.encode_top_m(x, W, None, None, 5, 1, False),
            *ops.encode_top_m_factored(x, W, W.t(), None, None, [5], False),
        )

    whole = codes()
    emulator.set_device(2, BIG[1])
    force("rules", 2 * 16400)
    assert all(torch.equal(a, b) for a, b in zip(codes(), whole, strict=True))
