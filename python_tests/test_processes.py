"""Fork, DataLoader workers, spawned children and threads: the same bits, and no hang."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import queue

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import deepl0_kernels as dk

TIMEOUT = 120


def answers(seed: int = 0) -> list[torch.Tensor]:
    """Results of a step, of sizes that every operator splits among its threads."""
    g = torch.Generator().manual_seed(seed)
    x, W = torch.randn(300, 24, generator=g), torch.randn(128, 24, generator=g)
    S, D = torch.randn(128, 128, generator=g) / 12, torch.randn(24, 128, generator=g)
    args = [t.requires_grad_() for t in (W, S, D)]
    code = dk.encode_top_m(x, W, S, 9, num_stages=3)
    grads = torch.autograd.grad(dk.decode(code, D).sum(), args)
    kept = dk.keep_top_m(x @ W.detach().t(), 7)
    return [code.values.detach(), code.indices, kept, *grads]


def equal(a, b) -> bool:
    return all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


def digest(seed: int = 0) -> list[list]:
    # Plain lists: tensors would be passed as file descriptors.
    return [t.tolist() for t in answers(seed)]


@pytest.fixture
def several_threads():
    """The parent has used its thread pool before anything is forked."""
    torch.set_num_threads(3)
    answers()
    yield
    torch.set_num_threads(1)


class Codes(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        return dk.encode_top_m(torch.full((40, 8), i + 1.0), torch.eye(8), None, 3, num_stages=1)


def test_dataloader_workers(several_threads):
    loader = DataLoader(
        Codes(), batch_size=None, num_workers=2, timeout=TIMEOUT, multiprocessing_context="fork"
    )
    for i, code in enumerate(loader):
        assert torch.equal(code.values, torch.full((40, 3), i + 1.0))
        assert torch.equal(code.indices, torch.arange(3).expand(40, 3))


def child(results) -> None:
    torch.set_num_threads(1)  # GNU's OpenMP, like all of torch, cannot fork its running threads
    results.put(digest())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children(several_threads, method):
    context = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=child, args=(results,))
    process.start()
    try:
        got = results.get(timeout=TIMEOUT)
    except queue.Empty:
        pytest.fail(f"the {method}ed child hangs or died, exit code {process.exitcode}")
    finally:
        process.join(5)
        process.kill()
    assert got == digest()


def test_the_number_of_threads_changes_no_bit():
    want = answers()
    try:
        for count in (2, 3, 5):
            torch.set_num_threads(count)
            assert torch.get_num_threads() == count
            assert equal(answers(), want)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("threads", [1, 3])
def test_concurrent_calls(threads):
    want = [answers(seed) for seed in range(4)]
    torch.set_num_threads(threads)
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            jobs = [(seed % 4, pool.submit(answers, seed % 4)) for seed in range(24)]
            for seed, job in jobs:
                assert equal(job.result(timeout=TIMEOUT), want[seed])
    finally:
        torch.set_num_threads(1)
