"""examples/*.py as pages: their text, their code, and what they printed and drew.

The scripts are in jupytext's percent format. `make examples` runs them and keeps their output in
examples/output, so that building the site takes seconds.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def cells(source: str) -> list[tuple[bool, str]]:
    """(is it text, content) of every cell of a script in the percent format."""
    found = []
    for part in re.split(r"^# %%", source, flags=re.M)[1:]:
        head, _, body = part.partition("\n")
        text = "[markdown]" in head
        if text:
            body = re.sub(r"^# ?", "", body, flags=re.M)
        if body.strip():
            found.append((text, body.strip("\n")))
    return found


def page(script: Path) -> str:
    """The script as a page of MyST."""
    parts = []
    for text, body in cells(script.read_text()):
        parts.append(body if text else f"```python\n{body}\n```")
    output = EXAMPLES / "output"
    if (output / f"{script.stem}.txt").exists():  # `make examples` has run it
        parts.append("## What it gives")
        parts += [f"![]({f.name})" for f in sorted(output.glob(f"{script.stem}-*.svg"))]
        printed = (output / f"{script.stem}.txt").read_text().rstrip()
        parts.append(f"```text\n{printed}\n```")
    return "\n\n".join(parts) + "\n"


def scripts() -> list[Path]:
    return [p for p in sorted(EXAMPLES.glob("[a-z]*.py")) if (p.read_text()).startswith("# %%")]


def write(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "gallery"
    folder.mkdir(exist_ok=True)
    for figure in (EXAMPLES / "output").glob("*.svg"):
        shutil.copy(figure, folder)
    for script in scripts():
        content = page(script)
        target = folder / f"{script.stem}.md"
        if not target.exists() or target.read_text() != content:
            target.write_text(content)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
