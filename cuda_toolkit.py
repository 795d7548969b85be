"""Where nvcc is and what it is asked for: shared by setup.py and the tests of the CUDA kernels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

CONVENTIONAL = Path("/usr/local/cuda")
SOURCE_ARCHS = "8.0;9.0+PTX"
WHEEL_ARCHS = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"

# redux.sync and the bf16 conversions begin with 8.0.
OLDEST = (8, 0)


class Toolkit:
    """nvcc, and the headers and static runtime of the same toolkit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.nvcc = root / "bin" / "nvcc"
        self.ptxas = root / "bin" / "ptxas"

    @property
    def include(self) -> Path:
        return self.root / "include"

    def static_runtime(self) -> Path:
        """The folder of libcudart_static.a."""
        for folder in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
            if (self.root / folder / "libcudart_static.a").exists():
                return self.root / folder
        raise RuntimeError(f"deepl0: no libcudart_static.a below {self.root}")

    def release(self) -> str:
        out = subprocess.run([self.nvcc, "--version"], capture_output=True, text=True, check=True)
        found = re.search(r"release (\d+\.\d+)", out.stdout)
        return found.group(1) if found else "unknown"


def find() -> Toolkit | None:
    """By CUDA_HOME (or CUDA_PATH); else the conventional prefix; else nvcc on PATH, or nothing.

    What stands on PATH may be a wrapper: nvcc itself is asked where its toolkit is.
    """
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            if not (Path(home) / "bin" / "nvcc").exists():
                raise RuntimeError(f"deepl0: {variable}={home}, but there is no bin/nvcc in it")
            return Toolkit(Path(home))
    if (CONVENTIONAL / "bin" / "nvcc").exists():
        return Toolkit(CONVENTIONAL)
    if nvcc := shutil.which("nvcc"):
        return Toolkit(_root_of(nvcc))
    return None


def _root_of(nvcc: str) -> Path:
    """The toolkit of an nvcc, by its dry run: `#$ TOP=...` names the folder above its bin."""
    out = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull],
        capture_output=True,
        text=True,
    )
    found = re.search(r"^#\$ TOP=(.+)$", out.stdout + out.stderr, re.MULTILINE)
    if found and (Path(found.group(1).strip()) / "bin" / "nvcc").exists():
        return Path(found.group(1).strip()).resolve()
    root = Path(nvcc).resolve().parent.parent
    if (root / "include" / "cuda_runtime.h").exists():
        return root
    raise RuntimeError(f"deepl0: {nvcc} does not tell where its toolkit is; set CUDA_HOME")


def archs(text: str) -> list[tuple[str, bool]]:
    """("80", also as PTX) of a list in TORCH_CUDA_ARCH_LIST's language: "8.0;9.0a 10.0+PTX"."""
    found = []
    for word in re.split(r"[;,\s]+", text.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", word)
        if match is None:
            raise RuntimeError(
                f"deepl0: {word!r} in TORCH_CUDA_ARCH_LIST is not a number such as 9.0 or 9.0+PTX"
            )
        major, minor, suffix, ptx = match.groups()
        if (int(major), int(minor)) < OLDEST:
            print(f"deepl0: leaving out {word}: the kernels need 8.0 or later", flush=True)
            continue
        found.append((f"{major}{minor}{suffix}", bool(ptx)))
    if not found:
        raise RuntimeError(f"deepl0: no architecture of 8.0 or later in {text!r}")
    return found


def virtual(targets: list[tuple[str, bool]]) -> str:
    """The architecture whose PTX serves the plain ones of ``targets``: the oldest of them."""
    return min((arch for arch, _ in targets if arch.isdigit()), key=int, default="")


def flags(targets: list[tuple[str, bool]]) -> list[str]:
    """nvcc's options for those: it translates once for all plain ones, to the PTX of the oldest,
    because no kernel asks what it is compiled for. 9.0a and 10.0f have PTX of their own."""
    codes: dict[str, list[str]] = {}
    for arch, ptx in targets:
        of = virtual(targets) if arch.isdigit() else arch
        codes.setdefault(of, []).append(f"sm_{arch}")
        if ptx:
            codes[of].append(f"compute_{of}")
    return [f"-gencode=arch=compute_{of},code=[{','.join(c)}]" for of, c in codes.items()]
