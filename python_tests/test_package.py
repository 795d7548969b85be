"""Import, build report, instruction sets, processes."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels import _C


def python(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_extension_is_there_and_says_what_it_is():
    info = dk.build_info()
    assert re.fullmatch(r"2\.\d+", info["torch_abi_target"])
    versions = (info["torch_abi_target"], torch.__version__, info["torch_built_with"])
    oldest, *found = (tuple(map(int, v.split(".")[:2])) for v in versions)
    assert min(found) >= oldest
    assert info["isa_active"] in info["isa_supported"]
    assert set(info["isa_supported"]) <= set(info["isa_compiled"])
    assert info["cuda"] == bool(info["cuda_archs"])
    assert info["compiler"]


def test_the_library_needs_of_torch_its_stable_abi_alone():
    """No C++ symbol of torch: those change from version to version."""
    found = subprocess.run(
        ["nm", "-D", "--undefined-only", _C.__file__], capture_output=True, text=True, check=True
    ).stdout
    needed = {line.split()[-1].split("@")[0] for line in found.splitlines()}
    assert {n for n in needed if n.startswith(("aoti_torch_", "torch_"))}
    inside = re.compile(r"_ZN?K?(2at|3c10|5torch|6caffe2)")
    assert [n for n in needed if inside.match(n)] == []


def test_an_operator_that_gets_no_memory_says_what_torch_said():
    values, indices = torch.zeros(1, 0), torch.zeros(1, 0, dtype=torch.int64)
    with pytest.raises(RuntimeError) as caught:
        torch.ops.deepl0.unpool(values, indices, 1 << 50)
    told = str(caught.value)
    assert "aten::new_empty: " in told
    assert "memory" in told
    assert "API call failed" not in told


def test_import_is_short_and_wakes_neither_cuda_nor_triton():
    # Processor time: what others do on the machine is not the import's.
    code = """
import time, sys, json, torch
before, start = set(sys.modules), time.process_time()
import deepl0_kernels
seconds = time.process_time() - start
print(json.dumps([seconds, torch.cuda.is_initialized(), sorted(set(sys.modules) - before)]))
"""
    runs = [json.loads(python(code).stdout) for _ in range(3)]
    assert min(seconds for seconds, *_ in runs) < 0.150
    for _, cuda, modules in runs:
        assert not cuda
        heavy = {
            "triton",
            "sklearn",
            "matplotlib",
            "tqdm",
            "typer",
            "torch._dynamo",
            "torch._inductor",
        }
        assert not heavy & set(modules)


def test_every_public_name_is_there_and_documented():
    code = """
import deepl0_kernels as dk, inspect
assert {"datasets", "nn", "solvers"} <= set(dir(dk))
assert dk.datasets.mnist_subset and dk.nn.LISTA and dk.solvers.omp
for module in (dk, dk.nn, dk.solvers, dk.datasets):
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), name
            own = vars(thing).items() if inspect.isclass(thing) else ()
            for method, f in own:
                public = not method.startswith("_") and inspect.isfunction(f)
                assert not public or f.__doc__ or method == "extra_repr", (name, method)
"""
    out = python(code)
    assert out.returncode == 0, out.stderr


def test_every_argument_may_be_named():
    pytest.importorskip("sklearn")
    from deepl0_kernels import sklearn, training

    seen = 0
    for module in (dk, dk.nn, dk.solvers, dk.datasets, training, sklearn):
        for name in module.__all__:
            thing = getattr(module, name)
            own = [thing]
            if inspect.isclass(thing):
                own = [
                    getattr(thing, key)  # bound, where it is a class method
                    for base in thing.__mro__
                    if base.__module__.startswith("deepl0_kernels")
                    for key in vars(base)
                    if not key.startswith("_") or key == "__init__"
                ]
            for function in (f for f in own if inspect.isfunction(f) or inspect.ismethod(f)):
                for parameter in inspect.signature(function).parameters.values():
                    assert parameter.kind != parameter.POSITIONAL_ONLY, (name, function, parameter)
                    seen += 1
    assert seen > 300


def test_every_instruction_set_gives_the_same_bits():
    code = """
import torch, hashlib, deepl0_kernels as dk
assert dk.last_call() is None and dk.build_info()["isa_active"] == ISA
h = hashlib.sha256()
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    torch.manual_seed(0)
    u = torch.randn(50, 333).to(dtype)
    u[u.abs() < 0.3] = 0.25
    u[3, 5] = float("nan")
    for t in (*dk.top_m(u, 20), dk.keep_top_m(u, 200), dk.hard_threshold(u, 0.5)):
        h.update(t.float().nan_to_num(9).numpy().tobytes())
print(h.hexdigest())
"""
    levels = dk.build_info()["isa_supported"]
    outs = [python(code.replace("ISA", repr(level)), DEEPL0_ISA=level) for level in levels]
    assert all(out.returncode == 0 for out in outs), outs
    assert len({out.stdout for out in outs}) == 1


def test_an_unknown_instruction_set_is_an_error_that_names_it():
    out = python("import deepl0_kernels", DEEPL0_ISA="avx1024")
    assert out.returncode != 0
    assert 'DEEPL0_ISA must be scalar, avx2 or avx512, got "avx1024"' in out.stderr


def test_kernels_work_in_forked_workers():
    """A DataLoader forks after the parent used its threads."""
    torch.set_num_threads(2)
    dk.keep_top_m(torch.randn(1000, 500), 5)
    dataset = torch.randn(8, 300, 100)

    def select(batch):
        return dk.keep_top_m(torch.stack(batch), 3)

    loader = torch.utils.data.DataLoader(
        dataset, batch_size=2, num_workers=2, collate_fn=select, multiprocessing_context="fork"
    )
    got = torch.cat(list(loader))
    torch.set_num_threads(1)
    assert torch.equal(got, dk.keep_top_m(dataset, 3))
