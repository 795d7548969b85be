"""Signals of Tables 6 and 7, and, apart from them, the classes that score."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import images
from ...datasets import preprocess
from .protocol import Protocol

CLASSES = {"coil20": 20, "cmu_pie": 68}
# Of pixels in [0, 1]: what deviates less is one grey.
_CONTRAST = 1e-3


def _read(protocol: Protocol) -> images.Images:
    read = images.coil20 if protocol.data == "coil20" else images.cmu_pie
    return read()


def signals(protocol: Protocol) -> Tensor:
    """[N, n] float32 without any label: every row of norm ``size``.

    Images are resized, each of mean 0 and variance 1; with ``whiten`` they become so many principal
    components of all, each scaled to variance 1, and rows are scaled again: to the norm that pixels
    have, so that a penalty on codes weighs the same against what it is paid for.

    Raises:
        ValueError: an image of one grey.
    """
    x = _read(protocol).x[:: protocol.every]
    patches = preprocess(x, protocol.size, _CONTRAST)
    if patches.discarded:
        raise ValueError(f"{protocol.data} has {patches.discarded} images of one grey")
    if not protocol.whiten:
        return patches.x
    centred = patches.x.double() - patches.x.double().mean(0)
    # A component's sign is arbitrary, and no method depends on it.
    parts = torch.linalg.svd(centred, full_matrices=False)[0][:, : protocol.whiten]
    return (protocol.size * parts / parts.norm(dim=1, keepdim=True)).float()


def classes(protocol: Protocol) -> Tensor:
    """[N] int64, for scores alone."""
    return _read(protocol).y[:: protocol.every]
