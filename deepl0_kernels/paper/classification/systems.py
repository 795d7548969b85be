"""The rows of Tables 4 and 5: how each system is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...nn import LISTA, DeepL0Encoder, DeepMSparseEncoder
from ...solvers import TaskDrivenDictionary, fista
from ...training import Classifier, Course, fit_to_classes, fit_to_codes
from .. import deep
from ..deep import DEEP, DEEP_L0
from .data import Labelled
from .protocol import Protocol

TDSC = "TDSC"
TUNED_LISTA = "LISTA, tuned"
METHODS = (TDSC, TUNED_LISTA, *DEEP)


class Fitted(NamedTuple):
    """A trained system.

    Attributes:
        losses: of the start, if that is trained for itself, and of each epoch.
        predict: signals [N, n] to classes [N]. encode: signals [N, n] to dense codes [N, p].
        filters: [p, n], rows of W; the atoms of TDSC. course: looked at before the first and after
            each epoch.
        theta, theta_start: thresholds [p] after and before training, where there are any.
    """

    losses: list[float]
    predict: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]
    filters: Tensor
    course: Course
    theta: Tensor | None = None
    theta_start: Tensor | None = None


def fit(
    method: str,
    protocol: Protocol,
    D: Tensor,
    data: Labelled,
    seed: int,
    progress: bool,
    description: str,
) -> Fitted:
    """Train ``method`` from the dictionary D [n, p]; may overwrite the training signals."""
    if method == TDSC:
        return _task_driven(protocol, D, data, seed, progress)
    options: dict[str, Any] = dict(
        batch_size=min(protocol.batch_size, len(data.x)),
        clip=protocol.clip,
        seed=seed,
        progress=progress,
        description=description,
    )
    encoder: LISTA | DeepL0Encoder | DeepMSparseEncoder
    theta_start: Tensor | None
    if method == TUNED_LISTA:
        lr = protocol.lista_lr
        encoder = LISTA.from_dictionary(D, protocol.lam, protocol.num_stages)
        theta_start = _thresholds(encoder)
        codes = fista(data.x, D, protocol.lam, history=False).dense
        epochs = protocol.pretrain_epochs
        fit_to_codes(encoder, data.x, codes, epochs=epochs, lr=protocol.pretrain_lr, **options)
    else:
        encoder = deep.encoder(method, protocol, D, protocol.inside)
        lr = protocol.l0_lr if method == DEEP_L0 else protocol.m_sparse_lr
        theta_start = _thresholds(encoder)
        options.update(sigma_factor=protocol.sigma_factor, sigma_floor=protocol.sigma_floor)
    options.update(weight_decay=protocol.weight_decay, vector_rate=protocol.vector_rate)
    network = Classifier(encoder, D.shape[1], data.classes, dropout=protocol.dropout)
    course = Course(encoder, encoder, data.x)

    def begin(epoch: int) -> None:
        course.look()
        if data.begin is not None:
            data.begin(epoch)

    losses = fit_to_classes(
        network, data.x, data.y, epochs=protocol.epochs, lr=lr, begin=begin, **options
    )
    course.look()
    theta = _thresholds(encoder)
    W = encoder.W.detach()
    return Fitted(losses, lambda x: network(x).argmax(1), encoder, W, course, theta, theta_start)


def _thresholds(encoder: LISTA | DeepL0Encoder | DeepMSparseEncoder) -> Tensor | None:
    """Those [p] of the last stage, if it has any."""
    if isinstance(encoder, DeepMSparseEncoder):
        return None
    theta = encoder.theta.detach()
    return theta if theta.dim() == 1 else theta[-1]


def _task_driven(
    protocol: Protocol, D: Tensor, data: Labelled, seed: int, progress: bool
) -> Fitted:
    scale = data.x.shape[1] ** -0.5  # mean square 1 to norm 1
    unit = D / D.norm(dim=0).clamp_min(torch.finfo(D.dtype).tiny)
    model = TaskDrivenDictionary(
        unit,
        data.classes,
        protocol.tdsc_lam,
        protocol.tdsc_lam2,
        protocol.tdsc_nu,
        tol=protocol.tdsc_tol,
        max_iter=protocol.tdsc_max_iter,
    )

    def encode(x: Tensor) -> Tensor:
        return model.encode(scale * x)

    x = scale * data.x
    first = model.fit_head(x, data.y)
    course = Course(model, encode, data.x)

    def begin(epoch: int) -> None:
        course.look()
        if data.begin is not None:
            data.begin(epoch)
            torch.mul(data.x, scale, out=x)

    losses = model.fit(
        x,
        data.y,
        epochs=protocol.tdsc_epochs,
        batch_size=min(protocol.tdsc_batch_size, len(x)),
        lr=protocol.tdsc_lr,
        seed=seed,
        begin=begin,
        progress=progress,
    )
    course.look()
    atoms = model.D.detach().T
    return Fitted([first, *losses], lambda x: model(scale * x).argmax(1), encode, atoms, course)
