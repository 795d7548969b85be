"""The CUDA floor behind the operators, on CPU tensors by emulation; on a machine with a GPU the
tests of the operators run there as well, on the kernels as built.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from deepl0_kernels.backends import GPU

from . import build

ENGINES = ["emulated"]
if torch.cuda.is_available() and GPU["cuda"].installed():
    ENGINES.append("gpu")


@pytest.fixture(scope="session")
def _emulator():
    if build.toolkit() is None:
        pytest.skip("nvcc is missing: the CUDA kernels cannot be compiled (set CUDA_HOME)")
    from .emulator import Emulator

    return Emulator()


@pytest.fixture
def emulator(_emulator) -> Iterator:
    """The engine with nothing recorded, no mutant, and the larger device. New tensors are filled
    with NaN, so that what a kernel forgets to write is not there by chance."""
    from .emulator import BIG

    _emulator.launches.clear()
    _emulator.set_device(*BIG)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield _emulator
    torch.use_deterministic_algorithms(False)
    _emulator.mutate = lambda kernel, text: text
    _emulator.block_order = None
    _emulator.relocate = None
    _emulator.options = type(_emulator.options)()


@pytest.fixture
def ops(emulator):
    """The operators of deepl0_cuda, emulated."""
    return torch.ops.deepl0_emulated


@pytest.fixture
def force():
    """Take one way of a pass wherever there is a choice, or the rules' with less memory."""

    def force(way: str, elements: int = 0) -> None:
        for library in (torch.ops.deepl0_emulated, torch.ops.deepl0_cuda):
            if hasattr(library, "force_rules"):
                library.force_rules(way, elements)

    yield force
    force("rules")


@pytest.fixture(params=ENGINES)
def device(request) -> Iterator[str]:
    """Where the tensors of a test live; ``torch.ops.deepl0`` there is served by the CUDA floor."""
    if request.param == "gpu":
        yield "cuda"
        return
    request.getfixturevalue("emulator")
    from .emulator import serving

    with serving("cpu"):
        yield "cpu"
