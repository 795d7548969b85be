"""Sparse coding by iterative hard thresholding, as a transformer."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .._isolation import isolated
from ..ops import Plan, SparseCode, checks
from ..solvers import iht, iht_m
from .base import SparseEstimator, plain


class IHTSparseCoder(SparseEstimator):
    """Codes by iterative hard thresholding over a dictionary, given or learned.

    Args:
        dictionary: [p, n], a row an atom, as in scikit-learn; None: learned in ``fit``.
        code_size: p of a learned dictionary; None: 2 n.
        m: nonzeros of a code at most; None: the penalty ``lam`` decides.
        lam: of ``1/2 ||x - D a||^2 + lam ||a||_0``, without m.
        step, init, tol: see :func:`deepl0_kernels.solvers.iht`.
        transform_max_iter: iterations of ``transform`` at most.
        dictionary_epochs, batch_size: of the dictionary's training.
        min_steps: little data are passed over until so many steps are made.
        sparse_output: SciPy CSR in place of dense arrays.
        random_state: of the dictionary's training.
        positive_code: codes >= 0, and a dictionary that is learned for such.

    Attributes:
        components_: [p, n], the dictionary.
        n_features_in_, feature_names_in_: of the training data.

    Raises:
        TypeError, ValueError: from ``fit``, an argument out of range, named with its value.

    There is no ``partial_fit``: a dictionary that moves changes what all codes before it meant.
    Costs are those of :func:`deepl0_kernels.solvers.iht` and ``learn_dictionary``.
    Source: Blumensath and Davies 2008.

    Example:
        >>> from deepl0_kernels.sklearn import IHTSparseCoder
        >>> atoms = torch.nn.functional.normalize(torch.randn(8, 6), dim=1).numpy()  # a row an atom
        >>> x = torch.randn(10, 6).numpy()
        >>> IHTSparseCoder(atoms, m=2).fit(x).transform(x).shape
        (10, 8)
    """

    _later: ClassVar = {"positive_code": False}
    _plan: Plan | None = None

    def __init__(
        self,
        dictionary: Any = None,
        *,
        code_size: int | None = None,
        m: int | None = None,
        lam: float = 0.5,
        step: str | float = "lipschitz",
        init: str = "zero",
        tol: float = 1e-5,
        transform_max_iter: int = 1000,
        dictionary_epochs: int = 6,
        batch_size: int = 256,
        min_steps: int = 300,
        sparse_output: bool = False,
        random_state: Any = None,
        positive_code: bool = False,
    ) -> None:
        self.dictionary = dictionary
        self.code_size = code_size
        self.m = m
        self.lam = lam
        self.step = step
        self.init = init
        self.tol = tol
        self.transform_max_iter = transform_max_iter
        self.dictionary_epochs = dictionary_epochs
        self.batch_size = batch_size
        self.min_steps = min_steps
        self.sparse_output = sparse_output
        self.random_state = random_state
        self.positive_code = positive_code

    @isolated(grad=False)
    def fit(self, X: Any, y: Any = None) -> IHTSparseCoder:
        """Learn the dictionary from X [N, n], or check that the given one fits; y is ignored."""
        x, seed = self._signals(X, reset=True), self._seed()
        p = self._check(x)
        positive = checks.boolean("positive_code", plain(self.positive_code))
        checks.integer("transform_max_iter", self.transform_max_iter, 1)
        _solve(x[:0], torch.eye(x.shape[1], p, dtype=x.dtype), self._shape())  # checks the rest
        self._keep(self._learn(x, p, seed, positive))
        self._plan = Plan()
        return self

    def _shape(self) -> dict[str, Any]:
        names = ("m", "lam", "step", "init", "tol", "transform_max_iter", "positive_code")
        return {name: plain(getattr(self, name)) for name in names}

    def _encode(self, x: Tensor) -> Tensor | SparseCode:
        return _solve(x, x.new_tensor(self.components_).T, self._fitted, self._plan)


def _solve(
    x: Tensor, D: Tensor, options: dict[str, Any], plan: Plan | None = None
) -> Tensor | SparseCode:
    """Codes of x [N, n] with the parameters that ``_shape`` gives."""
    more: dict[str, Any] = {name: options[name] for name in ("step", "init", "tol")}
    more |= dict(max_iter=options["transform_max_iter"], history=False)
    more |= dict(positive=options["positive_code"], plan=plan)
    if options["m"] is None:
        return iht(x, D, options["lam"], **more).code
    return iht_m(x, D, options["m"], **more).code
