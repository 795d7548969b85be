"""The page that a GPU hour ends with: what failed, what lost to torch eager, what changed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from . import gpu_progress, records
from .gpu_device import Card

LONGEST = 10_000  # characters of the page
LINES = 20  # of a section
CHANGE = 0.05
EAGER, OURS = "torch eager", "deepl0"
# What is compared: launches alone, and the call as written.
MODES = ("graph", "warm L2")


def page(folder: Path, card: Card, torch_version: str, parts: list[str]) -> str:
    """The summary of the run in ``folder``, the results of one commit."""
    lines = [
        f"commit {folder.name}; {card.name} ({card.capability}), driver {card.driver}, "
        f"{card.toolkit}, torch {torch_version}, triton {card.triton}"
    ]
    if card.name == "stub":
        lines.append("A STUB OF A DEVICE: nothing below is a measurement.")
    lines += ["", *_parts(folder, parts)]
    for title, found in (
        ("Failed", failures(folder)),
        ("Slower than torch eager", losses(_rows(folder / f"gpu-{card.slug}.csv"))),
        (
            f"Changed by more than {CHANGE:.0%} against the committed record",
            changes(
                _rows(folder / f"gpu-{card.slug}.csv"),
                _rows(records.FOLDER / f"gpu-{card.slug}.csv"),
            ),
        ),
        ("Host, us a call", host(folder / "host-times.json")),
    ):
        lines += ["", f"{title}: {len(found) or 'nothing'}"]
        lines += [line[:240] for line in found[:LINES]]
        if len(found) > LINES:
            lines.append(f"... and {len(found) - LINES} more in {folder}")
    text = "\n".join(lines)
    return text if len(text) <= LONGEST else text[: LONGEST - 16] + "\n(cut at here)\n"


def _parts(folder: Path, parts: list[str]) -> list[str]:
    lines = []
    for name in parts:
        path = folder / f"{name}.json"
        if not path.exists():
            lines.append(f"{name:10} not begun")
            continue
        found = json.loads(path.read_text())
        counts = Counter(
            line["outcome"] for line in gpu_progress.read(folder / f"{name}.jsonl").values()
        )
        told = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))
        lines.append(
            f"{name:10} {found['status']:8} {found['seconds']:6.1f} s  {told or found['told']}"
        )
    return lines


def failures(folder: Path) -> list[str]:
    """Tests and steps that failed, crashed, or were cut."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        for name, line in gpu_progress.read(path).items():
            if line["outcome"] not in ("passed", "skipped"):
                found.append(f"{line['outcome']}: {name}: {line.get('message', '')}")
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        told_by_test = (folder / f"{path.stem}.jsonl").exists()
        if isinstance(result, dict) and result.get("status") == "failed" and not told_by_test:
            found.append(f"{path.stem}: {result['told']}")
    return found


def _rows(path: Path) -> list[records.Row]:
    return records.read(path) if path.exists() else []


def _shown(rows: list[records.Row]) -> list[records.Row]:
    return [r for r in rows if r.provider == OURS and r.operator.rsplit(", ", 1)[-1] in MODES]


def losses(rows: list[records.Row]) -> list[str]:
    """Where deepl0 takes longer than torch eager, the worst first."""
    lost = sorted((r.speedup, r.operator, r.shape, r.p50) for r in _shown(rows) if r.speedup < 1)
    return [f"{x:.2f} x: {operator}, {shape}: {us:.4g} us" for x, operator, shape, us in lost]


def changes(rows: list[records.Row], before: list[records.Row]) -> list[str]:
    """Medians of deepl0 that moved, slower ones first; torch eager's own change beside them."""
    old = {(r.operator, r.shape, r.provider): r.p50 for r in before}
    new = {(r.operator, r.shape, r.provider): r.p50 for r in rows}
    found = []
    for r in _shown(rows):
        key, eager = (r.operator, r.shape, OURS), (r.operator, r.shape, EAGER)
        if key in old and abs(r.p50 / old[key] - 1) > CHANGE:
            drift = f"{new[eager] / old[eager] - 1:+.0%}" if eager in old and eager in new else "?"
            found.append((
                r.p50 / old[key] - 1,
                f"{r.operator}, {r.shape}: {old[key]:.4g} -> {r.p50:.4g} us (torch eager {drift})",
            ))  # fmt: skip
    return [f"{change:+.0%} {text}" for change, text in sorted(found, reverse=True)]


def host(path: Path) -> list[str]:
    """Ours beside torch eager's, per call."""
    if not path.exists():
        return []
    return [
        f"{name}: {row['ours_us']:.4g}, torch eager {row['eager_us']:.4g}"
        for name, row in json.loads(path.read_text()).items()
    ]
