"""Counts of instructions against a record of them. Neither torch nor the package is needed."""

from __future__ import annotations

import csv
from pathlib import Path

ALLOWED = 1.05  # two runs were within 2 % of each other

Counts = dict[str, dict[str, int]]
"""Case -> what was counted, the first of which is judged."""


def write(path: Path, found: Counts, toolchain: str) -> None:
    """The record of all cases, in the place of the one that is there."""
    columns = list(next(iter(found.values())))
    whole = path.with_suffix(".new")
    with whole.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case", "toolchain", *columns])
        writer.writerows([case, toolchain, *counts.values()] for case, counts in found.items())
    whole.replace(path)


def read(path: Path) -> dict[str, dict[str, str]]:
    """Case -> its row of the record."""
    with path.open(newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def compare(found: Counts, recorded: dict[str, dict[str, str]], toolchain: str) -> int:
    """Prints every case beside its record; 1 if one rose by more than ALLOWED, or has no record.

    A record of another toolchain is shown, not judged: it has most of the instructions.
    """
    worse = 0
    for case, counts in found.items():
        (name, count), *others = counts.items()
        before = recorded.get(case, {"toolchain": toolchain, name: "0"})
        judged = before["toolchain"] == toolchain
        rose = judged and count > ALLOWED * int(before[name])
        worse += rose
        print(f"{case:42} {count:8} {name}, recorded {before[name]}",
              *(f", {other} {n}" for other, n in others),
              "" if judged else f" (by {before['toolchain']})",
              "  ROSE" if rose else "", sep="")  # fmt: skip
    return int(worse > 0)
