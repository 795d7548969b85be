"""Linking against an older glibc: what moved or was renewed since is asked for in old versions."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import glibc_floor

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or sys.platform != "linux", reason="no C compiler"
)

# pow was renewed in 2.29, pthread_create moved to libc in 2.34, dlopen too; quick_exit is of 2.10.
SOURCE = """
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
double f(double x, void* (*g)(void*)) {
    pthread_t thread;
    pthread_create(&thread, 0, g, dlopen("none", RTLD_LAZY));
    return pow(x, x);
}
"""


def test_a_library_asks_for_no_newer_glibc_and_loads(tmp_path):
    source = tmp_path / "f.c"
    source.write_text(SOURCE)

    def linked(name: str, *before: str) -> str:
        command = [
            "cc",
            "-shared",
            "-fPIC",
            "-o",
            name,
            source,
            *before,
            "-lm",
            "-lpthread",
            "-ldl",
        ]
        subprocess.run(command, check=True, cwd=tmp_path)
        return glibc_floor.newest(tmp_path / name)

    here = linked("as-is.so")
    floor = linked("floor.so", *glibc_floor.flags("2.28", "cc", tmp_path / "stubs").split())
    assert glibc_floor.version(floor) <= min((2, 28), glibc_floor.version(here))
    load = "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).f; f.restype = ctypes.c_double"
    subprocess.run([sys.executable, "-c", load, tmp_path / "floor.so"], check=True)


def test_a_floor_that_is_no_version_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match=r"must be a version such as 2\.28, got 'old'"):
        glibc_floor.flags("old", "cc", tmp_path)
