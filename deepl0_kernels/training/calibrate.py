"""Thresholds, sparsities and steps of an encoder, chosen stage by stage without a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._isolation import isolated, refuse_inference
from ..nn import DeepHTPEncoder, DeepL0Encoder, DeepMSparseEncoder
from ..ops import checks, hard_threshold, keep_top_m, soft_threshold

# How much a threshold is changed at a time.
_RATIOS = (1.3, 1.1, 1.04)
# A step that is not halved any more.
_SHORTEST = 1e-3


@isolated(False)
def calibrate(
    encoder: DeepL0Encoder | DeepMSparseEncoder | DeepHTPEncoder,
    x: Tensor,
    codes: Tensor,
    *,
    factors: Sequence[float] = (0.8, 1.0, 1.2),
    momenta: Sequence[float] = (0.0, 0.15, 0.3),
) -> list[float]:
    """Set the threshold (or m), the step and the momentum of each stage, one stage after another,
    to those that lower ``||z_k - codes||^2`` most; the weights stay.

    Args:
        encoder: factored, with thresholds that are not tied; left in evaluation mode. Steps are
            chosen where it has them, one m a stage where it has a tuple of them. Soft inside, the
            thresholds of those stages are.
        x: [N, n], signals. codes: [N, p], what they are to be encoded as, not all 0.
        factors: the steps to choose from, each > 0; of several the shortest is halved where that
            errs less, or where none errs less than the stage before.
        momenta: those to choose from where the encoder has them, each in [0, 1): the first with all
            steps and halves, the others with the factors as they are.

    Returns:
        ``||z_k - codes||^2 / ||codes||^2`` after each stage.

    Raises:
        TypeError, ValueError: an encoder of another kind, tensors that do not fit it.

    A threshold is found by descent from that of the stage before, by factors of 1.3 to 1.04: about
    ten evaluations of a stage for each of the factors, and of the momenta.

    Example:
        >>> from deepl0_kernels import training
        >>> D = torch.nn.functional.normalize(torch.randn(32, 64), dim=0)
        >>> a = torch.randn(100, 64) * (torch.rand(100, 64) < 0.05)
        >>> encoder = dk.nn.DeepHTPEncoder.from_dictionary(D, 8, num_stages=3, steps=1.0)
        >>> errors = training.calibrate(encoder, a @ D.T, a)
        >>> errors[0] > errors[2]
        True
    """
    if not isinstance(encoder, (DeepL0Encoder, DeepMSparseEncoder, DeepHTPEncoder)):
        raise TypeError(f"encoder must be a deep l0 encoder, got {type(encoder).__name__}")
    refuse_inference(encoder)
    sparse = isinstance(encoder, DeepMSparseEncoder)
    log_theta = encoder.log_theta
    if encoder.atoms is None or (log_theta is not None and log_theta.dim() == 1):
        raise ValueError(
            "encoder must be factored, of 2 stages or more, with tied=False where it has "
            f"thresholds, got {encoder!r}"
        )
    encoder._check(x)
    p = encoder.code_size
    checks.like("codes", codes, "x", x)
    checks.has_shape("codes", codes, (len(x), p), "[N, p]")
    total = codes.double().square().sum().item()
    if x.dim() != 2 or not 0 < total < math.inf:
        raise ValueError(f"x and codes must be [N, .], finite, not all 0, got {tuple(x.shape)}")
    steps = [checks.positive("factors", step) for step in checks.several("factors", factors)]
    momenta = [checks.momentum("momenta", each) for each in checks.several("momenta", momenta)]
    steps = steps if encoder.log_step is not None else [1.0]
    moved = encoder.momentum if isinstance(encoder, DeepHTPEncoder) else None
    momenta = [0.0] if moved is None else momenta
    encoder.eval()
    z, bias = torch.zeros_like(codes), 0.0 if encoder.bias is None else encoder.bias
    change = z
    level = 0.0
    errors: list[float] = []
    entries: list[int] = []
    for k in range(encoder.num_stages):
        soft = encoder._soft and k < encoder.num_stages - 1
        keep = _keeper(encoder, x, k, soft)
        r = (x - z @ encoder.atoms) @ encoder.W.T
        begin = partial(_begin, level, p / 4 if sparse and not soft else 0.0)
        tried = momenta if k else momenta[:1]  # before the first stage there is no change
        tries = [
            partial(attempt, keep, codes, z + bias + each * change, r, begin) for each in tried
        ]
        found = *least(tries[0], steps, errors[-1] * total if errors else total), tried[0]
        for momentum, at in zip(tried[1:], tries[1:], strict=True):
            found = min(found, *((*at(step), step, momentum) for step in steps), key=_error)
        before = z
        error, level, z, step, momentum = found
        change = z - before
        errors.append(error / total)
        if encoder.log_step is not None:
            encoder.log_step[k] = math.log(step)
        if moved is not None:
            moved[k] = momentum
        if log_theta is not None and k < len(log_theta):
            log_theta[k] = math.log(level)
        else:
            entries.append(_entries(p, level))
    if isinstance(encoder, DeepMSparseEncoder) and isinstance(encoder.m, tuple):
        encoder.m = tuple(entries)
    return errors


def _error(found: tuple[Any, ...]) -> float:
    return found[0]


def _entries(p: int, level: float) -> int:
    """m where an m-sparse encoder is searched by p / m, which falls as thresholds do."""
    return min(max(round(p / level), 1), p)


def _keeper(encoder, x: Tensor, k: int, soft: bool) -> Callable[[Tensor, float], Tensor]:
    """What stage k makes of pre-activations u by a threshold, or by p / m."""
    p, positive = encoder.code_size, encoder.positive
    if soft:
        return partial(soft_threshold, positive=positive)
    if isinstance(encoder, DeepHTPEncoder):
        fit, b, entries = encoder._fit(), x @ encoder.atoms.T, encoder._entries()[k]
        return lambda u, theta: encoder._refit(fit, b, u, u.new_tensor(theta), entries).dense(p)
    if isinstance(encoder, DeepMSparseEncoder):
        m = encoder.m
        if isinstance(m, int):
            return lambda u, level: keep_top_m(u, m, positive=positive)
        return lambda u, level: keep_top_m(u, _entries(p, level), positive=positive)
    return lambda u, theta: hard_threshold(u, theta, positive=positive)


def _begin(level: float, entries: float, u: Tensor) -> float:
    """Where a search begins: at the level of the stage before, if there is one."""
    return level or entries or u.abs().max().item() / 2


def attempt(
    keep: Callable[[Tensor, float], Tensor],
    codes: Tensor,
    z: Tensor,
    r: Tensor,
    begin: Callable[[Tensor], float],
    step: float,
) -> tuple[float, float, Tensor]:
    """What a stage makes of ``u = z + step r``: the least error, its level and its codes."""
    u = z + step * r
    return descend(partial(keep, u), codes, begin(u))


def least(
    at: Callable[[float], tuple[float, float, Tensor]], steps: Sequence[float], before: float
) -> tuple[float, float, Tensor, float]:
    """The step of ``steps`` that errs least, behind what ``at`` gives for it: an error first. Of
    several the shortest is halved as long as that errs less, or not less than ``before``: where
    atoms are coherent none that is given need do, and errors would grow from stage to stage."""
    best = min(((*at(step), step) for step in steps), key=_error)
    half = min(steps)
    while len(steps) > 1 and half > _SHORTEST and (best[-1] <= half or best[0] >= before):
        half /= 2
        found = (*at(half), half)
        if found[0] < best[0]:
            best = found
    return best


def descend(
    make: Callable[[float], Tensor], codes: Tensor, level: float
) -> tuple[float, float, Tensor]:
    """The least error, its level and its codes, from ``level`` down or, if that is worse, up."""

    def at(level: float) -> tuple[float, float, Tensor]:
        z = make(level)
        return (z - codes).double().square().sum().item(), level, z

    best = at(level)
    for ratio in _RATIOS:
        for factor in (1 / ratio, ratio):
            before = best
            while (found := at(best[1] * factor))[0] < best[0]:
                best = found
            if best is not before:
                break
    return best
