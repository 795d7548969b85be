"""The CUDA floor on the CPU: csrc/cuda and its bindings, with csrc/tests/cuda_emulator.cpp in place
of the CUDA runtime, and the PTX of every kernel. Built once a content, into the build folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

import cuda_toolkit
import deepl0_kernels as dk

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
SOURCES = (
    "top_m", "top_m_once", "batch_top_m", "encode", "decode", "transpose", "unit_lists",
    "thresholds", "threshold_stage", "entries", "factored", "omp", "omp_positive",
    "least_squares", "screen", "screen_select",
)  # fmt: skip
ARCH = "80"
# What the bindings of the CUDA kernels share with those of the CPU's.
SHARED = (
    "torch/bindings.h", "torch/bindings.cpp", "torch/shim.h", "torch/shim.cpp", "torch/addresses.h",
    "torch/native.h",
)  # fmt: skip


class Emulated(NamedTuple):
    library: Path  # beside the objects of the bindings
    kernels: Path  # the folder of those of the kernels, and of their PTX

    @property
    def ptx(self) -> dict[str, str]:
        """Of each source."""
        return {name: (self.kernels / f"{name}.ptx").read_text() for name in SOURCES}


def toolkit() -> cuda_toolkit.Toolkit | None:
    return cuda_toolkit.find()


def content(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256(torch.__version__.encode())
    for path in (*paths, Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build() -> Emulated:
    """Compiles what is missing (about half a minute); processes wait for each other."""
    kernel_files = sorted((CSRC / "cuda").iterdir())
    bindings = [p for p in sorted((CSRC / "torch/cuda").iterdir()) if p.is_file()]
    bindings += [CSRC / name for name in ("tests/cuda_emulator.cpp", *SHARED)]
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    with open(folder / "cuda-emulated.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kernels = made(folder, "cuda-kernels", content(kernel_files), compile_kernels)
        library = made(
            folder, "cuda-emulated", content([*kernel_files, *bindings]),
            lambda into: compile_bindings(into, kernels),
        )  # fmt: skip
    return Emulated(library / "emulated.so", kernels)


def made(parent: Path, name: str, content: str, make: Callable[[Path], None]) -> Path:
    """The folder of that content; the ones of others go."""
    folder = parent / f"{name}-{content}"
    if not (folder / "done").exists():
        for old in parent.glob(f"{name}-*"):
            shutil.rmtree(old)
        folder.mkdir()
        make(folder)
        (folder / "done").touch()
    return folder


Command = Sequence[str | Path]


def run(folder: Path, command: Command) -> None:
    done = subprocess.run([str(c) for c in command], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")


def run_all(folder: Path, commands: Iterable[Command]) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda command: run(folder, command), commands))


def built(folder: Path) -> bool:
    """Copies the objects and the PTX of the build in place, where it is of these sources."""
    graph = ROOT / "build" / "abi3"
    of_build = [graph / "cuda" / f"{name}{end}" for name in SOURCES for end in (".o", ".ptx")]
    if not all(path.exists() for path in of_build):
        return False
    ninja = ["ninja", "-C", graph, "-n", *(f"cuda/{name}.o" for name in SOURCES)]
    told = subprocess.run([sys.executable, "-m", *map(str, ninja)], capture_output=True, text=True)
    if "no work to do" not in told.stdout or any(
        f".target sm_{ARCH}\n" not in path.read_text() for path in of_build[1::2]
    ):
        return False
    for path in of_build:
        shutil.copy(path, folder)
    return True


def compile_kernels(folder: Path) -> None:
    if built(folder):
        return
    tools = toolkit()
    assert tools is not None
    run_all(folder, [
        (
            tools.nvcc, "-std=c++17", "-O3", f"-gencode=arch=compute_{ARCH},code=compute_{ARCH}",
            "--keep", "--keep-dir", folder, "-Xcompiler", "-fPIC,-O1", f"-I{CSRC}",
            "-c", CSRC / "cuda" / f"{name}.cu", "-o", f"{name}.o",
        )
        for name in SOURCES
    ])  # fmt: skip


def assembled(source: str, arch: str) -> tuple[Path, str]:
    """The machine code of a file for ``sm_arch``, as a build makes it of the PTX, and what ptxas
    says of it; kept beside the PTX."""
    kernels = build().kernels
    cubin, said = (kernels / f"{source}.sm_{arch}{end}" for end in (".cubin", ".txt"))
    if not said.exists():
        tools = toolkit()
        assert tools is not None
        part = cubin.with_suffix(f".{os.getpid()}")
        command = [tools.ptxas, f"-arch=sm_{arch}", "-v", kernels / f"{source}.ptx", "-o", part]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        part.replace(cubin)
        part.write_text(done.stdout + done.stderr)
        part.replace(said)
    return cubin, said.read_text()


def compile_bindings(folder: Path, kernels: Path) -> None:
    tools = toolkit()
    assert tools is not None
    torch_root = Path(torch.__file__).parent
    major, minor = map(int, dk.build_info()["torch_abi_target"].split("."))
    shared = [CSRC / name for name in SHARED if name.endswith(".cpp")]
    host = [*sorted((CSRC / "torch/cuda").glob("*.cpp")), *shared, CSRC / "tests/cuda_emulator.cpp"]
    objects = {source: f"{source.parent.name}_{source.stem}.o" for source in host}
    run_all(folder, [
        (
            "c++", "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-ffunction-sections",
            "-DDEEPL0_CUDA_EMULATED",
            f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000", "-DDEEPL0_ISA=scalar",
            f"-I{CSRC}",
            "-isystem", torch_root / "include", "-isystem", tools.include,
            "-c", source, "-o", out,
        )
        for source, out in objects.items()
    ])  # fmt: skip
    # What the bindings share with the CPU kernels, and nothing here calls, is left out.
    run(folder, (
        "c++", "-shared", "-Wl,--gc-sections", *objects.values(),
        *(kernels / f"{name}.o" for name in SOURCES), f"-L{torch_root / 'lib'}", "-ltorch_cpu",
        "-lc10", "-o", "emulated.so",
    ))  # fmt: skip
