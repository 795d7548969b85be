"""The pages: every public name has its place, links lead somewhere, and what can be pasted runs."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import draw, records
from python_tests.test_examples import public

ROOT = Path(__file__).parents[1]
WRITTEN = ("_generated", "gallery")  # by the build
PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md") if p.parent.name not in WRITTEN)
PASTED = [p for p in PAGES if p.parent.name == "how-to"] + [
    ROOT / "docs" / f"{name}.md" for name in ("index", "getting-started", "errors", "migration")
] + [ROOT / "README.md"]  # fmt: skip
# What torchrun would say to the only process that it started.
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost",
            "MASTER_PORT": "0"}  # fmt: skip


def slug(head: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-")


def test_every_public_name_is_on_a_page_of_the_reference():
    text = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    directive = r"^(?:\.\. (?:auto|py:)\w+::| {13}) (deepl0_kernels[\w.]+)"
    found = re.findall(directive, text, re.M)
    assert len(found) == len(set(found))
    names = {name for name, _ in public()} | {"deepl0_kernels.__version__"}
    # Needs SAELens to be imported: read, not asked.
    source = ROOT / "deepl0_kernels" / "sae" / "saelens.py"
    (listed,) = re.findall(r"^__all__ = (\[.*?^\])", source.read_text(), re.M | re.S)
    names |= {f"deepl0_kernels.sae.saelens.{name}" for name in ast.literal_eval(listed)}
    assert set(found) == names


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.stem
)
def test_relative_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", path):
            continue
        file = (page.parent / path).resolve() if path else page
        if file.parent.name == "gallery":  # written of the scripts when the site is built
            file = ROOT / "examples" / f"{file.stem}.py"
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            heads = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
            assert anchor in {slug(head) for head in heads}, f"{page.name}: {target}"


def test_the_pages_that_errors_name_are_there():
    heads = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "errors.md").read_text(), re.M)
    named = {
        anchor
        for source in (ROOT / "deepl0_kernels").rglob("*.py")
        for anchor in re.findall(r"docs/errors\.md#([\w-]+)", source.read_text())
    }
    assert len(named) >= 3
    assert named <= {slug(head) for head in heads}


@pytest.mark.parametrize("page", PASTED, ids=lambda p: p.stem)
def test_what_can_be_pasted_runs(page, monkeypatch, tmp_path, capsys):
    """The blocks of a page in their order, as one script."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    for word, value in TORCHRUN.items() if page.stem == "torchrun" else ():
        monkeypatch.setenv(word, value)
    threads = torch.get_num_threads()
    if any("spams" in block for block in blocks):
        pytest.importorskip("spams")
    scope: dict[str, object] = {"__name__": "__main__"}
    try:
        for block in blocks:
            if page.name == "README.md" and "sklearn" in block:  # python_tests/sklearn runs it
                continue
            exec(compile(block, str(page), "exec"), scope)
    finally:
        torch.set_num_threads(threads)
    # What needs more than a CPU and this package is at least Python.
    for block in re.findall(r"^```{code-block} python\n(.*?)^```", page.read_text(), re.M | re.S):
        compile(block, str(page), "exec")
    for line in re.findall(r"print\(.*\)  # (.+)$", "\n".join(blocks), re.M):
        if line.startswith("m must be"):
            assert line in capsys.readouterr().out


def test_the_benchmarks_are_those_on_record():
    """Of one machine a record: drawing refuses others."""
    assert (ROOT / "docs" / "benchmarks.md").read_text() == draw.cpu_page(
        records.FOLDER / "cpu.csv"
    )


def test_a_record_of_two_machines_is_not_drawn(tmp_path):
    rows = records.read(records.FOLDER / "cpu.csv")[:2]
    path = tmp_path / "cpu.csv"
    records.write(path, [rows[0], replace(rows[1], machine="another")])
    with pytest.raises(ValueError, match=r"cpu\.csv must be of one machine, got \[.*another"):
        draw.cpu_page(path)
