"""Blocks of a run, shown as Markdown or as one page of HTML that needs nothing beside it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from .drawing import Drawn, Heading, embedded

# A heading, figures (in HTML alone), items of a list, a paragraph, or a pandas frame of strings.
Block = Heading | Drawn | list[str] | str | Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a202c; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .25rem .8rem; border-bottom: 1px solid #e3e6ea; text-align: right; }
td:first-child, th:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
.note { color: #555b66; }
"""


def markdown(frame) -> str:
    """A pandas frame with its entries as they are: 1.70 stays 1.70."""
    return frame.to_markdown(disable_numparse=True)


def items(lines: Sequence[str]) -> str:
    """A list in Markdown."""
    return "\n".join(f"* {line}" for line in lines)


def as_markdown(found: Sequence[Block]) -> str:
    """Blocks as the text of a run."""

    def text(block: Block) -> str:
        if isinstance(block, Heading):
            return f"## {block.text}"
        if isinstance(block, list):
            return items(block)
        return block if isinstance(block, str) else markdown(block)

    return "\n\n".join(text(b) for b in found if not isinstance(b, Drawn)) + "\n"


def as_html(title: str, found: Sequence[Block]) -> str:
    """Blocks as a part of a page."""

    def text(block: Block) -> str:
        if isinstance(block, Heading):
            return f"<h2>{html.escape(block.text)}</h2>"
        if isinstance(block, Drawn):
            shown = [embedded(svg) for name, svg in block.files.items() if name.endswith(".svg")]
            lacks = ", ".join(block.lacking)
            lacks = lacks and f"Not drawn: {lacks}. The run did not store what they show."
            return "\n".join([text(note) for note in (block.note, lacks) if note] + shown)
        if isinstance(block, list):
            return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in block) + "</ul>"
        if isinstance(block, str):
            return f"<p class=note>{html.escape(block)}</p>"
        return block.to_html(border=0)

    return "\n".join([f"<h1>{html.escape(title)}</h1>", *map(text, found)])


def document(title: str, parts: Sequence[str]) -> bytes:
    """A page of such parts."""
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "</html>\n"
    )
    return page.encode()
