"""Error against iterations, and against time: the learned encoder among the solvers.

The times of a run are taken here alone, so that they can be taken again on a quiet machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._report import record
from ..._report.drawing import BLUE, GREEN, GREY, RED, label, save, sheet, tidy
from ...backends import use_backend
from ...ops import prepare
from ...solvers import SolverResult, cosamp, htp, omp, polish
from ...solvers.step import safe_step
from ...training import MSparse, Problem
from ..scores import prediction_error, support_error
from ..timing import interleaved_medians, one_thread
from .cells import LISTA_ROW, POLISHED, optimal_codes
from .protocol import Protocol, signals

STEPS = {"IHT": "lipschitz", "NIHT": "normalized", "AIHT": "accelerated"}
KS = {"IHT": (1, 2, 5, 10, 20, 50, 100), "NIHT": (1, 2, 5, 10, 20), "AIHT": (2, 5, 10, 20, 50)}
BATCH = 512


def name_of(key: str, p: int) -> str:
    """Stem of the record and of the figure."""
    return f"pareto-{key}-p{p}"


def write(results: dict[str, Any], out: Path, seconds: float, again: bool = False) -> None:
    """Measure what ``out`` lacks, or all of it ``again``, at the run's smallest p and seed 0.

    Raises:
        FileNotFoundError: ``out`` lacks the cell.
        ValueError: the results are not those of this version's choices.
    """
    with record.reading(out / "results.json"):
        protocol = Protocol(**results["protocol"])
    p = min(results["sizes"])
    for key in dict.fromkeys(cell["problem"] for cell in results["cells"]):
        path = out / f"{name_of(key, p)}.json"
        if again or not path.exists():
            record.write_json(path, measure(protocol, key, p, 0, out, seconds))


def read(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder."""
    keys = ("problem", "p", "points", "optimal_codes", "environment")
    return [record.read_json(path, keys) for path in sorted(folder.glob("pareto-*.json"))]


def measure(
    protocol: Protocol, key: str, p: int, seed: int, out: Path, seconds: float = 20.0
) -> dict[str, Any]:
    """Every method's prediction error on the test set and its time a sample; needs the cell's run.

    Times: one thread, batches of 512, rivals interleaved, medians.
    """
    problem = protocol.problem(key)
    path = out / "cells" / f"{key}-p{p}-seed{seed}.pt"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run deepl0 reproduce into {out} first")
    saved = record.read_tensors(path)
    with record.reading(path):
        D = saved["D"]
        encoder = protocol.encoder(problem, D).eval()
        encoder.load_state_dict(saved["encoder"])
    test = signals(protocol, seed).test
    best, _ = optimal_codes(problem, test, D, out / "cells")
    slice_ = test[:BATCH].contiguous()
    mu = safe_step(D)
    methods: dict[str, tuple[int | None, Callable[[Tensor], Tensor]]] = {}
    for name, ks in KS.items():
        step: str | float = mu if name == "IHT" else STEPS[name]
        for k in ks:
            methods[f"{name}-{k}"] = k, partial(problem.iterate, D=D, k=k, step=step)
    if isinstance(problem, MSparse):
        m = problem.m
        for k in (1, 2, 5):
            methods[f"HTP-{k}"] = k, _dense(partial(htp, D=D, m=m, max_iter=k, history=False))
        if 3 * m <= min(D.shape):
            methods["CoSaMP"] = None, _dense(partial(cosamp, D=D, m=m, history=False))
        methods["OMP"] = None, _dense(partial(omp, D=D, m=m))
        if (spams := _spams_omp(D, m)) is not None:
            methods["OMP (SPAMS)"] = None, spams
    methods[f"encoder, K = {protocol.num_stages}"] = protocol.num_stages, encoder
    if "lista" in saved:
        with record.reading(path):
            lista, ridge = problem.lista(D, protocol.num_stages).eval(), saved["ridge"]
            lista.load_state_dict(saved["lista"])
        options: dict[str, Any] = dict(ridge=ridge, plan=prepare(D=D), **problem.sparsity)
        name = LISTA_ROW.format(k=protocol.num_stages)
        methods[name] = protocol.num_stages, lista
        methods[f"{name}, {POLISHED}"] = None, lambda x: polish(x, D, lista(x), **options)
    with torch.no_grad(), one_thread():
        times = interleaved_medians(
            {name: partial(call, slice_) for name, (_, call) in methods.items()}, seconds
        )
        points = [
            {
                "method": name,
                "iterations": k,
                **_errors(best, call(test)),
                "microseconds": 1e6 * times[name] / len(slice_),
            }
            for name, (k, call) in methods.items()
        ]
    return {
        "problem": key,
        "inside": protocol.inside,
        "p": p,
        "seed": seed,
        "batch": BATCH,
        "points": points,
        "optimal_codes": _time_of_optimal_codes(problem, slice_, D, seconds),
        "environment": record.environment() | {"threads": 1},
    }


