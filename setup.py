"""Builds the extension deepl0_kernels._C with ninja.

Every csrc/core/<op>.cpp is compiled once per instruction set; everything else once. The extension
uses libtorch's stable ABI, so the binary serves every torch from the target version on. Nothing
falls back: a compiler error ends the installation.

CUDA kernels (csrc/cuda) are built where nvcc is found, against any torch, a CPU wheel included: no
GPU and no driver is asked for. DEEPL0_CUDA=0 leaves them out, 1 makes a missing nvcc an error;
TORCH_CUDA_ARCH_LIST names the architectures. DEEPL0_GLIBC=2.28 links for that glibc and strips.
"""

from __future__ import annotations

import gzip
import io
import os
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"

sys.path.insert(0, str(ROOT))  # pip's build does not have it there
import cuda_toolkit  # noqa: E402
import glibc_floor  # noqa: E402

# The oldest torch the binary runs with: its stable ABI is the one we ask for.
(TORCH_TARGET,) = set(re.findall(r'"torch>=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text()))

# Level -> flags; other processors than x86-64 have the portable level only.
ISA_FLAGS = dict(re.findall(r"^ISA_(\w+) = ?(.*)$", (CSRC / "isa.mk").read_text(), re.MULTILINE))
if platform.machine().lower() not in ("x86_64", "amd64"):
    ISA_FLAGS = {"scalar": ISA_FLAGS["scalar"]}

(OLDEST_PYTHON,) = re.findall(
    r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text()
)
PY_LIMITED_API = f"0x03{int(OLDEST_PYTHON):02x}0000"

# Core files that hold no kernels.
COMPILED_ONCE = {"isa.cpp"}


# Loads the library by its path, in a process of its own.
LOAD = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("_C", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print("deepl0:", module.build_info())
"""


class NinjaBuild(build_ext):
    """Write build.ninja, run it, and load the result to prove that it resolves."""

    def build_extension(self, ext: Extension) -> None:
        build = build_folder()
        build.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        cuda = cuda_build()
        (build / "build.ninja").write_text(ninja_file(target, cuda))
        command = [ninja_executable(), "-C", str(build)]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        print("deepl0: building", target.name, "for", ", ".join(ISA_FLAGS), flush=True)
        if cuda:
            by = f"{cuda.toolkit.nvcc} (release {cuda.toolkit.release()})"
            print(f"deepl0: CUDA kernels by {by} for {cuda.describe()}", flush=True)
        else:
            print("deepl0: without CUDA kernels; the build is for CPU", flush=True)
        subprocess.run(command, check=True)
        for other in target.parent.glob(f"{target.name.partition('.')[0]}.*.so"):
            if other.name != target.name:  # of before the stable ABI: Python would prefer it
                other.unlink()
        if floor := os.environ.get("DEEPL0_GLIBC"):
            needs = glibc_floor.newest(target)
            if glibc_floor.version(needs) > glibc_floor.version(floor):
                raise RuntimeError(f"deepl0: {target.name} needs glibc {needs}, not {floor}")
        subprocess.run([sys.executable, "-c", LOAD, str(target)], check=True)


class Sources(sdist):
    """With SOURCE_DATE_EPOCH the same bytes from every clone: of setuptools' only wheels are."""

    def make_archive(self, *args, **options):
        path = super().make_archive(*args, **options)
        if path.endswith(".tar.gz") and (epoch := os.environ.get("SOURCE_DATE_EPOCH")):
            settle(Path(path), int(epoch))
        return path


def settle(archive: Path, epoch: int) -> None:
    """Take the machine out of a tar.gz: times, owners, masks, the order of its folders."""
    with tarfile.open(archive) as tar:
        content = {m.name: tar.extractfile(m).read() if m.isfile() else None for m in tar}
        runs = {m.name for m in tar if m.mode & 0o100 or m.isdir()}
    with (
        archive.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=epoch) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for name, data in sorted(content.items()):
            member = tarfile.TarInfo(name)
            member.mtime, member.mode = epoch, 0o755 if name in runs else 0o644
            if data is None:
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(data)
            tar.addfile(member, None if data is None else io.BytesIO(data))


class CudaBuild:
    """The toolkit, and the architectures as ("80", also as PTX)."""

    def __init__(self, toolkit: cuda_toolkit.Toolkit) -> None:
        self.toolkit = toolkit
        asked = os.environ.get("TORCH_CUDA_ARCH_LIST") or cuda_toolkit.SOURCE_ARCHS
        self.archs = cuda_toolkit.archs(asked)

    def describe(self) -> str:
        """As build_info() reports it: sm_80 sm_90 compute_80."""
        flags = " ".join(cuda_toolkit.flags(self.archs))
        names = re.findall(r"(?:(?<=\[)|(?<=,))(?:sm|compute)_\w+", flags)
        return " ".join(sorted(names, key=lambda name: name.startswith("compute")))


def cuda_build() -> CudaBuild | None:
    """None for a build without CUDA kernels."""
    choice = os.environ.get("DEEPL0_CUDA", "")
    if choice not in ("", "0", "1"):
        raise RuntimeError(f"deepl0: DEEPL0_CUDA must be 0 or 1, got {choice!r}")
    if choice == "0":
        return None
    toolkit = cuda_toolkit.find()
    if toolkit is None:
        if choice == "1":
            raise RuntimeError("deepl0: DEEPL0_CUDA=1, but there is no nvcc: set CUDA_HOME")
        return None
    return CudaBuild(toolkit)


def build_folder() -> Path:
    """One per kind of build, so that a rebuild compiles only what changed."""
    return ROOT / "build" / ("wheel" if os.environ.get("DEEPL0_GLIBC") else "abi3")


def ninja_executable() -> str:
    import ninja

    return str(Path(ninja.BIN_DIR) / "ninja")


def ninja_file(target: Path, cuda: CudaBuild | None) -> str:
    """The build graph, in ninja's language."""
    import torch

    torch_root = Path(torch.__file__).parent
    major, minor = map(int, TORCH_TARGET)
    flags = [
        # Without contraction every instruction set rounds alike; kernels call fma by name.
        "-std=c++17 -O3 -ffp-contract=off -fPIC -fvisibility=hidden -fvisibility-inlines-hidden",
        "-Wall -Wextra",
        # The last two are wrong about the intrinsics of gcc 12 (its bug 105593).
        "-Wno-unused-parameter -Wno-psabi -Wno-maybe-uninitialized -Wno-uninitialized",
        # Errors name csrc/..., not where this machine built it.
        f"-fmacro-prefix-map={in_command(from_build(ROOT))}/=",
        f"-I{in_command(from_build(CSRC))}",
        os.environ.get("CXXFLAGS", ""),
    ]
    # The bindings alone see torch and what the stable ABI is asked for; the module alone Python and
    # what build_info() reports.
    bound = f"torch-{torch.__version__}"  # another torch compiles these alone
    binding_flags = (
        f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000"
        f" -isystem {in_command(torch_root / 'include')}"
    )
    module_flags = (
        # Python's stable ABI: one binary serves 3.10 and later.
        f"-DPy_LIMITED_API={PY_LIMITED_API}"
        f" -DDEEPL0_TORCH_TARGET={major}.{minor} -DDEEPL0_TORCH_BUILT_WITH={torch.__version__}"
        f" -DDEEPL0_CUDA_ARCHS={shlex.quote(cuda.describe() if cuda else '')}"
        f" -isystem {in_command(sysconfig.get_paths()['include'])}"
    )
    ldflags = f"-shared -L{in_command(torch_root / 'lib')} -ltorch_cpu -lc10"
    if floor := os.environ.get("DEEPL0_GLIBC"):
        cc = os.environ.get("CC", "cc")
        ldflags = f"{glibc_floor.flags(floor, cc, build_folder() / 'glibc')} -s {ldflags}"
    if cuda:
        # The static runtime looks for the driver when it is first used, so the library loads
        # without one; its symbols stay inside.
        ldflags += (
            f" -L{in_command(cuda.toolkit.static_runtime())} -lcudart_static -lrt -lpthread -ldl"
            " -Wl,--exclude-libs,libcudart_static.a"
        )
    lines = [
        f"cxx = {os.environ.get('CXX', 'c++')}",
        f"flags = {' '.join(flags)}",
        f"ldflags = {ldflags} " + os.environ.get("LDFLAGS", ""),
        "rule cxx",
        "  command = $cxx -MMD -MF $out.d $flags $extra -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $out",
        "rule link",
        "  command = $cxx $in $ldflags -o $out",
        "  description = link $out",
    ]
    objects = []

    def compile_one(source: Path, name: str, extra: str) -> None:
        objects.append(name)
        lines.append(f"build {name}: cxx {in_graph(from_build(source))}")
        lines.append(f"  extra = {extra}")

    if cuda:  # first, because nvcc takes longest; the short ones last leave no core idle
        toolkit = cuda.toolkit
        lines += [
            f"nvcc = {in_command(toolkit.nvcc)}",
            "cuflags = -std=c++17 -O3 -ccbin $cxx -Xcompiler -fPIC,-fvisibility=hidden,-Wall"
            f" -I{in_command(from_build(CSRC))} {' '.join(cuda_toolkit.flags(cuda.archs))}",
            # Of what it keeps, the PTX stays: the tests run it.
            "rule cuda",
            "  command = $nvcc -MMD -MF $out.d $cuflags --keep --keep-dir cuda -c $in -o $out"
            " && rm -f cuda/$stem.*cubin cuda/$stem.cpp* cuda/$stem.cudafe1.* cuda/$stem.fatbin*"
            " cuda/$stem.module_id",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = compile $out",
        ]
        for source in sorted((CSRC / "cuda").glob("*.cu")):
            objects.append(f"cuda/{source.stem}.o")
            lines.append(f"build {objects[-1]}: cuda {in_graph(from_build(source))}")
            lines.append(f"  stem = {source.stem}")
        cuda_flags = f"{binding_flags} -isystem {in_command(toolkit.include)}"
        for source in sorted((CSRC / "torch" / "cuda").glob("*.cpp")):
            compile_one(source, f"{bound}/cuda/{source.stem}.o", cuda_flags)
    for name in ("module", "plan", "call"):
        compile_one(CSRC / f"{name}.cpp", f"{bound}/python_{name}.o", module_flags)
    for source in [*sorted((CSRC / "torch").glob("*.cpp")), CSRC / "torch_ops.cpp"]:
        compile_one(source, f"{bound}/{source.stem}.o", binding_flags)
    for source in sorted((CSRC / "core").glob("*.cpp")):
        if source.name in COMPILED_ONCE:
            compile_one(source, f"core/{source.stem}.o", "")
            continue
        for level, (isa, isa_flags) in enumerate(ISA_FLAGS.items()):
            extra = f"{isa_flags} -DDEEPL0_ISA={isa} -DDEEPL0_ISA_LEVEL={level}"
            compile_one(source, f"core/{source.stem}.{isa}.o", extra)
    lines.append(f"build {in_graph(target)}: link {' '.join(objects)}")
    lines.append(f"default {in_graph(target)}")
    return "\n".join(lines) + "\n"


def from_build(path: Path) -> str:
    """A path of the project as the build folder sees it: what is built there serves every copy."""
    return os.path.relpath(path, build_folder())


def in_command(path: Path | str) -> str:
    """A path as ninja hands it to the shell."""
    return shlex.quote(str(path)).replace("$", "$$")


def in_graph(path: Path | str) -> str:
    """A path as a node of ninja's graph."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


setup(
    ext_modules=[Extension("deepl0_kernels._C", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": NinjaBuild, "sdist": Sources},
    options={"bdist_wheel": {"py_limited_api": f"cp3{OLDEST_PYTHON}"}},
)
