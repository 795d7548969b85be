"""Files that are written whole or not at all, and pages of which parts are generated."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write through a temporary file in the same folder, so that a reader never sees half of it."""
    with replacing(path) as new:
        new.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, which takes its place if nothing is raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        # mkstemp is private; what is published has the modes of an ordinary file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def filled(text: str, parts: Mapping[str, str]) -> str:
    """``text`` with each part between its comments ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        ValueError: a comment of that name is missing or stands there twice.
    """
    for name, content in parts.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise ValueError(f"the page must have {begin.strip()} and {end} once, in this order")
        before, rest = text.split(begin)
        text = f"{before}{begin}{content.rstrip()}\n{end}{rest.split(end)[1]}"
    return text


def fill(page: Path, parts: Mapping[str, str]) -> None:
    """Put the parts of a page into their places; see :func:`filled`."""
    write_atomically(page, filled(page.read_text(), parts).encode())
