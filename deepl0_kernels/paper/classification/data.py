"""Labelled signals of Tables 4 and 5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ... import scenes
from ...datasets import mnist, mnist_subset, preprocess, standardised
from .protocol import Protocol
from .warps import Warp, warped


class Place(NamedTuple):
    """Where in a scene the signals are.

    Attributes:
        shape: height and width. train, test: positions [N] int64 of the signals, row by row.
    """

    shape: tuple[int, int]
    train: Tensor
    test: Tensor

    def map(self, train: Tensor, test: Tensor) -> Tensor:
        """[h, w] uint8 of classes from 1, given those of the signals from 0; elsewhere 0."""
        drawn = torch.zeros(self.shape, dtype=torch.uint8).flatten()
        drawn[self.train] = (train + 1).to(torch.uint8)
        drawn[self.test] = (test + 1).to(torch.uint8)
        return drawn.reshape(self.shape)


@dataclass
class Labelled:
    """Training and test signals and labels; ``begin`` makes an epoch's training signals."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    discarded_test: int = 0
    place: Place | None = None
    begin: Callable[[int], None] | None = None

    def counts(self) -> dict[str, int]:
        return {
            "training_signals": len(self.x),
            "test_signals": len(self.x_test),
            "discarded_test": self.discarded_test,
        }


def labelled(protocol: Protocol, seed: int) -> Labelled:
    """The data of a table.

    ``seed`` chooses the split of Indian Pines, the validation signals and the moves of digits.
    """
    return (_pixels if protocol.data == "indian_pines" else _digits)(protocol, seed)


def _validation(y: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training signals that still train, and of those that stand in for the test.

    The generator is not that of the split into training and test. Of the smallest class of Indian
    Pines there are as few as three training pixels: two train, one validates.
    """
    return scenes.stratified_split(y, 1 - share, seed + 1000, least=2)


def _digits(protocol: Protocol, seed: int) -> Labelled:
    digits = mnist() if protocol.data == "mnist" else mnist_subset()
    images, y = digits.x[: protocol.digits], digits.y[: protocol.digits]
    images_test, y_test = digits.x_test[: protocol.held_out], digits.y_test[: protocol.held_out]
    if protocol.validation:
        kept, held = _validation(y, protocol.validation, seed)
        images, y, images_test, y_test = images[kept], y[kept], images[held], y[held]
    train = preprocess(images, min_std=protocol.min_std)
    test = preprocess(images_test, min_std=protocol.min_std)
    images = images[train.kept]
    data = Labelled(train.x, y[train.kept], test.x, y_test[test.kept], 10, test.discarded)

    warp = Warp(protocol.rotation, protocol.scale, protocol.shear, protocol.shift, protocol.elastic)

    def begin(epoch: int) -> None:
        generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + epoch)
        maps = warp.draw(len(images), images.shape[-1], generator)
        patches = standardised(warped(images, maps), protocol.min_std)
        # A digit that its move has emptied stays as it was.
        data.x[patches.kept] = patches.x

    if warp:
        data.begin = begin
    return data


def _pixels(protocol: Protocol, seed: int) -> Labelled:
    scene = scenes.indian_pines()
    pixels = scenes.labelled_pixels(scene, protocol.context)
    train, test = scenes.stratified_split(pixels.y, protocol.fraction, seed)
    # Bands differ in scale by what they measure; the training pixels alone say by how much.
    mean, std = pixels.x[train].mean(0), pixels.x[train].std(0)
    if protocol.validation:
        kept, held = _validation(pixels.y[train], protocol.validation, seed)
        train, test = train[kept], train[held]
    x = (pixels.x - mean) / std.clamp_min(torch.finfo(std.dtype).tiny)
    at = scene.y.flatten().nonzero()[:, 0]
    height, width = scene.y.shape
    place = Place((height, width), at[train], at[test])
    y = pixels.y
    return Labelled(x[train], y[train], x[test], y[test], len(scenes.NAMES), place=place)
