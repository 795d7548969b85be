"""Backward passes compute the gradients in the mask: those are the same bits as without one, and
for the others nothing is launched, allocated or read."""

from __future__ import annotations

import pytest
import torch

from deepl0_kernels import reference
from python_tests.triton.test_masks import Watched

from .recording import recording

OPS = torch.ops.deepl0
SORT = {"sort_count_kernel", "sort_scan_kernel", "sort_scatter_kernel", "sort_starts_kernel"}
COMBINE = {"combine_kernel", "combine_edges_kernel"}


def compare(device, operator, args, of) -> None:
    args = [a.to(device) if isinstance(a, torch.Tensor) else a for a in args]
    every = (1 << len(of)) - 1
    whole = operator(*args, every)
    each = [1 << i for i in range(len(of))]
    for mask in (0, *each, *(every ^ one for one in each)):
        for i, (got, want, operand) in enumerate(
            zip(operator(*args, mask), whole, of, strict=True)
        ):
            assert (got.dtype, got.device.type) == (operand.dtype, torch.device(device).type)
            if mask >> i & 1:
                assert want.shape == operand.shape
                assert got.stride() == want.stride()
                assert torch.equal(got, want), (mask, i)
            else:
                assert got.shape == (0,)


@pytest.mark.parametrize("sorted_sums", [False, True])
@pytest.mark.parametrize(
    ("p", "positive"), [(20, False), (40, False), (40, True)],
    ids=["dense products", "gathers", "gathers, nonnegative codes"],
)  # fmt: skip
@pytest.mark.parametrize(("stages", "tied"), [(1, True), (2, True), (3, False)])
def test_what_is_wanted_of_the_encoder_is_the_same(
    device, force, p, stages, tied, sorted_sums, positive
):
    force("gathers" if sorted_sums else "rules")
    x, W = torch.randn(5, 7), torch.randn(p, 7)
    S = torch.randn(p, p).t() if tied else torch.randn(stages - 1, p, p)
    bias = torch.where(torch.arange(p) < 4, 0.0, -1e6) if positive else None
    values, *code = reference.encode_top_m(x, W, S, bias, 6, stages, positive, True)
    assert not positive or (values == 0).any()
    args = (values + 1.0, values if positive else None, *code, x, W, S)
    with torch.no_grad():
        compare(device, OPS.encode_top_m_backward, args, (x, W, S, W[:, 0]))


@pytest.mark.parametrize("by_atoms", [False, True])
def test_what_is_wanted_of_decode_is_the_same(device, by_atoms):
    D = torch.randn(40, 9).t() if by_atoms else torch.randn(9, 40)
    values, indices = torch.randn(5, 3), torch.arange(15).reshape(5, 3)
    compare(device, OPS.decode_backward, (torch.randn(5, 9), values, indices, D), (values, D))


BATCH, N, P, M = 4096, 512, 16384, 32
META = dict(device="meta")


def kernels(emulator, operator, *args, unused=()) -> tuple[set[str], Watched]:
    with recording(emulator) as launches, Watched(*unused) as watch:
        operator(*args)
    return {n.kernel for n in launches} - {"memset", "memcpy"}, watch


@pytest.mark.parametrize(
    ("stages", "mask", "wanted"),
    [(1, 1, {"gather_rows_kernel"}), (1, 2, SORT | COMBINE),
     (2, 1, {"product_on_support_kernel", "gather_rows_kernel"}),
     (2, 2, {"product_on_support_kernel"} | SORT | COMBINE),
     (2, 4, {"outer_kernel"} | SORT), (2, 0, set()), (1, 8, SORT | COMBINE),
     (1, 10, SORT | COMBINE),
     (2, 8, {"product_on_support_kernel"} | SORT | COMBINE)],
)  # fmt: skip
def test_the_encoder_launches_what_is_wanted(emulator, stages, mask, wanted):
    x, W = torch.empty(BATCH, N, **META), torch.empty(P, N, **META)
    S = torch.empty(P, P, **META) if stages > 1 else None
    code = (torch.empty(BATCH, M, **META), torch.empty(BATCH, M, dtype=torch.int64, **META))
    before = (torch.empty(stages - 1, *t.shape, dtype=t.dtype, **META) for t in code)
    args = (OPS.encode_top_m_backward, code[0], None, code[1], *before, x, W, S, mask)
    launched, watch = kernels(emulator, *args)
    also = {"copy_entries_kernel"} if mask else set()  # the gradient of the values, in float32
    if mask & 8:
        also |= {"append_column_kernel"}  # the one row of a single 1 that the bias stands for
    assert launched == wanted | also
    entries = 8 * stages * BATCH * M
    if not mask & 4:
        assert watch.largest <= max(4 * N * (P if mask & 2 else BATCH), entries)


def test_s_of_a_single_stage_is_never_touched(emulator):
    x, W, S = (torch.empty(s, **META) for s in ((64, 20), (1000, 20), (1000, 1000)))
    code = (torch.empty(64, 5, **META), torch.empty(64, 5, dtype=torch.int64, **META))
    before = (torch.empty(0, *t.shape, dtype=t.dtype, **META) for t in code)
    forward = (OPS.encode_top_m_saving, x, W, S, x.new_empty(1000), 5, 1, True)
    assert not kernels(emulator, *forward, unused=[S])[1].seen
    backward = (OPS.encode_top_m_backward, code[0], *code, *before, x, W, S, 11)
    assert not kernels(emulator, *backward, unused=[S])[1].seen


def test_decode_launches_what_is_wanted(emulator):
    D, grad = torch.empty(N, P, **META), torch.empty(BATCH, N, **META)
    values = torch.empty(BATCH, M, **META)
    indices = torch.empty(BATCH, M, dtype=torch.int64, **META)
    for mask, wanted in (
        (1, {"row_dots_kernel", "transpose_kernel"}),
        (2, SORT | COMBINE | {"transpose_kernel"}),
        (0, set()),
    ):
        assert kernels(emulator, OPS.decode_backward, grad, values, indices, D, mask)[0] == wanted
