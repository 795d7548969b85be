"""``deepl0 tune``: choosing, storing, loading, and files that cannot be trusted."""

from __future__ import annotations

import json
import math
import os
import warnings

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels import cli, tune
from deepl0_kernels.triton import table, tuned
from deepl0_kernels.triton.tuned import Config

from .recording import recording

NAME = ("Some GPU", "3.8.0")


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "tuned.json"
    monkeypatch.setenv("DEEPL0_TUNED", str(path))
    monkeypatch.setattr(tuned, "device_and_version", lambda device: NAME)
    tuned.load.cache_clear()
    yield path
    tuned.load.cache_clear()


class OnGpu:
    """What is looked at of a tensor on a GPU."""

    device = torch.device("cuda", 0)
    dtype = torch.float32


def on_gpu(p, kernel="threshold"):
    with tuned.serving(OnGpu()):
        return table.config(kernel, p)


def choose(times, kernel="threshold", p=512):
    def measure(kernel, config, *problem):
        return times.get(config, 100.0)

    return list(tune.choose([kernel], [p], [torch.float32], 8, "cuda", measure))


def test_the_fastest_choice_is_stored_and_served(file):
    default = table.config("threshold", 512)
    fast = table.choices("threshold", 512)[1]
    (choice,) = choose({default: 10.0, fast: 5.0})
    assert (choice.config, choice.default, choice.best) == (fast, 10.0, 5.0)
    assert tuned.store(tune.results([choice], OnGpu.device)) == file
    assert on_gpu(512) == fast
    assert on_gpu(300) == fast  # the same bucket
    assert on_gpu(513) == default
    assert table.config("threshold", 512) == default
    with tuned.serving(torch.empty(1)):
        assert table.config("threshold", 512) == default
    assert list(file.parent.iterdir()) == [file]


def test_noise_and_what_does_not_fit_change_nothing():
    default, *others = table.choices("threshold", 512)
    assert choose({default: 10.0, others[0]: 9.8, others[1]: math.inf})[0].config == default


def test_results_of_other_devices_versions_and_kernels_are_kept_apart(file, monkeypatch):
    default, fast, faster, *_ = table.choices("threshold", 512)
    tuned.store(tune.results(choose({fast: 1.0}), OnGpu.device))
    monkeypatch.setattr(tuned, "device_and_version", lambda device: ("Another GPU", "3.8.0"))
    assert on_gpu(512) == default
    tuned.store(tune.results(choose({faster: 1.0}), OnGpu.device))
    assert on_gpu(512) == faster
    monkeypatch.setattr(tuned, "device_and_version", lambda device: NAME)
    assert on_gpu(512) == fast
    assert len(json.loads(file.read_text())["configs"]) == 2


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 0, "configs": {}}', '{"format": 2}', '{"format": 2, "configs": 3}',
     '{"format": 2, "configs": {"a": [1, 2, 3, 4, 5]}}', '{"format": 2, "configs": {"a": 7}}',
     "\xff"],
)  # fmt: skip
def test_a_malformed_file_is_ignored_with_a_warning_and_replaced(file, content):
    file.parent.mkdir()
    file.write_text(content, encoding="latin-1")
    with pytest.warns(UserWarning, match="deepl0 tune"):
        assert on_gpu(512) == table.config("threshold", 512)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on_gpu(512)  # once is enough
        tuned.store({"key": Config(1, 2)})
        assert tuned.load() == {"key": Config(1, 2)}


def test_what_is_no_choice_is_passed_over():
    key = tuned.key(*NAME, "threshold", 512, torch.float32)
    tuned.store({key: Config(3, "x", -1)})
    assert on_gpu(512) == table.config("threshold", 512)


def test_a_write_that_fails_leaves_the_file(file, monkeypatch):
    tuned.store({"a": Config(1, 2)})
    before = file.read_text()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        tuned.store({"b": Config(1, 2)})
    assert file.read_text() == before
    assert list(file.parent.iterdir()) == [file]


def test_every_workload_is_of_a_kernel_in_the_table():
    assert set(tune.WORKLOADS) <= set(table.TABLE)


def test_the_place_of_the_file(monkeypatch, tmp_path):
    monkeypatch.delenv("DEEPL0_TUNED")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuned.path() == tmp_path / "deepl0-kernels" / "tuned.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuned.path() == tmp_path / ".cache" / "deepl0-kernels" / "tuned.json"


def test_forced_configurations_end_with_the_block():
    with tuned.force("threshold", Config(1, 2)):
        assert table.config("threshold", 512) == Config(1, 2)
    assert table.config("threshold", 512) == table.entry("threshold", 512)


def test_the_launchers_say_whom_they_serve(monkeypatch):
    seen = []
    monkeypatch.setattr(tuned, "lookup", lambda kernel, p: seen.append(tuned._served.key))
    with recording():
        dk.helu(torch.empty(2, 3, dtype=torch.bfloat16, device="meta"), 0.5)
    assert seen == [(torch.device("meta"), torch.bfloat16)]
    assert tuned._served.key is None


@pytest.mark.parametrize("kernel", tune.tunable())
def test_workloads_launch_their_kernel(kernel, monkeypatch):
    """On tensors without data: the forced configuration arrives in the launches."""
    make, sizes = tune.WORKLOADS[kernel]
    for p in sizes or (128, 512):
        *_, last = table.choices(kernel, p)
        with recording() as jobs, tuned.force(kernel, last):
            make(64, p, torch.bfloat16, "meta")()
        assert last in [job.config for job in jobs]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so():
    testing = pytest.importorskip("typer.testing")
    result = testing.CliRunner().invoke(cli._app(), ["tune"])
    assert result.exit_code == 2
    assert "no GPU" in str(result.output) + str(result.exception)


def test_an_unsupported_device_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(RuntimeError, match="not Tesla T4"):
        table.device_class.__wrapped__(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert table.device_class.__wrapped__(torch.device("cuda", 0)) == "sm86"
