"""Every choice of Tables 4 and 5 in one place, and the values they were tuned to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...nn.unrolled import INSIDE
from ...ops.thresholds import GRADS
from ..settings import Settings, count, number, one_of, share

# All of MNIST from $DEEPL0_DATA, the part that the package ships, the scene from $DEEPL0_DATA.
DATA = ("mnist", "subset", "indian_pines")


@dataclass(frozen=True)
class Protocol(Settings):
    """The choices of one table; a run stores them beside its results.

    All methods see the same signals and start from dictionaries learned without labels: the deep
    encoders from those of their own problem, LISTA and TDSC from that of the l0-regularised one at
    ``lam`` (TDSC's atoms scaled to norm 1). The deep encoders are trained end to end from there;
    LISTA is first a regressor of l1 codes, as in the paper. The last epoch counts: no epoch is
    chosen by its error.

    With ``validation`` > 0 that share of the training signals stands in for the test set, which is
    then not looked at: that is how the values were chosen (docs/classification.md). The defaults
    are those of Table 4.
    """

    data: str = one_of("mnist", DATA)
    digits: int = count(60_000)
    held_out: int = count(10_000)
    validation: float = share(0.0, zero=True)
    min_std: float = number(0.1, above=0)
    # How far training digits are moved, anew in each epoch; see warps.Warp. All 0: not at all.
    rotation: float = number(8.0, most=180)
    scale: float = number(0.09, most=1)
    shear: float = number(0.13, most=1)
    shift: float = number(1.2, most=27)
    elastic: float = number(0.7, most=27)
    fraction: float = share(0.2)  # of each class of Indian Pines for training
    context: int = count(0, least=0)  # radius of the mean spectrum appended to a pixel's; 0: none
    # LISTA's l1 penalty, and of the dictionary that it and TDSC start from
    lam: float = number(0.5, above=0)
    l0_lam: float = number(0.5, above=0)  # of Deep l0-Regularized
    num_stages: int = count(2)
    # Thresholds of all stages but the last of the deep encoders; soft ones start at lam.
    inside: str = one_of("hard", INSIDE)
    dictionary_epochs: int = count(6)
    dictionary_lr: float = number(1e-2, above=0)
    epochs: int = count(60)
    batch_size: int = count(128)
    clip: float = number(1.0, above=0)
    l0_lr: float = number(2e-3, above=0)
    l0_grad: str = one_of("ste_theta", tuple(GRADS))  # see deepl0_kernels.helu
    weight_decay: float = number(0.1)
    dropout: float = share(0.0, zero=True)  # of codes, in training
    vector_rate: float = number(5.0, above=0)  # of the thresholds' rate over that of W, S
    sigma_factor: float = number(0.0, most=1)  # 0: the last epoch has the floor
    sigma_floor: float = number(0.05, above=0, most=0.2)  # the schedule starts at 0.2
    m_sparse_lr: float = number(2e-3, above=0)
    lista_lr: float = number(2e-3, above=0)
    pretrain_epochs: int = count(10)
    pretrain_lr: float = number(1e-3, above=0)
    tdsc_lam: float = number(0.03, above=0)  # for signals of norm 1, which TDSC is given
    tdsc_lam2: float = number(1e-2, above=0)
    tdsc_nu: float = number(1e-5)
    tdsc_epochs: int = count(10)
    tdsc_batch_size: int = count(200)
    tdsc_lr: float = number(0.3, above=0)
    tdsc_tol: float = number(1e-4, above=0)
    tdsc_max_iter: int = count(300)

    def quickened(self) -> Protocol:
        """A run of a minute that exercises everything; its errors say little."""
        few: dict[str, Any] = dict(dictionary_epochs=4, pretrain_epochs=3, tdsc_max_iter=50)
        if self.data == "indian_pines":
            return replace(self, fraction=0.1, epochs=30, tdsc_epochs=5, **few)
        few.update(data="subset", digits=3_000, held_out=1_000, epochs=15, tdsc_epochs=2)
        return replace(self, **few)


PROTOCOLS = {
    "table4": Protocol(),
    # A thirtieth of the signals: more passes over them make as many steps.
    "table5": Protocol(
        data="indian_pines",
        rotation=0.0,
        scale=0.0,
        shear=0.0,
        shift=0.0,
        elastic=0.0,
        epochs=200,
        weight_decay=0.0,
        vector_rate=1.0,
        sigma_factor=0.1,
        l0_lr=3e-3,
        m_sparse_lr=1e-2,
        lista_lr=1e-2,
        dictionary_epochs=40,
        pretrain_epochs=60,
        tdsc_lam=0.03,
        tdsc_epochs=40,
        tdsc_batch_size=100,
    ),
}
