"""Every choice of Tables 6 and 7 in one place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ...ops import checks
from ...ops.thresholds import GRADS
from ...solvers.graph import nonnegative
from ...solvers.step import positive
from ..settings import changed

DATA = ("coil20", "cmu_pie")
STARTS = ("kmeans", "spectral")
# What must be at least 1.
_COUNTS = (
    "every", "size", "inits", "neighbours", "num_stages", "dictionary_epochs", "epochs",
    "batch_size", "tagnet_steps", "joint_steps", "joint_max_iter",
)  # fmt: skip


@dataclass(frozen=True)
class Protocol:
    """The choices of one table; a run stores them beside its results.

    All methods see all images and no label; they are told the number of classes. They start from
    dictionaries learned for their own sparsity (the rivals from that of the l0-regularised problem
    at ``lam``) and from the same kind of clustering: k-means of their own codes, or (``start`` =
    spectral) the spectral clustering of the signals, either turned into a head by logistic
    regression. Then they lower their loss end to end. The last epoch counts.

    None of these values was chosen by an error; docs/clustering.md says what was known when.
    """

    data: str = "coil20"
    every: int = 1  # image of so many, in the order of the file
    size: int = 16  # side of the images after area averaging
    whiten: int = 0  # principal components, each scaled to variance 1; 0: the pixels
    start: str = "kmeans"
    inits: int = 10  # of every k-means
    ridge: float = 1e-5  # of the logistic regression, times the mean squared norm of the codes
    balance: float = 0.0  # weight of the entropy of the mean assignment
    neighbours: int = 5  # of the graph: the rivals' Laplacian, and spectral clustering
    alpha: float = 5.0  # weight of the graph in the rivals' codes
    lam: float = 0.5  # l1 penalty of the rivals
    l0_lam: float = 0.5  # of Deep l0-Regularized
    num_stages: int = 2
    dictionary_epochs: int = 40
    dictionary_lr: float = 1e-2
    epochs: int = 20
    batch_size: int = 128
    lr: float = 1e-3
    clip: float = 1.0
    l0_grad: str = "ste_theta"  # derivatives of the thresholds, see deepl0_kernels.helu
    sigma_factor: float = 0.1
    sigma_floor: float = 0.05
    tagnet_steps: int = 100  # on all signals at once: the graph does not allow batches
    joint_steps: int = 20  # of D and head, each with new codes
    joint_lam2: float = 1e-2
    joint_nu: float = 1e-3
    joint_tol: float = 1e-3
    joint_max_iter: int = 200

    def quickened(self) -> Protocol:
        """A run of a minute that exercises everything; its errors say little."""
        return replace(
            self,
            every=6,
            inits=2,
            dictionary_epochs=5,
            epochs=5,
            batch_size=64,
            tagnet_steps=10,
            joint_steps=3,
            joint_max_iter=50,
        )

    def changed(self, settings: Iterable[str]) -> Protocol:
        """With fields set anew, each written ``name=value``; a bad one is a ValueError."""
        protocol = changed(self, settings, DATA)
        checks.one_of("l0_grad", protocol.l0_grad, tuple(GRADS))
        for name in ("lam", "l0_lam", "joint_lam2", "lr", "ridge"):
            positive(name, getattr(protocol, name))
        for name in ("balance", "alpha", "joint_nu"):
            nonnegative(name, getattr(protocol, name))
        checks.one_of("start", protocol.start, STARTS)
        for name in _COUNTS:
            checks.integer(name, getattr(protocol, name), 1)
        checks.integer("whiten", protocol.whiten, 0, protocol.size**2, "size^2")
        return protocol


PROTOCOLS = {"table6": Protocol(), "table7": Protocol(data="cmu_pie")}
