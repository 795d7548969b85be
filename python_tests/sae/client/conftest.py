"""Tests inside SAELens, in an environment that has it: ``make sae-test``. Elsewhere they are not
collected; where it is installed, the marker ``saelens`` asks for them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("sae_lens") else ["test_*.py"]


@pytest.fixture(scope="session")
def record(request):
    """Figures, by name. DEEPL0_SAE_RECORD names the file they go to if every test of a whole run
    passes."""
    figures: dict = {}
    yield figures
    path = os.environ.get("DEEPL0_SAE_RECORD")
    if not path or request.session.testsfailed or request.config.getoption("keyword"):
        return
    from bench.records import environment
    from deepl0_kernels._files import write_atomically

    packages = ("sae-lens", "transformer-lens")
    versions = {name: importlib.metadata.version(name) for name in packages}
    tests = {"tests passed": request.session.testscollected}
    record = versions | environment() | tests | figures
    write_atomically(Path(path), (json.dumps(record, indent=1) + "\n").encode())
