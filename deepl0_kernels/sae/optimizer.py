"""Adam for parameters of which a step uses some rows only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..ops import checks, placements
from ..ops.sparse_adam import sparse_adam_


class SparseAdam(torch.optim.Optimizer):
    """Adam that leaves units alone whose gradient is all 0: their weights and both averages stay
    as they are, until a step has a gradient for them.

    A unit is a row of a matrix stored by rows (W), a column of one stored by columns (D), an entry
    of a vector. Where every unit has a gradient, this is ``torch.optim.Adam``. Where not, that one
    goes on moving a unit along its old average and lets both averages decay; here they
    stand still, as in ``torch.optim.SparseAdam``, which wants sparse gradients. Bias correction
    counts the steps of the optimiser in either.

    Args:
        params: parameters, or groups of them; float32 or float64 take the native kernel on CPU.
        lr: > 0. betas: each in [0, 1). eps: > 0.
        unit_norm: keep units at norm 1: the part of a gradient along its unit is left out, and the
            unit is divided by its norm after the step. For a group of matrices: ``{"params":
            [model.D], "unit_norm": True}``.

    Of parameters that are DTensors each rank steps on its units; they must be sharded over whole
    units, as :func:`deepl0_kernels.distributed.shard_units` does it.

    One pass over weights, gradient and averages of the units in use: with a batch of B codes at
    most B m of p. Results do not depend on the number of threads.

    Raises:
        TypeError, ValueError: an argument out of range, a sparse gradient, or a parameter with more
            than two dimensions, named with what was seen.

    Source: Kingma and Ba 2015, algorithm 1; the parallel part as in Bricken et al. 2023.

    Example:
        >>> from deepl0_kernels import sae
        >>> model = sae.SparseAutoencoder(16, 64, m=4)
        >>> optimizer = sae.SparseAdam(model.parameters(), lr=1e-3)
        >>> model.loss(torch.randn(32, 16)).loss.backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        unit_norm: bool = False,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, unit_norm=unit_norm))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As of ``torch.optim.Optimizer``.

        Args:
            param_group: "params", and options of the class that are to differ for these.

        Raises:
            TypeError, ValueError: as in the class.
        """
        group = {**self.defaults, **param_group}
        checks.positive("lr", group["lr"])
        checks.positive("eps", group["eps"])
        checks.boolean("unit_norm", group["unit_norm"])
        betas = checks.several("betas", group["betas"])
        if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {group['betas']!r}")
        super().add_param_group(param_group)
        least = 2 if group["unit_norm"] else 1
        for p in self.param_groups[-1]["params"]:
            if not p.is_floating_point() or not least <= p.dim() <= 2:
                raise ValueError(
                    f"params must be real matrices{'' if least == 2 else ' or vectors'}, got "
                    f"{p.dtype} {checks.shape(p)}"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on the gradients as they are. Returns what ``closure`` does, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad, group)
        return loss

    def _step(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if grad.layout != torch.strided:
            raise ValueError(f"gradients must be strided tensors, got {grad.layout}")
        state = self.state[p]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        state["step"] += 1
        # Of a parameter whose units are spread over ranks, those of this one.
        given = [_here(t) for t in (p, state["exp_avg"], state["exp_avg_sq"])]
        here = given[0]
        param, *averages = (_by_units(t, here) for t in given)
        sparse_adam_(
            param,
            _by_units(_here(grad), here),
            *averages,
            float(group["lr"]),
            *map(float, group["betas"]),
            float(group["eps"]),
            int(state["step"]),
            group["unit_norm"],
        )
        for t, rows in zip(given, (param, *averages), strict=True):
            if rows.data_ptr() != t.data_ptr():  # a copy, of another layout
                t.copy_(rows.t() if _is_by_columns(here) else rows.view(here.shape))
        torch.autograd.graph.increment_version(p)  # a graph that has saved it is outdated


def _here(t: Any) -> Tensor:
    return t.to_local() if placements.is_dtensor(t) else t


def _is_by_columns(p: Tensor) -> bool:
    return p.dim() == 2 and not p.is_contiguous() and p.t().is_contiguous()


def _by_units(t: Tensor, p: Tensor) -> Tensor:
    """t, of the shape of p, as contiguous rows, a unit each; t itself where it lies like that."""
    if p.dim() == 1:
        return t.contiguous()[:, None]
    return (t.t() if _is_by_columns(p) else t).contiguous()
