"""Sparse recovery: NMSE of unrolled networks and iterations, by stage.

A cell is a method: its errors after every stage and, for times taken later, its weights
(``cells/*.npz``). ``times-*.json`` holds the time of a signal (:func:`race`).
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..._report import record
from ..._report.drawing import PALETTE, Drawn, Heading, label, save, sheet, spread, tidy
from ...nn import LISTA, DeepHTPEncoder, DeepMSparseEncoder
from ...solvers import fista, htp
from ...solvers.pursuit import LeastSquares
from ..claims import judged
from ..study import Cell, Column, Job, Study, Table, path_of, values
from ..timing import interleaved_medians, one_thread
from . import networks
from .networks import DEEP_HTP, MATRICES, NUMBERS
from .protocol import PROTOCOLS, SHOWN, Protocol, Recovery
from .published import places, published

ISTA, FISTA, HTP, ORACLE = "ISTA", "FISTA", "HTP", "least squares, support known"
UNTRAINED = (ISTA, FISTA, HTP, DEEP_HTP, ORACLE)
METHODS = (*UNTRAINED[:3], *NUMBERS[:1], *MATRICES, *NUMBERS[1:], *UNTRAINED[3:])
# Penalties that ISTA and FISTA choose from.
_LAMS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_BATCH = 512  # of times


class Sensed(Table):
    """A column for each size and each K of SHOWN."""

    def columns(self, sizes: Sequence[int]) -> list[Column]:
        return [
            Column(f"p = {p}, K = {k}", p, metric(k), places(p)[i])
            for p in sizes
            for i, k in enumerate(SHOWN)
        ]


def metric(k: int) -> str:
    """The figure of a row after k stages."""
    return f"nmse_{k}"


class Recovered(Study):
    name = "recovery"
    text_file = "recovery.md"
    title = "Sparse signals recovered from few measurements"
    tables: ClassVar = {
        "nmse": Sensed(
            "NMSE, SNR 40 dB", PROTOCOLS["nmse"], published("nmse"),
            problem="sensing", metric=metric(SHOWN[-1]), unit="dB",
        ),
        "nmse20": Sensed(
            "NMSE, SNR 20 dB", PROTOCOLS["nmse20"], published("nmse20"),
            problem="sensing", metric=metric(SHOWN[-1]), unit="dB",
        ),
        "nmse-noiseless": Sensed(
            "NMSE, no noise", PROTOCOLS["nmse-noiseless"], {},
            problem="sensing", metric=metric(SHOWN[-1]), unit="dB",
        ),
    }  # fmt: skip
    methods = METHODS
    columns = ("table", "method", "p", "seed", "nmse")
    cell_keys = ("table", "method", "p", "seed", "nmse", "environment")
    sizes = (500,)
    mark = "published"
    source = (
        "Values marked (published) are those of Behrens, Sauder, Jung 2021 (NA-ALISTA), by the "
        "logs beside their code, the least of all epochs; matrices of their own, one seed."
    )

    def largest_m(self, protocol: Protocol) -> int:
        return max(protocol.nonzeros, protocol.refit_m, protocol.htp_m)

    def check_signals(
        self, table: str, protocol: Protocol, sizes: Sequence[int], seed: int
    ) -> None:
        """They are drawn, enough for any size."""

    def parts(self, protocols: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, str]]]:
        for table, protocol in protocols.items():
            chosen = METHODS if protocol.trained else UNTRAINED
            yield table, protocol, {f"{table}-{METHODS.index(m)}": m for m in chosen}

    def order(self, rows: list[Cell]) -> Sequence[str]:
        return [m for m in METHODS if any(row["method"] == m for row in rows)]

    def cell(self, part: str, method: str, p: int, job: Job) -> Cell:
        data = Recovery(job.protocol, p, job.seed)
        description = f"{part}, {method}, p = {p}, seed {job.seed}"
        begin, cpu = time.perf_counter(), time.process_time()
        torch.manual_seed(job.seed)
        rival, losses, arrays = made(method, data, description, job.progress)
        seconds = {"training": time.perf_counter() - begin}
        cpu_seconds = {"training": time.process_time() - cpu}
        found = errors(rival, *data.test())
        if not all(math.isfinite(value) for value in found):
            raise RuntimeError(f"{description} diverged: NMSE {found}")
        return {
            "table": part,
            "method": method,
            "p": p,
            "seed": job.seed,
            "nmse": {str(k): value for k, value in enumerate(found, 1)},
            "loss": losses,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "environment": record.environment(),
            "arrays": arrays,
        }

    def rows(self, cells: list[Cell], table: str) -> list[Cell]:
        return [
            {**cell, **{metric(int(k)): value for k, value in cell["nmse"].items()}}
            for cell in cells
            if cell["table"] == table
        ]

    def claims(self, tables: Sequence[str], cells: list[Cell], sizes: Sequence[int]) -> list[Cell]:
        """Our networks against the best of the others here, on the seeds that both have, and
        against the best published."""
        found = []
        for table in tables:
            rows, logs = self.rows(cells, table), self.tables[table].published
            methods = self.order(rows)
            ours = [m for m in methods if m.startswith("Deep")]
            theirs = [m for m in methods if m not in (*ours, ORACLE)]
            for column in self.tables[table].columns(sizes):
                seen: dict[str, dict[int, float]] = {m: {} for m in methods}  # by seed
                for row in rows:
                    if row["p"] == column.p:
                        seen[row["method"]][row["seed"]] = row[column.metric]
                means = {m: statistics.mean(of.values()) for m, of in seen.items() if of}
                mine = min((m for m in ours if m in means), key=means.__getitem__)
                least = seen[mine]
                rivals = {m: seen[m] for m in theirs if least.keys() & seen[m].keys()}
                other = min(rivals, key=means.__getitem__)
                both = sorted(least.keys() & rivals[other].keys())
                text = f"{column.title}: {mine} below"
                found.append(
                    judged(
                        table,
                        f"{text} {other}",
                        [least[seed] for seed in both],
                        [rivals[other][seed] for seed in both],
                    )
                )
                if (at := column.at) is not None and logs:
                    figure, name = min((known[at], name) for name, known in logs.items())
                    every = list(least.values())
                    known = [figure] * len(every)
                    found.append(judged(table, f"{text} {name}, as published", every, known))
        return found

    def judgement(self, results: dict[str, Any], out: Path) -> list[Any]:
        found = super().judgement(results, out)
        times = [times_of(out, table) for table in results["tables"]]
        if told := [sentence(record.read_json(path)) for path in times if path.exists()]:
            found += [Heading("Times"), told]
        return found

    def race(
        self, results: dict[str, Any], out: Path, seconds: float, again: bool = False
    ) -> list[tuple[dict[str, Any], str]]:
        p, seed, told = min(results["sizes"]), min(results["seeds"]), []
        for table in results["tables"]:
            path = times_of(out, table)
            if again or not path.exists():
                record.write_json(path, timed(results, table, p, seed, out, seconds))
            found = record.read_json(path, ("table", "p", "points", "environment"))
            told.append((found, sentence(found)))
        return told

    def figures(self, results: dict[str, Any], table: str, out: Path) -> Drawn:
        """NMSE by stage, and by the time of a signal where times were taken; the smallest size."""
        p = min(results["sizes"])
        rows = self.rows(results["cells"], table)
        times = record.read_json(times_of(out, table)) if times_of(out, table).exists() else None
        figure, panels = sheet(1, 2 if times else 1, (5.6, 4.6), sharey=True)
        for i, method in enumerate(self.order(rows)):
            stages = range(1, results["protocols"][table]["stages"] + 1)
            means = [statistics.mean(values(rows, method, p, metric(k))) for k in stages]
            color = PALETTE[i % len(PALETTE)]
            style = "--" if method == ORACLE else "o-" if method.startswith("Deep") else "s:"
            panels[0].plot(stages, means, style, color=color, ms=3, lw=1.2)
            label(panels[0], method, (stages[-1], means[-1]), color, fontsize=7)
            if times:
                line = [
                    (q["microseconds"], means[q["stages"] - 1])
                    for q in times["points"]
                    if q["method"] == method
                ]
                if line:
                    panels[1].plot(*zip(*line, strict=True), style, color=color, ms=3, lw=1.2)
                    label(panels[1], method, line[-1], color, fontsize=7)
        for method, known in self.tables[table].published.items():
            part = [known[at] for at in places(p) if at is not None]
            if part:
                panels[0].plot(SHOWN, part, "D", mfc="none", color="#8a8f98", ms=4)
                end = SHOWN[-1], part[-1]
                label(panels[0], f"{method} (published)", end, "#8a8f98", fontsize=7)
        panels[0].set(xlabel="stages, iterations", ylabel="NMSE, dB", xlim=(0.5, 24))
        if times:
            panels[1].set(xlabel="microseconds a signal, one thread", xscale="log")
            panels[1].margins(x=0.3)
        for axes in panels:
            tidy(axes)
        figure.suptitle(f"{self.tables[table].title}, p = {p}, means of the seeds", fontsize=10)
        spread(figure)
        return Drawn(save(figure, table))


# Of measurements [B, n], and of the signals [B, p] for the one that is told their support.
Rival = Callable[[Tensor, Tensor], Iterator[Tensor]]


def made(
    method: str, data: Recovery, description: str, progress: bool
) -> tuple[Rival, list[float], dict[str, Tensor]]:
    """The stages of a method, the losses of its training, and what it is rebuilt from."""
    D, protocol = data.matrix, data.protocol
    if method == ORACLE:
        return known_support(D, protocol.stages), [], {}
    if method in (ISTA, FISTA, HTP):
        lam = 0.0 if method == HTP else chosen_lam(method, data)
        return iterated(method, D, protocol, lam), [], {"lam": torch.tensor(lam)}
    lam = chosen_lam(ISTA, data) if method == networks.LEARNED_LISTA else 0.0
    network = networks.start(method, D, protocol, lam)
    losses = networks.fit(network, data, description, progress, method not in UNTRAINED)
    arrays = {name: t.detach() for name, t in network.state_dict().items()}
    if isinstance(network, (DeepMSparseEncoder, DeepHTPEncoder)):
        arrays["m"] = torch.tensor(network.m)
    return lambda y, a: networks.stages(network, y), losses, arrays


def iterated(method: str, D: Tensor, protocol: Protocol, lam: float) -> Rival:
    """The codes after each iteration of a solver."""
    if method == ISTA:
        network = LISTA.from_dictionary(D, lam, protocol.stages)
        return lambda y, a: networks.stages(network, y)
    stages = range(1, protocol.stages + 1)
    return lambda y, a: (solver(method, D, protocol, lam, k)(y) for k in stages)


def solver(
    method: str, D: Tensor, protocol: Protocol, lam: float, k: int
) -> Callable[[Tensor], Tensor]:
    """k iterations of ISTA, FISTA or HTP."""
    if method == ISTA:
        return networks.shortened(LISTA.from_dictionary(D, lam, protocol.stages), k)
    if method == FISTA:
        return lambda y: fista(y, D, lam, max_iter=k, history=False, tol=1e-9).dense
    m = protocol.htp_m
    return lambda y: htp(y, D, m, step=1.0, max_iter=k, history=False, tol=1e-9).dense


@torch.no_grad()
def chosen_lam(method: str, data: Recovery) -> float:
    """The penalty of ISTA or FISTA that errs least after the last stage, on other signals."""
    y, a = data.calibration()

    def error(lam: float) -> float:
        z = solver(method, data.matrix, data.protocol, lam, data.protocol.stages)(y)
        return (z - a).square().sum().item()

    return min(_LAMS, key=error)


def known_support(D: Tensor, stages: int) -> Rival:
    """Least squares on the support of the signal itself, at any stage."""
    fit = LeastSquares(D)

    def solve(y: Tensor, a: Tensor) -> Iterator[Tensor]:
        on = a != 0
        support = on.to(torch.uint8).topk(int(on.sum(1).max()), 1).indices
        return itertools.repeat(fit(y @ D, support, on.gather(1, support)), stages)

    return solve


@torch.no_grad()
def errors(rival: Rival, y: Tensor, a: Tensor) -> list[float]:
    """``10 log10(sum ||z_k - a||^2 / sum ||a||^2)`` after each stage k."""
    blocks = [
        torch.stack([(z - signals).double().square().sum() for z in rival(rows, signals)])
        for rows, signals in zip(y.split(networks.ROWS), a.split(networks.ROWS), strict=True)
    ]
    total = a.double().square().sum()
    return (10 * (sum(blocks, torch.zeros(())) / total).log10()).tolist()


def times_of(out: Path, table: str) -> Path:
    return out / f"times-{table}.json"


def timed(
    results: dict[str, Any], table: str, p: int, seed: int, out: Path, seconds: float
) -> dict[str, Any]:
    """The time of a signal of each method after K of SHOWN stages: one thread, batches of 512,
    rivals interleaved, medians."""
    with record.reading(out / "recovery.json"):
        protocol = Protocol(**results["protocols"][table])
    data = Recovery(protocol, p, seed)
    y = data.test()[0][:_BATCH].contiguous()
    calls: dict[tuple[str, int], Callable[[], Tensor]] = {}
    for method in METHODS:
        path = path_of(out, f"{table}-{METHODS.index(method)}", p, seed).with_suffix(".npz")
        if method == ORACLE or not (saved := record.read_arrays(path)):
            continue
        with record.reading(path):
            for k in SHOWN:
                calls[method, k] = partial(rebuilt(method, data.matrix, protocol, saved, k), y)
    with torch.no_grad(), one_thread():
        named = {f"{method}, K = {k}": call for (method, k), call in calls.items()}
        medians = interleaved_medians(named, seconds)
    return {
        "table": table,
        "p": p,
        "seed": seed,
        "batch": len(y),
        "points": [
            {
                "method": method,
                "stages": k,
                "microseconds": 1e6 * medians[f"{method}, K = {k}"] / len(y),
            }
            for method, k in calls
        ],
        "environment": record.environment() | {"threads": 1},
    }


def rebuilt(
    method: str, D: Tensor, protocol: Protocol, saved: dict[str, Tensor], k: int
) -> Callable[[Tensor], Tensor]:
    """The first k stages of a method, from what its cell stored."""
    if "lam" in saved:
        return solver(method, D, protocol, saved["lam"].item(), k)
    network = networks.start(method, D, protocol)
    network.load_state_dict({name: t for name, t in saved.items() if name != "m"})
    if isinstance(network, (DeepMSparseEncoder, DeepHTPEncoder)):
        network.m = tuple(saved["m"].tolist())
    return networks.shortened(network.eval(), k)


def sentence(found: dict[str, Any]) -> str:
    """What the last stages take."""
    last = [q for q in found["points"] if q["stages"] == SHOWN[-1]]
    each = ", ".join(f"{q['method']} {q['microseconds']:.0f}" for q in last)
    return (
        f"{found['table']}, p = {found['p']}: microseconds a signal after {SHOWN[-1]} stages, in "
        f"batches of {found['batch']}: {each}. One thread, {found['environment']['machine']}."
    )
