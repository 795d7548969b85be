"""``deepl0 doctor``: what was built, what serves here, and a self-test against the reference."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import (  # fmt: skip
    _C,
    batch_top_m,
    decode,
    encode_l0,
    encode_top_m,
    helu,
    keep_top_m,
    solvers,
    threshold_stage,
    top_m,
    top_m_stage,
    use_backend,
)
from ._report.record import environment
from .backends import available
from .cuda.library import refusal

VARIABLES = ("DEEPL0_ISA", "DEEPL0_SCREEN", "DEEPL0_DATA", "DEEPL0_TUNED", "OMP_NUM_THREADS",
             "CUDA_VISIBLE_DEVICES", "TRITON_INTERPRET")  # fmt: skip
# Package -> what here needs it.
PACKAGES = {
    "numpy": "data, files",
    "triton": "GPU kernels of the triton backend",
    "typer": "this command",
    "matplotlib": "figures",
    "scikit-learn": "deepl0_kernels.sklearn",
    "safetensors": "files of sparse autoencoders",
    "sae-lens": "deepl0_kernels.sae.saelens",
}


def examine(progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """All that is known of this installation, and whether it computes what the reference does.

    Args:
        progress: gets the name of each check before it runs.

    Returns:
        What ``--json`` prints: versions, build, variables, packages, gpus, ``checks`` (name,
        backend, ok, detail, seconds), ``notes`` (sentences), ``ok``.
    """
    gpus = [_gpu(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    # What the commands' records hold; times and commits are of no use here.
    known = environment()
    checks = []
    for device, forced in _floors(gpus):
        for name, compute in CHECKS.items():
            if forced == "triton" and compute is _solvers:  # it has none
                continue
            progress(f"{name} ({forced or device})")
            checks.append(_check(name, compute, device, forced))
    driver = Path("/proc/driver/nvidia/version")
    return {
        "deepl0_kernels": known["deepl0_kernels"],
        "python": known["python"],
        "system": known["system"],
        "machine": known["machine"],
        "torch": known["torch"],
        "torch_cuda": torch.version.cuda,
        "torch_hip": torch.version.hip,
        "driver": driver.read_text().splitlines()[0] if driver.exists() else None,
        "extension": _C.__file__,
        "build": known["build"],
        "backends": known["backends"],
        "gpus": gpus,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "packages": {name: _version(name) for name in PACKAGES},
        "checks": checks,
        "notes": list(_notes(known["build"], gpus)),
        "ok": all(check["ok"] for check in checks),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu(index: int) -> dict[str, Any]:
    found = torch.cuda.get_device_properties(index)
    device = torch.device("cuda", index)
    why = refusal(device) if "cuda" in available() else "not in this build"
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory_gib": round(found.total_memory / 2**30, 1),
        "cuda_kernels": "serve" if why is None else why,
    }


def _floors(gpus: list[dict[str, Any]]) -> Iterator[tuple[str, str | None]]:
    """Device and forced backend, None for what serves by default there."""
    yield "cpu", "cpu"
    if gpus:
        yield "cuda", None
        if "triton" in available():
            yield "cuda", "triton"


def _notes(build: dict[str, Any], gpus: list[dict[str, Any]]) -> Iterator[str]:
    """What makes this installation slower or smaller than it could be."""
    best, active = build["isa_supported"][-1], build["isa_active"]
    if active != best:
        yield f"DEEPL0_ISA holds the CPU kernels at {active}; this processor has {best}."
    if best == "scalar":
        yield "The CPU kernels run at the portable level: this processor has no AVX2."
    if gpus and not build["cuda"]:
        yield (
            "torch sees a GPU, but this build has no CUDA kernels: set CUDA_HOME to a toolkit and "
            "install again. Until then Triton serves if it is installed, else the reference."
        )
    for gpu in gpus:
        if build["cuda"] and gpu["cuda_kernels"] != "serve":
            yield f"The CUDA kernels do not serve {gpu['name']}: {gpu['cuda_kernels']}."
    if build["cuda"] and not gpus:
        yield "Built with CUDA kernels, but torch sees no GPU here: they wait."
    if torch.version.cuda and not torch.cuda.is_available():
        yield "torch is a CUDA build and finds no usable driver."


# The self-test. Data are small integers and eighths, so that every product and sum is exact in
# float32 in whatever order it is formed, and the results are compared bit by bit, ties included.


def _whole(*shape: int, seed: int, high: int = 3, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-high, high + 1, shape, generator=generator).float().to(device)


def _encoder(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, W = _whole(64, 24, seed=0, device=device), _whole(96, 24, seed=1, device=device)
    S = _whole(96, 96, seed=2, high=1, device=device) / 8
    return x, W, S, _whole(24, 96, seed=3, high=1, device=device) / 8


def _selection(device: str) -> list[Tensor]:
    u = _whole(64, 1000, seed=0, device=device)
    return [*top_m(u, 32), keep_top_m(u, 7, positive=True), *batch_top_m(u, 5)]


def _thresholds(device: str) -> list[Tensor]:
    u = (_whole(64, 100, seed=0, high=16, device=device) / 8).requires_grad_()
    z = helu(u, 1.0, 0.5)
    return [z, *torch.autograd.grad(z.sum(), u)]


def _stages(device: str) -> list[Tensor]:
    x, W, S, _ = _encoder(device)
    z = keep_top_m(_whole(64, 96, seed=4, device=device), 8)
    return [top_m_stage(x, W, z, S, 8), threshold_stage(x, W, z, S, 8.0, 0.5)]


def _with_gradients(encode: Callable[..., list[Tensor]], *operands: Tensor) -> list[Tensor]:
    leaves = [operand.clone().requires_grad_() for operand in operands]
    out = encode(*leaves)
    loss = torch.stack([o.sum() for o in out if o.is_floating_point()]).sum()
    return [*out, *torch.autograd.grad(loss, leaves)]


def _sparse_encoder(device: str) -> list[Tensor]:
    x, W, S, _ = _encoder(device)

    def encode(x: Tensor, W: Tensor, S: Tensor) -> list[Tensor]:
        code = encode_top_m(x, W, S, 8, num_stages=3)
        return [code.values, code.indices]

    return _with_gradients(encode, x, W, S)


def _threshold_encoder(device: str) -> list[Tensor]:
    x, W, S, _ = _encoder(device)
    return _with_gradients(lambda x, W, S: [encode_l0(x, W, S, 8.0, sigma=0.5)], x, W, S)


def _factored_encoder(device: str) -> list[Tensor]:
    x, W, _, D = _encoder(device)

    def encode(x: Tensor, W: Tensor, D: Tensor) -> list[Tensor]:
        code = encode_top_m(x, W, None, 8, D=D)
        return [code.values, code.indices, decode(code, D)]

    return _with_gradients(encode, x, W, D)


def _solvers(device: str) -> list[Tensor]:
    """Not exact, as their steps are not: a sparse signal is found again."""
    generator = torch.Generator().manual_seed(0)
    D = torch.nn.functional.normalize(torch.randn(64, 96, generator=generator), dim=0).to(device)
    x = D[:, 5:25:5].sum(1, keepdim=True).t().expand(4, -1)
    found = [solvers.omp(x, D, 4).dense, solvers.fista(x, D, 0.01).dense]
    return [f.mul(16).round() / 16 for f in [*found, solvers.iht_m(x, D, 4).dense]]


CHECKS: dict[str, Callable[[str], list[Tensor]]] = {
    "selection": _selection,
    "thresholds": _thresholds,
    "stages": _stages,
    "encode_top_m and its gradients": _sparse_encoder,
    "encode_l0 and its gradients": _threshold_encoder,
    "factored encoder, decode, gradients": _factored_encoder,
    "solvers": _solvers,
}


def _check(
    name: str, compute: Callable[[str], list[Tensor]], device: str, forced: str | None
) -> dict[str, Any]:
    start, detail = time.perf_counter(), ""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            with use_backend("reference"):
                wanted = compute("cpu")
            with use_backend(forced):
                found = compute(device)
        wrong = [i for i, (a, b) in enumerate(zip(found, wanted, strict=True))
                 if not torch.equal(a.cpu(), b)]  # fmt: skip
        if wrong:
            detail = f"results {wrong} of {len(wanted)} differ from the reference"
    except Exception as error:  # what a broken installation raises is the finding
        detail = f"{type(error).__name__}: {error}".splitlines()[0]
    return {
        "name": name,
        "backend": forced or device,
        "ok": not detail,
        "detail": detail,
        "seconds": round(time.perf_counter() - start, 3),
    }


def text(found: dict[str, Any]) -> str:
    """The report as a person reads it, or pastes it; the verdict is its last line."""
    build = found["build"]
    cuda = " ".join(build["cuda_archs"]) or "none"
    torch_line = f"{found['torch']} (CUDA {found['torch_cuda'] or found['torch_hip'] or 'none'})"
    lines = [
        _line("deepl0_kernels", found["deepl0_kernels"]),
        _line("python", f"{found['python']}, {found['system']}"),
        _line("machine", found["machine"]),
        _line("torch", f"{torch_line}; built with {build['torch_built_with']}"),
        _line("extension", found["extension"]),
        _line("CPU kernels", f"{build['isa_active']} of {', '.join(build['isa_supported'])}"),
        _line("CUDA kernels", cuda),
        _line("driver", found["driver"] or "no NVIDIA driver"),
    ]
    for gpu in found["gpus"]:
        what = f"{gpu['name']}, {gpu['capability']}, {gpu['memory_gib']} GiB"
        lines.append(_line("GPU", f"{what}; CUDA kernels: {gpu['cuda_kernels']}"))
    there = [f"{name} {v}" for name, v in found["packages"].items() if v]
    lines.append(_line("packages", ", ".join(there)))
    if missing := [f"{name} ({PACKAGES[name]})" for name, v in found["packages"].items() if not v]:
        lines.append(_line("not installed", ", ".join(missing)))
    if found["variables"]:
        lines.append(
            _line("variables", " ".join(f"{k}={v}" for k, v in found["variables"].items()))
        )
    lines.append("")
    for check in found["checks"]:
        mark = "ok  " if check["ok"] else "FAIL"
        line = f"{mark} {check['name']} ({check['backend']}), {check['seconds']:.2f} s"
        lines.append(line + (f": {check['detail']}" if check["detail"] else ""))
    lines += ["", *(f"note: {note}" for note in found["notes"])]
    failed = sum(not check["ok"] for check in found["checks"])
    lines.append(
        f"{failed} of {len(found['checks'])} checks differ from the reference" if failed
        else f"all {len(found['checks'])} checks agree with the reference"
    )  # fmt: skip
    return "\n".join(lines)


def _line(name: str, value: str) -> str:
    return f"{name + ':':<16}{value}"
