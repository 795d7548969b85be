"""A two-stage learned encoder against ten iterations of hard thresholding, on held-out digits.

Protocol, for each of the two problems (exactly m nonzeros; penalty lam ||a||_0):

1. Signals: MNIST digits at 16 x 16, mean 0 and variance 1 each (the subset in the package); the
   training digits also in copies shifted by up to one original pixel, whose codes can be computed
   like any other's.
2. Dictionary: :func:`deepl0_kernels.solvers.learn_dictionary`, on the training signals.
3. Optimal codes: the l1 solution first, then hard thresholding from there until it stands still.
4. Encoder: K = 2 stages, initialised from the dictionary, trained to predict the codes.
5. Errors on held-out digits against their optimal codes; times on one thread, rivals interleaved.

"Iterative k from zero" is the untrained encoder with k stages, in the same fused operator.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import write_atomically
from .._optional import require
from .._report import record
from .._report.drawing import BLUE, GREEN, GREY, RED, label, save, sheet, spread, tidy
from ..solvers.step import safe_step
from ..training import L0Regularized, MSparse, Problem
from .codes.protocol import ITERATIONS, Protocol, Signals, describe, signals
from .scores import prediction_error, reconstruction_error, support_error
from .timing import interleaved_medians, one_thread


@dataclass(frozen=True)
class Config(Protocol):
    """Every choice of the run; stored in its record. What differs from the tables' protocol fits
    the digits that the package ships, and a minute of training."""

    p: int = 128
    data: str = "subset"
    digits: int = 12_000
    copies: int = 10
    held_out: int = 2_000
    epochs: int = 12
    timing_batch: int = 512
    timing_seconds: float = 4.0
    seed: int = 0
    quick: bool = False

    def quickened(self) -> Config:
        """A run of seconds that exercises everything; its errors say nothing."""
        return replace(
            self,
            digits=2_000,
            copies=4,
            held_out=300,
            dictionary_epochs=10,
            epochs=5,
            timing_batch=128,
            timing_seconds=0.5,
            quick=True,
        )


@dataclass(frozen=True)
class Row:
    """One method on one problem."""

    method: str
    prediction_error: float  # percent
    support_error: float  # mismatched positions per code
    half_support_error: float
    microseconds: float  # per sample
    reconstruction_error: float  # percent


@dataclass(frozen=True)
class Learned:
    """What is made of the training signals of one problem, before anything is compared."""

    D: Tensor
    dictionary: dict[str, Any]
    optimal: Tensor  # codes of the held-out signals
    statistics: dict[str, float]
    encoder: dict[str, Tensor]
    losses: list[float]
    seconds: dict[str, float]


def run(config: Config, out: Path, progress: bool = True, processes: int = 1) -> dict[str, Any]:
    """Run the demo and write ``record.json``, ``table.txt``, ``figure.png``, ``figure.svg`` and the
    trained encoders into ``out``. Returns the record; ``record["claim_holds"]`` is the verdict.

    Both problems are learned side by side where ``processes`` > 1, by new processes, to the same
    bits; nothing is timed before they have ended.
    """
    # Missing dependencies and an unwritable folder show now, not after the training.
    for module in ("matplotlib", "sklearn", "threadpoolctl", *(("tqdm",) if progress else ())):
        require(module, "deepl0 demo")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "table.txt", b"The run has not finished.\n")
    started = time.perf_counter()
    with one_thread():
        data = signals(config, config.seed)
        keys = (MSparse.key, L0Regularized.key)
        if processes > 1:
            learned = _side_by_side(config, keys, out, progress)
        else:
            learned = [_learn(config.problem(key), config, data, progress) for key in keys]
        problems = {
            key: _problem(config.problem(key), config, data.test, found, out)
            for key, found in zip(keys, learned, strict=True)
        }
        environment = record.environment()
    holds = all(problem["claim_holds"] for problem in problems.values())
    result = {
        "config": asdict(config),
        "environment": environment,
        "data": {
            "source": "first digits of MNIST's training and test sets, shipped with the package",
            **data.counts(),
        },
        "problems": problems,
        "seconds": time.perf_counter() - started,
        "claim": "on held-out digits the learned encoder predicts the optimal codes of both "
        "problems with less error than ten iterations from zero",
        "claim_holds": holds,
    }
    text = table(result)
    for name, content in draw(result).items():
        write_atomically(out / name, content)
    write_atomically(out / "table.txt", text.encode())
    record.write_json(out / "record.json", result)
    return result


def draw(result: dict[str, Any]) -> dict[str, bytes]:
    """Error against time for both problems: ``figure.png`` and ``figure.svg``."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure, panels = sheet(1, len(result["problems"]), (5.25, 4.6), sharex=True, sharey=True)
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    for axes, problem in zip(panels, result["problems"].values(), strict=True):
        rows = {row["method"]: row for row in problem["rows"]}
        # What is written first keeps its place: the encoder.
        for name, row in rows.items():
            x, y = row["microseconds"], row["prediction_error"]
            if name.startswith("encoder"):
                axes.plot(x, y, "*", color=RED, ms=17, zorder=5)
                label(
                    axes, f"learned {name}\n{y:.2f} %", (x, y), RED, (-8, -12),
                    va="top", fontweight="bold",
                )  # fmt: skip
            elif name.startswith("OMP"):
                axes.plot(x, y, "D", color=GREEN, ms=7)
                label(
                    axes, name.replace(" (", "\n("), (x, y), GREEN, (0, 9),
                    ha="center", fontweight="bold",
                )  # fmt: skip
        for start, color in (("zero", BLUE), ("l1", GREY)):
            points = [
                (row["microseconds"], row["prediction_error"], name.split()[1])
                for name, row in rows.items()
                if name.startswith("iterative") and name.endswith(start)
            ]
            axes.plot(*zip(*[p[:2] for p in points], strict=True), "o-", color=color, ms=6, lw=1.6)
            for x, y, k in points:
                label(axes, k, (x, y), color, (7, 3))
            x, y, _ = points[0]
            label(axes, f"iterative k\nfrom {start}", (x, y), color, (-8, 17), fontweight="bold")
        axes.axhline(problem["iterative_error"], color=BLUE, lw=0.8, ls=":", zorder=1)
        axes.set(xscale="log", yscale="log", title=problem["name"])
        axes.set_xlabel("microseconds per sample, one thread")
        axes.margins(x=0.18, y=0.22)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(plain)
            axis.set_minor_formatter(NullFormatter())
        axes.set_axisbelow(True)
        tidy(axes)
    panels[0].set_ylabel("prediction error on held-out digits, %")
    config, environment = result["config"], result["environment"]
    figure.supxlabel(
        f"p = {config['p']}, M = {config['m']}, lam = {config['lam']}, "
        f"{result['data']['held_out_signals']} digits; {environment['machine']}, "
        f"batch {config['timing_batch']}. Times from l1 include the l1 solution. "
        "Dotted: ten iterations from zero.",
        fontsize=8,
        color="#555b66",
    )
    spread(figure)
    return save(figure, "figure")


