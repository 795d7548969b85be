"""A training with stages: one autoencoder, its deeper copies, and what each leaves of vectors that
none was trained on. A folder that holds a part of it is gone on with.

1. An autoencoder of one stage is trained for ``steps``, or taken as it is.
2. For every K among ``stages`` a copy of K stages, :meth:`SparseAutoencoder.deepen`, starts from
   its weights and is trained for ``tuning_steps`` more: K = 1 too, so that all are trained as long.
3. All are evaluated on the held-out vectors, before and after the tuning, and with other m.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._optional import require
from .._report import record
from ..distributed import Ranks, gather_units, shard_units
from ..ops import SparseCode, checks
from .activations import Activations
from .base import growing
from .evaluation import Evaluation, evaluate, normalised_iht, orthogonal_pursuit, pursuit
from .files import save
from .model import SparseAutoencoder
from .training import HISTORY, fit, same_settings, weights_digest

RESULTS, SETTINGS = "results.json", "settings.json"
BASE = "base"
# Held-out vectors when none are given: a tenth of the others, at most so many, from their end.
_HELD_OUT = 16_384
_COMMAND = "deepl0 sae train"
# What codes over the atoms in place of an encoder: coder(model, m)(x).
CODERS: dict[str, Callable[..., Callable[[Tensor], SparseCode]]] = {
    "matching pursuit, SAELens": pursuit,
    "matching pursuit": partial(pursuit, full=True),
    "NIHT": normalised_iht,
    "OMP": orthogonal_pursuit,
}


@dataclass(frozen=True)
class Settings:
    """What decides the bits of a training.

    Args:
        p: >= 1, units. m: >= 1, entries of a code.
        positive: codes of entries > 0 (TopK); else signed (AbsTopK).
        stages: numbers of stages; (1,): the autoencoder of one stage, and no tuning of it unless
            it was taken as it is.
        steps: > 0, of the first training.
        tuning_steps: > 0, of every tuning; None: ``steps``.
        batch: > 0. lr: > 0. seed: >= 0; of the first weights and the shuffles.
        aux_coefficient: >= 0, weight of the loss of dead units.
        dead_after: > 0, vectors without firing after which a unit is dead; None: as in :func:`fit`.
        pursuits: code also by the solvers of ``CODERS`` over the atoms of one stage.
        grown: entries of a code grow to m over the stages; else every stage keeps m.

    Raises:
        TypeError, ValueError: one of another kind or out of range, named with its value.
    """

    p: int
    m: int
    positive: bool = True
    stages: Sequence[int] = (1,)
    steps: int = 2000
    tuning_steps: int | None = None
    batch: int = 1024
    lr: float = 1e-3
    seed: int = 0
    aux_coefficient: float = 1 / 32
    dead_after: int | None = None
    pursuits: bool = False
    grown: bool = True

    def __post_init__(self) -> None:
        checks.integer("p", self.p, 1)
        checks.integer("m", self.m, 1, self.p, "p")
        checks.boolean("positive", self.positive)
        if not self.stages or len(set(self.stages)) < len(self.stages):
            raise ValueError(f"stages must be different numbers, got {tuple(self.stages)}")
        for one in self.stages:
            checks.integer("stages", one, 1)
        for name in ("steps", "batch"):
            checks.integer(name, getattr(self, name), 1)
        for name in ("tuning_steps", "dead_after"):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name), 1)
        checks.positive("lr", self.lr)
        checks.integer("seed", self.seed, 0, 2**63 - 1, "2**63 - 1")
        checks.nonnegative("aux_coefficient", self.aux_coefficient)
        checks.boolean("pursuits", self.pursuits)
        checks.boolean("grown", self.grown)

    def tunings(self, started: bool) -> dict[str, int]:
        """Name -> number of stages of every training but the first one, which ``started`` says to
        have been before."""
        if tuple(self.stages) == (1,) and not started:
            return {}
        return {f"stages-{k}": k for k in self.stages}


def train(
    activations: Activations,
    settings: Settings,
    folder: Path,
    *,
    held_out: Activations | None = None,
    start: SparseAutoencoder | None = None,
    every: int = 500,
    ranks: Ranks | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Train, evaluate, and write ``results.json``, ``results.csv``, ``history.csv``,
    ``<training>.safetensors`` (format "deepl0") and ``report.html``.

    Args:
        activations: what to train on. settings: how.
        folder: of the run; one that was interrupted goes on, to the same bits.
        held_out: vectors to evaluate on; None: the last tenth of the activations, at most 16,384,
            which then are not trained on.
        start: an autoencoder of one stage with the p, m and sign of the settings, which takes the
            place of the first training; None: there is none.
        every: > 0, steps between checkpoints.
        ranks: who shares the trainings, :func:`deepl0_kernels.distributed.launched`; every one
            makes this call, the first one writes. None: this process alone.
        progress: show progress bars.

    Returns:
        What ``results.json`` holds.

    Raises:
        ValueError: activations that do not fit or are not finite, or a folder with a training of
            other settings, which are named.
        ModuleNotFoundError: what the report or the files need is missing; says what to install.
    """
    from . import report

    for module in ("matplotlib", "pandas"):
        require(module, _COMMAND)
    require("safetensors.torch", _COMMAND, extra="sae")
    every = checks.integer("every", every, 1)
    if held_out is None:
        kept, border = _kept(activations), len(activations)
        activations, held_out = (
            activations.part(slice(0, border - kept)),
            activations.part(slice(border - kept, border)),
        )
    held_out.fits(activations.width, activations.name)
    if start is not None:
        start = _started(start, settings, activations)
    if settings.pursuits:
        checks.integer("m", settings.m, 1, activations.width, "n")
        pursuit(_first(activations, settings) if start is None else start, settings.m)
    digest = activations.check(progress)
    identity = {
        **json.loads(json.dumps(asdict(settings))),
        "start": None if start is None else weights_digest(start),
        "activations": _described(activations, digest),
        "held_out": _described(held_out, held_out.check(progress)),
    }
    ranks = ranks or Ranks()

    def begin() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / SETTINGS).exists():
            before = record.read_json(folder / SETTINGS, identity, _COMMAND)
            same_settings(folder / SETTINGS, before, identity)
        else:
            record.write_json(folder / SETTINGS, identity)

    ranks.once(begin)
    progress = progress and ranks.first

    histories: dict[str, Tensor] = {}

    def trained(name: str, model: SparseAutoencoder, steps: int, seed: int) -> SparseAutoencoder:
        if ranks.units is not None:
            shard_units(model, ranks.units)
        histories[name] = fit(
            model,
            activations,
            steps=steps,
            batch=settings.batch,
            lr=settings.lr,
            seed=seed,
            aux_coefficient=settings.aux_coefficient,
            dead_after=settings.dead_after,
            checkpoint=folder / "checkpoints" / f"{name}.pt",
            every=every,
            digest=digest,
            data=ranks.data,
            progress=progress,
            description=name,
        )
        gather_units(model)
        ranks.once(lambda: save(model, folder / f"{name}.safetensors", "deepl0"))
        return model.eval()

    clock = time.perf_counter()
    base = start or trained(BASE, _first(activations, settings), settings.steps, settings.seed)
    models = {BASE: base}
    rows = _evaluated("K = 1", 1, base, held_out, progress)
    for name, stages in settings.tunings(start is not None).items():
        model = base.deepen(stages, None if settings.grown else settings.m)
        if stages > 1:
            rows += _evaluated(f"K = {stages}, untuned", stages, model, held_out, progress)
        steps = settings.tuning_steps or settings.steps
        models[name] = trained(name, model, steps, settings.seed + 1)
        rows += _evaluated(f"K = {stages}, tuned", stages, model, held_out, progress)
    if settings.pursuits:  # over the atoms of one stage that were trained longest
        first = models.get("stages-1", models[BASE])
        most = min(first.in_features, first.code_size)
        rows += pursued(first, sizes(settings.m, most), held_out, progress)
    results = {
        "settings": identity,
        "environment": record.environment(),
        "seconds": time.perf_counter() - clock,  # of this call
        "evaluations": rows,
        "history": {
            name: {
                "columns": list(HISTORY),
                "steps": len(history),
                "rows": [[i + 1, *row] for i, row in _thinned(history)],
            }
            for name, history in histories.items()
        },
    }

    def end() -> None:
        report.write(folder, results, histories, models, held_out)
        record.write_json(folder / RESULTS, results)

    ranks.once(end)
    return results


