"""Digits under random maps: what moves them, how far, and what stays."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from deepl0_kernels import datasets
from deepl0_kernels.paper.classification.data import labelled
from deepl0_kernels.paper.classification.protocol import PROTOCOLS
from deepl0_kernels.paper.classification.warps import KNOTS, SIDE, Warp, points, warped

WARP = Warp(rotation=12.0, scale=0.13, shear=0.2, shift=1.5, elastic=1.0)


@pytest.fixture(scope="module")
def images():
    return datasets.mnist_subset().x[:500]


def drawn(warp, count=500, seed=0):
    return warp.draw(count, 28, torch.Generator().manual_seed(seed))


def identity(count):
    return drawn(Warp(), count)


def test_maps_that_move_nothing_give_the_plain_digits(images):
    plain = datasets.area_resize(images).flatten(1)
    torch.testing.assert_close(warped(images, identity(500)), plain, rtol=1e-6, atol=1e-4)
    assert not Warp()
    assert WARP
    # Of images of any side: the averages are those of their areas.
    other = images[:, :21, :21]
    found = warped(other, identity(500))
    torch.testing.assert_close(found, datasets.area_resize(other).flatten(1), rtol=1e-6, atol=1e-4)
    assert warped(images[:0], identity(0)).shape == (0, SIDE**2)


def test_a_shift_by_a_signals_pixel_moves_by_one(images):
    maps = identity(500)
    maps[:, 0, 2] = 2 / SIDE  # read one column to the right
    maps[:, 1, 2] = -4 / SIDE  # and two rows above
    found = warped(images, maps).reshape(-1, SIDE, SIDE)
    plain = datasets.area_resize(images)
    torch.testing.assert_close(found[:, 2:, :-1], plain[:, :-2, 1:], rtol=1e-6, atol=1e-4)
    # Of what lies beyond the border there is nothing to see.
    assert found[:, :2].abs().max() == 0
    assert found[:, :, -1].abs().max() == 0


def test_a_quarter_turn_is_one(images):
    maps = identity(500)
    maps[:, :, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    found = warped(images, maps).reshape(-1, SIDE, SIDE)
    expected = datasets.area_resize(torch.rot90(images, 1, (1, 2)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


def test_blocks_do_not_show(images):
    maps = drawn(WARP)
    many = warped(images.repeat(9, 1, 1), maps.repeat(9, 1, 1))
    torch.testing.assert_close(many[2_000:2_500], warped(images, maps), rtol=0, atol=1e-4)


def test_values_stay_in_range_and_the_same_seed_gives_the_same(images):
    maps = drawn(WARP)
    found = warped(images, maps)
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 255 + 1e-3
    assert torch.equal(found, warped(images, drawn(WARP)))
    assert not torch.equal(found, warped(images, drawn(WARP, seed=1)))
    # Little ink is lost.
    ink = found.mean() / datasets.area_resize(images).mean()
    assert 0.97 < ink < 1.03


def test_what_is_drawn_is_distributed_as_said():
    count = 20_000
    turned = drawn(Warp(rotation=30.0), count)[:, :, :2]
    angle = torch.atan2(turned[:, 1, 0], turned[:, 0, 0]).rad2deg()
    assert -30 <= angle.min() < -29.9
    assert 29.9 < angle.max() <= 30
    assert angle.std().item() == pytest.approx(60 / math.sqrt(12), rel=0.02)
    torch.testing.assert_close(torch.linalg.det(turned), torch.ones(count))
    scaled = drawn(Warp(scale=0.2), count)
    for axis in range(2):
        log = scaled[:, axis, axis].log()
        assert log.abs().max() <= 0.2 + 1e-6
        assert log.std().item() == pytest.approx(0.4 / math.sqrt(12), rel=0.02)
    assert torch.corrcoef(scaled[:, (0, 1), (0, 1)].T)[0, 1].abs() < 0.03
    sheared = drawn(Warp(shear=0.3), count)
    torch.testing.assert_close(torch.linalg.det(sheared[:, :, :2]), torch.ones(count))
    assert sheared[:, 0, 1].std().item() == pytest.approx(0.6 / math.sqrt(12), rel=0.02)
    moved = 14 * drawn(Warp(shift=2.0), count)[:, :, 2]
    assert 1.99 < moved.abs().max() <= 2 + 1e-6
    assert moved.std().item() == pytest.approx(4 / math.sqrt(12), rel=0.02)
    bent = drawn(Warp(elastic=1.5), count)
    assert 14 * bent[:, :, 3:].std().item() == pytest.approx(1.5, rel=0.02)
    # At the corners a knot's displacement is the field's: pixel (0, 0) is near the first knot.
    corner = 14 * (points(bent) - points(identity(1)))[:, 0, 0]
    assert corner.std().item() == pytest.approx(1.5, rel=0.05)
    assert bent.shape == (count, 2, 3 + KNOTS**2)


def test_digits_are_moved_anew_in_each_epoch_and_alike_in_each_run():
    protocol = replace(PROTOCOLS["table4"].quickened(), digits=600, held_out=300)
    data, again = labelled(protocol, 0), labelled(protocol, 0)
    assert data.begin is not None
    assert again.begin is not None
    still = data.x.clone()
    data.begin(1)
    first = data.x.clone()
    data.begin(2)
    assert not torch.equal(first, data.x)
    assert not torch.equal(first, still)
    # An epoch's moves do not depend on those before it.
    again.begin(2)
    assert torch.equal(again.x, data.x)
    torch.testing.assert_close(data.x.mean(1), torch.zeros(600), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.x.square().mean(1), torch.ones(600), atol=1e-4, rtol=0)
    other = labelled(protocol, 1)
    other.begin(2)
    assert not torch.equal(other.x, data.x)
    assert torch.equal(other.x_test, data.x_test)
    none = dict.fromkeys(("rotation", "scale", "shear", "shift", "elastic"), 0.0)
    assert labelled(replace(protocol, **none), 0).begin is None


def test_a_digit_that_its_move_empties_stays_as_it_was():
    protocol = replace(PROTOCOLS["table4"].quickened(), digits=200, held_out=50, shift=27.0)
    data = labelled(protocol, 0)
    still = data.x.clone()
    data.begin(0)
    same = (data.x == still).all(1)
    assert 0 < int(same.sum()) < 200
    assert torch.isfinite(data.x).all()
