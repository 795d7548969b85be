"""The command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import deepl0_kernels as dk
import deepl0_kernels.doctor
from deepl0_kernels import cli
from deepl0_kernels.paper import demo


def command(*arguments: str, code: str = "from deepl0_kernels.cli import main; main()"):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )


def leaves(group, name="deepl0"):
    """Every command below a group, by its full name."""
    for word, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from leaves(one, f"{name} {word}")
        else:
            yield f"{name} {word}", one


def test_every_help_has_a_summary_that_fits_examples_and_defaults():
    typer = pytest.importorskip("typer")
    every = dict(leaves(typer.main.get_command(cli._app())))
    assert {"deepl0 demo", "deepl0 doctor", "deepl0 sae train"} <= set(every)
    for name, one in every.items():
        assert not one.get_short_help_str(60).endswith("..."), name
        assert one.epilog, name
        lines = one.epilog.splitlines()[2:]
        assert lines, name
        for line in lines:  # the example is a call of this command, of options that it has
            _, command, call = line.partition(f" {name.removeprefix('deepl0 ')} ".rstrip())
            assert command, line
            options = {option for p in one.params for option in (*p.opts, *p.secondary_opts)}
            words = call.partition("|")[0].partition(">")[0].split()
            assert {word for word in words if word.startswith("--")} <= options, line
        for parameter in one.params:
            if parameter.opts[0].startswith("--") and not getattr(parameter, "hidden", False):
                assert parameter.help, f"{name} {parameter.opts}"


def test_version_and_a_wrong_word():
    result = command("--version")
    assert (result.returncode, result.stdout) == (0, f"deepl0_kernels {dk.__version__}\n")
    result = command("demoo")
    assert result.returncode == 2
    assert "demo" in result.stderr
    assert not result.stdout


def test_doctor(monkeypatch):
    testing = pytest.importorskip("typer.testing")
    result = command("doctor", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["ok"]
    assert found["torch"] == torch.__version__
    assert len(found["checks"]) >= 7

    def wrong(u, m):  # a kernel that errs
        values, indices = dk.top_m(u, m)
        forced = dk.backends.__globals__["_forced"]
        return values, indices + (forced != "reference")

    monkeypatch.setattr(dk.doctor, "top_m", wrong)
    result = testing.CliRunner().invoke(cli._app(), ["doctor"])
    assert result.exit_code == 1
    assert "FAIL selection (cpu)" in result.output
    assert result.output.splitlines()[-1] == "1 of 7 checks differ from the reference"


def test_info():
    result = command("info")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["build"]["isa_active"]
    assert report["backends"]["top_m"]


def test_without_typer_it_says_what_to_install():
    hide = "import sys; sys.modules['typer'] = None; from deepl0_kernels.cli import main; main()"
    result = command("info", code=hide)
    assert result.returncode == 1
    assert "pip install 'deepl0-kernels[demo]'" in result.stderr


def test_importing_the_package_needs_none_of_the_demo():
    hide = (
        "import sys\n"
        "for name in ('numpy', 'matplotlib', 'sklearn', 'tqdm', 'typer'):\n"
        "    sys.modules[name] = None\n"
        "import deepl0_kernels, deepl0_kernels.nn, deepl0_kernels.solvers\n"
        "import deepl0_kernels.datasets, deepl0_kernels.paper.demo, deepl0_kernels.cli\n"
        "from deepl0_kernels import datasets\n"
        "try: datasets.mnist_subset()\n"
        "except ModuleNotFoundError as e: print(e)\n"
    )
    result = command(code=hide)
    assert result.returncode == 0, result.stderr
    assert "numpy" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "holds", "code"),
    [((), True, 0), ((), False, 1), (("--quick",), False, 0)],
)
def test_the_exit_code_is_the_verdict(arguments, holds, code, monkeypatch, tmp_path):
    testing = pytest.importorskip("typer.testing")
    seen = {}

    def run(config, out, progress, processes):
        seen.update(config=config, out=out)
        return {"claim_holds": holds}

    monkeypatch.setattr(demo, "run", run)
    monkeypatch.setattr(demo, "table", lambda result: "TABLE")
    result = testing.CliRunner().invoke(
        cli._app(), ["demo", "--out", str(tmp_path), "--seed", "7", *arguments]
    )
    assert result.exit_code == code, result.output
    assert result.stdout == "TABLE\n"
    assert "record.json" in result.stderr
    assert seen["config"].seed == 7
    assert seen["config"].quick == bool(arguments)
    assert seen["out"] == tmp_path


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    result = command("demo", "--quick", "--out", str(tmp_path / "file" / "run"))
    assert result.returncode == 2
    assert "deepl0 demo:" in result.stderr
    assert "Traceback" not in result.stderr
