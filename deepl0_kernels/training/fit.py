"""Training: the loop, what it minimises to predict codes, classes or clusters, how codes fare."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .._isolation import isolated, refuse_inference
from .._optional import progress_bar
from ..nn import ClusterHead, SigmaSchedule
from ..nn.unrolled import Ramped
from ..ops import checks

SIGMA = 0.2  # of HELU's ramp in the first epoch


@isolated(grad=True)
def minimise(
    network: nn.Module,
    loss: Callable[[Tensor], Tensor],
    count: int,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    clip: float,
    seed: int,
    sigma_factor: float = 0.1,
    sigma_floor: float = 0.05,
    weight_decay: float = 0.0,
    vector_rate: float = 1.0,
    groups: Sequence[dict[str, Any]] | None = None,
    begin: Callable[[int], None] | None = None,
    progress: bool = False,
    description: str = "training",
) -> list[float]:
    """AdamW with a one-cycle rate on ``loss(rows)``, rows a batch of indices below ``count``.

    What does not fill a batch waits for the next epoch's order.

    Args:
        network: what is trained; left in evaluation mode.
        loss: of indices [batch_size], a scalar. count: > 0, of what they count.
        epochs: >= 1. batch_size: 1 to ``count``.
        lr: > 0, the highest rate. seed: of the order of the batches.
        clip: > 0, bound of the gradient's norm: entries on HELU's ramp multiply it by 1 / sigma.
        sigma_factor, sigma_floor: of the :class:`deepl0_kernels.nn.SigmaSchedule` of every
            encoder in the network that has a sigma; a factor of 0 stands for the one that takes
            sigma from 0.2 to its floor in the last epoch.
        weight_decay: >= 0, that of AdamW, for the network's matrices.
        vector_rate: > 0, factor of lr for all else: biases, logarithms of thresholds.
        groups: the optimiser's; None for all parameters of the network, by these two.
        begin: ``begin(epoch)`` is called before each epoch.
        progress: show a bar (needs tqdm). description: of the bar.

    Returns:
        The mean loss of each epoch.

    Raises:
        TypeError, ValueError: a number out of range, named with the value seen; a parameter of the
            network was made in inference mode.
        RuntimeError: the loss is not finite any more.

    Example:
        >>> from deepl0_kernels import training
        >>> layer, x = torch.nn.Linear(4, 1), torch.randn(32, 4)
        >>> options = dict(epochs=3, batch_size=8, lr=0.1, clip=1.0, seed=0)
        >>> def loss(rows):
        ...     return layer(x[rows]).square().mean()
        >>> losses = training.minimise(layer, loss, 32, **options)
        >>> losses[-1] < losses[0]
        True
    """
    checks.module("network", network)
    refuse_inference(network)
    checks.function("loss", loss)
    checks.function("begin", begin, none=True)
    checks.boolean("progress", progress)
    count = checks.integer("count", count, 1)
    epochs = checks.integer("epochs", epochs, 1)
    batch_size = checks.integer("batch_size", batch_size, 1, count, "count")
    lr, clip = checks.positive("lr", lr), checks.positive("clip", clip)
    weight_decay = checks.nonnegative("weight_decay", weight_decay)
    vector_rate = checks.positive("vector_rate", vector_rate)
    sigma_floor = checks.number("sigma_floor", sigma_floor)
    if checks.number("sigma_factor", sigma_factor) == 0:
        sigma_factor = min(1.0, sigma_floor / SIGMA) ** (1 / max(1, epochs - 1))
    generator = torch.Generator().manual_seed(checks.seed("seed", seed))
    batches = count // batch_size
    # Of untied encoders the logarithms of the thresholds are a row a stage.
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, p in network.named_parameters():
        is_vector = p.dim() <= 1 or name.rpartition(".")[2] == "log_theta"
        (vectors if is_vector else matrices).append(p)
    parameters: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "lr": vector_rate * lr},
    ]
    if groups is not None:
        parameters = checks.several("groups", groups)
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group.get("lr", lr) for group in parameters],
        total_steps=batches * epochs,
        # It divides by pct_start * total_steps - 1.
        pct_start=0.2 if batches * epochs == 10 else 0.1,
    )
    sigmas = [
        SigmaSchedule(module, SIGMA, sigma_factor, sigma_floor)
        for module in network.modules()
        if isinstance(module, Ramped)
    ]
    losses = []
    network.train()
    steps = ((epoch, i) for epoch in range(epochs) for i in range(batches))
    order, total = torch.empty(0), 0.0
    for epoch, i in progress_bar(steps, description, show=progress, total=epochs * batches):
        if i == 0:
            order, total = torch.randperm(count, generator=generator), 0.0
            if epoch > 0:
                for sigma in sigmas:
                    sigma.step()
            if begin is not None:
                begin(epoch)
        value = loss(order[i * batch_size : (i + 1) * batch_size])
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        rate.step()
        total += value.item()
        if i == batches - 1:
            losses.append(total / batches)
            if not math.isfinite(total):
                raise RuntimeError(f"training diverged: loss {total} in epoch {epoch + 1}")
    network.eval()
    return losses


class Course:
    """How sparse the codes of a few training signals are as a model trains.

    Args:
        model: put into evaluation mode for each look, and back. encode: signals [B, n] to codes
            [B, p], by that model.
        x: [N, n] training signals; :attr:`SIGNALS` of them at even distances are copied.

    Attributes:
        nonzeros: of a code, the mean of each look. dead_units: entries that no code uses.

    Example:
        >>> from deepl0_kernels import training
        >>> encoder = dk.nn.DeepMSparseEncoder(16, 32, m=4)
        >>> course = training.Course(encoder, encoder, torch.randn(100, 16))
        >>> course.look()
        >>> course.nonzeros
        [4.0]
    """

    SIGNALS = 256

    def __init__(self, model: nn.Module, encode: Callable[[Tensor], Tensor], x: Tensor) -> None:
        checks.module("model", model)
        checks.function("encode", encode)
        checks.floating("x", x, 2)
        self.model, self.encode = model, encode
        rows = torch.linspace(0, len(x) - 1, min(len(x), self.SIGNALS)).round().long()
        self.x = x[rows]
        self.nonzeros: list[float] = []
        self.dead_units: list[int] = []

    @isolated(grad=False)
    def look(self) -> None:
        """Encode the signals once and note what is found; nothing random is drawn."""
        training = self.model.training
        self.model.eval()
        used = self.encode(self.x) != 0
        self.model.train(training)
        self.nonzeros.append(used.sum(1).double().mean().item())
        self.dead_units.append(int((~used.any(0)).sum()))


@isolated(grad=True)
def fit_to_codes(encoder: nn.Module, x: Tensor, a: Tensor, **options: Any) -> list[float]:
    """Train ``encoder`` to predict codes a [N, p] of signals x [N, n]: squared error a signal.

    The options, the result and the errors are those of :func:`minimise`; codes must be as many as
    signals, and of the size that the encoder gives.

    Example:
        >>> from deepl0_kernels import training
        >>> x, D = torch.randn(64, 16), torch.nn.functional.normalize(torch.randn(16, 32), dim=0)
        >>> problem = training.MSparse(m=3)
        >>> optimal, encoder = problem.optimal(x, D).dense, problem.encoder(D)
        >>> options = dict(epochs=5, batch_size=16, lr=1e-3, clip=1.0, seed=0)
        >>> losses = training.fit_to_codes(encoder, x, optimal, **options)
        >>> losses[-1] < losses[0]
        True
    """

    checks.module("encoder", encoder)
    checks.floating("x", x)
    checks.floating("a", a, 2)
    checks.has_shape("a", a, (len(x), *a.shape[1:]), "[N, p]")

    def loss(rows: Tensor) -> Tensor:
        codes = encoder(x[rows])
        checks.has_shape("a", a, (len(a), *codes.shape[1:]), "[N, p]")
        return (codes - a[rows]).square().sum() / len(rows)

    return minimise(encoder, loss, len(x), **options)


class _Head(nn.Linear):
    """A linear layer whose start is zero, also when it is reset."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class Classifier(nn.Sequential):
    """An encoder and a linear layer: signals [..., n] to the logits of ``classes`` classes.

    Args:
        encoder: signals [..., n] to dense codes [..., code_size].
        code_size, classes: sizes of the layer.
        dropout: in [0, 1), the share of a code's entries that training leaves out, the others
            scaled up.

    The layer starts at zero: nothing is known of the classes, and all of its errors are informative
    from the first step.

    Example:
        >>> from deepl0_kernels import training
        >>> encoder = dk.nn.DeepMSparseEncoder(16, 32, m=4)
        >>> network = training.Classifier(encoder, code_size=32, classes=3)
        >>> network(torch.randn(8, 16)).shape
        torch.Size([8, 3])
    """

    def __init__(
        self, encoder: nn.Module, code_size: int, classes: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        checks.module("encoder", encoder)
        checks.integer("code_size", code_size, 1)
        checks.integer("classes", classes, 1)
        if not 0 <= checks.number("dropout", dropout) < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        like = next(encoder.parameters(), torch.empty(0))
        self.encoder = encoder
        if dropout:
            self.dropout = nn.Dropout(dropout)
        self.head = _Head(code_size, classes, device=like.device, dtype=like.dtype)


def cross_entropies(
    network: nn.Module, x: Tensor, y: Tensor, weights: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """The loss of a batch for :func:`minimise`: mean softmax cross-entropy of ``network(x)``
    [N, classes] against y [N] int64, each times its weight, of ``weights`` [N].

    Raises:
        TypeError, ValueError: tensors that do not fit, a class that the network does not know; each
            named.

    Example:
        >>> from deepl0_kernels import training
        >>> network, x, y = torch.nn.Linear(4, 3), torch.randn(10, 4), torch.arange(10) % 3
        >>> training.cross_entropies(network, x, y)(torch.tensor([0, 1, 2])).shape
        torch.Size([])
    """

    checks.module("network", network)
    checks.floating("x", x)
    most = checks.labels("y", y, len(x))
    if weights is not None:
        checks.floating("weights", weights)
        checks.has_shape("weights", weights, (len(x),), "[N]")

    def loss(rows: Tensor) -> Tensor:
        logits = network(x[rows])
        if most >= logits.shape[-1]:
            raise ValueError(f"y must be < classes = {logits.shape[-1]}, got {most}")
        if weights is None:
            return cross_entropy(logits, y[rows])
        return (cross_entropy(logits, y[rows], reduction="none") * weights[rows]).mean()

    return loss


@isolated(grad=True)
def fit_to_classes(
    network: nn.Module, x: Tensor, y: Tensor, weights: Tensor | None = None, **options: Any
) -> list[float]:
    """Minimise the cross-entropy of ``network(x)`` against y, end to end.

    The arguments are those of :func:`cross_entropies`; the options, the result and the errors are
    those of :func:`minimise`.

    Example:
        >>> from deepl0_kernels import training
        >>> x, y = torch.randn(64, 16), torch.arange(64) % 3
        >>> network = training.Classifier(dk.nn.DeepMSparseEncoder(16, 32, m=4), 32, 3)
        >>> options = dict(epochs=3, batch_size=16, lr=1e-2, clip=1.0, seed=0)
        >>> losses = training.fit_to_classes(network, x, y, **options)
        >>> losses[-1] < losses[0]
        True
    """
    return minimise(network, cross_entropies(network, x, y, weights), len(x), **options)


class Clusters(nn.Module):
    """An ``encoder`` of dense codes and a :class:`ClusterHead`, ``head``, of its code size.

    Example:
        >>> from deepl0_kernels import training
        >>> encoder = dk.nn.DeepMSparseEncoder(16, 32, m=4)
        >>> training.Clusters(encoder, dk.nn.ClusterHead(32, 3))(torch.randn(8, 16)).shape
        torch.Size([8, 3])
    """

    def __init__(self, encoder: nn.Module, head: ClusterHead) -> None:
        super().__init__()
        checks.module("encoder", encoder)
        checks.instance("head", head, ClusterHead, "a ClusterHead")
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities [..., clusters] of signals x [..., n]."""
        return self.head(self.encoder(x))


@isolated(grad=True)
def fit_to_clusters(
    network: Clusters, x: Tensor, *, balance: float = 0.0, **options: Any
) -> list[float]:
    """Entropy of the assignments of x [N, n], end to end; see :meth:`ClusterHead.entropy`.

    Start the head from a clustering. The other options, the result and the errors are those of
    :func:`minimise`.

    Example:
        >>> from deepl0_kernels import training
        >>> x, encoder = torch.randn(64, 16), dk.nn.DeepMSparseEncoder(16, 32, m=4)
        >>> head = training.start_head(encoder(x).detach(), clusters=3, seed=0)
        >>> network = training.Clusters(encoder, head)
        >>> options = dict(epochs=2, batch_size=16, lr=1e-3, clip=1.0, seed=0)
        >>> len(training.fit_to_clusters(network, x, balance=1.0, **options))
        2
    """

    checks.instance("network", network, Clusters, "Clusters")
    checks.floating("x", x)

    def loss(rows: Tensor) -> Tensor:
        return network.head.entropy(network.encoder(x[rows]), balance)

    return minimise(network, loss, len(x), **options)
