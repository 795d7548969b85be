"""The help of every command, as a page: what the program says of itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sphinx.application import Sphinx

import deepl0_kernels  # noqa: F401 - registers the operators


def helps(group: Any, name: str = "deepl0") -> Iterator[tuple[str, str]]:
    """A command's name and what its --help prints, groups before what is in them."""
    from typer.testing import CliRunner

    from deepl0_kernels import cli

    words = name.split()[1:]
    yield name, CliRunner().invoke(cli._app(), [*words, "--help"], prog_name="deepl0").output
    for word, one in getattr(group, "commands", {}).items():
        yield from helps(one, f"{name} {word}")


def schemas() -> list[str]:
    """Of all operators of torch.ops.deepl0 and their overloads."""
    return sorted(str(s) for s in torch._C._jit_get_all_schemas() if s.name.startswith("deepl0::"))


def write(app: Sphinx) -> None:
    import typer

    from deepl0_kernels import cli

    os.environ["COLUMNS"] = "88"
    parts = [
        f"## {name}\n\n```text\n{text.strip()}\n```"
        for name, text in helps(typer.main.get_command(cli._app()))
    ]
    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    (folder / "schemas.md").write_text("```text\n" + "\n".join(schemas()) + "\n```\n")
    (folder / "commands.md").write_text("\n\n".join(parts) + "\n")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
