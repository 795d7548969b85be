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
    """Folder of the data sets."""
    folder = os.environ.get("DEEPL0_DATA")
    if folder and Path(folder).is_dir():
        return Path(folder)
    pytest.skip("DEEPL0_DATA does not name a folder of data sets")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """DEEPL0_NO_SKIPS=1: a skipped test, of what is missing here, fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("DEEPL0_NO_SKIPS") == "1" and reporter and reporter.stats.get("skipped"):
        reporter.write_line("")
        reporter.write_line("DEEPL0_NO_SKIPS=1, and tests were skipped: see below", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
