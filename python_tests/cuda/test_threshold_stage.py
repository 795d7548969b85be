"""A stage of encode_l0 in half types as one kernel: sums within float32's rounding of float64, and
from each of them the threshold and the rounding of z, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import deepl0_kernels as dk
from deepl0_kernels import reference
from deepl0_kernels._matrices import stage_matrix
from python_tests.oracle import STYLES, hostile, same_bits, same_values
from python_tests.ptx import matrix
from python_tests.rounding import HALF_TYPES, check_rounding

from . import build
from .emulator import serving, stages_fused
from .recording import recording
from .test_sparse import EPS

BF16, F16 = torch.bfloat16, torch.float16
KERNEL = "threshold_stage_kernel"
AGAIN = 256  # up to so many terms W x is multiplied in every stage


def draw(batch: int, n: int, p: int, stages: int, dtype: torch.dtype, untied: bool = False):
    """x, W, S, bias and thetas, of sums of about one."""
    g = torch.Generator().manual_seed(1000 * n + p)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    S = normal(*((stages - 1, p, p) if untied else (p, p))) / p**0.5
    theta = normal(*((stages, p) if untied else (p,))).abs()
    given = (normal(batch, n), normal(p, n) / max(1, n) ** 0.5, S if stages > 1 else None,
             normal(p))  # fmt: skip
    return *(None if t is None else t.to(dtype) for t in given), theta


def check(x, W, S, bias, theta, stages, sigma, kind, z: Tensor, saved: Tensor) -> None:
    """u of every stage from the code that the stage before has left; that code, from u."""
    p = W.shape[0]
    wx = x.double() @ W.double().t() + (0 if bias is None else bias.double())
    size = x.double().abs() @ W.double().abs().t() + (0 if bias is None else bias.double().abs())
    code = None
    for k in range(stages):
        u, bound = wx, (x.shape[1] + 3) * EPS * size
        if code is not None:
            step = stage_matrix(S, k - 1).double()
            u = wx + code.double() @ step.t()
            bound = (x.shape[1] + p + 4) * EPS * (size + code.double().abs() @ step.abs().t())
        assert ((saved[k].double() - u).abs() <= bound).all(), k
        of = theta[k] if theta.dim() == 2 else theta
        code = reference.threshold(saved[k], of, sigma, kind).to(x.dtype)
    assert same_bits(z, code)


def run(ops, x, W, S, bias, theta, stages, sigma=0.5, kind="helu") -> tuple[Tensor, Tensor]:
    """z and the pre-activations, of the fused stages; inference has the same bits."""
    args = (x, W, S, bias, theta, stages, sigma, kind)
    with stages_fused():
        z, saved = ops.encode_l0_saving(*args)
        assert same_values(ops.encode_l0(*args), z)
    return z, saved


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "n", "p", "stages", "untied"),
    [(1, 1, 1, 3, False), (3, 33, 130, 2, True), (129, 40, 31, 3, False), (130, 8, 129, 1, False),
     (2, AGAIN + 1, 75, 3, True), (2, AGAIN + 8, 136, 2, False), (5, 64, 128, 3, True)],
)  # fmt: skip
def test_every_stage(ops, batch, n, p, stages, untied, dtype):
    x, W, S, bias, theta = draw(batch, n, p, stages, dtype, untied)
    for b in (None, bias):
        z, saved = run(ops, x, W, S, b, theta, stages)
        check(x, W, S, b, theta, stages, 0.5, "helu", z, saved)
        assert 0 < (z != 0).sum() < z.numel() or z.numel() == 1


@pytest.mark.parametrize("kind", reference.thresholds.KINDS)
def test_kinds(ops, kind):
    """And one theta for all units, a NaN among them, a sigma of zero."""
    x, W, S, bias, theta = draw(3, 20, 45, 2, BF16)
    wrong = theta.clone()
    wrong[44] = torch.nan
    for of, sigma in ((theta, 0.25), (theta[0], 0.0)):
        check(x, W, S, bias, of, 2, sigma, kind, *run(ops, x, W, S, bias, of, 2, sigma, kind))
    z, _ = run(ops, x, W, S, bias, wrong, 1, 0.25, kind)
    assert z[:, 44].isnan().all()
    assert z[:, :44].isfinite().all()


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
@pytest.mark.parametrize(("n", "kind"), [(21, "hard"), (AGAIN + 5, "positive_helu")])
def test_exact_sums(ops, dtype, n, kind):
    """Of small integers, some of them just theta, every way has the same bits: the product and the
    threshold, and these."""
    x, W = hostile((7, n), dtype, 1, "ties"), hostile((75, n), dtype, 2, "ties")
    S, bias = hostile((2, 75, 75), dtype, 3, "ties") / 4, hostile((75,), dtype, 4, "ties")
    theta = (torch.arange(75) % 6).float()
    args = (x, W, S, bias, theta, 3, 0.5, kind)
    plain = ops.encode_l0_saving(*args)
    for ours, want in zip(run(ops, *args), plain, strict=True):
        assert same_values(ours, want)


@pytest.mark.parametrize("style", STYLES)
def test_hostile_operands(ops, style):
    """In x, W, S, b. What is not finite is so in float64, and the rest within rounding of it;
    other rows keep their bits."""
    calm = draw(3, 20, 45, 2, F16)
    for place in range(4):
        given = list(calm)
        given[place] = hostile(tuple(calm[place].shape), F16, place, style)
        z, saved = run(ops, *given, 2, 0.5, "ste")
        x, W, S, bias, theta = given
        u, below = x.double() @ W.double().t() + bias.double(), None
        size = x.double().abs() @ W.double().abs().t() + bias.double().abs()
        for k in range(2):
            if below is not None:
                u = u + below.double() @ S.double().t()
                size = size + below.double().abs() @ S.double().abs().t()
            # Beyond float32 there is nothing to compare; here no finite sum is.
            assert torch.equal(saved[k].isfinite(), u.isfinite())
            assert torch.equal(saved[k].isnan(), u.isnan())
            fine = u.isfinite()
            assert torch.equal(saved[k][~fine & ~u.isnan()].double(), u[~fine & ~u.isnan()])
            assert ((saved[k].double() - u).abs() <= 70 * EPS * size)[fine].all()
            below = reference.threshold(saved[k], theta, 0.5, "ste").to(F16)
        assert same_values(z, below)


def test_what_is_not_finite_stays_in_its_row(ops):
    x, W, S, bias, theta = draw(131, 20, 45, 3, BF16)
    clean, of_clean = run(ops, x, W, S, bias, theta, 3)
    x[2, 3], x[130, 0] = torch.inf, torch.nan
    z, saved = run(ops, x, W, S, bias, theta, 3)
    others = [i for i in range(131) if i not in (2, 130)]
    assert same_bits(z[others], clean[others])
    assert same_bits(saved[:, others], of_clean[:, others])
    assert not z[130].isfinite().any()
    W[7, 2] = torch.nan  # a unit, of the first stage
    first, _ = run(ops, x[:2], W, None, bias, theta, 1)
    assert first.isnan().any(0).nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("width", [32, 31])
def test_strides_and_alignment(ops, emulator, width):
    """Rows of whole vectors are read where they are; others, and columns, from a copy."""
    x, W, S, bias, theta = draw(6, width, 40, 2, BF16)
    want = run(ops, x, W, S, bias, theta, 2)

    def check_same(*given, copies: int) -> None:
        emulator.launches.clear()
        for ours, right in zip(run(ops, *given, 2), want, strict=True):
            assert same_bits(ours, right)
        kernels = [launch.kernel for launch in emulator.launches]
        assert kernels.count("append_column_kernel") == 2 * copies  # of two runs
        assert kernels.count(KERNEL) == 4

    def within(t: Tensor, more: int, at: int = 0) -> Tensor:
        """The same numbers in rows that are longer, NaN beside them."""
        wide = t.new_full((*t.shape[:-1], t.shape[-1] + more), torch.nan)
        view = wide[..., at : at + t.shape[-1]]
        return view.copy_(t)

    odd = 2 * (width % 8 > 0)
    check_same(x, W, S, bias, theta, copies=odd)
    check_same(within(x, 40 - width), within(W, 48 - width), S, bias, theta, copies=0)
    check_same(within(x, 41 - width), W, S, bias, theta, copies=1 + odd // 2)
    check_same(within(x, 40 - width, 1 if width == 31 else 4), W, S, bias, theta,
               copies=1 + odd // 2)  # fmt: skip
    check_same(x, W, within(S, 8), bias, theta, copies=odd)
    check_same(x, W, S.t().contiguous().t(), bias, theta, copies=1 + odd)
    check_same(x, W.t().contiguous().t(), within(S, 3), within(bias, 3), theta,
               copies=2 + odd // 2)  # fmt: skip
    untied = torch.stack([S, S, S])
    strided = torch.cat([untied, untied.new_full((3, 1, 40), torch.nan)], 1)[:, :40]
    three = run(ops, x, W, untied, bias, theta, 4)
    for other in (strided, untied.transpose(1, 2).contiguous().transpose(1, 2)):
        for ours, right in zip(run(ops, x, W, other, bias, theta, 4), three, strict=True):
            assert same_bits(ours, right)


def test_nothing_given(ops, emulator):
    x, W, S, bias, theta = draw(3, 8, 20, 3, BF16)
    assert run(ops, x[:0], W, S, bias, theta, 3)[0].shape == (0, 20)
    assert run(ops, x, W[:0], S[:0, :0], bias[:0], theta[:0], 3)[0].shape == (3, 0)
    z, saved = run(ops, x[:, :0], W[:, :0], S, bias, theta, 2)
    check(x[:, :0], W[:, :0], S, bias, theta, 2, 0.5, "helu", z, saved)


def test_a_row_has_one_code(ops, emulator):
    """In a batch or alone, whatever the order of blocks."""
    x, W, S, bias, theta = draw(130, 24, 136, 2, F16)
    z, _ = run(ops, x, W, S, bias, theta, 2)
    for row in (0, 127, 129):
        assert same_bits(run(ops, x[row : row + 1], W, S, bias, theta, 2)[0], z[row : row + 1])
    emulator.block_order = lambda n: range(n - 1, -1, -1)
    assert same_bits(run(ops, x, W, S, bias, theta, 2)[0], z)


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_codes_are_rounded_between_stages(device, dtype):
    if device != "cpu":
        from deepl0_kernels.cuda.library import stages_fused as fused
    else:
        fused = stages_fused
    with fused():
        check_rounding("encode_l0", dtype, device)


def test_an_error_of_the_sums_is_noticed(ops, monkeypatch):
    """The tests can fail: of products that lose a bit more than float32's, u is out of bounds."""
    exact = matrix.products
    monkeypatch.setattr(matrix, "products", lambda a, b: exact(a, b) * (1 + 2.0**-15))
    x, W, S, bias, theta = draw(3, 20, 45, 2, BF16)
    z, saved = run(ops, x, W, S, bias, theta, 2)
    with pytest.raises(AssertionError):
        check(x, W, S, bias, theta, 2, 0.5, "helu", z, saved)


