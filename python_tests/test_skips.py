"""DEEPL0_NO_SKIPS=1: what is skipped fails the run, a whole file of another process too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SKIPPED = "import pytest\npytest.importorskip('no_such_module')\ndef test_lost(): assert False\n"


@pytest.mark.parametrize(("strict", "status"), [("", 0), ("1", 1)])
def test_a_skipped_file_fails_the_run_where_it_must_not_be(tmp_path, strict, status):
    (tmp_path / "test_fine.py").write_text("def test_fine(): pass\n")
    (tmp_path / "test_skipped.py").write_text(SKIPPED)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p",
               "python_tests.conftest", "-c", os.devnull, "-n", "1", str(tmp_path)]  # fmt: skip
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "DEEPL0_NO_SKIPS": strict}
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == status, done.stdout + done.stderr
