"""A pytest plugin for runs that may be cut: every test's outcome is written as it ends, what a file
of outcomes holds is not run again, and the session ends by itself at a deadline.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from . import gpu_device


def read(path: Path) -> dict[str, dict]:
    """Test -> its last line: outcome ("started" if it never ended), seconds, message."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            outcome = json.loads(line)
        except ValueError:  # the line that a cut left half written
            continue
        found[outcome["id"]] = outcome
    return found


def append(path: Path, **line) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def pytest_addoption(parser):
    group = parser.getgroup("progress")
    group.addoption("--progress", type=Path, required=True, help="file of outcomes")
    group.addoption("--deadline", type=float, default=float("inf"), help="in seconds of the epoch")
    group.addoption("--only", default="", help="regular expression that a test's name must match")
    group.addoption("--first", type=int, default=None, help="no more tests than these")


def pytest_configure(config):
    config.pluginmanager.register(Progress(config), "deepl0-progress")


def needs_the_gpu(item: pytest.Item) -> bool:
    """Of the floors' tests those on the GPU; all of the others."""
    if not re.search(r"python_tests/(cuda|triton)/", item.nodeid) or gpu_device.STUB:
        return True
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return "gpu" in [value for value in values if isinstance(value, str)]


class Progress:
    """Keeps the file of one session."""

    def __init__(self, config: pytest.Config) -> None:
        self.path: Path = config.getoption("--progress")
        self.deadline: float = config.getoption("--deadline")
        self.session: pytest.Session | None = None
        self.reports: list[pytest.TestReport] = []

    def pytest_sessionstart(self, session):
        self.session = session

    def pytest_collection_modifyitems(self, config, items):
        done = {name for name, line in read(self.path).items() if line["outcome"] != "started"}
        only = re.compile(config.getoption("--only"))
        fresh = [
            item for item in items
            if item.nodeid not in done and only.search(item.nodeid) and needs_the_gpu(item)
        ]  # fmt: skip
        fresh = fresh[: config.getoption("--first")]
        config.hook.pytest_deselected(items=[item for item in items if item not in fresh])
        items[:] = fresh

    def pytest_runtest_logstart(self, nodeid):
        self.reports = []
        append(self.path, id=nodeid, outcome="started")

    def pytest_runtest_logreport(self, report):
        self.reports.append(report)

    def pytest_runtest_logfinish(self, nodeid):
        worst = next((r for r in self.reports if r.failed), None)
        skipped = next((r for r in self.reports if r.skipped), None)
        outcome = "failed" if worst else "skipped" if skipped else "passed"
        message = worst.longreprtext.strip().splitlines()[-1] if worst else ""
        append(
            self.path, id=nodeid, outcome=outcome, message=message[:300],
            seconds=round(sum(r.duration for r in self.reports), 2),
        )  # fmt: skip
        assert self.session is not None
        if time.time() > self.deadline:
            self.session.shouldstop = "the time is over"
        elif worst and gpu_device.is_lost():
            self.session.shouldstop = "the device is lost to this process"
