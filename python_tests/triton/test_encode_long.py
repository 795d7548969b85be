"""The Triton encoder for long codes (p beyond 1024) against the reference.

Exact comparisons use inputs for which every order of summation gives the same float32: small
integers, or products with a single 1.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepl0_kernels import reference
from deepl0_kernels._matrices import gradient_of_matrix
from deepl0_kernels.triton import encode, encode_sparse, table, tuned
from python_tests.oracle import hostile, same_values
from python_tests.triton.conftest import EVERY, crossed

CAPACITY = 256  # of a buffer of candidates when m <= 128
LAYOUTS = {
    "row_major": lambda t: t,
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "strided": lambda t: t.repeat_interleave(2, -1)[..., ::2],
}
# batch, n, p, m, stages, one S or one per stage, layout of W and S, nonnegative codes (and a bias)
CASES = [
    (5, 7, 1025, 10, 1, True, "row_major", False),
    (3, 40, 3000, 40, 1, True, "transposed", False),  # two parts
    (3, 40, 3000, 40, 1, True, "row_major", True),
    (70, 33, 1500, 1, 2, True, "row_major", False),  # two blocks of rows
    (4, 5, 1100, 40, 3, False, "row_major", False),
    (4, 5, 1100, 12, 3, False, "transposed", True),
    (4, 5, 1100, 12, 3, True, "strided", False),
    (5, 7, 1100, 100, 3, True, "transposed", False),  # not sparse enough: dense products
    (2, 3, 1030, 1030, 2, False, "row_major", True),  # m = p
]


def integers(batch, n, p, m, stages, tied, dtype=torch.float32, high=2):
    g = torch.Generator().manual_seed(batch + p + m)

    def draw(*shape):
        return torch.randint(-high, high + 1, shape, generator=g).to(dtype)

    S = draw(p, p) if tied else draw(stages - 1, p, p)
    return draw(batch, n), draw(p, n), S if stages > 1 else None, draw(batch, m)


def bias_of(p, m, positive, dtype=torch.float32):
    """With it no more than m // 2 units of nonnegative codes are positive in the first stage."""
    bias = torch.arange(p) % 5 - 2
    if positive:
        bias[m // 2 :] -= 10_000
    return bias.to(dtype)


def put(device, *tensors):
    return [None if t is None else t.to(device) for t in tensors]


def gradients(grad, x, W, S, bias, m, stages, positive=False):
    """The reference's, in float64; for a missing operand an empty one."""
    leaves = [None if t is None else t.detach().double().requires_grad_() for t in (x, W, S, bias)]
    values = reference.encode_top_m(*leaves, m, stages, positive)
    grads = torch.autograd.grad(values[0], [t for t in leaves if t is not None], grad.double())
    found = iter(grads)
    return [torch.empty(0).double() if t is None else next(found) for t in leaves]


@pytest.mark.parametrize("case", CASES, ids=str)
@EVERY
def test_exact_on_integers(engine, device, case):
    p, m, stages, _tied, layout, positive = case[2:]
    x, W, S, grad = integers(*case[:-2])
    W, S = LAYOUTS[layout](W), None if S is None else LAYOUTS[layout](S)
    bias = bias_of(p, m, positive)
    on_device = put(device, LAYOUTS["transposed"](x), W, S)
    want = reference.encode_top_m(x, W, S, bias, m, stages, positive, True)
    got = encode.encode_top_m(*on_device, bias.to(device), m, stages, positive, True)
    assert not positive or (want[2 if stages > 1 else 0] == 0).any()
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours.cpu(), theirs)

    values = got[0] if positive else None
    grads = encode.encode_top_m_backward(grad.to(device), values, *got[1:], *on_device, 15)
    want_grads = gradients(grad, x, W, S, bias, m, stages, positive)
    for ours, theirs in zip(grads, want_grads, strict=True):
        assert torch.equal(ours.cpu().double(), theirs)
    assert grads[1].is_contiguous()
    if S is not None:
        assert grads[2].stride() == gradient_of_matrix(S).stride()


def chosen(u, m, device, positive=False):
    """The result for pre-activations u [1, p], which x = [[1]] and W = u' have exactly."""
    args = put(device, torch.ones(1, 1, dtype=u.dtype), u.t().contiguous(), None)
    values, indices, *_ = encode.encode_top_m(*args, None, m, 1, positive, False)
    return values.cpu(), indices.cpu()


