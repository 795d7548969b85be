"""docs/gpu.md: what the cost model predicts, and how the kernels are verified without a GPU.

``python -m python_tests.triton.cost_page --write`` writes it; a test compares.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

import deepl0_kernels as dk
from deepl0_kernels.triton import launch

from . import aot_table
from .aot import TARGETS
from .aot_table import tile
from .cost import DEVICES, EFFICIENCY, FORMULAS, Arguments, Device, Prediction, predict, torch_cost
from .problems import backward, leaf
from .recording import Capturable, recording

PATH = Path(__file__).parents[2] / "docs" / "gpu.md"
N, M, K = 256, 32, 2


class Case(NamedTuple):
    """A call of an operator, and the least that any implementation must move and compute."""

    operator: str
    shape: str
    dtype: torch.dtype
    call: Callable[[], object]
    bytes: float
    flops: float  # of products


class Step(NamedTuple):
    name: str
    prediction: Prediction


def encoder(batch: int, p: int, stages: int, dtype: torch.dtype, train: bool = False) -> Case:
    e = dtype.itemsize

    def call():
        x = torch.empty(batch, N, dtype=dtype, device="meta")
        W = leaf(p, N, dtype=dtype)
        S = leaf(p, p, dtype=dtype) if stages > 1 else None
        if not train:
            with torch.no_grad():
                return dk.encode_top_m(x, W, S, M, num_stages=stages)
        values = dk.encode_top_m(x, W, S, M, num_stages=stages).values
        return backward(values, *(t for t in (W, S) if t is not None))

    weights = (N + (stages - 1) * p) * p
    dense = 2.0 * batch * weights
    operator = "encode_top_m" + (" forward + backward" if train else "")
    moved = e * (batch * N + weights) + batch * M * (e + 8.0)
    if train:
        moved = 2 * moved + 2 * (stages - 1) * batch * M * 12.0
    shape = f"B={batch} p={p} K={stages}"
    return Case(operator, shape, dtype, call, moved, dense)


def encoder_l0(batch: int, p: int, stages: int, dtype: torch.dtype) -> Case:
    def call():
        x = torch.empty(batch, N, dtype=dtype, device="meta")
        W, S = (torch.empty(*s, dtype=dtype, device="meta") for s in ((p, N), (p, p)))
        return dk.encode_l0(x, W, S, torch.empty(p, device="meta"), num_stages=stages)

    weights = (N + (stages - 1) * p) * p
    moved = dtype.itemsize * (batch * (N + p) + weights)
    return Case(
        "encode_l0", f"B={batch} p={p} K={stages}", dtype, call, moved, 2.0 * batch * weights
    )


def select(batch: int, p: int, dtype: torch.dtype) -> Case:
    def call():
        return dk.top_m(torch.empty(batch, p, dtype=dtype, device="meta"), M)

    moved = dtype.itemsize * batch * (p + M) + 8.0 * batch * M
    return Case("top_m", f"B={batch} p={p}", dtype, call, moved, 0.0)


def keep(batch: int, p: int, dtype: torch.dtype) -> Case:
    def call():
        return dk.keep_top_m(torch.empty(batch, p, dtype=dtype, device="meta"), M)

    moved = batch * p * (2.0 * dtype.itemsize + 1 / 8)
    return Case("keep_top_m", f"B={batch} p={p}", dtype, call, moved, 0.0)


def helu(batch: int, p: int, dtype: torch.dtype) -> Case:
    def call():
        u, theta = leaf(batch, p, dtype=dtype), leaf(p)
        return backward(dk.helu(u, theta, 0.2), u, theta)

    return Case(
        "helu forward + backward", f"B={batch} p={p}", dtype, call,
        5.0 * batch * p * dtype.itemsize, 0.0,
    )  # fmt: skip


def decode(batch: int, p: int, dtype: torch.dtype) -> Case:
    def call():
        D = torch.empty(p, N, dtype=dtype, device="meta").t()
        values = torch.empty(batch, M, dtype=dtype, device="meta")
        indices = torch.empty(batch, M, dtype=torch.int64, device="meta")
        return dk.decode(dk.SparseCode(values, indices, p), D)

    e = dtype.itemsize
    moved = batch * M * (e + 8.0) + e * (min(p, batch * M) * N + batch * N)
    return Case("decode", f"B={batch} p={p}", dtype, call, moved, 0.0)


def cases() -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for p in (128, 256, 512):
            for batch in (4096, 65536):
                yield encoder(batch, p, K, dtype)
        yield from (encoder(4096, p, 1, dtype) for p in (16384, 131072))
        yield from (encoder(4096, p, K, dtype, True) for p in (128, 256, 512))
        yield encoder(4096, 16384, 1, dtype, True)
        for p in (128, 256, 512):
            for batch in (4096, 65536):
                yield encoder_l0(batch, p, K, dtype)
        yield from (select(4096, p, dtype) for p in (512, 16384, 131072))
        yield keep(4096, 512, dtype)
        yield keep(65536, 512, dtype)
        yield helu(4096, 512, dtype)
        yield helu(65536, 512, dtype)
        yield from (decode(4096, p, dtype) for p in (512, 16384, 131072))


@contextmanager
def _steps(device: Device, residents: dict[tuple[str, str], int]) -> Iterator[list[Step]]:
    """The launches and PyTorch's operations of what is called inside, as predictions in order."""
    steps: list[Step] = []

    def launched(job: launch.Launch) -> None:
        a = Arguments(job)
        name = job.kernel.__name__
        slots = device.multiprocessors * residents.get((name, tile(job.config)), 2)
        steps.append(Step(name, predict(FORMULAS[name](a), a.programs, slots, device)))

    def dispatch(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [
            t for t in torch.utils._pytree.tree_leaves((args, kwargs, out)) if torch.is_tensor(t)
        ]
        if not (func.is_view or name.startswith(("empty", "new_empty", "detach", "_unsafe_view"))):
            cost = torch_cost(name, tensors)
            steps.append(Step(name, predict(cost, 1 << 20, 1 << 20, device)))
        return out

    before = Capturable.__torch_dispatch__
    with recording(device.device_class):
        launch.run = launched
        Capturable.__torch_dispatch__ = dispatch
        try:
            yield steps
        finally:
            Capturable.__torch_dispatch__ = before


def residents(device: Device) -> dict[tuple[str, str], int]:
    """Programs of a kernel and tile that fit on a multiprocessor, from docs/gpu-kernels.md."""
    limit = TARGETS[device.device_class].warps
    found = {}
    for (_, kernel, config), row in aot_table.committed().items():
        if cell := row.get(device.device_class):
            warps = int(config.split(", ")[1].split()[0])
            share = float(cell.split(", ")[2].rstrip("%")) / 100
            found[kernel, config] = max(1, round(share * limit / warps))
    return found


def steps_of(case: Case, device: Device) -> list[Step]:
    with _steps(device, residents(device)) as steps:
        case.call()
    return steps


def roof(case: Case, device: Device) -> float:
    """Seconds that no implementation with dense products in the operands' dtype beats."""
    unit = "fp32" if case.dtype == torch.float32 else "half"
    return max(case.bytes / device.dram, case.flops / device.units[unit])


def line(case: Case) -> str:
    cells = [case.operator, case.shape, str(case.dtype).removeprefix("torch.")]
    for device in DEVICES:
        steps = steps_of(case, device)
        total = sum(s.prediction.seconds for s in steps)
        worst = max(steps, key=lambda s: s.prediction.seconds)
        if device is DEVICES[0]:
            dram, l2 = (sum(getattr(s.prediction, f) for s in steps) for f in ("dram", "l2"))
            cells += [str(len(steps)), _number(dram / 1e6), _number(l2 / 1e6)]
        bound = worst.prediction.bound
        launches = len(steps) * device.launch
        if launches > total / 2:
            bound = "launches"
        cells.append(f"{_number(total * 1e6)}, {roof(case, device) / total:.0%}, {bound}")
    return "| " + " | ".join(cells) + " |"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def page() -> str:
    devices = "\n".join(
        f"| {d.name} | {d.dram / 1e12:.3g} | {d.l2 / 1e12:.3g} | "
        + " | ".join(f"{d.units[u] / 1e12:.4g}" for u in ("half", "tf32", "fp32", "int32"))
        + f" | {d.launch * 1e6:.0f} |"
        for d in DEVICES
    )
    shares = ", ".join(f"{name} {share:.0%}" for name, share in EFFICIENCY.items())
    head = "| operator | shape | dtype | launches | DRAM, MB | L2, MB | " + " | ".join(
        f"{d.name}: predicted us, share of the roof, bound" for d in DEVICES
    )
    table = "\n".join(line(case) for case in cases())
    text = PATH_TEXT.read_text()
    return text.format(
        devices=devices, shares=shares, head=f"{head} |\n" + "|---" * (6 + len(DEVICES)) + "|",
        table=table, n=N, m=M,
    )  # fmt: skip


PATH_TEXT = Path(__file__).with_name("gpu.md.in")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"replace {PATH.name}")
    if parser.parse_args().write:
        PATH.write_text(page())
    else:
        sys.stdout.write(page())


if __name__ == "__main__":
    main()
