"""The M-sparse encoder: x W' by PyTorch, and one kernel a stage for all that follows.

A stage after the first is u = x W' + b + z S' of an M-sparse z. Where that pays z S' is a sum of m
rows of S', and u is selected from as soon as it is summed up: it never leaves the chip
(``top_m.select``). Else z is written densely and multiplied by PyTorch, and the kernel adds that
product to x W'. The batch goes by blocks of rows, of which [rows, p] is held.

Backward: with g the gradient of the last values, du_K = g on the support of stage K; going down,
dS_k += du_{k+1} z_k' and du_k = S_k' du_{k+1} on the support of z_k; W x enters every stage, so
dW = sum_b du_b x_b', db = sum_b du_b and dx = du W with du the sum over the stages. Every du has m
entries a row. Sparse: gathers and dots per row of m^2 a step (a sector of 32 bytes each), dS m^2,
dW and dx K m n; dW, db and dS are summed unit by unit (unit_lists.py), and memory beyond the
gradients is O(K B m), and a row of n or p per whole chunk of a unit's entries. Dense: by PyTorch's
products, and a block of rows again. Both deterministic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._matrices import gradient_of_matrix, stage_matrix
from . import unit_lists
from .decode import gather_sum, with_contiguous_atoms
from .launch import ceil_div
from .product import first_product, product
from .supports import gradient_of_steps, product_on_support
from .top_m import Gather, select, unpool

# Elements of a block of pre-activations.
BLOCK = 1 << 24


def gathers_pay(p: int, m: int, dtype: torch.dtype) -> bool:
    """Whether z S' is a sum of m of p rows rather than a product with the dense z.

    In float32 from p = 4 m on, as measured on an H200 of the CUDA gather stage. Where the product
    is on tensor cores, of half types or of tf32, it is 8 to 16 times as fast, and gathers of half
    types move half the bytes: 64 follows from that, and was not measured.
    """
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return p >= (4 if dtype == torch.float32 and not tf32 else 64) * m


def lists_pay(p: int, m: int) -> bool:
    """Whether the sums of the backward go by supports. A gather reads 4 m bytes per number from L2,
    a float32 product takes 2 p flops: by the published rates of an H100 (5.5 TB/s, 50 TFLOP/s) they
    meet at p = 18 m. On an H200 CUDA's were measured to pay from p = 12 m on, in large batches."""
    return p >= 16 * m


