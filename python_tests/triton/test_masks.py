"""Backward passes compute the gradients in the mask: those are the same bits as without one, and
for the others nothing is launched, allocated or read."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepl0_kernels import reference
from deepl0_kernels.triton import decode, encode_l0, encode_top_m, thresholds

from .conftest import INTERPRETED
from .recording import recording

OPS = torch.ops.deepl0


def operands(batch, n, p, stages, tied, dtype=torch.float32, device="cpu"):
    shapes = (batch, n), (p, n), (p, p) if tied else (stages - 1, p, p)
    return [torch.randn(s, dtype=dtype, device=device) for s in shapes]


def top_m(p, m, stages, tied=True, by_columns=False, positive=False):
    x, W, S = operands(3, 5, p, stages, tied)
    if by_columns:
        S = S.mT.contiguous().mT
    values, *code = reference.encode_top_m(x, W, S, None, m, stages, positive, True)
    given = (values + 1.0, values if positive else None, *code, x, W, S)
    return OPS.encode_top_m_backward, given, (x, W, S, W[:, 0])


def l0(dtype, p, stages, theta_shape):
    x, W, S = operands(3, 5, p, stages, True, dtype)
    theta = torch.full(theta_shape, 0.5)
    z, saved = reference.encode_l0(x, W, S, None, theta, stages, 0.5, "helu", True)
    args = (torch.randn_like(z), saved, x, W, S, theta, 0.5, "helu")
    return OPS.encode_l0_backward, args, (x, W, S, theta, W[:, 0])


def decoding(by_atoms):
    D = torch.randn(40, 9).t() if by_atoms else torch.randn(9, 40)
    values, indices = torch.randn(5, 3), torch.arange(15).reshape(5, 3)
    return OPS.decode_backward, (torch.randn(5, 9), values, indices, D), (values, D)


def threshold(theta_shape):
    u, theta = torch.randn(30, 33), torch.full(theta_shape, 0.5)
    args = (torch.randn(30, 33), u, theta, 0.5, "helu")
    return OPS.threshold_backward, args, (u, theta)


CALLS = {
    "dense": lambda: top_m(20, 4, 3),
    "dense, a matrix a step, by columns": lambda: top_m(20, 4, 3, False, True),
    "dense, nonnegative codes": lambda: top_m(20, 15, 3, positive=True),
    "dense, one stage": lambda: top_m(20, 4, 1),
    "nothing kept": lambda: top_m(40, 0, 2),
    "sparse": lambda: top_m(48, 3, 3),
    "sparse, a matrix a step, by columns": lambda: top_m(48, 3, 3, False, True),
    "sparse, nonnegative codes": lambda: top_m(160, 10, 2, positive=True),
    "sparse, one stage": lambda: top_m(48, 3, 1, by_columns=True),
    "l0": lambda: l0(torch.float32, 40, 3, (40,)),
    "l0, theta of each stage": lambda: l0(torch.float32, 40, 2, (2, 40)),
    "l0 of a half type": lambda: l0(torch.float16, 40, 3, ()),
    "l0, one stage": lambda: l0(torch.float16, 40, 1, (40,)),
    "decode": lambda: decoding(False),
    "decode by atoms": lambda: decoding(True),
    "threshold": lambda: threshold((33,)),
    "threshold, one theta": lambda: threshold(()),
}


# Interpreted, all. Emulated, those whose kernels depend on the mask.
EMULATED = "sparse", "l0", "threshold"
NAMES = CALLS if INTERPRETED else EMULATED


@pytest.mark.parametrize("name", NAMES)
def test_what_is_wanted_is_the_same(engine, device, name):
    torch.manual_seed(1)
    operator, args, of = CALLS[name]()
    args = [a.to(device) if isinstance(a, torch.Tensor) else a for a in args]
    whole = operator(*args, (1 << len(of)) - 1)
    for mask in range(1 << len(of)) if INTERPRETED else (1, 2, 1 << (len(of) - 1)):
        for i, (got, want, operand) in enumerate(
            zip(operator(*args, mask), whole, of, strict=True)
        ):
            assert got.dtype == operand.dtype
            assert got.device.type == torch.device(device).type
            if mask >> i & 1:
                assert want.shape == operand.shape
                assert got.stride() == want.stride()
                assert torch.equal(got, want), (mask, i)
            else:
                assert got.shape == (0,)


def storages(tree) -> set[int]:
    return {t.untyped_storage()._cdata for t in tree_leaves(tree) if isinstance(t, torch.Tensor)}


class Watched(TorchDispatchMode):
    """PyTorch's operations by name, the bytes of the largest tensor they made, and whether they or
    a launch read one of the tensors of ``unused``."""

    def __init__(self, *unused: torch.Tensor) -> None:
        super().__init__()
        self.unused = storages(unused)
        self.names, self.largest, self.seen = set(), 0, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, given = func.overloadpacket.__name__, storages((args, kwargs))
        self.names.add(name)
        # The former take no more than dtype and device, the latter launches other operations.
        if not name.startswith("new_") and func.namespace != "deepl0":
            self.seen |= bool(given & self.unused)
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and not storages(t) & given:
                self.largest = max(self.largest, t.untyped_storage().nbytes())
        return out


def watched(function, *args, unused=()):
    """Runs a call on meta tensors: what was watched, the kernels that were launched, the result."""
    with recording() as jobs, Watched(*unused) as watch:
        result = function(*args)
    for job in jobs:
        watch.seen |= bool(storages(job.args) & watch.unused)
    return watch, {job.kernel.__name__ for job in jobs}, result


BATCH, N, P, M = 16, 1024, 65536, 32
META = dict(device="meta")


def long_code(stages):
    code = (torch.empty(BATCH, M, **META), torch.empty(BATCH, M, dtype=torch.int64, **META))
    before = (torch.empty(stages - 1, *t.shape, dtype=t.dtype, **META) for t in code)
    operands = torch.empty(BATCH, N, **META), torch.empty(P, N, **META)
    return code[0], None, code[1], *before, *operands


UNITS = {"combine_chunks_kernel", "combine_kernel"}
STEPS = {"outer_kernel"}  # too few entries for whole chunks
PRODUCT = {"product_on_support_kernel"}


@pytest.mark.parametrize(
    ("stages", "mask", "kernels"),
    [(1, 1, {"decode_fwd_kernel"}), (1, 2, UNITS), (1, 4, set()),
     (2, 1, PRODUCT | {"decode_fwd_kernel"}), (2, 2, PRODUCT | UNITS), (2, 4, STEPS),
     (3, 4, PRODUCT | STEPS), (2, 0, set()), (2, 6, PRODUCT | UNITS | STEPS),
     (2, 7, PRODUCT | UNITS | STEPS | {"decode_fwd_kernel"}), (1, 8, UNITS),
     (2, 8, PRODUCT | UNITS)],
)  # fmt: skip
def test_long_codes_launch_what_is_wanted(stages, mask, kernels):
    S = torch.empty(P, P, **META) if stages > 1 else None
    seen, launched, _ = watched(encode_top_m.encode_top_m_backward, *long_code(stages), S, mask)
    assert launched == kernels
    assert ("sort" in seen.names) == bool(launched & (UNITS | STEPS))
    if not mask & 4:
        lists = 8 * (P + 1) if mask & 8 else 0  # where the list of every unit starts
        assert seen.largest <= max(lists, 4 * N * (P if mask & 2 else BATCH))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [40, 1100, P])
def test_s_of_a_single_stage_is_never_touched(p, dtype):
    x, W, S = (torch.empty(s, dtype=dtype, **META) for s in ((BATCH, N), (p, N), (p, p)))
    theta = torch.empty(p, **META)
    for m in (2, p // 2):
        args = (x, W, S, x.new_empty(p), m, 1, True, True)
        seen, _, (values, *code) = watched(encode_top_m.encode_top_m, *args, unused=[S])
        assert not seen.seen
        args = (values, values, *code, x, W, S, 11)
        seen, *_ = watched(encode_top_m.encode_top_m_backward, *args, unused=[S])
        assert not seen.seen
    call = (theta, 0.2, "helu")
    seen, _, (z, saved) = watched(
        encode_l0.encode_l0, x, W, S, x.new_empty(p), theta, 1, 0.2, "helu", True, unused=[S]
    )
    assert not seen.seen
    seen, *_ = watched(encode_l0.encode_l0_backward, z, saved, x, W, S, *call, 27, unused=[S])
    assert not seen.seen


def test_frozen_operands_are_not_read_and_take_no_memory():
    p, batch = 512, 4096
    x, W, S = (torch.empty(s, dtype=torch.bfloat16, **META) for s in ((batch, N), (p, N), (p, p)))
    theta = torch.empty(p, **META)
    _, _, (z, saved) = watched(encode_l0.encode_l0, x, W, S, None, theta, 3, 0.2, "helu", True)
    _, _, (values, *code) = watched(encode_top_m.encode_top_m, x, W, S, None, M, 3, False, True)
    tile = 4 * batch * p
    for mask, unused in ((1, x), (2, W), (4, x), (8, x), (16, W), (16, x)):
        args = (z, saved, x, W, S, theta, 0.2, "helu", mask)
        seen, *_ = watched(encode_l0.encode_l0_backward, *args, unused=[unused])
        assert not seen.seen
        assert seen.largest == (4 * batch * N if mask & 1 else tile)  # of x, [B, p]
    for mask, unused in ((1, x), (2, W), (4, x), (8, W), (8, x)):
        args = (values, None, *code, x, W, S, mask)
        seen, *_ = watched(encode_top_m.encode_top_m_backward, *args, unused=[unused])
        assert not seen.seen
        assert seen.largest <= tile


def test_thresholds_and_atoms():
    u, theta = torch.empty(4096, 512, **META), torch.empty(512, **META)
    call = (thresholds.threshold_backward, u, u, theta, 0.2, "helu")
    sizes = [watched(*call, mask)[0].largest for mask in range(4)]
    assert sizes[1] == sizes[3] == 4 * u.numel()
    assert sizes[0] == 0
    assert 0 < sizes[2] < u.numel()
    D, grad = torch.empty(N, P, **META), torch.empty(BATCH, N, **META)
    values, _, indices, *_ = long_code(1)
    for mask, kernels in ((1, {"decode_bwd_kernel"}), (2, UNITS), (0, set())):
        seen, launched, _ = watched(decode.decode_backward, grad, values, indices, D, mask)
        assert launched == kernels
        assert ("sort" in seen.names) == (mask == 2)
        assert mask == 2 or seen.largest <= 4 * BATCH * N
