"""Digits resampled under random smooth maps of the plane, a batch at once.

A map is affine plus an elastic field: displacements of ``KNOTS`` x ``KNOTS`` knots, bicubic between
them. All of it is linear in the numbers drawn: the points where a batch is read are one product of
those numbers and a fixed basis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad

from ...datasets import overlaps

SIDE = 16  # of a signal
KNOTS = 5
_BLOCK = 2_000  # images at once: what they need stays in the caches


@dataclass(frozen=True)
class Warp:
    """How far digits are moved, each in its own way.

    Attributes:
        rotation: in degrees, uniform in [-rotation, rotation].
        scale: log of the factors along the two axes, each uniform in [-scale, scale].
        shear: uniform in [-shear, shear].
        shift: in pixels of the image, along each axis uniform in [-shift, shift].
        elastic: in pixels of the image, the deviation of the knots' displacements, normal.
    """

    rotation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    elastic: float = 0.0

    def __bool__(self) -> bool:
        return any((self.rotation, self.scale, self.shear, self.shift, self.elastic))

    def draw(self, count: int, side: int, generator: torch.Generator) -> Tensor:
        """Maps [count, 2, 3 + KNOTS^2] of images of this side: see :func:`points`.

        Of the two coordinates, column and row, the factors of column, row, 1 and of the knots'
        functions. Lengths are in halves of the image, whose centre is 0.
        """

        def uniform(bound: float, *shape: int) -> Tensor:
            return bound * (2 * torch.rand(count, *shape, generator=generator) - 1)

        angle = uniform(math.radians(self.rotation))
        factor = uniform(self.scale, 2).exp()
        shear = uniform(self.shear)
        cos, sin = angle.cos(), angle.sin()
        maps = torch.empty(count, 2, 3 + KNOTS**2)
        maps[:, 0, 0] = factor[:, 0] * cos
        maps[:, 0, 1] = factor[:, 0] * (shear * cos - sin)
        maps[:, 1, 0] = factor[:, 1] * sin
        maps[:, 1, 1] = factor[:, 1] * (shear * sin + cos)
        pixel = 2 / side
        maps[:, :, 2] = pixel * uniform(self.shift, 2)
        knots = torch.randn(count, 2, KNOTS**2, generator=generator)
        maps[:, :, 3:] = pixel * self.elastic * knots
        return maps


def points(maps: Tensor) -> Tensor:
    """Where [N, SIDE, SIDE, 2] the centres of a signal's pixels go: column and row in [-1, 1]."""
    both = maps @ _basis()
    return both.reshape(-1, 2, SIDE, SIDE).permute(0, 2, 3, 1)


def warped(images: Tensor, maps: Tensor) -> Tensor:
    """Images [N, h, h] uint8 under maps [N, ..]: [N, SIDE * SIDE] float32, 0 to 255.

    A pixel of the result averages its area of the image, as :func:`area_resize` does: averages at
    twice the density are interpolated bilinearly. At the identity they are read where they
    are, so that the result is that of area_resize.
    """
    found = []
    for part, of in zip(images.split(_BLOCK), maps.split(_BLOCK), strict=True):
        table = _averages(part)
        read = grid_sample(table, points(of), padding_mode="zeros", align_corners=True)
        found.append(read.reshape(len(part), SIDE * SIDE))
    return torch.cat(found) if found else torch.empty(0, SIDE * SIDE)


def _averages(images: Tensor) -> Tensor:
    """[N, 1, 2 SIDE + 1, 2 SIDE + 1]: averages over a signal's pixel, half a pixel apart.

    Border to border; at odd places are the signal's own pixels.
    """
    halves = pad(overlaps(images.shape[-1], 2 * SIDE), (0, 0, 1, 1))
    reader = (halves[:-1] + halves[1:]) / 2
    return (reader @ images.float() @ reader.T)[:, None]


@lru_cache(maxsize=1)
def _basis() -> Tensor:
    """[3 + KNOTS^2, SIDE^2]: column, row, 1 and the knots' functions at a signal's pixels."""
    centres = (torch.arange(SIDE) + 0.5) * (2 / SIDE) - 1
    knots = torch.eye(KNOTS**2).reshape(-1, 1, KNOTS, KNOTS)
    fields = interpolate(knots, (SIDE, SIDE), mode="bicubic", align_corners=True)
    ones = torch.ones(SIDE, SIDE)
    affine = torch.stack((centres * ones, centres[:, None] * ones, ones))
    return torch.cat((affine.flatten(1), fields.flatten(1)))
