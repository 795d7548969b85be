"""One careless call of ``torch.ops.deepl0.*`` from a recipe, and what it should have given.

A recipe is JSON: ``{"op": name, "args": [...]}``, a tensor being a dictionary (see :func:`build`).
Run as a module this is the process that makes the calls, so that a crash ends only that process:
a recipe per line in, a verdict per line out.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import sys

import torch
from torch import Tensor

import deepl0_kernels as dk
from deepl0_kernels import reference
from deepl0_kernels._matrices import stage_matrix, stage_theta
from deepl0_kernels.reference.precision import accumulation_dtype
from python_tests.oracle import hostile

DISTINCT, ANYTHING, ATOMS, GRAM = "distinct", "anything", "atoms", "gram"
# What an exception must not say: the words of the machinery instead of those of the caller.
UNCLEAR = (
    "aoti_torch",
    "API call failed",
    "std::",
    "vector",
    "_M_",
    "basic_string",
    "bad_alloc",
    "Dimension specified",
)


def build(recipe: dict, device: str = "cpu") -> Tensor:
    """The tensor of a recipe: shape, dtype, style of its values, layout, seed."""
    shape, style = tuple(recipe["shape"]), recipe["style"]
    dtype, g = getattr(torch, recipe["dtype"]), torch.Generator().manual_seed(recipe["seed"])
    if style == DISTINCT:  # indices of a code: distinct in a row, in any order
        values = torch.rand((*shape[:-1], recipe["high"]), generator=g).argsort(-1)
        values = values[..., : shape[-1]]
    elif style == ANYTHING:  # numbers that no index should be
        choice = torch.tensor([0, 0, 1, -1, recipe["high"], 2**31, -(2**63), 2**40])
        values = choice[torch.randint(len(choice), shape, generator=g)]
    elif style == "integers":  # exact in any order of summation, many ties
        values = torch.randint(-2, 3, shape, generator=g)
    elif style == ATOMS:  # columns of norm 1 with one entry, many alike
        values = torch.zeros(shape)
        if values.dim() == 2 and values.numel():
            rows = torch.randint(shape[0], (1, shape[1]), generator=g)
            signs = torch.randint(0, 2, (1, shape[1]), generator=g) * 2.0 - 1
            values.scatter_(0, rows, signs)
    elif style == GRAM:  # of such atoms
        values = torch.zeros(shape)
        if values.dim() == 2 and values.numel():
            row, sign = (
                torch.randint(n, shape[:1], generator=g) for n in (max(1, shape[0] // 2), 2)
            )
            sign = 2.0 * sign - 1
            values = torch.where(row[:, None] == row, sign[:, None] * sign, 0.0)[:, : shape[1]]
    elif style == "theta":
        values = torch.randint(1, 5, shape, generator=g) / 2
    else:
        values = hostile(shape, torch.float64, recipe["seed"], style)
    values = values.to(dtype).to(device)
    layout = recipe["layout"]
    if layout == "transposed" and values.dim() >= 2:
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "permuted" and values.dim() >= 2:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "step" and values.dim() >= 1:
        return values.repeat_interleave(2, -1)[..., ::2]
    if layout == "offset" and values.dim() >= 1:
        return torch.nn.functional.pad(values, (3, 2))[..., 3:-2]
    if layout == "expanded" and values.numel() > 0 and values.dim() >= 1:
        return values[:1].expand(shape)
    if layout == "expanded_last" and values.numel() > 0 and values.dim() >= 1:
        return values[..., :1].expand(shape)
    return values


def asked(mask: int, *grads: Tensor) -> tuple[Tensor, ...]:
    """The gradients of the mask, the others empty."""
    return tuple(g if mask >> i & 1 else g.new_empty(0) for i, g in enumerate(grads))


def decode_backward(grad, values, indices, D, mask):
    low, dtype = values.dtype, accumulation_dtype(D.dtype)
    v, d = (t.detach().to(dtype).requires_grad_() for t in (values, D))
    with torch.enable_grad():
        out = reference.decode(v, indices, d)
    gv, gd = torch.autograd.grad(out, (v, d), grad.to(dtype))
    return asked(mask, gv.to(low), gd.to(D.dtype))


def _gradients(du_of_stage, stages, x, W, S, z_of_stage):
    """dx, dW, dS and db from du of every stage; du_of_stage(k, product of the stage above)."""
    p, dtype = W.shape[0], accumulation_dtype(x.dtype)
    xs, Ws, Ss = (None if t is None else t.to(dtype) for t in (x, W, S))
    gS = torch.zeros(0) if S is None else torch.zeros_like(Ss)
    total, above = torch.zeros(x.shape[0], p, dtype=dtype), None
    for k in reversed(range(stages)):
        if k + 1 < stages:
            step = stage_matrix(gS, k)
            step += du.t() @ z_of_stage(k)  # noqa: F821 - of the stage above
            above = du @ stage_matrix(Ss, k)  # noqa: F821
        du = du_of_stage(k, above)
        total = total + du
    return tuple(g.to(x.dtype) for g in (total @ Ws, total.t() @ xs, gS, total.sum(0)))


def _positive(grad, values):
    """Of nonnegative codes what is 0 passes nothing."""
    return grad if values is None else grad.masked_fill(values == 0, 0)


def encode_top_m_backward(grad, values, indices, saved_values, saved_indices, x, W, S, mask):
    dtype, p, steps = accumulation_dtype(x.dtype), W.shape[0], saved_values.shape[0]

    def du(k, above):
        if above is None:
            return reference.unpool(_positive(grad, values).to(dtype), indices, p)
        ones = torch.ones_like(saved_values[k], dtype=dtype)
        ones = ones if values is None else _positive(ones, saved_values[k])
        return above * reference.unpool(ones, saved_indices[k], p)

    def z(k):
        return reference.unpool(saved_values[k].to(dtype), saved_indices[k], p)

    return asked(mask, *_gradients(du, steps + 1, x, W, S, z))


def _l0_stages(grad, saved, theta, sigma, kind):
    """du and z of every stage, by its number, and dtheta, which the calls of the first sum up."""
    dtype, gtheta = accumulation_dtype(saved.dtype), torch.zeros_like(theta)
    saved = saved.to(dtype)

    def du(k, above):
        g = grad.to(dtype) if above is None else above
        gu, gt = reference.threshold_backward(g, saved[k], stage_theta(theta, k), sigma, kind)
        if theta.dim() == 2:
            gtheta[k] += gt
        else:
            gtheta.add_(gt)
        return gu

    def z(k):
        z = reference.threshold(saved[k], stage_theta(theta, k), sigma, kind)
        return z.to(grad.dtype).to(dtype)

    return du, z, gtheta


def encode_l0_backward(grad, saved, x, W, S, theta, sigma, kind, mask):
    du, z, gtheta = _l0_stages(grad, saved, theta, sigma, kind)
    *grads, gbias = _gradients(du, saved.shape[0], x, W, S, z)
    return asked(mask, *grads, gtheta, gbias)


def _factored_gradients(du_of_stage, stages, x, W, D, step, z_of_stage):
    """dx, dW, dD, db and dstep from du of every stage; du_of_stage(k, gradient in z of stage k)."""
    dtype = accumulation_dtype(x.dtype)
    xs, Ws, Ds = (t.to(dtype) for t in (x, W, D))
    steps = torch.ones(stages, dtype=dtype) if step is None else step
    gx, gW, gD = (torch.zeros_like(t) for t in (xs, Ws, Ds))
    gbias, gstep = torch.zeros(W.shape[0], dtype=dtype), torch.zeros(stages, dtype=dtype)
    above = None
    for k in reversed(range(stages)):
        du = du_of_stage(k, above)
        z = z_of_stage(k - 1) if k else torch.zeros(x.shape[0], W.shape[0], dtype=dtype)
        r, q = xs - z @ Ds.t(), du @ Ws
        gstep[k] = (q * r).sum()
        gx += steps[k] * q
        gW += steps[k] * du.t() @ r
        gD -= steps[k] * q.t() @ z
        gbias += du.sum(0)
        above = du - steps[k] * q @ Ds
    return *(g.to(x.dtype) for g in (gx, gW, gD, gbias)), gstep


def encode_top_m_factored_backward(
    grad, values, indices, saved_values, saved_indices, x, W, D, step, m, mask
):
    dtype, p, batch = accumulation_dtype(x.dtype), W.shape[0], x.shape[0]
    sizes = [batch * entries for entries in m[:-1]]
    saved = [
        (v.reshape(batch, entries), i.reshape(batch, entries))
        for v, i, entries in zip(
            saved_values.split(sizes), saved_indices.split(sizes), m[:-1], strict=True
        )
    ]

    def du(k, above):
        if above is None:
            return reference.unpool(_positive(grad, values).to(dtype), indices, p)
        v, i = saved[k]
        ones = torch.ones_like(v, dtype=dtype)
        return above * reference.unpool(ones if values is None else _positive(ones, v), i, p)

    def z(k):
        return reference.unpool(saved[k][0].to(dtype), saved[k][1], p)

    return asked(mask, *_factored_gradients(du, len(m), x, W, D, step, z))


def encode_l0_factored_backward(grad, saved, x, W, D, step, theta, sigma, kind, mask):
    du, z, gtheta = _l0_stages(grad, saved, theta, sigma, kind)
    gx, gW, gD, gbias, gstep = _factored_gradients(du, len(saved), x, W, D, step, z)
    return asked(mask, gx, gW, gD, gtheta, gbias, gstep)


def threshold_stage_saving(*args):
    return reference.threshold_stage(*args, True)


def encode_l0_saving(*args):
    return reference.encode_l0(*args, True)


def encode_top_m_saving(*args):
    return reference.encode_top_m(*args, True)


def encode_l0_factored_saving(*args):
    return reference.encode_l0_factored(*args, True)


def encode_top_m_factored_saving(*args):
    return reference.encode_top_m_factored(*args, True)


ORACLES = {
    name: getattr(reference, name, None) or globals()[name]
    for name in (
        "threshold", "threshold_backward", "top_m", "unpool", "keep_top_m", "apply_mask",
        "batch_top_m",
        "threshold_stage", "threshold_stage_saving", "top_m_stage", "encode_l0", "encode_l0_saving",
        "encode_l0_backward", "encode_top_m", "encode_top_m_saving", "encode_top_m_backward",
        "encode_l0_factored", "encode_l0_factored_saving", "encode_l0_factored_backward",
        "encode_top_m_factored", "encode_top_m_factored_saving", "encode_top_m_factored_backward",
        "decode", "decode_backward", "fista", "iht_l0", "iht_top_m", "least_squares", "omp",
    )
}  # fmt: skip
# The others form products, in which the reference's 0 * inf is NaN (docs/numerics.md).
MOVE_VALUES = ("threshold", "top_m", "unpool", "keep_top_m", "apply_mask", "batch_top_m")
# A step, a penalty or atoms that are spoilt make these diverge or decide by rounding, which no two
# implementations do alike. Where the objective is among their results.
ITERATE = {"fista": 3, "iht_l0": 3, "iht_top_m": 4, "omp": 3}


def distinct(t: Tensor) -> bool:
    ordered = t.sort(-1).values
    return not bool((ordered[..., 1:] == ordered[..., :-1]).any())


def out_of_range(op: str, args: list) -> bool:
    """Whether an index is outside of what it counts."""
    try:
        ORACLES[op](*args)
    except (RuntimeError, IndexError) as error:
        return "out of bounds" in str(error) or "out of range" in str(error)
    except (ValueError, TypeError, AssertionError):
        pass
    return False


def verdict(recipe: dict) -> str:
    """ "" where all is well, else what is wrong."""
    op, device = recipe["op"], recipe.get("device", "cpu")
    args = [build(a, device) if isinstance(a, dict) else a for a in recipe["args"]]
    before = [build(a) if isinstance(a, dict) else a for a in recipe["args"]]
    if device != "cpu" and out_of_range(op, before):
        return ""
    try:
        with dk.use_backend(recipe.get("backend")):
            got = getattr(torch.ops.deepl0, op)(*args)
        if device != "cpu":
            torch.cuda.synchronize()
    except torch.AcceleratorError:
        os._exit(3)  # the device is lost to this process
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        # torch's own refusals (of memory, say) are clear; where it got them from is appended.
        message = str(error).split(" (originally from")[0]
        unclear = not message.strip() or any(word in message for word in UNCLEAR)
        if recipe.get("valid"):
            return f"refused a valid call: {message}"
        return f"unclear exception {type(error).__name__}: {message}" if unclear else ""
    tensors = [(a.cpu(), b) for a, b in zip(args, before, strict=True) if isinstance(a, Tensor)]
    if any(a.isnan().sum() != b.isnan().sum() or not same(a, b, 0.0) for a, b in tensors):
        return "changed its arguments"
    if any(not distinct(a) for a, _ in tensors if a.dtype == torch.int64):
        return ""  # outside the contract, except that nothing may crash
    if op == "fista":  # its steps are no powers of two: the reference rounds as much as the kernel
        before = [a.double() if isinstance(a, Tensor) else a for a in before]
    try:
        want = ORACLES[op](*before)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        if op in ITERATE and not recipe.get("valid") and "the objective rose" in str(error):
            return ""
        return f"answered where the reference raises {type(error).__name__}: {error}"
    got, want = ([t] if isinstance(t, Tensor) else list(t) for t in (got, want))
    got = [t.cpu() for t in got]
    want = want[: len(got)]  # the reference returns what is saved, too
    scale = 0.0
    if op == "fista":
        want = [b.to(a.dtype) for a, b in zip(got, want, strict=True)]
        scale = rounded_by_fista(*before)
    finite = all(math.isfinite(a.double().abs().sum()) for a, _ in tensors)
    largest = max((a.double().abs().max() for a, _ in tensors if a.numel()), default=0.0)
    # A thousand stages overflow, after which 0 * inf is NaN in the reference alone.
    finite &= all(t.isfinite().all() for t in want if t.is_floating_point())
    plain = op in MOVE_VALUES or (finite and largest <= 64)
    # What is no Gram matrix is factored as the triangle that is read.
    plain &= op not in (*ITERATE, "least_squares") or bool(recipe.get("valid"))
    # What is decided on sums of spoilt numbers is decided by rounding where these nearly tie.
    if ("stage" in op or "encode" in op) and not op.endswith("backward"):
        plain &= all(is_coarse(a) for a, _ in tensors if a.is_floating_point())
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        if b.numel() == 0 and a.numel() == 0 and op.endswith("backward"):
            continue
        # What diverges ends, and with it its history, where its own rounding has it.
        of_one = int(not plain and ITERATE.get(op) == i)
        if a.shape[of_one:] != b.shape[of_one:] or a.dtype != b.dtype:
            return f"result {i} is {a.dtype}{list(a.shape)}, not {b.dtype}{list(b.shape)}"
        tolerance = {8: 1e-12, 4: 1e-5, 2: 2.0**-7, 1: 0.0}[a.element_size()]
        least = scale if i == 0 else 0.0
        if op not in MOVE_VALUES and a.is_floating_point():
            # Products of subnormal numbers are rounded to multiples of the smallest one.
            least = max(least, torch.finfo(a.dtype).tiny)
        if plain and not same(a, b, tolerance, least):
            return f"result {i} is\n{a}\nnot\n{b}"
    return ""


def rounded_by_fista(x: Tensor, D: Tensor, start: Tensor | None, lam: float, step: float, *_):
    """The largest number that a step adds up. A threshold close to it leaves a small code, which
    has its rounding."""
    terms = step * (x.abs() @ D.abs())
    return float(
        max((t.abs().max() for t in (terms, start) if t is not None and t.numel()), default=0.0)
    )


def is_coarse(t: Tensor) -> bool:
    """Whether sums of products of such numbers are exact: multiples of 1 / 64."""
    return bool((t.double() * 64 == (t.double() * 64).round()).all())


def same(a: Tensor, b: Tensor, tolerance: float, scale: float = 0.0) -> bool:
    """Equal, NaN at the same places, up to a tolerance of the largest entry, or of ``scale``."""
    if not a.is_floating_point() or tolerance == 0.0:
        return bool(((a == b) | ((a != a) & (b != b))).all())
    a, b = a.double(), b.double()
    equal = (a == b) | (a.isnan() & b.isnan())
    if b.isfinite().any():
        scale = max(scale, float(b[b.isfinite()].abs().max()))
    return bool((equal | ((a - b).abs() <= tolerance * scale)).all())


def serve() -> None:
    faulthandler.enable()
    torch.set_num_threads(2)  # the parallel loops too
    for line in sys.stdin:
        try:
            answer = verdict(json.loads(line))
        except Exception as error:  # of this file, not of the operator
            answer = f"the test itself failed: {type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