def test_the_switch_and_the_gradients(emulator):
    """Off by default; on, it serves half types, and the backward has what it needs."""
    x, W, S, bias, theta = draw(5, 16, 40, 3, BF16, untied=True)
    S = S.float().round(decimals=1).to(BF16)

    def kernels(dtype: torch.dtype, grad: bool = False) -> tuple[list[str], list[Tensor]]:
        emulator.launches.clear()
        leaves = [t.to(dtype).requires_grad_(grad) for t in (x, W, S, bias)]
        of = theta.clone().requires_grad_(grad)
        z = dk.encode_l0(*leaves[:3], of, num_stages=3, bias=leaves[3], sigma=0.5)
        out = [z.detach()]
        if grad:
            out += torch.autograd.grad(z.float().square().sum(), [*leaves, of])
        return [launch.kernel for launch in emulator.launches], out

    with serving("cpu"):
        assert KERNEL not in kernels(BF16)[0]
        plain = kernels(BF16, grad=True)[1]
        with stages_fused():
            assert kernels(BF16)[0] == [KERNEL] * 3
            assert kernels(F16)[0] == [KERNEL] * 3
            assert KERNEL not in kernels(torch.float32)[0]
            names, ours = kernels(BF16, grad=True)
            assert names.count(KERNEL) == 3
    for got, want in zip(ours, plain, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(
            got.float(), want.float(), rtol=2e-2, atol=2e-2 * want.abs().max().item()
        )


def test_launches_of_any_size(ops, emulator):
    """Codes beyond 2^31 entries, and of many units."""
    for batch, n, p, blocks in ((300_000, 256, 16384, 2344 * 128), (1, 4096, 1 << 21, 1 << 14)):
        x, W = (torch.empty(rows, n, device="meta", dtype=BF16) for rows in (batch, p))
        S = torch.empty(1, 1, device="meta", dtype=BF16).expand(p, p)
        theta = torch.empty(p, device="meta")
        with recording(emulator) as launches, stages_fused():
            z = ops.encode_l0(x, W, None if p > 1 << 20 else S, None, theta,
                              1 if p > 1 << 20 else 2, 0.5, "helu")  # fmt: skip
        assert z.shape == (batch, p)
        assert {n.grid for n in launches if n.kernel == KERNEL} == {blocks}


def test_the_environment_asks_for_it():
    code = (
        "import torch, sys; torch.ops.load_library(sys.argv[1]);"
        "print(torch.ops.deepl0_emulated.fuse_stages(False))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(build.build().library)],
        env=os.environ | {"DEEPL0_CUDA_FUSED": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "True"
