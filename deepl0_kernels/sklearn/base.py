"""What the estimators share: signals, dictionaries, output, saving and loading."""

from __future__ import annotations

import json
import math
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor, nn

from .._files import write_atomically
from .._isolation import isolated
from .._optional import require
from ..ops import Plan, SparseCode, checks
from ..solvers import learn_dictionary
from ..training import L0Regularized, MSparse, Problem
from ..version import __version__

_FLOATS = [np.float64, np.float32]
_FORMAT = "deepl0_kernels.sklearn"
# Estimators by name: a file may name these and nothing else.
_CLASSES: dict[str, type[SparseEstimator]] = {}


def plain(value: Any) -> Any:
    """A number of NumPy's as Python's, which JSON can hold."""
    return value.item() if isinstance(value, np.generic) else value


class SparseEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """An estimator whose ``transform`` gives sparse codes over ``components_``."""

    # Parameters and attributes that all of them have.
    code_size: int | None
    m: int | None
    lam: float
    dictionary: Any
    dictionary_epochs: int
    batch_size: int
    min_steps: int
    sparse_output: bool
    random_state: Any
    positive_code: bool
    components_: np.ndarray
    # Parameters that files of earlier versions lack, and what they were then.
    _later: ClassVar[dict[str, Any]] = {}
    # The parameters that shaped what is fitted, as they were then: a later ``set_params`` does not
    # reach it.
    _fitted: dict[str, Any]

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if cls.__module__.startswith(f"{_FORMAT}."):
            _CLASSES[cls.__name__] = cls

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "components_")

    def _encode(self, x: Tensor) -> Tensor | SparseCode:
        """The codes of x [N, n]."""
        raise NotImplementedError(type(self).__name__)

    @isolated(grad=False)
    def transform(self, X: Any) -> Any:
        """Codes of X.

        Args:
            X: [N, n], array or data frame of numbers.

        Returns:
            [N, p] in the dtype of the training data; a SciPy CSR matrix with ``sparse_output``.
        """
        return self._output(self._encode(self._signals(X)))

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Signals ``X @ components_`` [N, n] of codes X [N, p], dense or CSR."""
        check_is_fitted(self)
        codes = check_array(X, accept_sparse="csr", dtype=self.components_.dtype)
        if codes.shape[1] != len(self.components_):
            raise ValueError(
                f"X must have {len(self.components_)} columns, one an atom, got {codes.shape[1]}"
            )
        return codes @ self.components_

    def _signals(self, X: Any, y: Any = None, *, reset: bool = False):
        """X as a tensor [N, n] of its own, in the dtype of the training data; y beside it."""
        if not reset:
            check_is_fitted(self)
        dtype = _FLOATS if reset else self.components_.dtype
        if y is None:
            found = validate_data(self, X, dtype=dtype, reset=reset)
            return torch.from_numpy(np.array(found, order="C"))
        found, y = validate_data(self, X, y, dtype=dtype, reset=reset)
        return torch.from_numpy(np.array(found, order="C")), y

    def _output(self, code: Tensor | SparseCode):
        if not self.sparse_output:
            return (code.to_dense() if isinstance(code, SparseCode) else code).numpy()
        from scipy import sparse

        if isinstance(code, Tensor):
            return sparse.csr_matrix(code.numpy())
        rows, m = code.values.shape
        starts = np.arange(rows + 1) * m
        shape = (rows, code.size)
        parts = (code.values.numpy().ravel(), code.indices.numpy().ravel(), starts)
        codes = sparse.csr_matrix(parts, shape=shape)
        codes.eliminate_zeros()  # m entries are never more than m nonzeros
        return codes

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31))

    def _problem(self) -> Problem:
        positive = bool(self.positive_code)
        if self.m is None:
            return L0Regularized(lam=self.lam, positive=positive)
        return MSparse(m=self.m, positive=positive)

    def _check(self, x: Tensor) -> int:
        """Refuse parameters out of range for x, before any work; the code size p."""
        if self.dictionary is not None:
            p = len(self._given(x))
        else:
            size = 2 * x.shape[1] if self.code_size is None else self.code_size
            p = checks.integer("code_size", size, 1)
        if self.m is None:
            checks.positive("lam", self.lam)
        else:
            checks.integer("m", self.m, 1, p, "the code size")
        self._course(len(x), self.dictionary_epochs, "dictionary_epochs")
        return p

    def _given(self, x: Tensor) -> np.ndarray:
        """The parameter ``dictionary`` [p, n] in x's dtype."""
        given = check_array(self.dictionary, dtype=x.numpy().dtype, input_name="dictionary")
        if given.shape[1] != x.shape[1]:
            raise ValueError(
                f"dictionary must be [p, n] with n = {x.shape[1]} features, got {given.shape}"
            )
        if self.code_size not in (None, len(given)):
            raise ValueError(
                f"code_size must be the dictionary's {len(given)} or None, got {self.code_size}"
            )
        return given

    def _learn(self, x: Tensor, p: int, seed: int, positive: bool = False) -> Tensor:
        """D [n, p]: the one given, or one learned from x, for nonnegative codes if ``positive``."""
        if self.dictionary is not None:
            return torch.from_numpy(np.array(self._given(x))).T
        # Atoms start as signals plus noise: where there are too few, one starts several.
        x = x.repeat(math.ceil(p / len(x)), 1)
        epochs, batch = self._course(len(x), self.dictionary_epochs, "dictionary_epochs")
        lam = self.lam if self.m is None else None
        options = dict(epochs=epochs, batch_size=batch, seed=seed, positive=positive)
        return learn_dictionary(x, p, m=self.m, lam=lam, **options).D  # type: ignore[arg-type]

    def _shape(self) -> dict[str, Any]:
        """The parameters that shape what is fitted, as numbers and words."""
        raise NotImplementedError(type(self).__name__)

    def _keep(self, D: Tensor, **fitted: Any) -> None:
        """Take over D [n, p] and all else that a fit has made, when nothing can fail any more."""
        self.components_ = np.ascontiguousarray(D.T.numpy())
        self._fitted = self._shape()
        for name, value in fitted.items():
            setattr(self, name, value)

    def _course(self, count: int, epochs: int, name: str) -> tuple[int, int]:
        """Epochs and batch size that make ``min_steps`` steps of ``count`` signals at least."""
        epochs = checks.integer(name, epochs, 1)
        batch = min(checks.integer("batch_size", self.batch_size, 1), count)
        least = checks.integer("min_steps", self.min_steps, 1)
        return max(epochs, math.ceil(least / (count // batch))), batch

    # -- files

    _module_names: tuple[str, ...] = ()

    def _fresh_modules(self) -> dict[str, nn.Module]:
        """The fitted modules, shapes right and values open: ``_module_names``, and their parts."""
        return {}

    def save(self, path: str | PathLike[str]) -> None:
        """Write parameters and everything fitted to ``path``, a safetensors file, whole or not at
        all.

        The state of the optimiser between calls of ``partial_fit`` is left out.

        Raises:
            NotFittedError: there is nothing to save.
            TypeError: a parameter is neither an array nor what JSON can hold (a RandomState).
        """
        check_is_fitted(self)
        safetensors = require("safetensors.torch", "saving an estimator", extra="sklearn")
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        modules = self._module_names
        for key, value in vars(self).items():
            if isinstance(value, nn.Module):
                if key in modules:  # the others are parts of these
                    for name, tensor in value.state_dict().items():
                        tensors[f"{key}.{name}"] = tensor.detach().contiguous()
            elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
                tensors[key] = torch.from_numpy(np.array(value, order="C"))
            elif isinstance(value, np.ndarray):
                values[key] = {"list": value.tolist(), "dtype": value.dtype.str}
            elif not isinstance(value, (torch.optim.Optimizer, Plan)):
                values[key] = {"json": plain(value)}
        try:
            text = json.dumps(values)
        except TypeError as error:
            kinds = {k: type(v["json"]).__name__ for k, v in values.items() if "json" in v}
            raise TypeError(f"{error}; the attributes are {kinds}") from None
        metadata = {"format": _FORMAT, "version": __version__, "values": text}
        metadata["estimator"] = type(self).__name__
        write_atomically(Path(path), safetensors.save(tensors, metadata=metadata))


@isolated(grad=True)
def load(path: str | PathLike[str]) -> Any:
    """The estimator that ``save`` wrote to ``path``. Nothing in the file is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is none of ours, or is damaged.

    Example:
        >>> import tempfile
        >>> from deepl0_kernels.sklearn import IHTSparseCoder, load
        >>> model = IHTSparseCoder(torch.eye(6).numpy(), m=2).fit(torch.randn(10, 6).numpy())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/coder.safetensors")
        ...     print(load(f"{folder}/coder.safetensors").m)
        2
    """
    path = checks.path("path", path)
    safetensors = require("safetensors", "loading an estimator", extra="sklearn")
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
    name = metadata.get("estimator")
    if metadata.get("format") != _FORMAT or name not in _CLASSES:
        raise ValueError(f"{path} holds no estimator of {_FORMAT}, but {metadata!r}")
    cls = _CLASSES[name]
    self = cls.__new__(cls)
    try:
        for key, value in json.loads(metadata["values"]).items():
            if "list" in value:
                setattr(self, key, np.array(value["list"], dtype=np.dtype(value["dtype"])))
            else:
                setattr(self, key, value["json"])
        for key in [key for key in tensors if "." not in key]:
            setattr(self, key, tensors.pop(key).numpy())
        for name, value in cls._later.items():
            if not hasattr(self, name):
                setattr(self, name, value)
        if not hasattr(self, "_fitted"):
            self._fitted = self._shape()  # files of before it was kept
        self._fitted = cls._later | self._fitted
        for key, module in self._fresh_modules().items():
            prefix = f"{key}."
            state = {k[len(prefix) :]: t for k, t in tensors.items() if k.startswith(prefix)}
            if key in cls._module_names:  # the others are parts of these
                module.load_state_dict(state)
            setattr(self, key, module.eval())
        if "_plan" in vars(cls):
            self._plan = Plan()
        self.get_params()  # all of them are there
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return self
