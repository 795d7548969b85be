"""What nvcc makes of the kernels, and how the build finds nvcc and what it is asked for."""

from __future__ import annotations

import importlib
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cuda_toolkit
import deepl0_kernels as dk
from deepl0_kernels.cuda import library

from . import build

needs_nvcc = pytest.mark.skipif(build.toolkit() is None, reason="nvcc is missing (set CUDA_HOME)")


@needs_nvcc
def test_no_kernel_spills_and_the_table_of_the_docs_holds():
    from . import budget

    found = budget.all_usage()
    sources = [(build.CSRC / "cuda" / f"{name}.cu").read_text() for name in build.SOURCES]
    written = re.findall(r"(\w+_kernel)\([^()]*\)\s*\{", "".join(sources))
    assert {u.kernel for u in found} == set(written)
    for arch in (build.ARCH, "90", "100"):
        assert [u for u in budget.all_usage(arch) if u.stack or u.spilled] == []
    # Three blocks of the warp kernels, or one of 1024 threads, share a multiprocessor.
    assert all(u.registers <= (64 if "block" in u.kernel else 168) for u in found)
    release = build.toolkit().release()
    documented = budget.DOCUMENT.read_text()
    # Another release of nvcc allocates other registers; what must hold of them is asserted above.
    if f"nvcc {release}" in documented:
        assert budget.table(found) in documented, "run python -m python_tests.cuda.budget"


def test_archs():
    assert cuda_toolkit.archs("8.0;9.0+PTX") == [("80", False), ("90", True)]
    assert cuda_toolkit.archs(" 8.6, 9.0a 12.0") == [("86", False), ("90a", False), ("120", False)]
    assert cuda_toolkit.flags([("80", False), ("90", True)]) == [
        "-gencode=arch=compute_80,code=[sm_80,sm_90,compute_80]",
    ]
    assert cuda_toolkit.flags(cuda_toolkit.archs("9.0a+PTX;10.0;8.6")) == [
        "-gencode=arch=compute_90a,code=[sm_90a,compute_90a]",
        "-gencode=arch=compute_86,code=[sm_100,sm_86]",
    ]


def test_no_kernel_asks_what_it_is_compiled_for():
    """They are translated once for all architectures."""
    texts = {path.name: path.read_text() for path in (build.CSRC / "cuda").iterdir()}
    assert [name for name, text in texts.items() if "__CUDA_ARCH" in text] == []


def test_old_archs_are_left_out_with_a_message(capsys):
    assert cuda_toolkit.archs("7.5;8.0") == [("80", False)]
    assert "leaving out 7.5" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match=r"no architecture of 8\.0 or later"):
        cuda_toolkit.archs("7.0")
    with pytest.raises(RuntimeError, match="'Ampere' in TORCH_CUDA_ARCH_LIST"):
        cuda_toolkit.archs("Ampere")


def test_a_wrong_cuda_home_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match="there is no bin/nvcc in it"):
        cuda_toolkit.find()


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_wrapper_on_path_is_asked_for_its_toolkit(monkeypatch, tmp_path):
    """The parent of the nvcc on PATH is not the toolkit; its dry run names it."""
    root = tmp_path / "toolkit-1.0"
    script(root / "bin/nvcc", f'echo "#$ TOP={root}/bin/.." >&2\n')
    (root / "include").mkdir()
    (root / "include/cuda_runtime.h").touch()
    script(tmp_path / "wrappers/bin/nvcc", f'exec {root}/bin/nvcc "$@"\n')
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(cuda_toolkit, "CONVENTIONAL", tmp_path / "nowhere")
    monkeypatch.setenv("PATH", f"{tmp_path / 'wrappers/bin'}:/usr/bin:/bin")
    found = cuda_toolkit.find()
    assert found is not None
    assert found.root == root
    assert found.include == root / "include"
    with pytest.raises(RuntimeError, match="no libcudart_static"):
        found.static_runtime()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert cuda_toolkit.find() is None


def graph(**environment: str) -> subprocess.CompletedProcess:
    """The build graph that setup.py writes under an environment; nothing is compiled."""
    code = (
        "import runpy, setuptools, pathlib\n"
        "setuptools.setup = lambda **arguments: None\n"
        "names = runpy.run_path('setup.py')\n"
        "cuda = names['cuda_build']()\n"
        "print(names['ninja_file'](pathlib.Path('target.so'), cuda))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=build.ROOT, env=os.environ | environment,
        capture_output=True, text=True,
    )  # fmt: skip


@needs_nvcc
def test_the_graph_of_a_cuda_build():
    text = graph(TORCH_CUDA_ARCH_LIST="8.6+PTX", DEEPL0_CUDA="1").stdout
    assert "-gencode=arch=compute_86,code=[sm_86,compute_86]" in text
    assert "-lcudart_static" in text
    assert "--exclude-libs,libcudart_static.a" in text
    for source in build.SOURCES:
        assert f"cuda/{source}.o: cuda" in text
    default = graph(TORCH_CUDA_ARCH_LIST="").stdout
    assert "-gencode=arch=compute_80,code=[sm_80,sm_90,compute_80]" in default
    assert "-DDEEPL0_CUDA_ARCHS='sm_80 sm_90 compute_80'" in default


def test_the_graph_of_a_build_without_cuda():
    text = graph(DEEPL0_CUDA="0").stdout
    assert "cudart" not in text
    assert "nvcc" not in text
    assert "torch_cuda/" not in text


def test_wrong_choices_are_errors(tmp_path):
    assert "DEEPL0_CUDA must be 0 or 1, got 'yes'" in graph(DEEPL0_CUDA="yes").stderr
    assert "there is no bin/nvcc in it" in graph(CUDA_HOME=str(tmp_path)).stderr


def test_build_info_tells_of_cuda():
    info = dk.build_info()
    assert info["cuda"] == bool(info["cuda_archs"])
    assert all(a.startswith(("sm_", "compute_")) for a in info["cuda_archs"])


@pytest.mark.skipif(not dk.build_info()["cuda"], reason="this build has no CUDA kernels")
def test_where_there_is_no_device_the_probe_says_so():
    """The library as built, asked whether its kernels run; without a driver nothing crashes."""
    if torch.cuda.is_available():
        assert library.refusal(torch.device("cuda", 0)) is None
    else:
        with pytest.raises(RuntimeError, match=r"none is available|driver"):
            torch.ops.deepl0_cuda.probe(0)


@pytest.mark.skipif(not dk.build_info()["cuda"], reason="this build has no CUDA kernels")
def test_the_library_needs_no_driver_and_no_cuda_runtime():
    """It is loaded here, where there may be no driver; and it names none among its needs."""
    library = importlib.import_module("deepl0_kernels._C").__file__
    needs = subprocess.run(
        ["readelf", "-d", library], capture_output=True, text=True, check=True
    ).stdout
    assert "libcuda" not in needs
    assert "cudart" not in needs
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True
    ).stdout
    assert " cuda" not in symbols
