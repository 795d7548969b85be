"""The CUDA floor on the CPU: csrc/cuda and its bindings, with csrc/tests/cuda_emulator.cpp in place
of the CUDA runtime, and the PTX of every kernel. Built once a content, into the build folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

import cuda_toolkit
import deepl0_kernels as dk

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
SOURCES = (
    "top_m", "batch_top_m", "encode", "decode", "transpose", "unit_lists", "thresholds", "entries",
)  # fmt: skip
ARCH = "80"
# What the bindings of the CUDA kernels share with those of the CPU's.
SHARED = ("torch/bindings.h", "torch/bindings.cpp", "torch/shim.h", "torch/shim.cpp")


class Emulated(NamedTuple):
    library: Path
    ptx: dict[str, str]  # of each source


def toolkit() -> cuda_toolkit.Toolkit | None:
    return cuda_toolkit.find()


def inputs() -> list[Path]:
    folders = ("cuda", "torch/cuda")
    found = [p for f in folders for p in sorted((CSRC / f).iterdir()) if p.is_file()]
    shared = ("tests/cuda_emulator.cpp", *SHARED)
    return [*found, *(CSRC / name for name in shared), Path(__file__)]


def content() -> str:
    digest = hashlib.sha256(torch.__version__.encode())
    for path in inputs():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build() -> Emulated:
    """Compiles what is missing (about half a minute); processes wait for each other."""
    folder = ROOT / "build" / f"cuda-emulated-{content()}"
    folder.parent.mkdir(exist_ok=True)
    with open(folder.parent / "cuda-emulated.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            for old in folder.parent.glob("cuda-emulated-*"):
                shutil.rmtree(old)
            folder.mkdir()
            compile_all(folder)
            (folder / "done").touch()
    ptx = {name: (folder / f"{name}.ptx").read_text() for name in SOURCES}
    return Emulated(folder / "emulated.so", ptx)


def compile_all(folder: Path) -> None:
    tools = toolkit()
    assert tools is not None
    torch_root = Path(torch.__file__).parent
    major, minor = map(int, dk.build_info()["torch_abi_target"].split("."))
    commands: dict[str, tuple[str | Path, ...]] = {}  # of each object

    def run(command: tuple[str | Path, ...]) -> None:
        done = subprocess.run([str(c) for c in command], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")

    for name in SOURCES:
        commands[f"{name}.o"] = (
            tools.nvcc, "-std=c++17", "-O3", f"-gencode=arch=compute_{ARCH},code=compute_{ARCH}",
            "--keep", "--keep-dir", folder, "-Xcompiler", "-fPIC,-O1", f"-I{CSRC}",
            "-c", CSRC / "cuda" / f"{name}.cu", "-o", f"{name}.o",
        )  # fmt: skip
    shared = [CSRC / name for name in SHARED if name.endswith(".cpp")]
    host = [*sorted((CSRC / "torch/cuda").glob("*.cpp")), *shared]
    for source in [*host, CSRC / "tests/cuda_emulator.cpp"]:
        out = f"{source.parent.name}_{source.stem}.o"
        commands[out] = (
            "c++", "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-ffunction-sections",
            "-DDEEPL0_CUDA_EMULATED",
            f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000", "-DDEEPL0_ISA=scalar",
            f"-I{CSRC}",
            "-isystem", torch_root / "include", "-isystem", tools.include,
            "-c", source, "-o", out,
        )  # fmt: skip
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, commands.values()))
    # What the bindings share with the CPU kernels, and nothing here calls, is left out.
    run((
        "c++", "-shared", "-Wl,--gc-sections", *commands, f"-L{torch_root / 'lib'}", "-ltorch_cpu",
        "-lc10", "-o", "emulated.so",
    ))  # fmt: skip
