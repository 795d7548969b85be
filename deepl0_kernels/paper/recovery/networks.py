"""The networks of the recovery tables: how they start, what their stages give, how they learn."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..._optional import progress_bar
from ...nn import LISTA, DeepHTPEncoder, DeepL0Encoder, DeepMSparseEncoder
from ...ops import helu, keep_top_m, soft_threshold
from ...solvers import analytic_weights
from ...training import calibrate, minimise
from ...training.calibrate import attempt, least
from .protocol import SHOWN, Protocol, Recovery

LEARNED_LISTA, COUPLED, ALISTA = "LISTA", "LISTA-CP", "ALISTA"
ANALYTIC = ", analytic W"
DEEP_L0, DEEP_M, DEEP_HTP = "Deep l0", "Deep M-Sparse", "Deep HTP"
# What a gradient trains: numbers a stage, or matrices too.
NUMBERS = (ALISTA, DEEP_M + ANALYTIC, DEEP_L0 + ANALYTIC)
MATRICES = (LEARNED_LISTA, COUPLED, DEEP_M, DEEP_L0)
# What the rows of W are multiplied by where the l1 networks start: the one that errs least.
_FACTORS = (0.35, 0.5, 0.7, 1.0)
# What the refitting encoder's steps are chosen from.
_STEPS = (1.0, 1.2, 1.4)
ROWS = 1000  # signals at a time


class Coupled(nn.Module):
    """LISTA-CP, or ALISTA: ``z <- soft(z + step_k W_k (x - D z), theta_k)`` with the D given, in
    which the largest entries of a stage, more from stage to stage, are left as they are.

    W_k are learned, [K, p, n], or one W that is given and steps. Sources: Chen, Liu, Wang, Yin
    2018; Liu, Chen, Wang, Yin 2019.
    """

    def __init__(self, D: Tensor, num_stages: int, selected: float, learned: bool) -> None:
        super().__init__()
        W = analytic_weights(D)
        self.num_stages, self.learned = num_stages, learned
        self.W = nn.Parameter(W.repeat(num_stages, 1, 1) if learned else W, learned)
        self.atoms = nn.Parameter(D.T.contiguous(), False)
        self.log_theta = nn.Parameter(torch.zeros(num_stages))
        self.log_step = nn.Parameter(torch.zeros(num_stages), not learned)
        grown = torch.linspace(selected / num_stages, selected, num_stages)
        self.selected = [min(int(count), D.shape[1]) for count in grown]

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """The codes [B, p] of x [B, n] after each stage."""
        theta, step, z = self.log_theta.exp(), self.log_step.exp(), None
        # Not one at a time: of each the gradient would be that of all, and zero but for one.
        weights = self.W.unbind() if self.learned else [self.W] * self.num_stages
        for k, W in enumerate(weights):
            residual = x if z is None else x - z @ self.atoms
            u = step[k] * (residual @ W.T)
            u = u if z is None else z + u
            z = self.shrunk(k, u, theta[k])
            yield z

    def shrunk(self, k: int, u: Tensor, theta: Tensor | float) -> Tensor:
        """The codes of stage k: u [B, p] but for its largest entries shrunk by theta."""
        kept = keep_top_m(u, self.selected[k])
        return kept + soft_threshold(u - kept, theta)

    @torch.no_grad()
    def calibrate(self, x: Tensor, codes: Tensor) -> None:
        """The threshold and the step (or factor of W_k) of each stage in turn that err least. With
        steps of 1 it need not converge: of 1,000 unknowns errors doubled from stage to stage."""

        def begin(u: Tensor) -> float:
            return u.abs().mean(1).max().item()

        z, error = torch.zeros_like(codes), codes.double().square().sum().item()
        for k in range(self.num_stages):
            change = (x - z @ self.atoms) @ (self.W[k] if self.learned else self.W).T
            keep = partial(self.shrunk, k)
            at = partial(attempt, keep, codes, z, change, begin)
            error, level, z, factor = least(at, _FACTORS, error)
            self.log_theta[k] = math.log(level)
            if self.learned:
                self.W[k] *= factor
            else:
                self.log_step[k] = math.log(factor)


Network = Coupled | LISTA | DeepL0Encoder | DeepMSparseEncoder | DeepHTPEncoder


def stages(network: Network, x: Tensor) -> Iterator[Tensor]:
    """The codes [B, p] of x [B, n] after each stage of a network, differentiable."""
    if isinstance(network, (Coupled, DeepHTPEncoder)):
        yield from network.stages(x)
        return
    z = torch.zeros(len(x), network.code_size)
    S = network.S if isinstance(network, LISTA) else None
    between = () if S is None else (S,) * (network.num_stages - 1) if network.tied else S.unbind()
    for k in range(network.num_stages):
        if isinstance(network, LISTA):
            theta, c = network.theta, x @ network.W.T
            if k:
                c = c + z @ between[k - 1].T
            z = soft_threshold(c, theta if network.tied else theta[k])
        else:
            assert network.atoms is not None
            assert network.step is not None
            residual = x - z @ network.atoms if k else x
            u = z + network.step[k] * (residual @ network.W.T)
            if isinstance(network, DeepMSparseEncoder):
                assert isinstance(network.m, tuple)
                z = keep_top_m(u, network.m[k])
            else:
                sigma = network.sigma if network.training else 0.0
                z = helu(u, network.theta[k], sigma, grad=network.grad)
        yield z


def shortened(network: Network, k: int) -> Callable[[Tensor], Tensor]:
    """The first k stages: an encoder of k, or the loop of a network that is none of ours."""
    if isinstance(network, (Coupled, LISTA)):
        return lambda x: next(itertools.islice(stages(network, x), k - 1, None))
    short = copy.deepcopy(network)
    short.num_stages = k
    for name in ("log_step", "log_theta", "momentum"):
        if (parameter := short._parameters.get(name)) is not None:
            setattr(short, name, nn.Parameter(parameter[:k].detach().clone()))
    if isinstance(short, (DeepMSparseEncoder, DeepHTPEncoder)) and isinstance(short.m, tuple):
        short.m = short.m[:k]
    return short.eval()


def start(method: str, D: Tensor, protocol: Protocol, lam: float = 0.1) -> Network:
    """The network of a method before it has seen a signal; ``lam`` of the ISTA that it unrolls."""
    (n, p), K = D.shape, protocol.stages
    if method in (COUPLED, ALISTA):
        return Coupled(D, K, protocol.selected * protocol.nonzeros, method == COUPLED)
    if method == LEARNED_LISTA:
        return LISTA.from_dictionary(D, lam, K, tied=False)
    if method == DEEP_HTP:
        return DeepHTPEncoder.from_dictionary(
            D, protocol.refit_m, K, steps=1.0, momentum=0.0, eval_sigma=protocol.refit_sigma
        )
    network: DeepL0Encoder | DeepMSparseEncoder
    if method.startswith(DEEP_M):
        m = [min(protocol.nonzeros, p)] * K
        network = DeepMSparseEncoder(n, p, m, K, factored=True, steps=1.0)
    else:
        network = DeepL0Encoder(
            n, p, K, tied=False, grad=protocol.l0_grad, factored=True, steps=1.0
        )
    assert network.atoms is not None
    with torch.no_grad():
        network.W.copy_(analytic_weights(D))
        network.atoms.copy_(D.T)
    if method.endswith(ANALYTIC):
        network.W.requires_grad_(False)
        network.atoms.requires_grad_(False)
    return network


def fit(
    network: Network, data: Recovery, description: str, progress: bool, gradient: bool = True
) -> list[float]:
    """Calibrate all but LISTA, then train what is to be trained. Returns the mean loss of each
    epoch: the mean of all stages' NMSE, in dB."""
    protocol = data.protocol
    if isinstance(network, Coupled):
        network.calibrate(*data.calibration())
    elif isinstance(network, DeepHTPEncoder):
        _calibrate_refitting(network, data, description, progress)
    elif not isinstance(network, LISTA):
        calibrate(network, *data.calibration())
    if not gradient:
        return []
    numbers: list[Tensor] = []
    matrices: list[Tensor] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            (numbers if name.startswith("log_") else matrices).append(parameter)
    epochs = protocol.epochs if matrices else protocol.number_epochs
    jumps = isinstance(network, DeepL0Encoder)
    number_lr = protocol.l0_number_lr if jumps else protocol.number_lr
    groups: list[dict[str, Any]] = [{"params": numbers, "lr": number_lr}]
    if matrices:
        l1 = isinstance(network, (Coupled, LISTA))
        groups.append({"params": matrices, "lr": protocol.lr if l1 else protocol.deep_lr})
    drawn: list[Tensor] = []

    def begin(epoch: int) -> None:
        drawn[:] = data.training(epoch)

    def loss(rows: Tensor) -> Tensor:
        y, a = (t[rows] for t in drawn)
        total = a.square().sum()
        errors = [(z - a).square().sum() / total for z in stages(network, y)]
        return 10 * torch.stack(errors).log10().mean()

    return minimise(
        network, loss, protocol.training, epochs=epochs, batch_size=protocol.batch_size,
        lr=number_lr, clip=protocol.clip, seed=data.seed, groups=groups, begin=begin,
        progress=progress, description=description,
    )  # fmt: skip


