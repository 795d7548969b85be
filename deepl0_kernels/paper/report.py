"""``deepl0 report``: what is drawn from a run, and all of it on one page of HTML."""

from __future__ import annotations

from pathlib import Path

from .._files import write_atomically
from .._report.drawing import Drawn
from .._report.page import as_html, as_markdown, document
from .rendering import blocks
from .tables import studies_in


def write(folder: Path) -> Path:
    """Draw the results of a run: text, CSV and figures of each study; returns ``report.html``.

    Every file is written whole or not at all; the page needs nothing beside it.

    Raises:
        FileNotFoundError: the folder holds no results.
        ValueError: its results, or what stands beside them, cannot be read.
    """
    import pandas

    parts = []
    for study in studies_in(folder):
        results = study.read(folder)
        found = blocks(study, results, folder)
        lines = pandas.DataFrame(study.lines(results)).to_csv(index=False)
        write_atomically(folder / f"{study.name}.csv", lines.encode())
        write_atomically(folder / study.text_file, as_markdown(found).encode())
        for block in found:
            if isinstance(block, Drawn):
                for name, content in block.files.items():
                    write_atomically(folder / name, content)
        parts.append(as_html(study.title, found))
    out = folder / "report.html"
    write_atomically(out, document("Deep l0 encoders", parts))
    return out