@pytest.mark.parametrize(
    ("style", "m"),
    crossed(["ties", "special", "few_special", "denormal", "equal", "close"], [1, 10, 40]),
)
def test_hostile_rows(engine, device, style, m):
    u = hostile((1, 2100), torch.float32, m, style)
    want_values, want_indices = reference.top_m(u, m)
    values, indices = chosen(u, m, device)
    assert torch.equal(indices, want_indices)
    assert same_values(values + 0.0, want_values + 0.0)  # the product has no -0.0


@pytest.mark.parametrize("style", ["special", "few_special", "denormal", "equal", "zero"])
def test_hostile_rows_of_nonnegative_codes(engine, device, style):
    u = hostile((1, 2100), torch.float32, 4, style)
    u[0, 100:] = torch.where(torch.arange(2000) % 90 == 0, u[0, 100:], -u[0, 100:].abs())
    for m in (10, 100):
        want_values, want_indices = reference.top_m(u, m, True)
        values, indices = chosen(u, m, device, True)
        assert torch.equal(indices, want_indices)
        assert same_values(values, want_values)


@pytest.mark.parametrize("border", [128, CAPACITY, 1536])
def test_ties_across_borders_of_tiles_buffers_and_parts(engine, device, border):
    """A tie that is cut, on both sides of a border: the last of it must go."""
    u = torch.ones(1, 3000)
    u[0, border - 3 : border + 3] = -2.0
    u[0, 2990] = 3.0
    for m in (4, 7, 9):
        want = reference.top_m(u, m)[1]
        assert torch.equal(chosen(u, m, device)[1], want)


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_every_tile_or_only_the_first_enters(engine, device, order):
    """Rows whose every column exceeds all before it overflow their buffers at every tile."""
    batch, p, m = 70, 1200, 16
    u = torch.arange(p).repeat(batch, 1).float()
    u = u + torch.arange(batch)[:, None]
    if order == "descending":
        u = u.flip(1)
    u[3] = 5.0  # beside a row that never enters again
    x, W = torch.eye(batch), u.t().contiguous()
    values, indices, *_ = encode.encode_top_m(*put(device, x, W, None), None, m, 1, False, False)
    want_values, want_indices = reference.top_m(u, m)
    assert torch.equal(indices.cpu(), want_indices)
    assert torch.equal(values.cpu(), want_values)


def test_more_rows_than_one_pass(engine, device, monkeypatch):
    monkeypatch.setattr(encode_sparse, "PROGRAMS", 1)
    x, W, S, _ = integers(130, 3, 1025, 2, 2, True)
    want = reference.encode_top_m(x, W, S, None, 2, 2, False, save=True)
    got = encode.encode_top_m(*put(device, x, W, S), None, 2, 2, False, True)
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@EVERY
def test_half_types_are_selected_in_float32(engine, device, dtype):
    """All intermediate results are integers below 256, which the half types hold."""
    x, W, S, grad = integers(4, 3, 1100, 4, 2, True, dtype, high=1)
    bias = bias_of(1100, 4, False, dtype)
    want = reference.encode_top_m(x, W, S, bias, 4, 2, False, save=True)
    on_device = put(device, x, W, S)
    got = encode.encode_top_m(*on_device, bias.to(device), 4, 2, False, True)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours.cpu(), theirs)
    grads = encode.encode_top_m_backward(grad.to(device), None, *got[1:], *on_device, 15)
    for ours, theirs in zip(grads, gradients(grad, x, W, S, bias, 4, 2), strict=True):
        assert ours.dtype == dtype
        assert torch.equal(ours.cpu().double(), theirs)


def test_the_selected_are_the_largest_but_for_near_ties(engine, device):
    g = torch.Generator().manual_seed(0)
    batch, n, p, m = 6, 50, 1300, 20
    x, W = torch.randn(batch, n, generator=g), torch.randn(p, n, generator=g)
    values, indices, *_ = encode.encode_top_m(*put(device, x, W, None), None, m, 1, False, False)
    u = x.double() @ W.double().t()
    bound = (n + 2) * 2.0**-24 * (x.double().abs() @ W.double().abs().t())
    values, indices = values.cpu(), indices.cpu()
    assert (indices.diff(dim=1) > 0).all()
    assert ((values.double() - u.gather(1, indices)).abs() <= bound.gather(1, indices)).all()
    low = (u.abs() - bound).scatter(1, indices, 0.0).amax(1)
    kept = (u.abs() + bound).gather(1, indices).amin(1)
    assert (low <= kept).all()


