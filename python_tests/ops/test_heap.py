"""No call leaves anything in the heap: the smallest piece that stays keeps its neighbours apart,
and a training grows by whole tensors. (Of ``std::string`` arguments the stable ABI's own conversion
left 48 bytes a call.)"""

import ctypes
import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import deepl0_kernels as dk

CALLS = 200
# What belongs to no call: a dictionary that grows, a block of the interpreter.
BYTES_A_CALL = 8


class Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def held() -> int:
    """Bytes of the heap in use."""
    libc = ctypes.CDLL("libc.so.6")
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("needs glibc 2.33 or later, whose mallinfo2 counts the heap")
    libc.mallinfo2.restype = Mallinfo
    return libc.mallinfo2().uordblks


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def backward(call: Callable[[], Tensor]) -> Callable[[], None]:
    return lambda: call().sum().backward()


def calls() -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    x, z, u, W, S, D, bias = (
        leaf(4, 6), leaf(4, 8), leaf(4, 8), leaf(8, 6), leaf(8, 8), leaf(6, 8), leaf(8)
    )  # fmt: skip
    theta = torch.full((8,), 0.3, requires_grad=True)
    step, m = torch.ones(2, requires_grad=True), [2, 3]
    still = u.detach(), theta.detach()
    prepared = dk.nn.DeepL0Encoder(6, 8).eval()
    found: dict[str, Callable[[], Tensor]] = {
        "hard_threshold": lambda: dk.hard_threshold(u, theta),
        "soft_threshold": lambda: dk.soft_threshold(u * 2, theta, positive=True),
        "helu": lambda: dk.helu(u, theta, 0.2, grad="ste_theta"),
        "top_m": lambda: dk.top_m(u, 3)[0],
        "keep_top_m": lambda: dk.keep_top_m(u, 3),
        "batch_top_m": lambda: dk.batch_top_m(u, 5)[1],
        "threshold_stage": lambda: dk.threshold_stage(x, W, z, S, theta, sigma=0.1),
        "top_m_stage": lambda: dk.top_m_stage(x, W, z, S, 3)[0],
        "encode_l0": lambda: dk.encode_l0(x, W, S, theta, num_stages=2, sigma=0.2),
        "encode_l0, factored": lambda: dk.encode_l0(
            x, W, None, theta, D=D, num_stages=2, sigma=0.2, bias=bias, step=step
        ),
        "encode_top_m": lambda: dk.encode_top_m(x, W, S, 3, num_stages=2).values,
        "encode_top_m, factored": lambda: dk.encode_top_m(x, W, None, m, D=D, step=step).values,
        "decode": lambda: dk.decode(dk.encode_top_m(x, W, S, 3), D),
    }
    every: dict[str, Callable[[], object]] = {n: backward(call) for n, call in found.items()}
    every["helu, no gradient"] = lambda: dk.helu(*still, 0.2)
    every["by the dispatcher"] = lambda: torch.ops.deepl0.threshold(*still, 0.2, "helu")
    every["prepared"] = lambda: prepared(x.detach())
    return every


def grown(call: Callable[[], object]) -> int:
    before = held()
    for _ in range(CALLS):
        call()
    return held() - before


@pytest.mark.parametrize("name", calls())
def test_nothing_stays(name: str) -> None:
    call = calls()[name]
    for _ in range(100):
        call()
    gc.collect()
    # The least of a few: libraries take something for themselves now and then.
    assert min(grown(call) for _ in range(4)) < BYTES_A_CALL * CALLS
