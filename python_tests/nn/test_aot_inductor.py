"""Encoders compiled ahead of time, and loaded in another process."""

from __future__ import annotations

import subprocess
import sys

import torch

import deepl0_kernels as dk

N, P, M = 6, 24, 3

LOAD = """
import sys, torch
import deepl0_kernels as dk  # the operators; without them the package does not load
encode = torch._inductor.aoti_load_package(sys.argv[1])
for x, values, indices, *dense in torch.load(sys.argv[2]):
    code, *z = encode(x)
    assert isinstance(code, dk.SparseCode)
    assert code == dk.SparseCode(values, indices, 24), x.shape
    assert all(map(torch.equal, z, dense)), x.shape
"""


class Several(torch.nn.Module):
    """One compilation for all encoders: most of its time is the C++ compiler's."""

    def __init__(self) -> None:
        super().__init__()
        self.m_sparse = dk.nn.DeepMSparseEncoder(N, P, M)
        self.thresholded = dk.nn.DeepL0Encoder(N, P)  # training mode: with the ramp
        options = dict(bias=True, positive=True, factored=True, steps=0.7)
        self.factored = dk.nn.DeepMSparseEncoder(N, P, (5, M), **options)

    def forward(self, x):
        return self.m_sparse.encode(x), self.thresholded(x), self.factored(x)


def test_a_package_of_aot_inductor_gives_the_codes_of_the_module(tmp_path):
    module, package, cases = Several(), tmp_path / "encoder.pt2", tmp_path / "cases.pt"
    batch = torch.export.Dim("batch", min=1, max=4096)
    with torch.no_grad():
        program = torch.export.export(
            module, (torch.randn(5, N),), dynamic_shapes=({0: batch},), strict=False
        )
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(package),
            inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},
        )
        rows = []
        for count in (1, 5, 33):
            x = torch.randn(count, N)
            code, *z = module(x)
            rows.append((x, code.values, code.indices, *z))
    torch.save(rows, cases)
    run = subprocess.run(
        [sys.executable, "-c", LOAD, str(package), str(cases)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
