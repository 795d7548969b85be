"""The l0-regularized encoder: products by PyTorch, and a kernel for all else of a stage, which
forward is the sum, the threshold and the rounding of z.

Backward, with g the gradient of z_K, down the stages: du_k = h'(u_k) g, dtheta += sum of
g dh/dtheta, dS += du_k' z_{k-1}, g = du_k S; and with du the sum over the stages dW = du' x,
db = sum of du, dx = du W. Of half types du is rounded before it is multiplied, and so is its sum.

Forward 2 B p (n + (K - 1) p) flops, backward twice that. Bytes beside the products: 12 B p a stage
forward (4 more where u is saved), 16 B p backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._matrices import stage_matrix, stage_theta
from . import thresholds
from .product import add_product, first_product, product


def encode_l0(
    x: Tensor, W: Tensor, S: Tensor | None, bias: Tensor | None, theta: Tensor, num_stages: int,
    sigma: float, kind: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Serves ``deepl0::encode_l0``: z of the last stage, and if ``save`` the pre-activations
    [K, B, p]."""
    shape = (num_stages if save else 0, x.shape[0], W.shape[0])
    saved = x.new_empty(shape, dtype=torch.float32)
    wx, late = first_product(x, W, bias, saved[0] if save else None)
    keep = wx if late is not None and (save or num_stages > 1) else None
    theta_of = stage_theta(theta, 0)
    z = thresholds.stage(wx, theta_of, sigma, kind, x.dtype, bias=late, keep=keep)
    for k in range(1, num_stages):
        assert S is not None
        u = product(z, stage_matrix(S, k - 1).t(), saved[k] if save else None)
        theta_of, keep = stage_theta(theta, k), u if save else None
        z = thresholds.stage(u, theta_of, sigma, kind, x.dtype, more=wx, keep=keep)
    return z, saved


def encode_l0_backward(
    grad_z: Tensor, saved: Tensor, x: Tensor, W: Tensor, S: Tensor | None, theta: Tensor,
    sigma: float, kind: str, mask: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Serves ``deepl0::encode_l0_backward``: gradients in x, W, S, theta and the bias, those in the
    mask."""
    need_x, need_W, need_S, need_theta, need_bias = (mask & bit for bit in (1, 2, 4, 8, 16))
    need_total, last = need_x | need_W | need_bias, saved.shape[0] - 1
    wide: dict = dict(dtype=torch.float32, device=x.device)
    grad_S = torch.zeros(S.shape if S is not None and need_S else 0, **wide)
    grad_theta = theta.new_zeros(theta.shape if need_theta else 0)
    lowest = 0 if need_total or need_theta else 1  # stage whose du is for something
    g, total = grad_z, None
    for k in range(last, lowest - 1, -1):
        wanted = bool(k > 0 or (need_total and k == last)) | (2 if need_theta else 0)
        here = stage_theta(theta, k)
        du, of_theta = thresholds.threshold_backward(
            g, saved[k], here, sigma, kind, wanted, total, x.dtype
        )
        if need_theta:
            stage_theta(grad_theta, k).add_(of_theta)
        if k > 0:
            assert S is not None
            if need_S:
                below = stage_theta(theta, k - 1)
                z = thresholds.stage(saved[k - 1], below, sigma, kind, x.dtype)
                add_product(stage_matrix(grad_S, k - 1), du.t(), z)
            if k > lowest:
                g = product(du, stage_matrix(S, k - 1))
        if need_total and k == last:
            total = du.float()  # which the kernels of the stages below add to
    low = x.dtype
    grad_bias = total.sum(0).to(low) if total is not None and need_bias else x.new_empty(0)
    if total is not None and need_x | need_W:
        total = total.to(low)
    return (
        product(total, W).to(low) if total is not None and need_x else x.new_empty(0),
        product(total.t(), x).to(low) if total is not None and need_W else x.new_empty(0),
        grad_S.to(low),
        grad_theta,
        grad_bias,
    )
