"""The command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from deepl0_kernels import cli
from deepl0_kernels.paper import demo


def command(*arguments: str, code: str = "from deepl0_kernels.cli import main; main()"):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )


def test_help_lists_the_commands():
    result = command("--help")
    assert result.returncode == 0
    assert "demo" in result.stdout
    assert "info" in result.stdout


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

    def run(config, out, progress):
        seen.update(config=config, out=out)
        return {"claim_holds": holds}

    monkeypatch.setattr(demo, "run", run)
    monkeypatch.setattr(demo, "table", lambda result: "TABLE")
    result = testing.CliRunner().invoke(
        cli._app(), ["demo", "--out", str(tmp_path), "--seed", "7", *arguments]
    )
    assert result.exit_code == code, result.output
    assert "TABLE" in result.output
    assert seen["config"].seed == 7
    assert seen["config"].quick == bool(arguments)
    assert seen["out"] == tmp_path


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    result = command("demo", "--quick", "--out", str(tmp_path / "file" / "run"))
    assert result.returncode == 2
    assert "deepl0 demo:" in result.stderr
    assert "Traceback" not in result.stderr