def _calibrate_refitting(
    network: DeepHTPEncoder, data: Recovery, description: str, progress: bool
) -> None:
    """Calibrated on the calibration signals, or on half of them and as many of most nonzeros, with
    supports of refit_m in every stage, or that grow to it as the root of k: what errs least of the
    first training signals, in dB of SHOWN, each times its stages. Where one signal in thousands
    decides the error, few at random do not tell; where noise does, those of most nonzeros do not.
    """
    protocol, found = data.protocol, []
    m, K = protocol.refit_m, network.num_stages
    signals = [t[: protocol.test] for t in data.training(0)]
    half = min(protocol.calibration // 2, len(signals[1]))
    hard = (signals[1] != 0).sum(1).topk(half).indices
    some = data.calibration()
    mixed = [torch.cat([t[half:], u[hard]]) for t, u in zip(some, signals, strict=True)]
    choices = list(itertools.product((some, mixed), (1, protocol.refit_grown)))
    for seen, grown in progress_bar(choices, description, show=progress, total=len(choices)):
        network.m = tuple(math.ceil(m * min(1.0, (k / grown) ** 0.5)) for k in range(1, K + 1))
        calibrate(network, *seen, factors=_STEPS)
        errors = torch.zeros(K)
        with torch.no_grad():
            for y, a in zip(*(t.split(ROWS) for t in signals), strict=True):
                errors += torch.stack([(z - a).square().sum() for z in network.stages(y)])
        score = sum(k * errors[k - 1].log().item() for k in SHOWN)
        found.append((score, network.m, copy.deepcopy(network.state_dict())))
    _, network.m, state = min(found, key=lambda each: each[0])
    network.load_state_dict(state)
