"""The ``race`` fixture: providers of one operator, interleaved in one process, medians."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

import pytest
import torch

import deepl0_kernels as dk

from . import records

EAGER = "torch eager"
OURS = "deepl0"
PREPARED = "deepl0, prepared"  # the same with a plan
# Not a rival: the product that every provider must form, timed in the same rounds.
FLOOR = "W x alone"

_rows: list[records.Row] = []


def pytest_addoption(parser):
    parser.addoption("--record", default=None, help="CSV file to write the rows to")
    parser.addoption("--seconds", type=float, default=0.5, help="time for each shape and provider")


def pytest_sessionfinish(session):
    path = session.config.getoption("--record")
    if path and _rows:
        records.write(records.Path(path), _rows)
    _rows.clear()


def pytest_generate_tests(metafunc):
    if "threads" in metafunc.fixturenames:
        metafunc.parametrize("threads", sorted({1, os.cpu_count() or 1}))


@pytest.fixture(autouse=True)
def _same_data_and_threads(request):
    torch.manual_seed(0)
    before = torch.get_num_threads()
    if "threads" in request.fixturenames:
        torch.set_num_threads(request.getfixturevalue("threads"))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def race(request, benchmark):
    """Times providers in turn, round by round, so that a drift of the machine meets all of them.

    pytest-benchmark times ours; the rivals run in its set-up of each round and are timed there. No
    time is taken unless every provider's result passed ``check``. ``scale`` multiplies the time of
    a provider that was given a part of the work; ``against`` is whose median speedups refer to;
    ``rest`` are seconds before each call: the threads of another library's pool go on spinning for
    a while after its call, on the cores of who comes next. A call shorter than that is made once
    unmeasured after it, since a thread that slept takes milliseconds to come back.
    """

    def run(
        operator: str,
        shape: str,
        providers: dict[str, Callable[[], object]],
        check: Callable[[str, object], None],
        scale: Mapping[str, float] = MappingProxyType({}),
        against: str = EAGER,
        rest: float = 0.0,
    ) -> dict[str, float]:
        for name, call in providers.items():
            out = call()
            if name != FLOOR:
                check(name, out)
        ours, rivals = providers[OURS], {n: c for n, c in providers.items() if n != OURS}
        times: dict[str, list[float]] = {name: [] for name in rivals}
        taken = {name: _time(call) for name, call in providers.items()}
        once = sum(taken.values())
        budget = request.config.getoption("--seconds") * len(providers)
        rounds = int(min(400, max(7, budget / once)))

        def ready(name):
            time.sleep(rest)
            if taken[name] < rest:
                providers[name]()

        def rivals_first():
            for name, call in rivals.items():
                ready(name)
                times[name].append(_time(call))
            ready(OURS)

        benchmark.pedantic(ours, setup=rivals_first, rounds=rounds, warmup_rounds=1)
        times[OURS] = benchmark.stats.stats.data
        times = {name: [t * scale.get(name, 1) for t in found] for name, found in times.items()}
        environment = records.environment()
        medians = {name: statistics.median(t) for name, t in times.items()}
        for name, seconds in times.items():
            low, *_, high = statistics.quantiles(seconds, n=5)
            _rows.append(
                records.Row(
                    operator, shape, torch.get_num_threads(), name,
                    *(round(1e6 * t, 2) for t in (low, medians[name], high)),
                    rounds, against, round(medians[against] / medians[name], 3), **environment,
                )
            )  # fmt: skip
        benchmark.extra_info[f"times faster than {against}"] = round(
            medians[against] / medians[OURS], 2
        )
        return medians

    dk.use_backend(None)
    return run


def _time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
