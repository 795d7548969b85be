"""Fixtures and settings of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import torch

import deepl0_kernels as dk

# One thread a test: the suite runs in parallel processes, and results must not depend on it.
torch.set_num_threads(1)

hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=60, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("default")


@pytest.fixture(autouse=True)
def _default_backend():
    """Every test starts from and leaves the default choice of backends, and a fixed seed."""
    torch.manual_seed(0)
    dk.use_backend(None)
    yield
    dk.use_backend(None)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the data sets. DEEPL0_REQUIRE_DATA=1 turns their absence into a failure."""
    folder = os.environ.get("DEEPL0_DATA")
    if folder and Path(folder).is_dir():
        return Path(folder)
    message = "DEEPL0_DATA does not name a folder with mnist.npz"
    if os.environ.get("DEEPL0_REQUIRE_DATA") == "1":
        pytest.fail(message)
    pytest.skip(message)
