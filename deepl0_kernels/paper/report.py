"""``deepl0 report``: what is drawn from a run, and all of it on one page of HTML."""

from __future__ import annotations

from pathlib import Path

from .._files import write_atomically
from .drawing import Drawn
from .rendering import as_html, as_markdown, blocks
from .tables import STUDIES

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a202c; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .25rem .8rem; border-bottom: 1px solid #e3e6ea; text-align: right; }
td:first-child, th:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
.note { color: #555b66; }
"""


def write(folder: Path) -> Path:
    """Draw the results of a run: text, CSV and figures of each study; returns ``report.html``.

    Every file is written whole or not at all; the page needs nothing beside it.

    Raises:
        FileNotFoundError: the folder holds no results.
        ValueError: its results, or what stands beside them, cannot be read.
    """
    import pandas

    parts = []
    there = [study for study in STUDIES if (folder / f"{study.name}.json").exists()]
    for study in there or STUDIES[:1]:  # of nothing the first says what to run
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
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Deep l0 encoders</title>"
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "</html>\n"
    )
    out = folder / "report.html"
    write_atomically(out, page.encode())
    return out