def table(result: dict[str, Any]) -> str:
    """The record as aligned text."""
    config = result["config"]
    lines = []
    for problem in result["problems"].values():
        header = (
            f"{problem['name']}: {problem['formula']}, p = {config['p']}, "
            f"{result['data']['held_out_signals']} held-out digits"
        )
        lines += [
            header,
            f"  {'':<26}{'prediction':>11}{'support error':>17}{'reconstr.':>11}{'time':>13}",
            f"  {'method':<26}{'error %':>11}{'count  (half)':>17}{'error %':>11}{'us/sample':>13}",
        ]
        for row in problem["rows"]:
            support = f"{row['support_error']:.2f}  ({row['half_support_error']:.2f})"
            lines.append(
                f"  {row['method']:<26}{row['prediction_error']:>11.2f}{support:>17}"
                f"{row['reconstruction_error']:>11.2f}{row['microseconds']:>13.2f}"
            )
        lines += [
            f"  {'optimal codes':<26}{0:>11.2f}{'0.00  (0.00)':>17}"
            f"{problem['optimal']['reconstruction_error']:>11.2f}"
            f"   {problem['optimal']['nonzeros']:.1f} nonzeros, "
            f"{100 * problem['optimal']['converged']:.1f} % converged",
            f"  times from l1 include the l1 solution: {problem['l1_microseconds']:.2f} us",
            "",
        ]
    for problem in result["problems"].values():
        verdict = "holds" if problem["claim_holds"] else "DOES NOT HOLD"
        lines.append(
            f"{problem['name']}: encoder {problem['encoder_error']:.2f} %, ten iterations from "
            f"zero {problem['iterative_error']:.2f} %: the claim {verdict}"
        )
    if config["quick"]:
        lines.append("A quick run: it shows that everything works, not what the encoders can do.")
    environment = result["environment"]
    lines.append(
        f"{environment['machine']}, one thread, batch {config['timing_batch']}, "
        f"torch {environment['torch']}, seed {config['seed']}, {result['seconds']:.0f} s in all"
    )
    return "\n".join(lines) + "\n"


def _learn(problem: Problem, config: Config, data: Signals, progress: bool) -> Learned:
    x, test = data.train, data.test
    seconds = {}

    clock = time.perf_counter()
    learned = config.learn(problem, x, config.p, config.seed, progress)
    D = learned.D
    seconds["dictionary"] = time.perf_counter() - clock

    clock = time.perf_counter()
    targets, best = problem.optimal(x, D).dense, problem.optimal(test, D)
    seconds["optimal_codes"] = time.perf_counter() - clock

    clock = time.perf_counter()
    encoder = config.encoder(problem, D)
    losses = config.fit(
        encoder,
        x,
        targets,
        config.encoder_lr(problem),
        config.seed,
        progress,
        f"{problem.name} encoder",
    )
    seconds["training"] = time.perf_counter() - clock
    statistics = {
        "converged": best.converged.double().mean().item(),
        "mean_iterations": best.iterations.double().mean().item(),
        "objective": best.objective[-1].double().mean().item(),
    }
    state = encoder.state_dict()
    return Learned(D, describe(learned), best.dense, statistics, state, losses, seconds)


