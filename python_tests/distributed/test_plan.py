"""docs/scale.md: its tables are those that bench/scale.py draws, its volumes are counted."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from bench import scale


@pytest.mark.parametrize("shape", [(1024,), (8, 16, 8)])
@pytest.mark.parametrize("stages", [1, 3])
def test_a_thousand_ranks_move_what_the_page_says(shape, stages):
    dist.init_process_group("fake", rank=0, world_size=1024, store=FakeStore())
    try:
        assert scale.simulated(shape, stages) == scale.counted(shape, stages)
    finally:
        dist.destroy_process_group()


def test_the_page_is_drawn():
    page = scale.PAGE.read_text()
    assert f"<!-- plan -->\n{scale.plan()}\n" in page
    assert f"<!-- links -->\n{scale.links()}\n" in page