def _started(
    start: SparseAutoencoder, settings: Settings, activations: Activations
) -> SparseAutoencoder:
    """A copy to start from, float32 at least; one that the settings do not describe is refused."""
    activations.fits(start.in_features, "the autoencoder to start from")
    told = {"p": settings.p, "m": (settings.m,), "positive": settings.positive}
    own = {"p": start.code_size, "m": start.m, "positive": start.positive}
    if start.selection != "top_m" or start.num_stages != 1 or own != told:
        raise ValueError(
            f"start must select the top m in one stage, with {told}, got "
            f"selection={start.selection!r}, num_stages={start.num_stages}, {own}"
        )
    copy = start.deepen(1)
    return (copy if copy.W.dtype == torch.float64 else copy.float()).eval()


def _kept(activations: Activations) -> int:
    """How many vectors are held out where none are given."""
    kept = min(len(activations) // 10, _HELD_OUT)
    if kept < 2:
        raise ValueError(
            f"{activations.name} must hold 20 vectors or more where none are held out apart, "
            f"got {len(activations)}"
        )
    return kept


def steps_of(
    epochs: float, activations: Activations, held_out: Activations | None, batch: int
) -> int:
    """Batches of as many passes over what :func:`train` trains on, rounded up."""
    epochs, batch = checks.positive("epochs", epochs), checks.integer("batch", batch, 1)
    rows = len(activations) - (_kept(activations) if held_out is None else 0)
    return math.ceil(epochs * rows / batch)


def _first(activations: Activations, settings: Settings) -> SparseAutoencoder:
    """Random unit atoms by the seed, b_dec the mean of the first vectors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = SparseAutoencoder(
            activations.width, settings.p, settings.m, positive=settings.positive
        )
    with torch.no_grad():
        model.b_dec.copy_(activations.rows(slice(0, 16_384)).mean(0))
    return model


def _described(activations: Activations, digest: str) -> dict[str, Any]:
    """Without its name: a file may be moved."""
    shape = [len(activations), activations.width]
    return {"shape": shape, "dtype": activations.dtype, "digest": digest}


def sizes(m: int, p: int) -> list[int]:
    """m, and those of evaluations with codes that are sparser or denser."""
    return sorted({k for k in (m // 4, m // 2, m, 2 * m) if 1 <= k <= p})


def _evaluated(
    what: str, stages: int, model: SparseAutoencoder, held_out: Activations, progress: bool
) -> list[dict[str, Any]]:
    """The model as it is, and with other m, which grow as its own do."""
    rows = []
    for m in sizes(model.m[-1], model.code_size):
        entries = m if len(set(model.m)) == 1 else growing(m, stages)
        other = SparseAutoencoder.from_weights(
            **dict(model.named_parameters(recurse=False)), **(model.options() | {"m": entries})
        )
        found = evaluate(other, held_out, progress=progress)
        rows.append(_row(what, stages, m, m == model.m[-1], found))
    return rows


def pursued(
    model: SparseAutoencoder, sizes: Sequence[int], held_out: Activations, progress: bool
) -> list[dict[str, Any]]:
    """Evaluations of the solvers over the atoms of the model, each with every m of ``sizes``."""
    rows = []
    for what, coder in CODERS.items():
        for m in sizes:
            found = evaluate(model, held_out, coder=coder(model, m), progress=progress)
            rows.append(_row(what, 0, m, m == model.m[-1], found))
    return rows


def _row(what: str, stages: int, m: int, trained: bool, found: Evaluation) -> dict[str, Any]:
    summary = found.summary()
    return {"method": what, "stages": stages, "m": m, "trained_m": trained, **summary}


def _thinned(history: Tensor, most: int = 400) -> list[tuple[int, list[float]]]:
    """Some of the steps, the last one among them: a page and a record need no more."""
    stride = max(len(history) // most, 1)
    kept = sorted({*range(0, len(history), stride), len(history) - 1})
    return [(i, history[i].tolist()) for i in kept]
