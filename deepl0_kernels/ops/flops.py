"""What a call computes, for ``torch.utils.flop_counter.FlopCounterMode``.

Multiplications and additions of products are counted, two for each pair, as PyTorch counts its own
operators: thresholds, selections and moves count none. A product with a code of m entries counts m,
a gradient that is not asked for nothing, an iteration of a solver as often as it was made.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

_MODULE = "torch.utils.flop_counter"


def _encode_l0(x, W, S, bias, theta, num_stages, *rest, **_) -> int:
    (batch, n), p = x.shape, W.shape[0]
    return 2 * batch * p * (n + (num_stages - 1) * p)


def _encode_l0_backward(grad_z, saved, x, W, S, theta, sigma, kind, mask, **_) -> int:
    (stages, batch, p), n = saved.shape, x.shape[1]
    # du of the stages below the last, as far down as a wanted gradient needs it
    down = max(0, stages - (1 if mask & 27 else 2)) * p * p * bool(mask)
    sums = n * p * bool(mask & 1) + n * p * bool(mask & 2) + (stages - 1) * p * p * bool(mask & 4)
    return 2 * batch * (down + sums)


def _encode_top_m(x, W, S, bias, m, num_stages, *rest, **_) -> int:
    (batch, n), p = x.shape, W.shape[0]
    return 2 * batch * p * (n + (num_stages - 1) * m)


def _encode_top_m_backward(
    grad, values, indices, saved_values, saved_indices, x, W, S, mask, **_
) -> int:
    (batch, m), n, steps = grad.shape, x.shape[1], saved_values.shape[0]
    sums = (steps + 1) * m * n * (bool(mask & 1) + bool(mask & 2)) + steps * m * m * bool(mask & 4)
    down = max(0, steps - (0 if mask & 11 else 1)) * m * m * bool(mask)
    return 2 * batch * (down + sums)


def _encode_l0_factored(x, W, D, bias, step, theta, num_stages, *rest, **_) -> int:
    (batch, n), p = x.shape, W.shape[0]
    return 2 * batch * p * n * (2 * num_stages - 1)


def _encode_l0_factored_backward(
    grad_z, saved, x, W, D, step, theta, sigma, kind, mask, **_
) -> int:
    stages, n, steps = saved.shape[0], x.shape[1], saved.shape[0] - 1
    # Down each stage: through W, then D; the residuals again; gradients of W and D.
    down = (stages if mask & 33 else steps) + steps * bool(mask & 59)
    again = steps * bool(mask & 34)
    sums = stages * bool(mask & 2) + steps * bool(mask & 4)
    return 2 * grad_z.numel() * n * (down + again + sums) * bool(mask)


def _encode_top_m_factored(x, W, D, bias, step, m, *rest, **_) -> int:
    (batch, n), p = x.shape, W.shape[0]
    return 2 * batch * n * (p * len(m) + sum(m[:-1]))


def _encode_top_m_factored_backward(
    grad, values, indices, saved_values, saved_indices, x, W, D, step, m, mask, **_
) -> int:
    batch, n = x.shape
    below, first = sum(m[:-1]), m[0]
    down = sum(m) if mask & 17 else sum(m) - first
    down += below * bool(mask & 27)
    again = below * bool(mask & 18)
    sums = sum(m) * bool(mask & 2) + below * bool(mask & 4)
    return 2 * batch * n * (down + again + sums) * bool(mask)


def _stage(x, W, *rest, **_) -> int:
    (batch, n), p = x.shape, W.shape[0]
    return 2 * batch * p * (n + p)


def _shard_top_m(x, W, bias, z_values, z_indices, *rest, **_) -> int:
    return 2 * x.shape[0] * W.shape[0] * x.shape[1]


def _decode(values, indices, D, **_) -> int:
    return 2 * values.numel() * D.shape[0]


def _decode_backward(grad, values, indices, D, mask, **_) -> int:
    return _decode(values, indices, D) * (bool(mask & 1) + bool(mask & 2))


def _refit(x, D, indices, **_) -> int:
    # Gram matrices, D_S'x; Cholesky.
    (B, m), n = indices.shape, x.shape[1]
    return 2 * B * m * n * (m + 1) + B * m**3 // 3


def _refit_backward(grad, x, D, indices, mask, **_) -> int:
    # The systems again; D_S w; with D also D_S'x, D_S v and two outer products.
    (B, m), n = indices.shape, x.shape[1]
    products = m + (1 + 4 * bool(mask & 2)) * bool(mask)
    return (2 * B * m * n * products + B * m**3 // 3) * bool(mask)


def _iterations(out_val: Sequence[torch.Tensor], at: int, most: int) -> int:
    """Over all rows; the most there may be where the result has no values (fake tensors)."""
    made = out_val[at]
    if type(made) is torch.Tensor and made.device.type != "meta":
        return int(made.sum())
    return made.shape[0] * most


def _iht_top_m(
    x, D, values, indices, m, step, tol, max_iter, history, positive=False, *, out_val, **_
) -> int:
    (n, p), rows = D.shape, _iterations(out_val, 2, max_iter)
    return 2 * rows * n * (p + m)


def _dense_solver(
    x, D, start, lam, step, tol, max_iter, history, positive=False, *, out_val, **_
) -> int:
    (n, p), rows = D.shape, _iterations(out_val, 1, max_iter)
    return 2 * rows * min(p * p, 2 * n * p)


def _omp(x, D, m, tol, positive=False, *, out_val, **_) -> int:
    # D'x once, then the correlations of each new atom with the others.
    (n, p), chosen = D.shape, _iterations(out_val, 2, m)
    return 2 * x.shape[0] * n * p + 2 * chosen * n * p


def _least_squares(gram, right, support, floor, **_) -> int:
    # Cholesky, two substitutions.
    B, s = right.shape
    return B * s**3 // 3 + 2 * B * s * s


def _nothing(*args, **_) -> int:
    return 0


FORMULAS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(
        ("threshold", "threshold_backward", "top_m", "unpool", "keep_top_m", "apply_mask"), _nothing
    ),
    **dict.fromkeys(("batch_top_m", "sparse_adam_"), _nothing),
    **dict.fromkeys(("threshold_stage", "threshold_stage_saving", "top_m_stage"), _stage),
    **dict.fromkeys(("encode_l0", "encode_l0_saving"), _encode_l0),
    "encode_l0_backward": _encode_l0_backward,
    **dict.fromkeys(("encode_top_m", "encode_top_m_saving"), _encode_top_m),
    "encode_top_m_backward": _encode_top_m_backward,
    **dict.fromkeys(("encode_l0_factored", "encode_l0_factored_saving"), _encode_l0_factored),
    "encode_l0_factored_backward": _encode_l0_factored_backward,
    **dict.fromkeys(
        ("encode_top_m_factored", "encode_top_m_factored_saving"), _encode_top_m_factored
    ),
    "encode_top_m_factored_backward": _encode_top_m_factored_backward,
    "shard_top_m": _shard_top_m,
    "decode": _decode,
    "decode_backward": _decode_backward,
    "refit": _refit,
    "refit_backward": _refit_backward,
    "iht_top_m": _iht_top_m,
    **dict.fromkeys(("iht_l0", "fista"), _dense_solver),
    "omp": _omp,
    "least_squares": _least_squares,
}


def _register(module: Any) -> None:
    for name, formula in FORMULAS.items():
        packet = getattr(torch.ops.deepl0, name)
        module.register_flop_formula(packet, get_raw=True)(formula)


class _Hook(importlib.abc.MetaPathFinder):
    """Registers once the counter's module is imported: importing it here would wake triton."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if name != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:  # a look-up of the spec alone leaves it in place
                sys.meta_path.remove(self)
            _register(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register_when_imported() -> None:
    """Register the formulas now if the counter's module is there already, else once it is. All
    operators must be defined."""
    if _MODULE in sys.modules:
        _register(sys.modules[_MODULE])
    else:
        sys.meta_path.insert(0, _Hook())
