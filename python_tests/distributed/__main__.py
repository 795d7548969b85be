"""All cases in worlds of 2 and 4: ``python -m python_tests.distributed``; words choose cases."""

from __future__ import annotations

from python_tests.distributed import datasets, operators, spawn, training, wrapped

if __name__ == "__main__":
    spawn.serve({**operators.CASES, **training.CASES, **wrapped.CASES, **datasets.CASES})
