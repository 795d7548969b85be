"""Runs the examples: python examples/run.py [NAME...] [--rotate] [--keep].

Without names all of them. --rotate runs one, by the date: another one every day. --keep writes
their output and figures into examples/output, which the site shows. Each has two minutes
(EXAMPLE_LIMIT seconds); the exit code is 1 if one fails or is late.
"""

from __future__ import annotations

import argparse
import datetime
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
LIMIT = float(os.environ.get("EXAMPLE_LIMIT", 120))  # seconds


def scripts() -> dict[str, Path]:
    """By name: those in the percent format."""
    found = sorted(HERE.glob("[a-z]*.py"))
    return {path.stem: path for path in found if path.read_text().startswith("# %%")}


def alone(script: Path, figures: Path | None) -> None:
    """In this process, with figures saved where a notebook would show them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawn = 0

    def show() -> None:
        nonlocal drawn
        for number in plt.get_fignums():
            drawn += 1
            if figures is not None:
                path = figures / f"{script.stem}-{drawn}.svg"
                plt.figure(number).savefig(path, metadata={"Date": None}, dpi=100)
        plt.close("all")

    plt.show = show  # type: ignore[assignment]
    plt.rcParams.update({"svg.hashsalt": script.stem, "figure.constrained_layout.use": True})
    sys.path.insert(0, str(HERE))
    runpy.run_path(str(script), run_name="__main__")


def run(script: Path, keep: bool) -> bool:
    """In a process of its own, within the limit; True if it went well."""
    start, output = time.monotonic(), HERE / "output"
    command = [sys.executable, __file__, "--alone", str(script), *(["--keep"] if keep else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT,
                              env={"OMP_NUM_THREADS": "2", **os.environ})  # fmt: skip
    except subprocess.TimeoutExpired:
        print(f"{script.stem}: more than {LIMIT} s", file=sys.stderr)
        return False
    seconds = time.monotonic() - start
    print(f"== {script.stem}, {seconds:.0f} s\n{done.stdout.rstrip()}")
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return False
    if keep:
        (output / f"{script.stem}.txt").write_text(done.stdout)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--rotate", action="store_true", help="one of them, by the date")
    parser.add_argument("--keep", action="store_true", help="write examples/output")
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    (HERE / "output").mkdir(exist_ok=True)
    if options.alone:
        return alone(options.alone, HERE / "output" if options.keep else None)
    known = scripts()
    if unknown := set(options.names) - set(known):
        parser.error(f"no example {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    names = options.names or list(known)
    if options.rotate:
        names = [names[datetime.date.today().toordinal() % len(names)]]
    results = [run(known[name], options.keep) for name in names]
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
