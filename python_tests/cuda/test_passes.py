"""A pass is one native call: what a call costs the host, in counts that do not depend on the
machine, and that a whole training step of every layer can be captured in a graph."""

from __future__ import annotations

import re
import subprocess

import pytest
import torch

import deepl0_kernels as dk
from bench import host, host_instructions, instructions
from deepl0_kernels.backends import GPU

from . import build
from .recording import recording

# Case of bench.host -> at most so many operators of the dispatcher, and functions that the
# interpreter calls; of these torch.autograd.grad has some 50.
MOST = {
    "top_m": (1, 6),
    "keep_top_m": (1, 6),
    "encode_top_m forward": (1, 14),
    "encode_top_m forward + backward": (2, 88),
    "encode_top_m_factored forward": (1, 21),
    "encode_top_m_factored forward + backward": (2, 94),
    "encode_l0 forward": (1, 16),
    "encode_l0 forward + backward": (2, 88),
    "helu forward + backward": (2, 84),
    "decode forward": (1, 14),
    "decode forward + backward": (2, 86),
}


def test_a_pass_is_one_call(emulator):
    from .emulator import idle

    emulator.launches.clear()
    with idle():
        cases = host.cases("cpu")
        assert set(MOST) == set(cases) - {"training step"}
        for name, (calls, python) in MOST.items():
            assert host.calls_of(cases[name][0]) <= calls, name
            assert host.python_calls(cases[name][0]) <= python, name
    emulator.restore()


def test_the_report_has_what_readers_look_up(emulator, monkeypatch):
    from .emulator import idle

    monkeypatch.setattr(host, "BURSTS", 1)
    with idle():
        case = host.cases("cpu")["top_m"]
        assert {"ours_us", "eager_us", "ratio", "calls"} <= set(host.report(case))
    emulator.restore()


def test_a_rise_of_instructions_is_told(capsys):
    recorded = instructions.read(host_instructions.RECORD)
    assert set(recorded) == set(host.cases("cpu"))
    by = recorded["top_m"]["toolchain"]
    found = {case: {"ours": int(row["ours"])} for case, row in recorded.items()}
    assert instructions.compare(found, recorded, by) == 0
    found["top_m"]["ours"] = int(1.1 * found["top_m"]["ours"])
    assert instructions.compare(found, recorded, "another") == 0
    assert "ROSE" not in capsys.readouterr().out
    assert instructions.compare(found, recorded, by) == 1
    rose = [line for line in capsys.readouterr().out.splitlines() if line.endswith("ROSE")]
    assert len(rose) == 1
    assert rose[0].startswith("top_m ")


def test_schemas_are_those_of_the_operators_they_serve(emulator):
    def schema(operator) -> str:
        return str(operator.default._schema).partition("::")[2].replace("SymInt", "int")

    for name in GPU["cuda"].composed:
        for of in (name, name + "_saving"):
            if hasattr(torch.ops.deepl0, of):
                mine, theirs = (
                    schema(getattr(ops, of))
                    for ops in (torch.ops.deepl0_emulated, torch.ops.deepl0)
                )
                assert mine == theirs


def test_a_pass_asks_torch_for_nothing_that_waits(emulator):
    """Of torch's C functions the bindings need sizes, allocation, views and products; what they
    name to the dispatcher is a product of half types."""
    wanted = set()
    for path in build.build().library.parent.glob("cuda_*.o"):
        out = subprocess.run(
            ["nm", "--undefined-only", path], capture_output=True, text=True
        ).stdout
        wanted |= set(re.findall(r"\bU (\w*torch_\w+)", out))
    wanted.discard("torch_list_get_item")  # of the m of every stage, which are no tensor
    assert not {name for name in wanted if re.search("item|copy_to|synchronize|to_cpu", name)}
    named = set()
    for path in (build.CSRC / "torch/cuda").glob("*.cpp"):
        named |= set(re.findall(r'"(aten::\w+)"', path.read_text()))
    assert named == {"aten::mm"}


LAYERS = {
    "DeepMSparseEncoder": lambda **at: dk.nn.DeepMSparseEncoder(8, 64, 4, num_stages=3, **at),
    "DeepMSparseEncoder, bias": lambda **at: dk.nn.DeepMSparseEncoder(8, 64, 4, bias=True, **at),
    "DeepMSparseEncoder, factored": lambda **at: dk.nn.DeepMSparseEncoder(
        8, 64, 4, factored=True, **at
    ),
    "DeepL0Encoder": lambda **at: dk.nn.DeepL0Encoder(8, 64, num_stages=3, **at),
    "LISTA": lambda **at: dk.nn.LISTA(8, 64, num_stages=3, **at),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_training_step_of_a_layer_can_be_captured(emulator, name):
    """On tensors without data whatever reads a value is an error; what PyTorch itself calls is
    watched by the recording."""
    from python_tests.triton.recording import Capturable

    layer = LAYERS[name]().to("meta")
    decoder = torch.empty(8, 64, device="meta", requires_grad=True)
    parameters = [*layer.parameters(), decoder]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    x = torch.empty(32, 8, device="meta")
    with recording(emulator) as launches, Capturable():
        for _ in range(2):
            optimizer.zero_grad()
            code = layer(x)
            out = (
                dk.decode(code, decoder) if isinstance(code, dk.SparseCode) else code @ decoder.t()
            )
            (out - x).square().mean().backward()
            optimizer.step()
    assert len(launches) > 4
    assert all(p.grad is not None for p in layer.parameters())
