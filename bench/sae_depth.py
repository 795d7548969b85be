"""What stages do to autoencoders of real activations: ``python -m bench.sae_depth`` trains all
that is not on record yet, and draws docs/sae.md from the record; ``--draw`` draws alone.

Activations are those of ``minilm_activations.npz`` in ``DEEPL0_DATA``. A run that was interrupted
goes on; every finished training is on record at once.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from deepl0_kernels._files import fill, write_atomically
from deepl0_kernels._report import record
from deepl0_kernels._report.drawing import PALETTE, save, sheet, tidy
from deepl0_kernels._sources import folder_of
from deepl0_kernels.sae import study
from deepl0_kernels.sae.activations import Activations

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).parent / "records" / "sae-depth.json"
PAGE, FIGURE = ROOT / "docs" / "sae.md", ROOT / "docs" / "figures" / "sae-depth.svg"
RUNS = ROOT / "build" / "sae-depth"

BASE = study.Settings(p=1536, m=32, stages=(1, 2, 3), steps=1000, batch=256, lr=2e-3, pursuits=True)
HELD_OUT = 4096
WHERE = "residual-stream vectors after layer 3 of all-MiniLM-L6-v2; see the data's README"
WORDS = {True: "positive (TopK)", False: "signed (AbsTopK)"}
SHOWN = ("time", "machine", "threads", "torch", "deepl0_kernels", "commit")


def plan() -> Iterator[study.Settings]:
    """All trainings; the first ones say most."""
    for m in (32, 16):
        for seed in (0, 1):
            for positive in (True, False):
                yield replace(BASE, m=m, seed=seed, positive=positive)


def main(arguments: list[str]) -> None:
    if unknown := set(arguments) - {"--draw"}:
        raise SystemExit(f"an option must be --draw, got {sorted(unknown)}")
    if "--draw" not in arguments:
        measure()
    draw()


def measure() -> None:
    torch.set_num_threads(1)
    path = folder_of(None, "minilm_activations.npz", WHERE) / "minilm_activations.npz"
    train = Activations.open(path, "train")
    test = Activations.open(path, "test").part(slice(0, HELD_OUT))
    for settings in plan():
        runs = record.read_json(RECORD)["runs"] if RECORD.exists() else []
        chosen = json.loads(json.dumps(asdict(settings)))
        if any(chosen.items() <= run["settings"].items() for run in runs):
            continue
        name = f"m{settings.m}-{'positive' if settings.positive else 'signed'}-{settings.seed}"
        found = study.train(train, settings, RUNS / name, held_out=test, progress=True)
        rows = [{k: v for k, v in row.items() if k != "firing"} for row in found["evaluations"]]
        environment = {key: found["environment"][key] for key in SHOWN}
        run = {"settings": found["settings"], "environment": environment, "evaluations": rows}
        record.write_json(RECORD, {"data": WHERE, "runs": [*runs, run]})


if __name__ == "__main__":
    main(sys.argv[1:])
