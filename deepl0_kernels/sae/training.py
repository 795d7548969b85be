"""The training loop: shuffled batches, an optimiser, and a checkpoint that resumes to the bit."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from .._isolation import isolated, refuse_inference
from .._optional import progress_bar
from .._report import record
from ..distributed.sharding import part_of
from ..ops import checks, placements
from .activations import Activations
from .losses import DeadUnits
from .model import SparseAutoencoder
from .optimizer import SparseAdam

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Columns of a history, one row a step.
HISTORY = ("loss", "mse", "fvu", "aux", "l0", "dead")
# Shares of the steps in which the learning rate rises from 0, and falls to 0.
_RISE, _FALL = 1 / 20, 1 / 5


@isolated(grad=True)
def fit(
    model: SparseAutoencoder,
    activations: Activations | Tensor | NDArray[Any],
    *,
    steps: int,
    batch: int = 1024,
    lr: float = 1e-3,
    seed: int = 0,
    aux_coefficient: float = 1 / 32,
    l0_coefficient: float = 0.0,
    dead_after: int | None = None,
    checkpoint: str | PathLike[str] | None = None,
    every: int = 500,
    digest: str | None = None,
    data: Any = None,
    progress: bool = False,
    description: str = "training",
) -> Tensor:
    """Train an autoencoder on activations, in place.

    Args:
        model: what to train, float32 or float64, on any device. It starts from its weights. Atoms
            stay at norm 1 if all are at the start, and are free if not.
        activations: vectors [N, n] of its width, or an array or tensor of them; of a mapped file a
            batch is in memory at a time.
        steps: > 0, batches to train on, from a new shuffle in every pass over the vectors.
        batch: > 0, vectors in a batch.
        lr: > 0, of :class:`SparseAdam`; it rises in the first twentieth and falls to 0 in the last
            fifth of the steps.
        seed: >= 0, of the shuffles.
        aux_coefficient: >= 0. l0_coefficient: >= 0; both of :meth:`SparseAutoencoder.loss`.
        dead_after: > 0, of :class:`DeadUnits`; None: one pass over the vectors, at most 10 million.
        checkpoint: a file that is written now and then, and at the end; where it exists, the
            training goes on from it, to the bits that it would have had without an interruption
            (on the same machine, with as many threads). None: none.
        every: > 0, steps between checkpoints.
        digest: of :meth:`Activations.check`; None: it is called.
        data: a process group; each of its ranks takes its part of every batch, and gradients and
            counts are those of the whole batch. None: this rank takes all. A dictionary whose units
            are sharded (:func:`deepl0_kernels.distributed.shard_units`) is trained as it is.
        progress: show a bar (needs tqdm). description: of the bar.

    Returns:
        float64 [steps, 6]: loss, mse, fvu, aux, l0 of every batch, and the number of dead units.

    Raises:
        TypeError, ValueError: an argument that does not fit, or activations with a number that is
            not finite, named with the value; a checkpoint of another training, whose settings that
            differ are named, or one that cannot be read; a loss that is not finite.

    Example:
        >>> from deepl0_kernels import sae
        >>> model = sae.SparseAutoencoder(16, 64, m=4)
        >>> history = sae.fit(model, torch.randn(512, 16), steps=20, batch=64)
        >>> history.shape, bool(history[-1, 0] < history[0, 0])
        (torch.Size([20, 6]), True)
    """
    checks.instance("model", model, SparseAutoencoder, "a SparseAutoencoder")
    activations = Activations.of(activations)
    activations.fits(model.in_features, "the autoencoder")
    refuse_inference(model)
    checks.boolean("progress", progress)
    checks.instance("digest", digest, (str, NoneType), "a word or None")
    ranks = checks.ranks("data", data)
    path = None if checkpoint is None else checks.path("checkpoint", checkpoint)
    if model.W.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"model must be float32 or float64 to be trained, got {model.W.dtype}")
    every = checks.integer("every", every, 1)
    rows = len(activations)
    settings: dict[str, Any] = {
        "steps": checks.integer("steps", steps, 1),
        "batch": checks.integer("batch", batch, 1),
        "lr": checks.positive("lr", lr),
        "seed": checks.integer("seed", seed, 0),
        "aux_coefficient": checks.nonnegative("aux_coefficient", aux_coefficient),
        "l0_coefficient": checks.nonnegative("l0_coefficient", l0_coefficient),
        "dead_after": checks.integer(
            "dead_after", min(rows, 10_000_000) if dead_after is None else dead_after, 1
        ),
        "model": repr(model.options()),
        "weights": weights_digest(model),
        "activations": activations.check(progress) if digest is None else digest,
    }
    if batch % ranks:
        raise ValueError(
            f"batch must be divided by the {ranks} ranks that share it, got {settings['batch']}"
        )
    share = batch // ranks
    first = 0 if data is None else share * dist.get_rank(data)
    dead = DeadUnits(model.code_size, settings["dead_after"]).to(model.W.device)
    others = [p for p in model.parameters() if p is not model.D]
    groups = [{"params": others}, {"params": [model.D], "unit_norm": has_unit_atoms(model)}]
    optimizer = SparseAdam(groups, lr=settings["lr"])
    sampler = Shuffled(rows, batch, seed)
    history = torch.zeros(steps, len(HISTORY), dtype=torch.float64)
    run, begin = _Run(settings, model, optimizer, dead, sampler, history), 0
    if path is not None and path.exists():
        begin = run.resume(path)
    training = model.training
    model.train()
    for step in progress_bar(range(begin, steps), description, show=progress, total=steps,
                             initial=begin):  # fmt: skip
        for group in optimizer.param_groups:
            group["lr"] = settings["lr"] * schedule(step, steps)
        mine = sampler.draw()[first : first + share]
        x = activations.rows(mine).to(model.W.device, model.W.dtype)
        if model.flatten_heads:
            x = x.unflatten(-1, (1, -1))
        out = model.loss(
            x,
            dead=dead.units(),
            aux_coefficient=settings["aux_coefficient"],
            l0_coefficient=settings["l0_coefficient"],
        )
        row = [out.loss, out.mse, out.fvu, out.aux, out.l0]
        told = torch.stack([*(v.detach().double() for v in row), row[0].new_zeros(())])
        history[step] = told if data is None else _of_all(told, x, data)
        if not math.isfinite(history[step, 0].item()):
            raise ValueError(
                f"the loss is {history[step, 0].item()} in step {step}: lr = {lr} may be too large"
            )
        optimizer.zero_grad()
        out.loss.backward()
        for parameter in model.parameters():
            _mean(parameter.grad, data)
        optimizer.step()
        dead.update(out.code, data)
        history[step, -1] = len(dead.units())
        done = step + 1
        if path is not None and (done == steps or done % every == 0):
            run.store(path, done)
    model.train(training)
    return history


def _of_all(told: Tensor, x: Tensor, data: Any) -> Tensor:
    """A row of the history of the whole batch; FVU, which is no mean, from its parts."""
    x = x.double().reshape(-1, x.shape[-1])
    moments = torch.cat([told, x.mean(0), x.square().sum(1).mean()[None]])
    _mean(moments, data)
    told, mean, squares = moments[: len(told)], moments[len(told) : -1], moments[-1]
    told[HISTORY.index("fvu")] = told[HISTORY.index("mse")] / (squares - mean.square().sum())
    return told


def _mean(t: Any, data: Any) -> Any:
    """Over the ranks that share a batch, in place; each has as much of it."""
    if data is not None and t is not None:
        here = t.to_local() if placements.is_dtensor(t) else t
        flat = here.t() if here.dim() == 2 and not here.is_contiguous() else here
        dist.all_reduce(flat, group=data)
        flat /= dist.get_world_size(data)
    return t


def has_unit_atoms(model: SparseAutoencoder) -> bool:
    """All of norm 1, but for rounding."""
    D: Any = model.D.detach()
    here = D.to_local() if placements.is_dtensor(D) else D
    norms = torch.linalg.vector_norm(here, dim=0)
    far = ((norms - 1).abs() >= 1e-3).sum()
    return not (placements.units_of_tensor(D).sum(far) if placements.is_dtensor(D) else far)


def schedule(step: int, steps: int) -> float:
    """Factor of the learning rate in a step, counted from 0."""
    rise, fall = max(round(_RISE * steps), 1), max(round(_FALL * steps), 1)
    return min(1.0, (step + 1) / rise, (steps - step) / fall)


class Shuffled:
    """Indices of batches: every pass over ``rows`` vectors is a new permutation, which depends on
    the seed and the number of the pass alone; a batch may reach over two passes."""

    def __init__(self, rows: int, batch: int, seed: int) -> None:
        self.rows, self.batch, self.seed = rows, batch, seed
        self.drawn = 0  # vectors so far
        self._order: tuple[int, Tensor] | None = None

    def _pass(self, number: int) -> Tensor:
        if self._order is None or self._order[0] != number:
            key = hashlib.blake2b(f"{self.seed} {number}".encode(), digest_size=7).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
            self._order = number, torch.randperm(self.rows, generator=generator)
        return self._order[1]

    def draw(self) -> Tensor:
        """int64 [batch], ascending: neighbours in a file are read together."""
        parts, wanted = [], self.batch
        while wanted:
            number, at = divmod(self.drawn, self.rows)
            parts.append(self._pass(number)[at : at + wanted])
            self.drawn += len(parts[-1])
            wanted -= len(parts[-1])
        return torch.cat(parts).sort().values


def weights_digest(model: SparseAutoencoder) -> str:
    """Of the weights that a training starts from."""
    found = hashlib.blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        found.update(name.encode())
        plain = _whole(parameter.detach())
        for piece in plain.t().split(1 << 12) if name == "D" else [plain]:
            found.update(piece.contiguous().numpy(force=True).data)
    return found.hexdigest()


@dataclass
class _Run:
    """A training, as a checkpoint holds it."""

    settings: dict[str, Any]
    model: SparseAutoencoder
    optimizer: torch.optim.Optimizer
    dead: DeadUnits
    sampler: Shuffled
    history: Tensor

    def store(self, path: Path, done: int) -> None:
        """On the first rank; the others give it their units."""
        finished = done == self.settings["steps"]
        held = {
            "settings": self.settings,
            "step": done,
            "model": _tree(self.model.state_dict(), _whole),
            "optimizer": None if finished else _tree(self.optimizer.state_dict(), _whole),
            "dead": self.dead.state_dict(),
            "drawn": self.sampler.drawn,
            "history": self.history[:done].clone(),
        }
        if not dist.is_initialized() or dist.get_rank() == 0:
            record.write_tensors(path, held)

    def resume(self, path: Path) -> int:
        """The number of steps that are done, with everything as it was after them."""
        found = record.read_tensors(path)
        with record.reading(path):
            before = dict(found["settings"])
        same_settings(path, before, self.settings)
        with record.reading(path):
            done = int(found["step"])
            own = self.model.state_dict()
            self.model.load_state_dict({k: part_of(t, own[k]) for k, t in found["model"].items()})
            self.dead.load_state_dict(found["dead"])
            self.sampler.drawn = int(found["drawn"])
            self.history[:done] = found["history"]
            if done < self.settings["steps"]:
                parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
                state = found["optimizer"]["state"]
                for i, of in state.items():
                    state[i] = {
                        k: part_of(t, parameters[i]) if isinstance(t, Tensor) else t
                        for k, t in of.items()
                    }
                self.optimizer.load_state_dict(found["optimizer"])
        return done


def _whole(t: Any) -> Any:
    return placements.whole(t) if placements.is_dtensor(t) else t


def _tree(held: Any, change: Callable[[Any], Any]) -> Any:
    """A state dict with other tensors."""
    if isinstance(held, dict):
        return {key: _tree(value, change) for key, value in held.items()}
    return [_tree(v, change) for v in held] if isinstance(held, list) else change(held)


def same_settings(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """What ``path`` holds was made by these settings.

    Raises:
        ValueError: by others; they are named with both values.
    """
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        listed = ", ".join(f"{key} = {before.get(key)!r}, not {now[key]!r}" for key in changed)
        raise ValueError(
            f"{path} holds a training with {listed}: give another folder, or the same settings to "
            "go on"
        )
