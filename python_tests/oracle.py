"""Oracles that share no code with the package, and hostile inputs."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

SPECIAL = (0.0, -0.0, float("nan"), -float("nan"), float("inf"), -float("inf"), 1.0, -1.0,
           1e-40, -1e-40,
           5e-324, 1e-45, 3e38, -3e38, 6e-8, 65504.0)  # fmt: skip


def top_m_by_sorting(row: list[float], m: int) -> list[int]:
    """Ascending indices of the m largest |u|: Python's sort with the contract written as a key."""

    def key(i: int):
        value = row[i]
        nan = value != value
        return (not nan, 0.0 if nan else -abs(value), i)

    return sorted(sorted(range(len(row)), key=key)[:m])


def as_bits(t: Tensor) -> Tensor:
    """The integers under the floats. (torch.gather and scatter change NaN payloads of bfloat16.)"""
    return (
        t.contiguous()
        .resolve_neg()
        .view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])
    )


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, NaN payloads and signs of zero included."""
    return a.dtype == b.dtype and torch.equal(as_bits(a), as_bits(b))


def same_values(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit but for the payload of NaNs."""
    return torch.equal(a.isnan(), b.isnan()) and same_bits(a.nan_to_num(7.0), b.nan_to_num(7.0))


def selectable(u: Tensor, positive: bool) -> Tensor:
    """The bits of what is selected from: u, or max(u, 0) with NaNs as they are."""
    bits = as_bits(u)
    return bits.masked_fill(u <= 0, 0) if positive else bits


def hostile(shape: tuple[int, ...], dtype: torch.dtype, seed: int, style: str) -> Tensor:
    """Rows that break careless selections."""
    rng = np.random.default_rng(seed)
    if style == "normal":
        values = rng.standard_normal(shape)
    elif style == "ties":
        values = rng.integers(-2, 3, shape).astype(float)
    elif style == "special":
        values = rng.choice(np.array(SPECIAL), shape)
    elif style == "few_special":
        values = rng.standard_normal(shape)
        values = np.where(rng.random(shape) < 0.1, rng.choice(np.array(SPECIAL), shape), values)
    elif style == "denormal":
        values = (
            rng.integers(-50, 51, shape)
            * {2: 2.0**-24, 4: 2.0**-149, 8: 2.0**-1074}[dtype.itemsize]
        )
    elif style == "equal":
        values = np.full(shape, -1.5)
    elif style == "zero":
        values = np.zeros(shape)
    elif style == "close":
        values = (
            1.0 + rng.integers(0, 4, shape) * {2: 2.0**-7, 4: 2.0**-23, 8: 2.0**-52}[dtype.itemsize]
        )
    else:
        raise ValueError(style)
    return torch.from_numpy(np.asarray(values, dtype=np.float64)).to(dtype)


STYLES = ("normal", "ties", "special", "few_special", "denormal", "equal", "zero", "close")


@st.composite
def rows(draw, max_p: int = 300) -> Tensor:
    """A tensor [..., p] of any floating dtype, style and layout."""
    dtype = draw(st.sampled_from(DTYPES))
    style = draw(st.sampled_from(STYLES))
    lead = tuple(draw(st.lists(st.integers(0, 4), min_size=0, max_size=3)))
    p = draw(st.one_of(st.integers(1, 40), st.integers(1, max_p)))
    seed = draw(st.integers(0, 2**20))
    layout = draw(st.sampled_from(("contiguous", "transposed", "step", "offset", "negative")))
    if layout == "transposed" and lead:
        return hostile((*lead[:-1], p, lead[-1]), dtype, seed, style).transpose(-1, -2)
    if layout == "step":
        return hostile((*lead, 2 * p), dtype, seed, style)[..., ::2]
    if layout == "offset":
        return hostile((*lead, p + 3), dtype, seed, style)[..., 1 : p + 1]
    whole = hostile((*lead, p), dtype, seed, style)
    return torch._neg_view(whole) if layout == "negative" else whole
