"""Every choice of Tables 6 and 7 in one place."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...ops import checks
from ...ops.thresholds import GRADS
from ..settings import Settings, count, number, one_of

DATA = ("coil20", "cmu_pie")
STARTS = ("kmeans", "spectral")


@dataclass(frozen=True)
class Protocol(Settings):
    """The choices of one table; a run stores them beside its results.

    All methods see all images and no label; they are told the number of classes. They start from
    dictionaries learned for their own sparsity (the rivals from that of the l0-regularised problem
    at ``lam``) and from the same kind of clustering: k-means of their own codes, or (``start`` =
    spectral) the spectral clustering of the signals, either turned into a head by logistic
    regression. Then they lower their loss end to end. The last epoch counts.

    None of these values was chosen by an error; docs/clustering.md says what was known when.
    """

    data: str = one_of("coil20", DATA)
    every: int = count(1)  # image of so many, in the order of the file
    size: int = count(16)  # side of the images after area averaging
    whiten: int = count(0, least=0)  # principal components, each of variance 1; 0: the pixels
    start: str = one_of("kmeans", STARTS)
    inits: int = count(10)  # of every k-means
    # of the logistic regression, times the mean squared norm of the codes
    ridge: float = number(1e-5, above=0)
    balance: float = number(0.0)  # weight of the entropy of the mean assignment
    neighbours: int = count(5)  # of the graph: the rivals' Laplacian, and spectral clustering
    alpha: float = number(5.0)  # weight of the graph in the rivals' codes
    lam: float = number(0.5, above=0)  # l1 penalty of the rivals
    l0_lam: float = number(0.5, above=0)  # of Deep l0-Regularized
    num_stages: int = count(2)
    dictionary_epochs: int = count(40)
    dictionary_lr: float = number(1e-2, above=0)
    epochs: int = count(20)
    batch_size: int = count(128)
    lr: float = number(1e-3, above=0)
    clip: float = number(1.0, above=0)
    l0_grad: str = one_of("ste_theta", tuple(GRADS))  # see deepl0_kernels.helu
    sigma_factor: float = number(0.1, above=0, most=1)
    sigma_floor: float = number(0.05, above=0, most=0.2)  # the schedule starts at 0.2
    tagnet_steps: int = count(100)  # on all signals at once: the graph does not allow batches
    joint_steps: int = count(20)  # of D and head, each with new codes
    joint_lam2: float = number(1e-2, above=0)
    joint_nu: float = number(1e-3)
    joint_tol: float = number(1e-3, above=0)
    joint_max_iter: int = count(200)

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

    def check(self) -> None:
        super().check()
        checks.integer("whiten", self.whiten, 0, self.size**2, "size^2")


PROTOCOLS = {"table6": Protocol(), "table7": Protocol(data="cmu_pie")}
