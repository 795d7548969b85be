"""Sharded dictionaries in 2 and 4 processes; the cases are in operators.py."""

from __future__ import annotations

import pytest

from python_tests.distributed import spawn


@pytest.mark.parametrize("world", [2, 4])
def test_sharded_operators(world, tmp_path):
    spawn.run("python_tests.distributed.operators", world, tmp_path)
