"""What a training of a sparse autoencoder minimises and watches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..ops import SparseCode, checks


class Losses(NamedTuple):
    """The terms of one batch; all but the last two are scalars, means over its vectors.

    Attributes:
        loss: what to differentiate.
        mse: ``||x - x_hat||^2``, summed over a vector.
        fvu: fraction of variance unexplained, no gradient; see :func:`fvu`.
        aux: what the dead units leave of the residual, 0 without any.
        l0: nonzeros of a code, of a gradient in theta alone; see :func:`l0`.
        reconstruction: x_hat. code: of ``encode``.

    Example:
        >>> from deepl0_kernels import sae
        >>> losses = sae.SparseAutoencoder(16, 64, m=4).loss(torch.randn(32, 16))
        >>> losses.loss.backward()
        >>> losses.reconstruction.shape, losses.code.values.shape
        (torch.Size([32, 16]), torch.Size([32, 4]))
    """

    loss: Tensor
    mse: Tensor
    fvu: Tensor
    aux: Tensor
    l0: Tensor
    reconstruction: Tensor
    code: SparseCode | Tensor


def fvu(x: Tensor, x_hat: Tensor) -> Tensor:
    """Fraction of variance unexplained of x [..., n] by x_hat, a scalar, float32 at least:
    ``sum (x - x_hat)^2 / sum (x - mean x)^2``, the mean over all vectors, as of sparsify.

    Of a single vector it is inf or NaN: there is no variance.

    Raises:
        ValueError: shapes, dtypes or devices differ.

    Example:
        >>> from deepl0_kernels import sae
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> sae.fvu(x, 0.5 * x)
        tensor(0.2500)
    """
    checks.floating("x", x)
    checks.like("x_hat", x_hat, "x", x)
    checks.has_shape("x_hat", x_hat, x.shape, "of x")
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = checks.rows(x).to(wide)
    error = (x - x_hat).to(wide).square().sum()
    return error / (rows - rows.mean(0)).square().sum()


def l0(code: SparseCode | Tensor, theta: Tensor | None = None) -> Tensor:
    """Mean number of nonzeros of a code, a scalar.

    Args:
        code: :class:`deepl0_kernels.SparseCode`, or dense [..., p].
        theta: [p] of a dense code of thresholds: then the count has a gradient in theta, through
            the window below theta that the code's own gradient has (straight-through), and none in
            the code's other ancestors. None: no gradient.

    O(B m), or O(B p) of a dense code. Source: Rajamanoharan et al. 2024.

    Example:
        >>> from deepl0_kernels import sae
        >>> sae.l0(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]]))
        tensor(1.5000)
    """
    _is_code(code)
    if theta is not None:
        checks.floating("theta", theta, 0)
    if isinstance(code, SparseCode):
        return _counts(code.values)
    if theta is None or not code.requires_grad:
        return _counts(code)
    # Entries below theta are 0 and their only derivative is that in theta.
    floor = theta.detach().clamp_min(torch.finfo(code.dtype).tiny)
    counts = torch.where(code != 0, 1.0, code / floor)
    return counts.sum(-1, dtype=torch.promote_types(code.dtype, torch.float32)).mean()


def _is_code(code: SparseCode | Tensor) -> None:
    checks.instance("code", code, (SparseCode, Tensor), "a SparseCode or a tensor")


def _counts(values: Tensor) -> Tensor:
    return (values != 0).sum(-1, dtype=torch.promote_types(values.dtype, torch.float32)).mean()


class DeadUnits(nn.Module):
    """Which units of an autoencoder have not fired for a while.

    Args:
        code_size: p.
        after: > 0, vectors without an entry after which a unit is dead.

    Attributes:
        seen: int64 [], vectors so far. last_fired: int64 [p], ``seen`` when a unit fired last.
            Both are in the state dict, so that a training resumes as it was.

    Raises:
        TypeError, ValueError: an argument of another kind or out of range, named with its value.

    Example:
        >>> from deepl0_kernels import sae
        >>> dead = sae.DeadUnits(4, after=2)
        >>> dead.update(torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 3.0, 0, 0]]))
        >>> dead.units()
        tensor([2, 3])
    """

    seen: Tensor
    last_fired: Tensor

    def __init__(self, code_size: int, after: int = 10_000_000) -> None:
        super().__init__()
        p = checks.integer("code_size", code_size, 1)
        self.after = checks.integer("after", after, 1)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last_fired", torch.zeros(p, dtype=torch.int64))

    @torch.no_grad()
    def update(self, code: SparseCode | Tensor, data: Any = None) -> None:
        """Count the vectors of a code, sparse or dense [..., p]. O(B m) of a sparse one.

        Args:
            code: of this rank's vectors.
            data: the process group whose ranks have as many vectors of their own each: all are
                counted, on every rank, by an all-reduce of p counters. None: this rank's alone.

        Raises:
            TypeError, ValueError: no code, or one of another size; data that is no group.
        """
        _is_code(code)
        ranks = checks.ranks("data", data)
        p = len(self.last_fired)
        size = code.size if isinstance(code, SparseCode) else code.shape[-1]
        if size != p:
            raise ValueError(f"code must have size p = {p}, got {size}")
        if isinstance(code, SparseCode):
            rows = code.values.shape[:-1].numel()
            fired = code.indices[code.values != 0]
        else:
            rows = code.shape[:-1].numel()
            fired = (code.reshape(-1, p) != 0).any(0).nonzero()[:, 0]
        self.seen += rows * ranks
        self.last_fired[fired] = self.seen
        if data is not None:
            dist.all_reduce(self.last_fired, dist.ReduceOp.MAX, group=data)

    def units(self) -> Tensor:
        """int64 [d], ascending: the units that are dead now. O(p)."""
        return (self.seen - self.last_fired >= self.after).nonzero()[:, 0]

    def extra_repr(self) -> str:
        return f"code_size={len(self.last_fired)}, after={self.after}"
