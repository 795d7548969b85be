"""scikit-learn estimators over the encoders and solvers; needs ``deepl0-kernels[sklearn]``.

>>> from sklearn.pipeline import make_pipeline
>>> from sklearn.preprocessing import StandardScaler
>>> from deepl0_kernels.sklearn import DeepL0Classifier
>>> model = make_pipeline(StandardScaler(), DeepL0Classifier(code_size=128, m=16))

Signals are taken as they are: ``lam`` is measured against their energy, and lam = 0.5 suits
features of variance 1. ``m``, the number of nonzeros, does not depend on the scale. Everything is
computed in the dtype of the training data, so float32 data halve time and memory.

What ``set_params`` changes acts at the next ``fit``: a fitted estimator, and its file, stay what
they are. Only ``sparse_output`` acts at once, and in ``partial_fit`` also ``lr``, ``batch_size``
and ``random_state``; there a change of what the model is made of is refused by name. Autocast,
grad mode, inference mode and the default dtype of PyTorch make no difference.
"""

from __future__ import annotations

from .._optional import require

for _module in ("numpy", "sklearn"):
    require(_module, __name__, extra="sklearn")

from .base import load  # noqa: E402 - the error above names the extra
from .classifier import DeepL0Classifier  # noqa: E402
from .clusterer import DeepL0Clusterer  # noqa: E402
from .coder import IHTSparseCoder  # noqa: E402
from .transformer import DeepL0Transformer  # noqa: E402

__all__ = [
    "DeepL0Classifier",
    "DeepL0Clusterer",
    "DeepL0Transformer",
    "IHTSparseCoder",
    "load",
]