def _side_by_side(
    config: Config, keys: tuple[str, ...], out: Path, progress: bool
) -> list[Learned]:
    """By a process for each problem; the last one, which takes longest, shows its progress."""
    files = [out / f"{key}.pt" for key in keys]
    shown = [progress and key == keys[-1] for key in keys]
    arguments = list(zip([config] * len(keys), keys, files, shown, strict=True))
    # Leaving the pool ends what still runs, after Ctrl-C too.
    with multiprocessing.get_context("spawn").Pool(len(keys), _ignore_interrupts) as pool:
        pool.starmap(_learn_into, arguments, chunksize=1)
    return [Learned(**record.read_tensors(file)) for file in files]


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _learn_into(config: Config, key: str, file: Path, progress: bool) -> None:
    with one_thread():
        data = signals(config, config.seed)
        learned = _learn(config.problem(key), config, data, progress)
    record.write_tensors(file, {f.name: getattr(learned, f.name) for f in fields(learned)})


def _problem(
    problem: Problem, config: Config, test: Tensor, learned: Learned, out: Path
) -> dict[str, Any]:
    D, seconds = learned.D, dict(learned.seconds)
    encoder = config.encoder(problem, D).eval()
    encoder.load_state_dict(learned.encoder)
    mu = safe_step(D)
    l1 = partial(problem.l1, D=D)
    methods: dict[str, Callable[[Tensor], Tensor]] = {}
    for k in ITERATIONS:
        methods[f"iterative {k} from zero"] = problem.encoder(D, k).eval()
    for k in ITERATIONS:
        methods[f"iterative {k} from l1"] = partial(_from_l1, problem, D, k, mu)
    methods[f"encoder, K = {config.num_stages}"] = encoder
    if isinstance(problem, MSparse):
        methods["OMP (scikit-learn)"] = _sklearn_omp(D, problem.m)

    clock = time.perf_counter()
    batch = test[: config.timing_batch].contiguous()
    rows = []
    optimal_codes = learned.optimal
    timed: dict[str, Callable[[Tensor], Tensor]] = {**methods, "l1": l1}
    with torch.no_grad():
        times = interleaved_medians(
            {name: partial(method, batch) for name, method in timed.items()},
            config.timing_seconds,
        )
        per_sample = {name: 1e6 * t / len(batch) for name, t in times.items()}
        for name, method in methods.items():
            code = method(test)
            support = support_error(optimal_codes, code)
            rows.append(
                Row(
                    name,
                    prediction_error(optimal_codes, code),
                    support,
                    support / 2,
                    per_sample[name],
                    reconstruction_error(test, D, code),
                )
            )
    seconds["evaluation"] = time.perf_counter() - clock

    record.write_tensors(out / f"{problem.key}.pt", {"D": D, "encoder": encoder.state_dict()})
    by_name = {row.method: row for row in rows}
    encoder_error = by_name[f"encoder, K = {config.num_stages}"].prediction_error
    iterative_error = by_name["iterative 10 from zero"].prediction_error
    return {
        "name": problem.name,
        "formula": problem.formula,
        "rows": [asdict(row) for row in rows],
        "l1_microseconds": per_sample["l1"],
        "optimal": {
            "reconstruction_error": reconstruction_error(test, D, optimal_codes),
            "nonzeros": (optimal_codes != 0).sum(1).double().mean().item(),
            **learned.statistics,
        },
        "dictionary": learned.dictionary,
        "training_loss": learned.losses,
        "seconds": seconds,
        "encoder_error": encoder_error,
        "iterative_error": iterative_error,
        "claim_holds": encoder_error < iterative_error,
    }


def _from_l1(problem: Problem, D: Tensor, k: int, mu: float, x: Tensor) -> Tensor:
    return problem.iterate(x, D, k, problem.l1(x, D), mu)


def _sklearn_omp(D: Tensor, m: int) -> Callable[[Tensor], Tensor]:
    """scikit-learn's batch OMP, which wants atoms of unit norm and signals in columns."""
    from sklearn.linear_model import orthogonal_mp

    norms = D.norm(dim=0)
    unit = (D / norms).double().numpy()

    def solve(x: Tensor) -> Tensor:
        code = orthogonal_mp(unit, x.double().numpy().T, n_nonzero_coefs=m, precompute=True)
        return torch.from_numpy(code.T.copy()).to(D.dtype).reshape(len(x), -1) / norms

    return solve
