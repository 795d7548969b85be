"""Dictionary learning: from a stream, or over a set of signals."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .._files import write_atomically
from .._isolation import isolated
from .._optional import progress_bar
from ..ops import checks
from . import step as steps
from .updates import MOD, OnlineL1, Outcome, Unrolled, Update, like

METHODS = ("unrolled", "l1", "mod")
# Default patience of a stream: so many signals an atom. One in use gets m / p of the signals.
_PATIENCE = 50
# Default patience over a set of signals.
_EPOCHS = 3
# Largest entries of the signals, between 2^-e and 2^e: gradients are of their size squared, and
# Adam squares those.
_RANGE = {torch.float32: 2.0**20, torch.float64: 2.0**150}


@dataclass(frozen=True)
class DictionaryResult:
    """A dictionary and what is known of it.

    Attributes:
        D: [n, p].
        loss: mean objective of each epoch, every batch coded before it changed D; empty for a
            stream, whose learner returns the objective of each batch.
        squared_norm: ||D||_2^2.
        coherence: largest |cosine| between two atoms.
        usage: [p], share of the signals that use each atom, over the last ``patience`` signals.
        dead_atoms: atoms that no signal has used since they were drawn or replaced.
        replaced: how many atoms were dead and replaced on the way.
        atom_norms: smallest and largest norm of an atom.

    Example:
        >>> x = torch.randn(256, 8)
        >>> result = dk.solvers.learn_dictionary(x, 12, m=2, epochs=2, batch_size=64)
        >>> result.D.shape, len(result.loss), result.usage.shape
        (torch.Size([8, 12]), 2, torch.Size([12]))
    """

    D: Tensor
    loss: tuple[float, ...]
    squared_norm: float
    coherence: float
    usage: Tensor
    dead_atoms: int
    replaced: int
    atom_norms: tuple[float, float]


class DictionaryLearner:
    """A dictionary that learns from batches as they come.

    Methods, each from its source:

    * ``"unrolled"`` (m or lam): K stages of IHT (step 1) from zero code a batch; Adam follows the
      gradient of the objective through all of them, from the nearest tight frame to the initial
      atoms, and D is projected to ``||D||_2 <= 1``: the
      dictionary for which an encoder of few stages is good (the codes of Blumensath and Davies
      2008, the gradient of Gregor and LeCun 2010).
    * ``"l1"`` (lam): ``1/2 ||x - D a||^2 + lam ||a||_1``, codes by :func:`fista`, one sweep of
      block coordinate descent over the atoms in the unit ball (Mairal, Bach, Ponce, Sapiro 2009,
      2010).
    * ``"mod"`` (m): ``1/2 ||x - D a||^2`` s.t. ``||a||_0 <= m``, codes by :func:`omp`, least
      squares for all atoms at once, scaled to unit norm (Engan, Aase, Husoy 1999; on a stream
      Skretting and Engan 2010).

    The last two leave ``||D||_2^2`` at 30 to 160 on image patches; the solvers adapt their step.
    An atom that ``patience`` signals in a row have not used is dead, and what the code leaves of
    the signal that is represented worst takes its place.

    Args:
        p: atoms.
        method: one of the above.
        m, lam: the nonzeros of a code, or the penalty of ``||a||_0`` or ``||a||_1``: the one that
            the method takes.
        num_stages: K of "unrolled".
        lr: of Adam ("unrolled").
        total_steps: batches that will come: Adam's rate then rises and falls in one cycle. None:
            it stays at ``lr``, and the stream has no end.
        forgetting: of "l1" and "mod": after t batches the k-th weighs (k / t)^forgetting in what
            D is fitted to; 0 forgets nothing.
        patience: in signals; None for 50 p.
        tol, max_iter: of the l1 codes.
        seed: of the initial dictionary, which is signals of the first batch plus noise.
        positive: nonnegative codes; the atoms keep their signs.

    Raises:
        TypeError, ValueError: an argument out of range, named with the value seen.

    Example:
        >>> learner = dk.solvers.DictionaryLearner(24, m=3)
        >>> for _ in range(5):  # a stream of batches
        ...     objective = learner.partial_fit(torch.randn(64, 16))
        >>> learner.result().D.shape
        torch.Size([16, 24])
    """

    def __init__(
        self,
        p: int,
        *,
        method: str = "unrolled",
        m: int | None = None,
        lam: float | None = None,
        num_stages: int = 5,
        lr: float = 1e-2,
        total_steps: int | None = None,
        forgetting: float = 6.0,
        patience: int | None = None,
        tol: float = 1e-4,
        max_iter: int = 1000,
        seed: int = 0,
        positive: bool = False,
    ) -> None:
        checks.one_of("method", method, METHODS)
        p = checks.integer("p", p, 1)
        if method == "unrolled":
            steps.one_problem(m, lam)
        if method == "l1" and (m is not None or lam is None):
            raise ValueError(f"method 'l1' takes lam and no m, got m={m} and lam={lam}")
        if method == "mod" and (m is None or lam is not None):
            raise ValueError(f"method 'mod' takes m and no lam, got m={m} and lam={lam}")
        self.options: dict[str, Any] = {
            "p": p,
            "method": method,
            "m": None if m is None else checks.integer("m", m, 1, p, "p"),
            "lam": None if lam is None else checks.positive("lam", lam),
            "num_stages": checks.integer("num_stages", num_stages, 1),
            "lr": checks.positive("lr", lr),
            "total_steps": None
            if total_steps is None
            else checks.integer("total_steps", total_steps, 1),
            "forgetting": checks.nonnegative("forgetting", forgetting),
            "patience": _PATIENCE * p
            if patience is None
            else checks.integer("patience", patience, 1),
            "tol": checks.positive("tol", tol),
            "max_iter": checks.integer("max_iter", max_iter, 1),
            "seed": checks.integer("seed", seed, -(2**63), 2**63 - 1, "2**63 - 1"),
            "positive": checks.boolean("positive", positive),
        }
        self.generator = torch.Generator().manual_seed(self.options["seed"])
        self._update: Update | None = None
        self._seen = self._replaced = 0

    @isolated(True)
    def partial_fit(self, x: Tensor) -> float:
        """Learn from one batch x [B, n], float32 or float64; n and dtype stay what they were first.

        The first batch also gives the initial dictionary, unless the state was loaded.

        Returns:
            The mean objective of the batch, coded before it changed D.

        Raises:
            ValueError: x is not finite, of another shape or dtype than before, empty, or (the first
                time) all 0; m above n for "mod".

        "unrolled": 6 K p^2 flops a signal at most, n p^2 and min(n, p)^3; the others: the codes,
        p^2 a signal, and 2 n p^2 ("mod": and p^3).
        """
        x = _signals(x)
        if self._update is None:
            self.begin(x)
        assert self._update is not None
        n = self._update.D.shape[0]
        if x.shape[1] != n:
            raise ValueError(f"x must be [B, n] with n = {n}, got {tuple(x.shape)}")
        checks.like("x", x, "D", self._update.D)
        outcome = _advance(x, self._update)
        self._keep_count(x, outcome)
        return outcome.objective

    @isolated(True)
    def begin(self, x: Tensor) -> None:
        """Draw the initial dictionary from the signals x [N, n]; what was learned is forgotten.

        Raises:
            ValueError: x is not finite, empty or all 0; or m above n for "mod".
        """
        x = _signals(x)
        if not x.any():
            raise ValueError(f"x must not be all 0, got shape {tuple(x.shape)}")
        if (largest := x.abs().max().item()) < (low := 1 / _RANGE[x.dtype]):
            raise ValueError(
                f"x must have its largest entry >= {low:.2g}, got {largest:.3g}: scale it"
            )
        p, n = self.options["p"], x.shape[1]
        if self.options["method"] == "mod":
            checks.integer("m", self.options["m"], 1, min(n, p), "min(n, p)")
        noise = torch.randn(n, p, generator=self.generator, dtype=x.dtype).to(x.device)
        order = torch.randperm(len(x), generator=self.generator)
        # Fewer signals than atoms: they come again, and the noise tells them apart.
        spread = x.std() if x.numel() > 1 else x.abs().sum()
        D = x[order.repeat(-(-p // len(x)))[:p]].T + 0.1 * spread * noise
        self._update = self._updating(D)
        self._seen = self._replaced = 0
        self._idle = torch.zeros(p, dtype=torch.int64, device=x.device)
        self._used = torch.zeros(p, dtype=torch.bool, device=x.device)
        self._usage = torch.zeros(p, dtype=torch.float64, device=x.device)

    @isolated(False)
    def result(self, loss: tuple[float, ...] = ()) -> DictionaryResult:
        """The dictionary as it is, a copy, and what is known of it; ``loss`` is handed through.

        Raises:
            RuntimeError: no batch has come yet.
        """
        if self._update is None:
            raise RuntimeError("no dictionary yet: partial_fit has not been called")
        D = self._update.result()
        norms = D.norm(dim=0)
        unit = D / torch.where(norms > 0, norms, 1.0)
        return DictionaryResult(
            D,
            loss,
            steps.squared_norm(D),
            (unit.T @ unit).fill_diagonal_(0).abs().max().item(),
            self._usage.clone(),
            int((~self._used).sum()),
            self._replaced,
            (norms.min().item(), norms.max().item()),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that :meth:`load_state_dict` needs to go on to the last bit.

        Numbers, strings and tensors alone: ``torch.load(..., weights_only=True)`` reads it.

        Raises:
            RuntimeError: no batch has come yet.
        """
        if self._update is None:
            raise RuntimeError("no dictionary yet: partial_fit has not been called")
        return {
            "options": dict(self.options),
            "update": self._update.state_dict(),
            "generator": self.generator.get_state(),
            "seen": self._seen,
            "replaced": self._replaced,
            "idle": self._idle.clone(),
            "used": self._used.clone(),
            "usage": self._usage.clone(),
        }

    @isolated(True)
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a learner that was made with the same options.

        Raises:
            TypeError, ValueError: no such state, other options, or entries that are missing or
                damaged; nothing has changed then.
        """
        checks.instance("state", state, dict, "a dict")
        wanted = ("options", "update", "generator", "seen", "replaced", "idle", "used", "usage")
        if missing := [key for key in wanted if key not in state]:
            raise ValueError(f"state lacks {', '.join(missing)}; it has {', '.join(state)}")
        refuse_differences("state", state["options"], self.options)
        p = self.options["p"]
        try:
            # What was made in inference mode serves no training.
            state = tree_map_only(Tensor, torch.clone, state)
            D = state["update"]["D"]
            if not isinstance(D, Tensor) or D.dim() != 2 or D.shape[1] != p or not len(D):
                raise ValueError(f"D must be [n, p] with p = {p}")
            update = self._updating(like("D", D, D))
            update.load_state_dict(state["update"])
            generator = torch.Generator()
            generator.set_state(state["generator"])
            seen, replaced = (checks.integer(k, state[k], 0) for k in ("seen", "replaced"))
            counts = [torch.zeros(p, dtype=t) for t in (torch.int64, torch.bool, torch.float64)]
            idle, used, usage = (
                like(key, state[key], own)
                for key, own in zip(("idle", "used", "usage"), counts, strict=True)
            )
        except KeyError as error:
            raise ValueError(f"state lacks {error} in update") from error
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"state is damaged: {error}") from error
        self._update, self.generator = update, generator
        self._seen, self._replaced = seen, replaced
        self._idle, self._used, self._usage = idle, used, usage

    def _updating(self, D: Tensor) -> Update:
        o = self.options
        if o["method"] == "l1":
            return OnlineL1(D, o["forgetting"], o["lam"], o["tol"], o["max_iter"], o["positive"])
        if o["method"] == "mod":
            return MOD(D, o["forgetting"], o["m"], o["positive"])
        names = ("m", "lam", "num_stages", "lr", "total_steps", "positive")
        return Unrolled(D, **{name: o[name] for name in names})

    def _keep_count(self, x: Tensor, outcome: Outcome) -> None:
        """Usage, idle atoms, and new ones for the dead."""
        assert self._update is not None
        active = outcome.used > 0
        self._seen += len(x)
        share = min(1.0, len(x) / min(self._seen, self.options["patience"]))
        self._usage += share * (outcome.used / len(x) - self._usage)
        self._used |= active
        self._idle = torch.where(active, 0, self._idle + len(x))
        dead = (self._idle >= self.options["patience"]).nonzero()[:, 0]
        if not len(dead):
            return
        error = outcome.residual.square().sum(1)
        worst = error.argsort(descending=True, stable=True)[: len(dead)]
        worst = worst[error[worst] > 0]
        dead = dead[: len(worst)]
        self._update.replace(dead, outcome.residual[worst] / error[worst, None].sqrt())
        self._idle[dead], self._used[dead], self._usage[dead] = 0, False, 0
        self._replaced += len(dead)


@isolated(True)
def learn_dictionary(
    x: Tensor,
    p: int,
    *,
    method: str = "unrolled",
    m: int | None = None,
    lam: float | None = None,
    num_stages: int = 5,
    epochs: int = 8,
    batch_size: int = 256,
    lr: float = 1e-2,
    forgetting: float = 6.0,
    patience: int | None = None,
    tol: float = 1e-4,
    max_iter: int = 1000,
    seed: int = 0,
    positive: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> DictionaryResult:
    """Learn a dictionary from a set of signals: epochs of a :class:`DictionaryLearner`.

    Args:
        x: [N, n] float32 or float64, N >= p and >= batch_size.
        p, method, m, lam, num_stages, lr, forgetting, tol, max_iter, positive: as in
            :class:`DictionaryLearner`; the rate of "unrolled" goes through one cycle.
        epochs, batch_size: every epoch goes through the signals in another order; what does not
            fill a batch is left out of it.
        patience: None for three epochs; a dictionary that has just been begun uses some atoms
            rarely, and comes to use them.
        seed: of the initialisation (p signals plus noise) and the order of batches; the result is
            deterministic for a given number of threads.
        checkpoint: a file that is written, whole or not at all, after every epoch; if it exists, it
            is gone on from, and the result has the same bits as without the interruption.
        progress: show a bar (needs tqdm).

    Raises:
        ValueError: x not finite or all 0, sizes that do not fit, m or lam that the method does not
            take; or the checkpoint is damaged or of other signals or arguments.
        ModuleNotFoundError: ``progress`` without tqdm.

    Example:
        >>> x = torch.randn(256, 8)
        >>> result = dk.solvers.learn_dictionary(x, 12, m=2, epochs=2, batch_size=64)
        >>> result.D.shape
        torch.Size([8, 12])
    """
    x = _signals(x)
    p = checks.integer("p", p, 1, len(x), "N")
    batch_size = checks.integer("batch_size", batch_size, 1, len(x), "N")
    epochs = checks.integer("epochs", epochs, 1)
    batches = len(x) // batch_size
    learner = DictionaryLearner(
        p,
        method=method,
        m=m,
        lam=lam,
        num_stages=num_stages,
        lr=lr,
        total_steps=batches * epochs,
        forgetting=forgetting,
        patience=_EPOCHS * batches * batch_size if patience is None else patience,
        tol=tol,
        max_iter=max_iter,
        seed=seed,
        positive=positive,
    )
    checks.boolean("progress", progress)
    path = None if checkpoint is None else checks.path("checkpoint", checkpoint)
    arguments = {"epochs": epochs, "batch_size": batch_size, **learner.options}
    losses: list[float] = []
    if path is not None:
        arguments["x"] = _fingerprint(x)
    if path is not None and path.exists():
        saved = _read(path)
        refuse_differences(str(path), saved["arguments"], arguments)
        try:
            learner.load_state_dict(saved["learner"])
            losses = [float(loss) for loss in saved["losses"]]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    else:
        learner.begin(x)
    for epoch in range(len(losses), epochs):
        order = torch.randperm(len(x), generator=learner.generator)
        total = 0.0
        description = f"dictionary, epoch {epoch + 1}/{epochs}"
        for i in progress_bar(range(batches), description, show=progress):
            total += learner.partial_fit(x[order[i * batch_size : (i + 1) * batch_size]])
        losses.append(total / batches)
        if path is not None:
            buffer = io.BytesIO()
            state = {"arguments": arguments, "losses": losses, "learner": learner.state_dict()}
            torch.save(state, buffer)
            write_atomically(path, buffer.getvalue())
    return learner.result(tuple(losses))


def _advance(x: Tensor, update: Update) -> Outcome:
    return update(x)


def _signals(x: Tensor) -> Tensor:
    """x is finite float32 or float64 [N, n], not empty; returned detached."""
    checks.floating("x", x)
    if x.dim() != 2 or x.dtype not in (torch.float32, torch.float64) or 0 in x.shape:
        raise ValueError(f"x must be float32 or float64 [N, n], got {x.dtype} {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(f"x must be finite, got {bad} entries that are nan or inf")
    if (largest := x.abs().max().item()) > (high := _RANGE[x.dtype]):
        raise ValueError(
            f"x must have its largest entry <= {high:.2g}, got {largest:.3g}: scale it"
        )
    return x.detach()


def refuse_differences(name: str, saved: dict[str, Any], given: dict[str, Any]) -> None:
    """The same keys with the same values, or an error that names the first that differ."""
    if not isinstance(saved, dict):
        raise ValueError(f"{name} must say of which options it is, got {saved!r}")
    saved = {"positive": False} | saved  # what was saved before there was a choice
    for key in given:
        if key not in saved or saved[key] != given[key]:
            raise ValueError(f"{name} is of {key} = {saved.get(key)}, got {key} = {given[key]}")


def _read(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    try:
        saved = torch.load(io.BytesIO(content), weights_only=True)
        if missing := {"arguments", "losses", "learner"} - set(saved):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except Exception as error:  # torch.load has no error of its own
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    return saved


def _fingerprint(x: Tensor) -> str:
    content = hashlib.sha256(f"{x.dtype} {tuple(x.shape)}".encode())
    content.update(x.contiguous().cpu().numpy().tobytes())
    return content.hexdigest()
