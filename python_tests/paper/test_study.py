"""What all studies share: choices and their ranges, folders that stay clean, damaged files."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace

import pytest
from typer.testing import CliRunner

from deepl0_kernels import cli
from deepl0_kernels._files import filled
from deepl0_kernels.paper.classification.study import Classification
from deepl0_kernels.paper.codes import race
from deepl0_kernels.paper.codes.protocol import Protocol
from deepl0_kernels.paper.codes.study import Codes
from deepl0_kernels.paper.tables import STUDIES

TINY = replace(
    Protocol(),
    data="subset",
    digits=300,
    held_out=100,
    copies=1,
    m=4,
    lam=2.0,
    epochs=1,
    dictionary_epochs=1,
    further_p=0,
    batch_size=100,
)
TABLES = {name: table for study in STUDIES for name, table in study.tables.items()}


def command(*arguments: object):
    return CliRunner().invoke(cli._app(), [str(a) for a in arguments])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished folder of Table 1 with its times; copies of it are damaged."""
    out = tmp_path_factory.mktemp("study")
    results = Codes().run({"table1": TINY}, [12], [0], out, progress=False)
    race.write(results, out, seconds=0)
    return out


@pytest.mark.parametrize("table", ["table1", "table4", "table6"])
def test_every_choice_has_a_range(table, tmp_path):
    protocol = TABLES[table].protocol
    for field in fields(protocol):
        kind = type(getattr(protocol, field.name))
        bad = {int: ["-1"], float: ["nan", "inf", "-0.5", "-inf"], str: ["nothing"]}[kind]
        for value in bad:
            with pytest.raises(ValueError, match=rf"{field.name} must be .* got '?{value}"):
                protocol.changed([f"{field.name}={value}"])


def test_all_protocols_are_in_their_ranges():
    for table in TABLES.values():
        table.protocol.check()
        table.protocol.quickened().check()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("table9", "table9"),
        ("table1 --p 16", "got 16"),
        ("table1 --p many", "many"),
        ("table1 --p 40 16", "got 16"),
        ("table1 256", "got 256"),
        ("table1 --seeds 0", "greater than or equal to 1"),
        ("table1 --set depth=3", "got 'depth=3'"),
        ("table4 --p 16", "at least M = 30, got 16"),
        ("table4 table77", "table77"),
        ("table4 --set depth=3", "got 'depth=3'"),
        ("table5 --set data=cifar", "got 'cifar'"),
        ("table4 --set l0_grad=soft", "l0_grad must be one of"),
        ("table4 --set validation=1.5", "validation must be in [0, 1), got 1.5"),
        ("table6 --p 16", "at least M = 30, got 16"),
        ("table6 --set data=faces", "got 'faces'"),
        ("table7 --set start=random", "start must be one of"),
        ("table7 --set every=0", "every must be >= 1, got 0"),
        ("table7 --set whiten=999", "whiten must be >= 0 and <= size^2 = 256, got 999"),
        ("table6 --set tagnet_steps=0", "tagnet_steps must be >= 1, got 0"),
        ("table6 --set balance=-1", "balance must be a finite number >= 0, got -1.0"),
        ("table6 --set lam=0", "lam must be a finite number > 0, got 0.0"),
        ("table1 --set lam=nan", "lam must be a finite number > 0, got nan"),
        ("table1 --set clip=0", "clip must be a finite number > 0, got 0.0"),
        ("table2 --set held_out=-1", "held_out must be >= 1, got -1"),
        ("table2 --set shift=-1", "shift must be >= 0 and <= the side of a digit - 1 = 27, got -1"),
        ("table2 --set dictionary=pca", "dictionary must be one of"),
        ("table1 --set sigma_floor=0.5", "sigma_floor must be a finite number > 0 and <= 0.2"),
        ("table1 --set batch_size=100000", "batch_size must be >= 1 and <= the training signals"),
        (
            "table1 --set digits=20 --set batch_size=9",
            "and <= the training signals of table1 = 20",
        ),
        ("table1 --set min_std=0", "min_std must be a finite number > 0, got 0.0"),
        ("table1 --p ,", "sizes must not be empty"),
        ("table4 --set fraction=1", "fraction must be in (0, 1), got 1.0"),
        ("table4 --set shift=99", "shift must be a finite number >= 0 and <= 27, got 99.0"),
        ("table6 --set neighbours=9999", "neighbours must be >= 1 and <= N - 1"),
        ("table6 --set every=200", "every must leave an image a cluster, 20 at least, got 200"),
        ("table6 --set size=0", "size must be >= 1, got 0"),
    ],
)
def test_a_refused_command_leaves_no_trace(arguments, words, tmp_path, request):
    if "table6" in arguments:
        request.getfixturevalue("data_dir")  # some of its refusals are of the images
    if "--set" in arguments:
        arguments += " --p 32"
    found = command("reproduce", *arguments.split(), "--quick", "--out", tmp_path / "run")
    assert found.exit_code == 2, found.output
    assert words in " ".join(found.output.split())
    assert not (tmp_path / "run").exists()


