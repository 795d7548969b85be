"""Timing of rivals, interleaved, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager

import torch

from .._optional import require


@contextmanager
def one_thread():
    """One thread for everything: reproducible, comparable, and steady on a busy machine."""
    threadpoolctl = require("threadpoolctl", "a run on one thread")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpoolctl.threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def interleaved_medians(
    rivals: Mapping[str, Callable[[], object]], seconds: float, slice_seconds: float = 0.01
) -> dict[str, float]:
    """Median seconds of one call of each rival, who take turns of ``slice_seconds`` each.

    A turn is one call at least; rounds go on for about ``seconds``, three at least. A round that is
    not counted warms up.
    """
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for call in rivals.values():
        call()
    start = time.perf_counter()
    rounds = 0
    while rounds < 3 or time.perf_counter() - start < seconds:
        for name, call in rivals.items():
            end = time.perf_counter() + slice_seconds
            while True:
                before = time.perf_counter()
                call()
                after = time.perf_counter()
                times[name].append(after - before)
                if after >= end:
                    break
        rounds += 1
    return {name: statistics.median(values) for name, values in times.items()}
