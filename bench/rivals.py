"""The rivals of the benchmarks: what a user writes today, in plain PyTorch; and ours."""

from __future__ import annotations

import torch
from torch import Tensor

import deepl0_kernels as dk


def encode_top_m(*args, **options) -> tuple[Tensor, Tensor]:
    """Ours, with the results of its rivals: values and indices."""
    code = dk.encode_top_m(*args, **options)
    return code.values, code.indices


def eager_top_m(u: Tensor, m: int) -> tuple[Tensor, Tensor]:
    indices = u.abs().topk(m, dim=-1).indices
    return u.gather(-1, indices), indices


def eager_keep_top_m(u: Tensor, m: int) -> Tensor:
    values, indices = eager_top_m(u, m)
    return torch.zeros_like(u).scatter(-1, indices, values)


def eager_batch_top_m(u: Tensor, m: int) -> Tensor:
    """BatchTopK of ReLU codes, dense, as Bussmann, Leask and Nanda have published it."""
    flat = u.relu().flatten()
    best = flat.topk(m * u.shape[0], dim=-1)
    return torch.zeros_like(flat).scatter(-1, best.indices, best.values).reshape(u.shape)


def eager_encode_top_m(x: Tensor, W: Tensor, S: Tensor | None, m: int, stages: int):
    wx = x @ W.t()
    values, indices = eager_top_m(wx, m)
    for _ in range(stages - 1):
        z = torch.zeros_like(wx).scatter(-1, indices, values)
        values, indices = eager_top_m(torch.addmm(wx, z, S.t()), m)
    return values, indices


def eager_sparse_autoencoder(x: Tensor, W: Tensor, bias: Tensor, m: int):
    """The encoder of a TopK sparse autoencoder: one stage, nonnegative codes."""
    values, indices = torch.addmm(bias, x, W.t()).topk(m, dim=-1)
    return values.relu_(), indices


def eager_sae_loss(x: Tensor, W: Tensor, bias: Tensor, D: Tensor, b_dec: Tensor, m: int) -> Tensor:
    """The loss of a TopK sparse autoencoder as SAELens's class forms it, with dense codes."""
    u = torch.addmm(bias, x - b_dec, W.t())
    values, indices = u.topk(m, dim=-1)
    z = torch.zeros_like(u).scatter(-1, indices, values.relu())
    x_hat = torch.addmm(b_dec, z, D.t())
    return (x_hat - x).pow(2).sum(-1).mean()


def eager_encode_factored(x: Tensor, W: Tensor, D: Tensor, bias: Tensor, m: int, stages: int):
    """Stages z + W (x - D z) + b of nonnegative codes, with z as a dense tensor between them."""
    values, indices = eager_sparse_autoencoder(x, W, bias, m)
    for _ in range(stages - 1):
        z = x.new_zeros(len(x), len(W)).scatter_(-1, indices, values)
        residual = torch.addmm(x, z, D.t(), alpha=-1)
        values, indices = torch.addmm(bias, residual, W.t()).add_(z).topk(m, dim=-1)
        values.relu_()
    return values, indices


def eager_encode_l0(x: Tensor, W: Tensor, S: Tensor, theta: Tensor, stages: int) -> Tensor:
    wx = x @ W.t()
    z = torch.where(wx.abs() >= theta, wx, 0.0)
    for _ in range(stages - 1):
        u = torch.addmm(wx, z, S.t())
        z = torch.where(u.abs() >= theta, u, 0.0)
    return z


def eager_omp(x: Tensor, D: Tensor, m: int):
    """Batch-OMP on unit atoms, as one writes it; no stopping rule."""
    gram, b = D.t() @ D, x @ D
    support = torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
    residual, code = b, torch.zeros_like(b)
    for _ in range(m):
        best = residual.abs().scatter(1, support, -1.0).argmax(1, keepdim=True)
        support = torch.cat((support, best), 1)
        L = torch.linalg.cholesky_ex(gram[support[:, :, None], support[:, None, :]])[0]
        values = torch.cholesky_solve(b.gather(1, support)[:, :, None], L)[..., 0]
        code = torch.zeros_like(b).scatter(1, support, values)
        residual = b - code @ gram
    indices = support.sort(1).values
    return code.gather(1, indices), indices


def eager_least_squares(gram: Tensor, right: Tensor, support: Tensor) -> Tensor:
    """By normal equations, on a CPU 64 at a time: they stay in cache. No atom depends on others."""
    found, count = [], 64 if gram.is_cpu else len(support)
    for at, b in zip(support.split(count), right[:, :, None].split(count), strict=True):
        L = torch.linalg.cholesky_ex(gram[at[:, :, None], at[:, None, :]])[0]
        found.append(torch.cholesky_solve(b, L)[..., 0])
    return torch.cat(found)


def eager_iht_m(x: Tensor, D: Tensor, step: float, m: int, iterations: int):
    """Iterative hard thresholding as it is written with dense codes and S = I - step D'D."""
    W = step * D.t()
    S = torch.eye(D.shape[1], dtype=D.dtype, device=D.device) - W @ D
    return eager_encode_top_m(x, W, S, m, iterations)
