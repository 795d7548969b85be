"""What an autoencoder leaves of activations, and which of its units they use."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._isolation import isolated
from .._optional import progress_bar
from ..ops import SparseCode, checks
from ..solvers import iht_m, omp
from .activations import Activations
from .model import SparseAutoencoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Decades of the share of vectors that a unit fires on.
DECADES = tuple(range(-7, 1))


@dataclass(frozen=True)
class Evaluation:
    """Of one autoencoder, or of another way to code over its atoms, on some vectors.

    Attributes:
        fvu: fraction of variance unexplained, see :func:`fvu`.
        mse: ``||x - x_hat||^2``, summed over a vector, mean over the vectors.
        l0: mean number of nonzeros of a code.
        vectors: how many there were.
        fired: int64 [p], vectors that each unit has a nonzero in.

    Example:
        >>> from deepl0_kernels import sae
        >>> vectors = sae.Activations(torch.randn(100, 16))
        >>> found = sae.evaluate(sae.SparseAutoencoder(16, 64, m=4), vectors)
        >>> found.vectors, found.l0 <= 4, found.fired.shape
        (100, True, torch.Size([64]))
    """

    fvu: float
    mse: float
    l0: float
    vectors: int
    fired: Tensor

    @property
    def dead(self) -> int:
        """Units without a nonzero in any vector."""
        return int((self.fired == 0).sum())

    @property
    def densities(self) -> Tensor:
        """float64 [p]: the share of vectors that each unit fires on."""
        return self.fired.double() / self.vectors

    def histogram(self) -> dict[str, int]:
        """Units by the decade of their density, and those that never fired; all but the dead of
        one decade hold ``10^d <= density < 10^(d + 1)``, the lowest what is below too."""
        alive = self.densities[self.fired > 0]
        decade = alive.log10().floor().clamp(DECADES[0], -1).long()
        counts = {f"1e{d}": int((decade == d).sum()) for d in DECADES[:-1]}
        return {"never": self.dead, **counts}

    def summary(self) -> dict[str, Any]:
        """Numbers and words alone."""
        return {
            "vectors": self.vectors,
            "fvu": self.fvu,
            "mse": self.mse,
            "l0": self.l0,
            "dead": self.dead,
            "units": len(self.fired),
            "firing": self.histogram(),
        }


@isolated(grad=False)
def evaluate(
    model: SparseAutoencoder,
    activations: Activations | Tensor | NDArray[Any],
    *,
    batch: int = 1024,
    coder: Callable[[Tensor], SparseCode | Tensor] | None = None,
    progress: bool = False,
) -> Evaluation:
    """Reconstruct all activations, a batch at a time.

    Args:
        model: the autoencoder, left as it is; weights in half types are widened to float32.
        activations: vectors [N, n] of its width, or an array or tensor of them.
        batch: > 0, vectors at a time.
        coder: gives the codes in place of the model's encoder, of x [B, n]; None: the encoder.
        progress: show a progress bar.

    Returns:
        :class:`Evaluation`.

    Raises:
        TypeError, ValueError: another width, or an argument out of range, named with its value;
            numbers that are not finite, with their place; vectors that are all equal, and have no
            variance.

    Example:
        >>> from deepl0_kernels import sae
        >>> sae.evaluate(sae.SparseAutoencoder(16, 64, m=4), torch.randn(100, 16)).vectors
        100
    """
    checks.instance("model", model, SparseAutoencoder, "a SparseAutoencoder")
    activations = Activations.of(activations)
    activations.fits(model.in_features, "the autoencoder")
    checks.function("coder", coder, none=True)
    checks.boolean("progress", progress)
    batch = checks.integer("batch", batch, 1)
    training = model.training
    if model.W.dtype not in (torch.float32, torch.float64):
        model = model.deepen(model.num_stages).float()
    model.eval()
    spread, error, nonzeros = _Spread(), 0.0, 0
    fired = torch.zeros(model.code_size, dtype=torch.int64)
    total = math.ceil(len(activations) / batch)
    bar = progress_bar(activations.batches(batch), "evaluating", show=progress, total=total)
    try:
        for x in bar:
            x = x.to(model.W.device, model.W.dtype)
            vectors = x.unflatten(-1, (1, -1)) if model.flatten_heads else x
            code = model.encode(vectors) if coder is None else coder(x)
            x_hat = model.decode(code, like=vectors).reshape(x.shape)
            spread.add(x)
            error += (x - x_hat).double().square().sum().item()
            counts = _fired(code, model.code_size).cpu()
            fired += counts
            nonzeros += int(counts.sum())
    finally:
        model.train(training)
    if not spread.squares > 0:  # NaN included, which has another reason
        activations.check()
        raise activations.no_variance()
    rows = len(activations)
    return Evaluation(error / spread.squares, error / rows, nonzeros / rows, rows, fired)


def pursuit(
    model: SparseAutoencoder, m: int, *, full: bool = False
) -> Callable[[Tensor], SparseCode]:
    """Matching pursuit over the atoms of an autoencoder, a coder for :func:`evaluate`.

    Args:
        model: its atoms, which must be of norm 1, b_dec and ``positive`` serve; not its encoder.
        m: >= 1, nonzeros at most.
        full: False: m steps, as SAELens's matching_pursuit with ``max_iterations=m`` and
            ``residual_threshold=0``, which ends a vector after a step that leaves its support as
            it was: codes have fewer than m nonzeros then. True: up to 4 m steps, and a vector ends
            where the next atom would be the m + 1st.

    SAELens's takes positive entries alone; of signed ones the largest by magnitude is taken.
    O(p n) a vector and step.

    Raises:
        TypeError, ValueError: m is no such number, an atom has another norm, or the model
            normalises what it encodes.
    """
    m = checks.integer("m", m, 1, model.code_size, "code_size")
    _plain(model)
    atoms = model.D.detach().t()
    norms = torch.linalg.vector_norm(atoms, dim=1)
    if bool(((norms - 1).abs() > 1e-3).any()):
        raise ValueError(
            f"the atoms must be of norm 1, got {norms.min().item():g} to {norms.max().item():g}"
        )

    def code(x: Tensor) -> SparseCode:
        residual = x - model.b_dec
        z = residual.new_zeros(len(x), model.code_size)
        done = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
        count = torch.zeros_like(done, dtype=torch.int64)
        for _ in range(4 * m if full else m):
            u = residual @ atoms.t()
            best = (u if model.positive else u.abs()).max(1, keepdim=True).indices
            value = (residual * atoms[best[:, 0]]).sum(1, keepdim=True)
            value = value.clamp_min(0) if model.positive else value
            new = z.gather(1, best) == 0
            if full:
                done = done | (value == 0) | (new & (count == m))
            value = torch.where(done, 0.0, value)
            z.scatter_add_(1, best, value)
            residual = residual - value * atoms[best[:, 0]]
            new = new & (value != 0)
            count += new
            if not full:
                done = done | ~new
            if bool(done.all()):
                break
        indices = z.abs().topk(m, dim=1).indices.sort(dim=1).values
        return SparseCode(z.gather(1, indices), indices, model.code_size)

    return code


def orthogonal_pursuit(model: SparseAutoencoder, m: int) -> Callable[[Tensor], SparseCode]:
    """:func:`deepl0_kernels.solvers.omp` over the atoms of an autoencoder, see :func:`pursuit`.

    Args:
        model: as there. m: 1 <= m <= min(n, p), atoms.

    Raises:
        TypeError, ValueError: m is no such number, or the model normalises what it encodes.
    """
    m = checks.integer("m", m, 1, min(model.in_features, model.code_size), "min(n, p)")
    _plain(model)
    D = model.D.detach()

    def code(x: Tensor) -> SparseCode:
        found = omp(x - model.b_dec, D, m, positive=model.positive).code
        assert isinstance(found, SparseCode)
        return found

    return code


def normalised_iht(
    model: SparseAutoencoder, m: int, *, max_iter: int = 100
) -> Callable[[Tensor], SparseCode]:
    """:func:`deepl0_kernels.solvers.iht_m` with ``step="normalized"`` (NIHT, Blumensath and Davies
    2010) over the atoms of an autoencoder, see :func:`pursuit`.

    Args:
        model: as there. m: 1 <= m <= p, entries of a code.
        max_iter: > 0, iterations at most, of O(p n) a vector each.

    Raises:
        TypeError, ValueError: m is no such number, or the model normalises what it encodes.
    """
    m = checks.integer("m", m, 1, model.code_size, "code_size")
    _plain(model)
    D = model.D.detach()

    def code(x: Tensor) -> SparseCode:
        found = iht_m(
            x - model.b_dec, D, m, step="normalized", max_iter=max_iter, history=False,
            positive=model.positive,
        ).code  # fmt: skip
        assert isinstance(found, SparseCode)
        return found

    return code


def _plain(model: SparseAutoencoder) -> None:
    if model.normalize != "none" or model.scale_by_norms or model.flatten_heads:
        raise ValueError(
            "a pursuit is of x - b_dec over the atoms as they are; the model has "
            f"normalize={model.normalize!r}, scale_by_norms={model.scale_by_norms}, "
            f"flatten_heads={model.flatten_heads}"
        )


def _fired(code: SparseCode | Tensor, p: int) -> Tensor:
    """int64 [p]: rows with a nonzero in each unit."""
    if isinstance(code, SparseCode):
        return torch.bincount(code.indices[code.values != 0], minlength=p)
    return (code.reshape(-1, p) != 0).sum(0)


class _Spread:
    """Sum of ``||x - mean||^2`` over batches, merged pairwise in float64 (Chan, Golub, LeVeque)."""

    def __init__(self) -> None:
        self.count, self.squares = 0, 0.0
        self.mean: Tensor | None = None

    def add(self, x: Tensor) -> None:
        x = x.double()
        mean, count = x.mean(0), len(x)
        squares = (x - mean).square().sum().item()
        if self.mean is None:
            self.mean, self.squares = mean, squares
        else:
            apart, whole = mean - self.mean, self.count + count
            self.squares += squares + apart.square().sum().item() * self.count * count / whole
            self.mean = self.mean + apart * (count / whole)
        self.count += count
