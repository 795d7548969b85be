"""``deepl0 tune`` kernel by kernel, kept as it goes, without the command's dependencies.

The configurations go to the file that DEEPL0_TUNED names; kernels in the file of --done are not
measured again.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

from deepl0_kernels import tune
from deepl0_kernels.triton import tuned

from . import gpu_device

SIZES = (128, 512, 2048)
DTYPES = (torch.float32, torch.bfloat16)


def measure(*arguments) -> float:
    return gpu_device.microseconds(lambda: None, str(arguments))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--done", type=Path, required=True)
    parser.add_argument("--only", default="", type=re.compile)
    arguments = parser.parse_args()
    done = arguments.done.read_text().split() if arguments.done.exists() else []
    stub = gpu_device.STUB
    for kernel in tune.tunable()[: 2 if stub else None]:
        if kernel in done or not arguments.only.search(kernel):
            continue
        chosen = []
        for choice in tune.choose(
            [kernel], SIZES, DTYPES, 4096, gpu_device.DEVICE, measure if stub else tune.measure
        ):
            print(
                f"{choice.kernel} p={choice.p} {choice.dtype}: {choice.default:.1f} us, "
                f"best {choice.best:.1f} us with {tuple(choice.config)}",
                flush=True,
            )
            chosen.append(choice)
        if not stub:
            tuned.store(tune.results(chosen, torch.device("cuda", 0)))
        with arguments.done.open("a") as file:
            file.write(f"{kernel}\n")
