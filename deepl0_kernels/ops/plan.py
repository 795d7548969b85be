"""Weights that are kept ready for the CPU kernels from call to call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import _C
from ..backends import plan_serves
from . import checks

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_T = TypeVar("_T")
_Operands = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Plan:
    """What :func:`prepare` returns, for the keyword ``plan`` of the encoders and solvers.

    A plan is told of nothing: each call compares the weights with those that it was made of, and
    makes it anew if they are others. It holds a reference to their memory. Copies and pickles of a
    plan are those of its weights. One plan may serve several threads.

    Args:
        at_once: prepare weights when they are first seen, not when they come again.

    Example:
        >>> isinstance(dk.prepare(torch.randn(32, 16)), dk.Plan)
        True
    """

    __slots__ = ("__weakref__", "_at_once", "_dtype", "_known", "_native", "_seen", "_weights")

    _native: _C.Plan | None

    def __init__(self, at_once: bool = False) -> None:
        self._at_once = checks.boolean("at_once", at_once)
        self._native = None
        self._known: tuple[Tensor, Any] | None = None
        self._seen: tuple | None = None
        self._dtype = torch.float32
        self._weights: _Operands = (None, None, None, None)

    @property
    def nbytes(self) -> int:
        """Bytes kept beside the weights; each part is made by the first call that reads it."""
        known, native = self._known, self._native
        kept = 0 if known is None else known[0].nbytes + known[1].nbytes
        if native is None:
            return kept
        copies = 0 if self._dtype == torch.float32 else 4
        kept += sum(copies * t.numel() for t in self._weights if t is not None)
        return native.nbytes + kept

    def _encode_top_m(
        self,
        x: Tensor,
        W: Tensor,
        S: Tensor | None,
        m: int | Sequence[int],
        num_stages: int,
        bias: Tensor | None,
        positive: bool,
        D: Tensor | None,
        step: object,
    ) -> tuple[Tensor, Tensor] | None:
        """Values and indices; None where the operator has to serve, or to say what is wrong."""
        if type(m) is int and type(num_stages) is int:
            m = (m,) * num_stages
        elif D is None or not isinstance(m, Sequence) or len(m) != num_stages:
            return None
        if not plan_serves("encode_top_m" if D is None else "encode_top_m_factored"):
            return None
        found = self._call(_C.Plan.encode_top_m, x, (W, S, D, bias), step, tuple(m), positive)
        if found is None or self._dtype is torch.float32:
            return found
        return found[0].to(x.dtype), found[1]

    def _encode_l0(
        self,
        x: Tensor,
        W: Tensor,
        S: Tensor | None,
        theta: float | Tensor,
        num_stages: int,
        sigma: float | Tensor,
        kind: str,
        bias: Tensor | None,
        D: Tensor | None,
        step: object,
    ) -> Tensor | None:
        """z; None where the operator has to serve, or to say what is wrong."""
        if not isinstance(theta, Tensor) or type(sigma) is not float or type(num_stages) is not int:
            return None
        if not plan_serves("encode_l0" if D is None else "encode_l0_factored"):
            return None
        z = self._call(_C.Plan.encode_l0, x, (W, S, D, bias), step, theta, num_stages, sigma, kind)
        return z if z is None or self._dtype is torch.float32 else z.to(x.dtype)

    def _facts(self, D: Tensor, make: Callable[[Tensor], _T]) -> _T:
        """What ``make(D)`` gave for the dictionary seen last, if D is equal to that, entry by
        entry: a solver reads all of D anyway."""
        D, known = D.detach(), self._known
        if known is not None and _same(known[0], D):
            return known[1]
        copy = D.clone()
        if copy.stride() != D.stride():
            return make(D)
        self._known = copy, (made := make(copy))
        return made

    def _call(
        self, function: Callable, x: Tensor, weights: _Operands, step: object, *rest: object
    ) -> Any:
        native = self._native or self._renew(weights)
        if native is None or (step is not None and not _is_step(step)):
            return None
        if self._dtype is not torch.float32:  # else the function looks at it
            if x.dtype is not self._dtype:
                return None
            x = x.float()
        if x.dim() > 2:
            x = x.reshape(-1, x.shape[-1])
        try:
            found = function(native, x, *weights, step, *rest)
            if found is False and (native := self._renew(weights)) is not None:
                found = function(native, x, *weights, step, *rest)
        except RuntimeError:  # the operator says it by name
            return None
        return None if found is False else found

    def _renew(self, weights: _Operands) -> _C.Plan | None:
        """A plan of these weights; None where none can be, or they are seen for the first time."""
        self._native, self._weights = None, (None, None, None, None)
        if not _can_be_kept(weights):
            return None
        if not self._at_once:
            seen = tuple(
                t if t is None else (t.data_ptr(), t._version, t.stride()) for t in weights
            )
            if seen != self._seen:
                self._seen = seen
                return None
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            W, S, D, bias = (None if t is None else t.detach() for t in weights)
            assert W is not None
            held = W, S, D, bias
            served = tuple(None if t is None else _plain(t.float()) for t in held)
            native = _C.Plan(weights, held, served)
        self._dtype, self._weights, self._native = W.dtype, held, native
        return native

    def __reduce__(self):
        if not self._at_once or self._native is None:
            return Plan, (self._at_once,)
        return prepare, self._weights[:3]


class Planned(torch.nn.Module):
    """A module that keeps its weights ready in evaluation mode, from the second call with the same
    ones on. The plan is no part of its state: not of ``state_dict``, copies, pickles or graphs."""

    def _plan(self) -> Plan | None:
        if self.training or torch.compiler.is_compiling():
            return None
        plan = self.__dict__.get("_kept")
        if plan is None:
            plan = self.__dict__["_kept"] = Plan()
        return plan

    def train(self, mode: bool = True):
        """As of any module, for either ``mode``; what was kept of the weights is given back."""
        self.__dict__.pop("_kept", None)
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}


def checked_plan(plan: object) -> None:
    """Raises TypeError unless plan is one."""
    if type(plan) is not Plan:
        raise TypeError(f"plan must be what dk.prepare returns, got {type(plan).__name__}")


def _same(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.device == b.device
        and a.shape == b.shape
        and a.stride() == b.stride()
        and torch.equal(a, b)
    )


def _is_step(step: object) -> bool:
    return (
        type(step) is Tensor
        and step.dtype is torch.float32
        and step.is_cpu
        and step.is_contiguous()
    )


def _can_be_kept(weights: _Operands) -> bool:
    """Plain tensors whose writes are counted, that fit together."""
    W, S, D, bias = weights
    if W is None:
        return False
    for t in weights:
        if t is not None and not (
            type(t) in (Tensor, torch.nn.Parameter)
            and t.is_cpu
            and t.layout == torch.strided
            and t.dtype == W.dtype
            and not t.is_inference()
            and not t.is_neg()
        ):
            return False
    if W.dtype not in _DTYPES or W.dim() != 2 or not W.numel():
        return False
    p, n = W.shape
    return (
        W.stride(1) == 1
        and W.stride(0) >= n
        and (S is None or (S.dim() in (2, 3) and S.shape[-2:] == (p, p) and len(S) > 0))
        and (D is None or D.shape == (n, p))
        and (bias is None or (bias.shape == (p,) and bias.is_contiguous()))
    )


def _plain(t: Tensor) -> Tensor:
    """The matrix as it is where it is contiguous or transposed, else a contiguous copy."""
    if (
        t.dim() < 2
        or t.is_contiguous()
        or t.mT.is_contiguous()
        or (t.stride(-1) == 1 and t.dim() == 2)
    ):
        return t
    return t.contiguous()


def prepare(W: Tensor | None = None, S: Tensor | None = None, D: Tensor | None = None) -> Plan:
    """Keep weights ready for many calls of :func:`encode_top_m` and :func:`encode_l0`, or of the
    solvers of :mod:`deepl0_kernels.solvers`, which take the plan by the keyword ``plan`` beside the
    weights: the same codes, bit for bit, sooner.

    Args:
        W: [p, n]. S: [p, p] or [num_stages - 1, p, p], or None. D: [n, p], or None. As the encoders
            take them; float32, float16 or bfloat16. Without W a plan is for solvers alone; they
            take any.

    Returns:
        :class:`Plan`. It serves calls for plain CPU tensors that no gradient, autocast, vmap, trace
        or other mode has to do with; any other call, and those on a GPU, goes on as without.
        Encoders of :mod:`deepl0_kernels.nn` and autoencoders have one in evaluation mode.

    Raises:
        TypeError, ValueError: a weight of wrong kind, shape, dtype or device.

    A weight that has changed is prepared anew by the next call: after an in-place write, an
    optimiser's step, ``load_state_dict``, an assignment to ``.data``, and where another tensor
    stands in its place. PyTorch does not count writes through ``.data``, NumPy or DLPack. They are
    looked for: 16 entries of a diagonal of each weight are compared in a call of less than 32 rows,
    and one in every row and every column in others. One that changes none of these goes unnoticed:
    write to the weight itself under ``torch.no_grad()``, or call :func:`prepare` again. Tensors
    made in inference mode, whose writes are not counted either, are not kept.

    Memory beside the weights, each part made by the first call that reads it: ``4 K' p^2`` bytes
    for the rows of S' (K' matrices; none where S is stored by columns) and as much for its column
    panels, where it does not fit L2; ``4 p n`` for W packed; where a dictionary is screened
    ``p n`` (int8), ``2 p n`` (bfloat16) or ``4 p n``, and 24 p; ``4 p n`` for D' where D is not
    stored by columns. Of half types a float32 copy of each besides. ``plan.nbytes`` tells.

    Solvers keep a copy of D, which every call compares with the D that it is given, entry by entry,
    and what they work out of D alone: its checks, ``||D||_2^2``, for OMP the unit atoms.

    Example:
        >>> x, W, S = torch.randn(8, 16), torch.randn(32, 16), torch.randn(32, 32) / 32
        >>> plan = dk.prepare(W, S)
        >>> code = dk.encode_top_m(x, W, S, 3, plan=plan)  # the codes are those without it
        >>> torch.equal(code.indices, dk.encode_top_m(x, W, S, 3).indices)
        True
    """
    if W is None:
        if S is not None or D is None:
            raise ValueError("W must be a tensor [p, n], unless D is given alone, for solvers")
        checks.floating("D", D, 2)
        if D.dim() != 2:
            raise ValueError(f"D must have shape [n, p], got {checks.shape(D)}")
        return Plan(at_once=True)
    checks.floating("W", W, 2)
    if W.dim() != 2:
        raise ValueError(f"W must have shape [p, n], got {checks.shape(W)}")
    if S is not None:
        checks.like("S", S, "W", W)
        p = W.shape[0]
        if S.dim() not in (2, 3) or S.shape[-2:] != (p, p):
            raise ValueError(
                f"S must have shape [{p}, {p}] or [K - 1, {p}, {p}], got {checks.shape(S)}"
            )
    if D is not None:
        checks.like("D", D, "W", W)
        checks.has_shape("D", D, (W.shape[1], W.shape[0]), "[n, p]")
    plan = Plan(at_once=True)
    plan._renew((W, S, D, None))
    return plan
