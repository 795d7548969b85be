"""Blocks of a run, shown as Markdown or as one page of HTML that needs nothing beside it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from .drawing import Drawn, Heading, embedded

# A heading, figures (in HTML alone), items of a list, a paragraph, or a pandas frame of strings.
Block = Heading | Drawn | list[str] | str | Any

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a202c; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .25rem .8rem; border-bottom: 1px solid #e3e6ea; text-align: right; }
td:first-child, th:first-child { text-align: left; }
thead th { cursor: pointer; user-select: none; white-space: nowrap; }
thead th:hover, thead th:focus { background: #edf2f7; }
th[aria-sort=ascending]::after { content: " \\25b2"; }
th[aria-sort=descending]::after { content: " \\25bc"; }
tbody th { cursor: pointer; font-weight: normal; }
tbody tr:hover { background: #f7fafc; }
tr.off { display: none; }
.scroll { overflow-x: auto; }
button { font: inherit; border: 1px solid #a0aec0; border-radius: 4px; background: #fff; }
svg { max-width: 100%; height: auto; }
.note { color: #555b66; }
@media print { button { display: none; } body { margin: 0; max-width: none; }
               h2, figure { break-after: avoid; } figure, table { break-inside: avoid; } }
"""

# Columns sort by a click on their head, rows hide by one on their name; without scripts the page
# is the same, standing still. No library: two gestures do not pay for one.
_SCRIPT = """
for (const table of document.querySelectorAll('table')) {
  const body = table.tBodies[0], first = [...body.rows];
  const box = document.createElement('div');
  box.className = 'scroll';
  table.replaceWith(box);
  const back = document.createElement('button');
  back.hidden = true;
  box.append(table, back);
  const count = () => {
    const off = first.filter(r => r.className === 'off').length;
    back.hidden = !off;
    back.textContent = `show ${off} hidden row${off > 1 ? 's' : ''}`;
  };
  back.onclick = () => { first.forEach(r => r.className = ''); count(); };
  for (const row of first) {
    const name = row.cells[0];
    name.title = 'click to hide';
    name.onclick = () => { row.className = 'off'; count(); };
  }
  const value = (row, i) => {
    const text = row.cells[i].textContent, number = parseFloat(text);
    return isNaN(number) ? text : number;
  };
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => {
    head.tabIndex = 0;
    head.title = 'click to sort';
    const sort = () => {
      const next = {ascending: 'descending', descending: null}[head.getAttribute('aria-sort')];
      const order = next === undefined ? 'ascending' : next;
      heads.forEach(h => h.removeAttribute('aria-sort'));
      if (order) head.setAttribute('aria-sort', order);
      const sign = order === 'descending' ? -1 : 1;
      const sorted = order === null ? first : [...first].sort((a, b) => {
        const [x, y] = [value(a, i), value(b, i)];
        if (x === '' || y === '') return (x === '') - (y === '');  // blanks last
        return sign * (typeof x === typeof y && typeof x === 'number' ? x - y
                       : String(x).localeCompare(String(y)));
      });
      body.append(...sorted);
    };
    head.onclick = sort;
    head.onkeydown = e => { if (e.key === 'Enter') sort(); };
  });
}
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
        "<meta name=viewport content='width=device-width'>"
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + f"<script>{_SCRIPT}</script></html>\n"
    )
    return page.encode()
