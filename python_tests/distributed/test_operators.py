"""Sharded dictionaries in 2 and 4 processes; the cases are in operators.py."""

from __future__ import annotations

from python_tests.distributed import spawn


def test_sharded_operators():
    spawn.run("python_tests.distributed.operators", 2, 4)