def blocks(batch: int, p: int) -> list[slice]:
    """Blocks of rows of a batch; their number depends on shapes alone."""
    size = max(64, BLOCK // max(1, p))
    return [slice(i * size, min(batch, (i + 1) * size)) for i in range(ceil_div(batch, size))]


def encode_top_m(
    x: Tensor, W: Tensor, S: Tensor | None, bias: Tensor | None, m: int, num_stages: int,
    positive: bool, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Serves ``deepl0::encode_top_m``."""
    batch, p, last = x.shape[0], W.shape[0], num_stages - 1
    values, indices = x.new_empty((batch, m)), x.new_empty((batch, m), dtype=torch.int64)
    shape = (last if save else 0, batch, m)
    saved_values = x.new_empty(shape, dtype=torch.float32)
    saved_indices = x.new_empty(shape, dtype=torch.int64)
    steps: list[Tensor] = []  # of z S' as a gather-sum
    if S is not None and num_stages > 1 and gathers_pay(p, m, x.dtype):
        matrices = S.unbind(0) if S.dim() == 3 else (S,)
        steps = [with_contiguous_atoms(matrix, batch * m) for matrix in matrices]
    for rows in blocks(batch, p) if m > 0 else ():
        wx, late = first_product(x[rows], W, bias)
        more = gather = None
        for k in range(num_stages):
            if k == last:
                code = values[rows], indices[rows]
            elif save:
                code = saved_values[k, rows], saved_indices[k, rows]
            else:
                code = torch.empty_like(values[rows]), torch.empty_like(indices[rows])
            select(wx, positive, *code, low=x.dtype, more=more, bias=late, gather=gather)
            if k == last:
                break
            if steps:
                gather = Gather(*code, steps[k % len(steps)])
            else:
                assert S is not None
                more = product(unpool(*code, p, x.dtype), stage_matrix(S, k).t())
    return values, indices, saved_values, saved_indices


def encode_top_m_backward(
    grad_values: Tensor, values: Tensor | None, indices: Tensor, saved_values: Tensor,
    saved_indices: Tensor, x: Tensor, W: Tensor, S: Tensor | None, mask: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Serves ``deepl0::encode_top_m_backward``: gradients in x, W, S and the bias, those in the
    mask. Of nonnegative codes, which come with ``values``, what is 0 is not in the support."""
    p, m = W.shape[0], grad_values.shape[1]
    empty = grad_values.numel() == 0
    used = None if empty or saved_values.shape[0] == 0 else S
    if not empty and mask & (15 if used is not None else 11):
        if values is not None:
            grad_values = grad_values.masked_fill(values == 0, 0.0)
        way = _by_supports if lists_pay(p, m) else _by_products
        grad_x, grad_W, grad_S, grad_bias = way(
            grad_values.contiguous(), indices.contiguous(), saved_values.contiguous(),
            saved_indices.contiguous(), x, W, used, values is not None, mask,
        )  # fmt: skip
    else:
        grad_x = x.new_zeros(x.shape if mask & 1 else 0)
        grad_W = x.new_zeros(W.shape if mask & 2 else 0)
        grad_S = x.new_empty(0)
        grad_bias = x.new_zeros(p if mask & 8 else 0)
    if used is None and S is not None and mask & 4:
        grad_S = gradient_of_matrix(S).zero_()
    return grad_x, grad_W, grad_S, grad_bias


def _by_supports(
    grad_values: Tensor, indices: Tensor, saved_values: Tensor, saved_indices: Tensor,
    x: Tensor, W: Tensor, S: Tensor | None, positive: bool, mask: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (steps, batch, m), (p, n) = saved_values.shape, W.shape
    need_x, need_W, need_S, need_bias = (mask & bit for bit in (1, 2, 4, 8))
    at = torch.cat((saved_indices, indices[None]))
    du = torch.empty(at.shape, dtype=torch.float32, device=x.device)
    du[steps] = grad_values
    grad_S = x.new_empty(0)
    if S is not None:
        for k in range(steps, 0 if need_x or need_W or need_bias else 1, -1):
            product_on_support(du[k], at[k], stage_matrix(S, k - 1), at[k - 1], du[k - 1])
            if positive:
                du[k - 1].masked_fill_(saved_values[k - 1] == 0, 0.0)
        if need_S:
            grad_S = gradient_of_steps(S, at, du, saved_values)
    grad_W, grad_bias = W.new_empty((p, n) if need_W else 0), x.new_empty(p if need_bias else 0)
    if need_W or need_bias:
        lists = unit_lists.group(at.view(-1, m), du, p, rows=batch)
    if need_W:
        unit_lists.combine(lists, x, grad_W)
    if need_bias:
        unit_lists.combine(lists, x.new_ones(1, 1).expand(batch, 1), grad_bias[:, None])
    grad_x = x.new_empty((batch, n) if need_x else 0)
    if need_x:  # the entries of all stages in one row
        values, units = (t.transpose(0, 1).reshape(batch, -1).contiguous() for t in (du, at))
        gather_sum(values, units, W.t(), grad_x)
    return grad_x, grad_W, grad_S, grad_bias


def _by_products(
    grad_values: Tensor, indices: Tensor, saved_values: Tensor, saved_indices: Tensor,
    x: Tensor, W: Tensor, S: Tensor | None, positive: bool, mask: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (steps, batch, _), p = saved_values.shape, W.shape[0]
    need_x, need_W, need_S, need_bias = (mask & bit for bit in (1, 2, 4, 8))
    need_total = mask & 11
    at = (*saved_indices, indices)
    wide: dict = dict(dtype=torch.float32, device=x.device)
    grad_x = x.new_empty(x.shape if need_x else 0)
    grad_W = torch.zeros(W.shape if need_W else 0, **wide)
    grad_bias = torch.zeros(p if need_bias else 0, **wide)
    grad_S = x.new_empty(0)
    if S is not None and need_S:
        grad_S = gradient_of_matrix(S, torch.float32).zero_()
    for rows in blocks(batch, p):
        du = unpool(grad_values[rows], indices[rows], p, torch.float32)
        total = du
        for k in range(steps, 0, -1):
            assert S is not None
            below, code = at[k - 1][rows], saved_values[k - 1, rows]
            if need_S:
                stage_matrix(grad_S, k - 1).addmm_(du.t(), unpool(code, below, p))
            if k > 1 or need_total:
                on_support = product(du, stage_matrix(S, k - 1)).gather(1, below)
                if positive:
                    on_support = on_support.masked_fill(code == 0, 0.0)
                du = unpool(on_support, below, p)
            if need_total:
                total = total + du
        if need_W:
            grad_W.addmm_(total.t(), x[rows].float())
        if need_x:
            grad_x[rows] = product(total, W).to(x.dtype)
        if need_bias:
            grad_bias += total.sum(0)
    return grad_x, grad_W.to(x.dtype), grad_S.to(x.dtype), grad_bias.to(x.dtype)
