"""Whether one method errs less than another: means, seeds, a test over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .._optional import require

# With fewer seeds p cannot be below 0.05, whatever they say.
FEWEST = 6


def significance(first: Sequence[float], second: Sequence[float]) -> float | None:
    """p of the two-sided Wilcoxon signed-rank test over paired seeds; None if none differ.

    Exact without ties of the differences.
    """
    stats = require("scipy.stats", "the test over seeds", extra="sklearn")
    if all(a == b for a, b in zip(first, second, strict=True)):
        return None
    return float(stats.wilcoxon(first, second).pvalue)


def judged(
    table: str, claim: str, better: Sequence[float], worse: Sequence[float], slack: float = 0.0
) -> dict[str, Any]:
    """The claim that errors ``better`` are below errors ``worse`` + slack, seed by seed.

    It holds by the means; the test is that of equal errors, without slack.
    """
    return {
        "table": table,
        "claim": claim,
        "better": statistics.mean(better),
        "worse": statistics.mean(worse),
        "seeds_holding": sum(b < w + slack for b, w in zip(better, worse, strict=True)),
        "seeds": len(better),
        "significance": significance(better, worse),
        "holds": statistics.mean(better) < statistics.mean(worse) + slack,
    }


def verdicts(results: dict[str, Any]) -> list[str]:
    """What the paper claims, and whether it holds here: a line a claim."""
    return [_verdict(**claim) for claim in results["claims"]]


def _verdict(table, claim, better, worse, seeds_holding, seeds, significance, holds) -> str:
    if seeds < FEWEST:
        tested = "too few to test"
    elif significance is None:
        tested = "no seed differs"
    else:
        tested = f"Wilcoxon p = {significance:.2g}"
    return (
        f"{table}, {claim}: {better:.2f} and {worse:.2f}: "
        f"{'holds' if holds else 'does not hold'} ({seeds_holding} of {seeds} seeds, {tested})"
    )