def _errors(best: Tensor, code: Tensor) -> dict[str, float]:
    return {
        "prediction_error": prediction_error(best, code),
        "support_error": support_error(best, code),
    }


def _time_of_optimal_codes(
    problem: Problem, x: Tensor, D: Tensor, seconds: float
) -> dict[str, float]:
    """The optimal codes of a slice by the kernels, and by the dense loop in torch; one thread."""

    def loop() -> SolverResult:
        with use_backend("reference"):
            return problem.optimal(x, D)

    rivals: dict[str, Callable[[], SolverResult]] = {
        "kernels": partial(problem.optimal, x, D),
        "torch": loop,
    }
    with torch.no_grad(), one_thread():
        ours, theirs = (call() for call in rivals.values())
        times = interleaved_medians(rivals, seconds)
    return {
        "signals": len(x),
        "kernels_microseconds": 1e6 * times["kernels"] / len(x),
        "torch_microseconds": 1e6 * times["torch"] / len(x),
        # Rounding may send a sample to another local minimum.
        "same_supports": ((ours.dense != 0) == (theirs.dense != 0)).all(1).double().mean().item(),
        "relative_objective": (
            ours.objective[-1].double().sum() / theirs.objective[-1].double().sum()
        ).item(),
    }


def _dense(solve: Callable[..., SolverResult]) -> Callable[[Tensor], Tensor]:
    return lambda x: solve(x).dense


def _spams_omp(D: Tensor, m: int) -> Callable[[Tensor], Tensor] | None:
    """SPAMS's OMP, which wants atoms of unit norm, where SPAMS is installed."""
    try:
        import numpy as np
        import spams
    except ImportError:
        return None
    norms = D.norm(dim=0)
    unit = np.asfortranarray((D / norms).numpy())

    def solve(x: Tensor) -> Tensor:
        code = spams.omp(np.asfortranarray(x.numpy().T), unit, L=m, eps=0.0, numThreads=1)
        return torch.from_numpy(code.toarray().T.copy()) / norms

    return solve


def time_of_codes(found: dict[str, Any]) -> str:
    """How long optimal codes take, and the networks that predict them, in two sentences."""
    optimal = found["optimal_codes"]
    ours, theirs = optimal["kernels_microseconds"], optimal["torch_microseconds"]
    inside = found.get("inside", "hard")  # runs of before had no other
    networks = "; ".join(
        f"{q['method']}: {q['microseconds']:.1f} us, {q['prediction_error']:.2f} %"
        for q in found["points"]
        if _is_network(q["method"])
    )
    return (
        f"{found['problem']}, p = {found['p']}: optimal codes of {optimal['signals']} signals "
        f"take {ours:.0f} us each by the kernels, {theirs:.0f} us by the dense loop in torch "
        f"({theirs / ours:.1f} times as long); {100 * optimal['same_supports']:.1f} % of the "
        f"supports are the same. Time and error of networks ({inside} thresholds inside): "
        f"{networks}. One thread, {found['environment']['machine']}."
    )


def _is_network(method: str) -> bool:
    return method.startswith(("encoder", "LISTA"))


def draw(found: dict[str, Any]) -> dict[str, bytes]:
    """Two panels: error against iterations, error against time."""
    figure, panels = sheet(1, 2, (5.25, 4.4), sharey=True)
    points = found["points"]
    colors = {"IHT": BLUE, "NIHT": GREY, "AIHT": "#6b46c1", "HTP": "#b7791f"}
    for axes, across in zip(panels, ("iterations", "microseconds"), strict=True):
        for family, color in colors.items():
            line = [
                (q[across], q["prediction_error"])
                for q in points
                if q["method"].startswith(f"{family}-")
            ]
            if line:
                axes.plot(*zip(*line, strict=True), "o-", color=color, ms=4, lw=1.2)
                label(axes, family, line[-1], color, (5, 4))
        for q in points:
            if q[across] is None or "-" in q["method"]:
                continue
            learned = _is_network(q["method"])
            at, color = (q[across], q["prediction_error"]), RED if learned else GREEN
            axes.plot(*at, "*" if learned else "D", color=color, ms=15 if learned else 6, zorder=5)
            label(axes, q["method"], at, color)
        axes.set(xscale="log", yscale="log")
        axes.margins(x=0.16, y=0.1)
        tidy(axes)
    panels[0].set(xlabel="iterations, stages", ylabel="prediction error, %")
    panels[1].set_xlabel("microseconds per sample, one thread")
    figure.suptitle(
        f"{found['problem'].replace('_', '-')}, p = {found['p']}, seed {found['seed']}; "
        f"{found['environment']['machine']}, batch {found['batch']}",
        fontsize=9,
    )
    return save(figure, name_of(found["problem"], found["p"]))
