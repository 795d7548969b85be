"""Links against an older glibc than the machine's: used by setup.py with DEEPL0_GLIBC, for wheels.

glibc keeps every version of a symbol it ever had. A stub of libc and libm with the newest version
of each symbol up to the floor, and no code, makes the linker ask for those: the library then loads
wherever the floor does. Needs the binutils that gcc needs.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

# libstdc++'s headers ask glibc 2.32 whether there is one thread; "no" is always right.
OWN = '__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;\n'
# What moved into libc with glibc 2.34 is found in these before.
BEFORE = ("libpthread.so.0", "libdl.so.2", "librt.so.1")


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def symbols(library: Path, floor: str) -> dict[str, tuple[str, str]]:
    """Name -> (kind, newest version up to the floor) of what a library of glibc exports."""
    out = subprocess.run(
        ["readelf", "--dyn-syms", "-W", library], capture_output=True, text=True, check=True
    ).stdout
    pattern = r"(FUNC|IFUNC|OBJECT)\s+(?:GLOBAL|WEAK)\s+DEFAULT\s+\d+\s+(\w+)@@?GLIBC_([\d.]+)\b"
    found: dict[str, tuple[str, str]] = {}
    for kind, name, at in re.findall(pattern, out):
        if version(at) <= version(floor) and (
            name not in found or version(at) > version(found[name][1])
        ):
            found[name] = (kind, at)
    return found


def stub(library: Path, floor: str, cc: str, folder: Path) -> Path:
    """A library of that name which exports these symbols."""
    lines = []
    exported = symbols(library, floor)
    for i, (name, (kind, at)) in enumerate(sorted(exported.items())):
        what, section = ("object", ".data") if kind == "OBJECT" else ("function", ".text")
        lines.append(
            f"{section}\n.globl s{i}\n.type s{i},@{what}\ns{i}: .quad 0\n.size s{i},8\n"
            f".symver s{i},{name}@@@GLIBC_{at}\n"
        )
    nodes = sorted({at for _, at in exported.values()}, key=version)
    script = folder / f"{library.name}.map"
    script.write_text("".join(f"GLIBC_{at} {{}};\n" for at in nodes))
    source = folder / f"{library.name}.s"
    source.write_text("".join(lines))
    target = folder / library.name
    subprocess.run(
        [cc, "-shared", "-nostdlib", f"-Wl,-soname,{library.name}",
         f"-Wl,--version-script={script}", "-o", target, source],
        check=True,
    )  # fmt: skip
    return target


def flags(floor: str, cc: str, folder: Path) -> str:
    """Options that a link takes first; what they name is made in ``folder``."""
    if not re.fullmatch(r"\d+\.\d+", floor):
        raise RuntimeError(f"deepl0: DEEPL0_GLIBC must be a version such as 2.28, got {floor!r}")
    folder.mkdir(parents=True, exist_ok=True)

    def find(name: str) -> Path:
        out = subprocess.run([cc, f"-print-file-name={name}"], capture_output=True, text=True)
        return Path(out.stdout.strip())

    libc = stub(find("libc.so.6").resolve(), floor, cc, folder)
    stub(find("libm.so.6").resolve(), floor, cc, folder).rename(folder / "libm.so")
    loader = find("ld-linux-x86-64.so.2")
    (folder / "libc.so").write_text(
        f"GROUP ( {libc} {find('libc_nonshared.a')} AS_NEEDED ( {loader} ) )\n"
    )
    (folder / "own.c").write_text(OWN)
    subprocess.run([cc, "-fPIC", "-c", folder / "own.c", "-o", folder / "own.o"], check=True)
    before = " ".join(f"-l:{name}" for name in BEFORE)
    return f"{folder / 'own.o'} -L{folder} -Wl,--no-as-needed {before} -Wl,--as-needed"


def newest(library: Path) -> str:
    """The newest glibc that a library asks for."""
    out = subprocess.run(["objdump", "-T", library], capture_output=True, text=True, check=True)
    return max(re.findall(r"\(GLIBC_([\d.]+)\)", out.stdout), key=version)