def test_skewed_usage(engine, device, monkeypatch):
    """A unit that every row uses in every stage: whole chunks of dW and of dS."""
    monkeypatch.setitem(table.TABLE, "outer", ((1 << 62, tuned.Config(8, 128, 64)),))
    x, W, S, grad = integers(300, 4, 1025, 3, 2, True)
    x[:, 0] = 1.0
    W[17, 0], W[1024, 0] = 500.0, -600.0
    for layout in ("row_major", "transposed"):
        on_device = put(device, x, W, LAYOUTS[layout](S))
        want = reference.encode_top_m(x, W, S, None, 3, 2, False, save=True)
        assert (want[3] == 17).any(-1).all()
        args = put(device, grad, None, *want[1:])
        grads = encode.encode_top_m_backward(*args, *on_device, 15)
        zero = torch.zeros(1025)
        for ours, theirs in zip(grads, gradients(grad, x, W, S, zero, 3, 2), strict=True):
            assert torch.equal(ours.cpu().double(), theirs)


@pytest.mark.parametrize(("batch", "m"), [(0, 3), (2, 0), (0, 500)])
@pytest.mark.parametrize("stages", [1, 3])
def test_nothing_to_do(engine, device, batch, m, stages):
    x, W, S, _ = integers(batch, 3, 1025, m, 2, True)
    x, W, S = put(device, x, W, S)
    got = encode.encode_top_m(x, W, S, None, m, stages, False, True)
    want = reference.encode_top_m(x, W, S, None, m, stages, False, True)
    for ours, theirs in zip(got[:2], want[:2], strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert got[2].shape == got[3].shape == (stages - 1, batch, m)
    for mask in (15, 14):
        grads = encode.encode_top_m_backward(got[0], got[0], *got[1:], x, W, S, mask)
        assert grads[0].shape == (x.shape if mask == 15 else (0,))
        for grad, like in zip(grads[1:], (W, S, W[:, 0]), strict=True):
            assert grad.shape == like.shape
            assert not grad.any()


def test_repeats_bit_for_bit(engine, device):
    g = torch.Generator().manual_seed(1)
    args = [torch.randn(shape, generator=g) for shape in ((40, 20), (1025, 20), (1025, 1025))]
    args = put(device, *args)
    runs = []
    for _ in range(2):
        code = encode.encode_top_m(*args, None, 5, 2, False, save=True)
        grads = encode.encode_top_m_backward(code[0], None, *code[1:], *args, 15)
        runs.append((*code, *grads))
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


class Largest(TorchDispatchMode):
    """The storage sizes, in bytes, of all tensors that operators return."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.sizes += [
            t.untyped_storage().nbytes() for t in tree_leaves(out) if isinstance(t, torch.Tensor)
        ]
        return out


@pytest.mark.parametrize("stages", [1, 3])
def test_memory_is_not_batch_times_p(monkeypatch, stages):
    """On meta tensors, where nothing runs but every allocation is asked for."""
    from deepl0_kernels.triton import launch

    monkeypatch.setattr(launch, "run", lambda job: None)
    batch, n, p, m = 65536, 64, 16384, 32
    meta = dict(dtype=torch.float32, device="meta")
    x, W = torch.empty(batch, n, **meta), torch.empty(p, n, **meta)
    S = torch.empty(p, p, **meta) if stages > 1 else None
    dense = 4 * batch * p
    matrix = 4 * p * p if stages > 1 else 0  # a transposed copy of S, its gradient
    codes = 8 * stages * batch * m
    buffers = 4 * encode_sparse.PROGRAMS * 64 * (CAPACITY + 1)
    with Largest() as forward:
        code = encode.encode_top_m(x, W, S, None, m, stages, False, True)
    assert max(forward.sizes) <= max(matrix, codes, buffers)
    assert max(codes, buffers) < dense / 8
    with Largest() as backward:
        encode.encode_top_m_backward(code[0], code[0], *code[1:], x, W, S, 15)
    partial_rows = 4 * p * (stages - 1) * batch * m // 4096
    assert max(backward.sizes) <= max(matrix, codes, partial_rows, 4 * batch * n)
    assert partial_rows < dense / 8
