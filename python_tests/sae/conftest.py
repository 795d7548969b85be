"""What the tests of autoencoders share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def minilm(data_dir) -> Path:
    """The file with activations of a transformer."""
    path = data_dir / "minilm_activations.npz"
    if not path.exists():
        pytest.skip("DEEPL0_DATA has no minilm_activations.npz")
    return path
