"""Every way to install, and one binary for several versions of torch.

Run by ``make install-test``: it fetches a second torch and takes minutes. ``make
install-test-oldest`` does it with the oldest torch that the binary serves as well.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.install

ROOT = Path(__file__).parents[1]
# Requirements of torch, one or several: each gets a new environment.
OTHER_TORCH = os.environ.get("OTHER_TORCH", "torch>=2.14,<2.15").split()
BUILD_TOOLS = ("numpy", "ninja", "setuptools>=64", "wheel")
TEST_TOOLS = ("hypothesis", "pytest", "pytest-xdist", "scikit-learn")
SMOKE = (
    "import torch, deepl0_kernels as dk; u = torch.randn(4, 9); "
    "assert dk.top_m(u, 2)[0].shape == (4, 2) and dk.last_call().backend == 'cpu'; "
    "print(torch.__version__, dk.__file__, dk.build_info())"
)


def run(
    *command: str | Path, check: bool = True, cwd: str | Path = "/", **env: str
) -> subprocess.CompletedProcess:
    # Python compiles what it imports; all of torch beforehand would take half a minute.
    done = subprocess.run(
        [str(c) for c in command],
        env=os.environ | {"PIP_NO_COMPILE": "1"} | env,
        capture_output=True,
        text=True,
        cwd=cwd,
    )
    if check and done.returncode:
        pytest.fail(f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    return done


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """The source distribution of the tracked files, unpacked: what every test below builds."""
    clone = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            target = clone / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    folder = tmp_path_factory.mktemp("source")
    run(sys.executable, "setup.py", "-q", "sdist", "-d", folder, cwd=clone)
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder, filter="data")
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    # What is built already: ninja compiles what differs, or misses a file, and links.
    shutil.copytree(ROOT / "build/abi3", unpacked / "build/abi3")
    return unpacked


@pytest.fixture(scope="session")
def pythons(tmp_path_factory) -> dict[str, Path]:
    """The interpreter of this environment and those of new ones with the other versions."""
    found = {"this": Path(sys.executable)}
    for requirement in OTHER_TORCH:
        folder = tmp_path_factory.mktemp("other")
        run(sys.executable, "-m", "venv", folder)
        found[requirement] = folder / "bin/python"
        run(found[requirement], "-m", "pip", "install", requirement, *BUILD_TOOLS, *TEST_TOOLS)
    versions = {
        run(p, "-c", "import torch; print(torch.__version__)").stdout for p in found.values()
    }
    assert len(versions) == len(found), versions
    return found


@pytest.fixture(scope="session", params=["this", *OTHER_TORCH])
def wheel(request, pythons, source, tmp_path_factory) -> tuple[str, Path]:
    """A wheel built with one of the two versions of torch, and which."""
    folder = tmp_path_factory.mktemp("wheel")
    python = pythons[request.param]
    run(python, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source)
    (found,) = folder.glob("*.whl")
    return request.param, found


@pytest.mark.parametrize("runs", ["this", *OTHER_TORCH])
def test_one_binary_serves_every_version_of_torch(wheel, runs, pythons, tmp_path):
    built_with, archive = wheel
    python = pythons[runs]
    site = tmp_path / "site"
    run(python, "-m", "pip", "install", "--no-deps", "--target", site, archive)
    shutil.copytree(ROOT / "python_tests", tmp_path / "python_tests")
    env = {"PYTHONPATH": f"{site}{os.pathsep}{tmp_path}", "OMP_NUM_THREADS": "1"}
    where = run(python, "-c", SMOKE, **env).stdout
    assert str(site) in where
    if built_with == runs:
        return
    # What another torch or other headers may change is how operators are called, traced, and
    # differentiated; what they compute is the same machine code.
    names = [f"ops/test_{n}.py" for n in ("fuzz", "fake_kernels", "gradient_masks", "tracing")]
    tests = [tmp_path / "python_tests" / n for n in (*names, "test_backends.py", "test_package.py")]
    processes = str(len(os.sched_getaffinity(0)))
    pytest_options = ("-q", "-n", processes, "-p", "no:cacheprovider", "--maxfail=20")
    run(python, "-m", "pytest", *pytest_options, *tests, **env)


@pytest.mark.parametrize("options", [("--no-build-isolation",), ("--no-build-isolation", "-e"), ()])
def test_pip_install(options, source, tmp_path):
    """With build isolation pip fetches torch once more, for the build alone; without it, the
    setuptools that Python's own venv brings must do, however old.

    The kernels of the wheels are used again: they do not see torch.
    """
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--system-site-packages", venv)
    python = venv / "bin/python"
    site = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.__path__[0])"],
        capture_output=True,
        text=True,
    )
    (
        venv
        / "lib"
        / f"python{sys.version_info[0]}.{sys.version_info[1]}"
        / "site-packages"
        / "base.pth"
    ).write_text(str(Path(site.stdout.strip()).parent))
    run(python, "-m", "pip", "install", "--no-deps", *options, source)
    out = run(python, "-c", SMOKE).stdout
    assert str(source if "-e" in options else venv) in out


def test_source_distributions_are_the_same_bytes(source, tmp_path):
    archives = []
    for name in ("one", "other"):
        copy = tmp_path / name
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("build"))
        (copy / "README.md").touch()
        out = tmp_path / f"{name}-dist"
        run(sys.executable, "setup.py", "-q", "sdist", "-d", out, cwd=copy, SOURCE_DATE_EPOCH="9")
        archives.append(next(out.glob("*.tar.gz")).read_bytes())
    assert archives[0] == archives[1]


def test_a_broken_compiler_is_an_error_not_a_pure_python_installation(source, tmp_path):
    command = (
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        source,
    )
    done = run(*command, check=False, CXX="false")
    assert done.returncode != 0
    assert "FAILED: " in done.stdout + done.stderr, "it failed before the compiler ran"
    assert not list(tmp_path.glob("*.whl"))


def test_a_broken_nvcc_is_an_error_not_a_cpu_installation(source, tmp_path):
    home = tmp_path / "toolkit"
    (home / "bin").mkdir(parents=True)
    (home / "lib64").mkdir()
    (home / "lib64/libcudart_static.a").touch()
    nvcc = home / "bin/nvcc"
    nvcc.write_text('#!/bin/sh\ncase "$*" in *--version*) echo release 1.0;; *) exit 1;; esac\n')
    nvcc.chmod(0o755)
    wheels = tmp_path / "wheels"
    done = run(
        sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation",
        "-w", wheels, source,
        check=False, CUDA_HOME=str(home), DEEPL0_CUDA="",
    )  # fmt: skip
    assert done.returncode != 0
    assert re.search(r"FAILED: .*cuda/\w+\.o", done.stdout + done.stderr)
    assert not list(wheels.glob("*.whl"))


def test_an_installation_without_cuda_works_and_says_so(source, tmp_path):
    out = run(
        sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation",
        "-w", tmp_path, source,
        DEEPL0_CUDA="0",
    )  # fmt: skip
    assert "the build is for CPU" in out.stdout + out.stderr
    site = tmp_path / "site"
    (wheel,) = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", site, wheel)
    told = run(sys.executable, "-c", SMOKE, PYTHONPATH=str(site)).stdout
    assert "'cuda': False" in told
    assert "'cuda_archs': []" in told