def test_missing_data_of_one_table_stop_the_command_before_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPL0_DATA", str(tmp_path))
    out = tmp_path / "run"
    found = command("reproduce", "table4", "table5", "--quick", "--p", 32, "--out", out)
    assert found.exit_code == 2
    assert "indian_pines.npz" in found.output
    assert not out.exists()


def test_choices_that_fail_do_not_block_the_corrected_ones(tmp_path, monkeypatch):
    study = Codes()
    with pytest.raises(RuntimeError, match="all optimal codes are zero"):
        study.run({"table1": replace(TINY, lam=1e6)}, [12], [0], tmp_path, progress=False)
    assert not (tmp_path / "run.json").exists()
    results = study.run({"table1": TINY}, [12], [0], tmp_path, progress=False)
    # What a finished part was computed by stays noted, whatever happens to another.
    assert results["cells"]

    def diverged(*_):
        raise RuntimeError("training diverged")

    monkeypatch.setattr(Classification, "cell", diverged)
    digits = replace(TABLES["table4"].protocol.quickened(), digits=100, held_out=50)
    with pytest.raises(RuntimeError, match="training diverged"):
        Classification().run({"table4": digits}, [32], [0], tmp_path, progress=False)
    assert list(json.loads((tmp_path / "run.json").read_text())) == ["protocol"]


def test_where_all_entries_are_nonzeros_there_is_no_margin(tmp_path):
    results = Codes().run({"table2": TINY}, [4], [0], tmp_path, progress=False)
    assert results["cells"][0]["optimal"]["median_margin"] is None


def test_a_size_named_twice_is_one(done, tmp_path):
    out = shutil.copytree(done, tmp_path / "run")
    choices = [f"--set={f.name}={getattr(TINY, f.name)}" for f in fields(TINY)]
    found = command("reproduce", "table1", "--p", "12 12", "--out", out, *choices)
    assert found.exit_code == 0, found.output
    assert json.loads((out / "results.json").read_text())["sizes"] == [12]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"protocol": 5}', b"\xff\xfe"])
@pytest.mark.parametrize("name", ["run.json", "cells/l0-p12-seed0.json", "pareto-l0-p12.json"])
def test_a_damaged_state_file_is_named(name, content, done, tmp_path):
    out = shutil.copytree(done, tmp_path / "run")
    (out / name).write_bytes(content)
    choices = [f"--set={f.name}={getattr(TINY, f.name)}" for f in fields(TINY)]
    found = command("reproduce", "table1", "--p", 12, "--out", out, *choices)
    assert found.exit_code == 2, found.output
    assert f"{out / name} cannot be read" in found.output.replace("\n", "")
    assert "makes it anew" in found.output
    assert "Traceback" not in found.output


@pytest.mark.parametrize("name", ["results.json", "pareto-l0-p12.json", "cells/l0-p12-seed0.pt"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2]", b"PK\x03\x04 no archive"])
def test_a_damaged_file_is_named_by_whoever_reads_it(name, content, done, tmp_path):
    out = shutil.copytree(done, tmp_path / "run")
    (out / name).write_bytes(content)
    again = ["timing", out, "--seconds", 0] if name.endswith(".pt") else ["report", out]
    found = command(*again)
    assert found.exit_code == 2, found.output
    assert f"{out / name} cannot be read" in found.output.replace("\n", "")


def test_damaged_caches_are_named(done, tmp_path):
    out = shutil.copytree(done, tmp_path / "run")
    (out / "cells" / "l0-p12-seed0.json").unlink()
    for name in (
        "l0-p12-seed0-rows.json",
        *(path.name for path in (out / "cells/cache").iterdir()),
    ):
        path = out / "cells" / "cache" / name
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(b"damaged")
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            Codes().run({"table1": TINY}, [12], [0], out, progress=False)
        path.unlink() if before is None else path.write_bytes(before)
    assert Codes().run({"table1": TINY}, [12], [0], out, progress=False)["cells"]


def test_times_of_another_versions_run_or_of_no_length_are_refused(done, tmp_path):
    out = shutil.copytree(done, tmp_path / "run")
    for seconds in ("nan", "inf"):
        found = command("timing", out, "--seconds", seconds)
        assert found.exit_code == 2
        assert "seconds" in found.output
    results = json.loads((out / "results.json").read_text())
    results["protocol"]["colour"] = "red"
    (out / "results.json").write_text(json.dumps(results))
    found = command("timing", out)
    assert found.exit_code == 2
    assert "results.json cannot be read" in found.output.replace("\n", "")


def test_a_page_has_each_of_its_parts_once():
    text = "a\n<!-- x -->\nold\n<!-- end of x -->\nb\n"
    assert filled(text, {"x": "new"}) == "a\n<!-- x -->\nnew\n<!-- end of x -->\nb\n"
    for bad in ("", text + text, text.replace("end of x", "end"), text.replace("<!-- x -->", "")):
        with pytest.raises(ValueError, match="the page must have <!-- x -->"):
            filled(bad, {"x": "new"})
