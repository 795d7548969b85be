"""How the units of a dictionary are spread over ranks, and what ranks tell each other.

A dictionary that is sharded over several dimensions of a mesh is cut once for each, outermost
first; a selection goes the other way: every level gathers the candidates of its ranks and keeps the
m largest of them. One dimension is a single all-gather, several are a tree.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..backends import implementation

LARGEST = 2**31 - 1
_FACTS = 8  # of a call, at most


@dataclass(frozen=True)
class Level:
    """The ranks along one dimension of the mesh, and the number of units that each of them has
    together with the ranks of the levels within it."""

    group: Any
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Own:
    """Which entries of codes [B, m] are of this rank's units: at most w of a row, which others fill
    up, so that every row has w different units, in ascending order.

    at: int64 [B, w], where in the row. present: bool [B, w]. local: int64 [B, w], units from 0.
    """

    at: Tensor
    present: Tensor
    local: Tensor

    def pick(self, values: Tensor) -> Tensor:
        """[B, w] of values [B, m]; -0 where there is none, which changes no sum."""
        return torch.where(self.present, values.gather(1, self.at), -0.0)

    def put(self, values: Tensor, m: int) -> Tensor:
        """[B, m] with values [B, w] in their places and 0 elsewhere."""
        out = values.new_zeros(len(values), m + 1)
        return out.scatter_(1, torch.where(self.present, self.at, m), values)[:, :m]


class Units:
    """The units of this rank: ``count`` of p from ``offset`` on; levels from the outermost on."""

    def __init__(self, p: int, levels: list[tuple[Any, int, int]]) -> None:
        """levels: group, number of ranks and this one's place, of each dimension."""
        self.p, self.offset, self.count = p, 0, p
        self.levels: list[Level] = []
        self.places = [place for _, _, place in levels]
        # Where the units of every rank begin and end, in their order.
        self.bounds = _bounds(p, [size for _, size, _ in levels])
        for group, size, place in levels:
            ends = _cuts(self.count, size)
            counts = tuple(b - a for a, b in itertools.pairwise(ends))
            self.levels.append(Level(group, counts))
            self.offset, self.count = self.offset + ends[place], counts[place]

    def own(self, indices: Tensor) -> Own:
        """Those entries of codes with ascending indices [B, m] that are of this rank."""
        low = (indices < self.offset).sum(1, keepdim=True)
        number = (indices < self.offset + self.count).sum(1, keepdim=True) - low
        width = min(indices.shape[1], self.count)
        if has_values(indices):
            width = int(number.max()) if number.numel() and width else 0
        column = torch.arange(width, device=indices.device)
        present = column < number
        at = (low + column).clamp_max(max(indices.shape[1] - 1, 0))
        mine = torch.where(present, indices.gather(1, at) - self.offset, self.count + column)
        # The i-th unit that a row has not is i and those before it that it has. They are spread
        # over the rows, so that no unit's list becomes a long one.
        row = torch.arange(len(indices), device=indices.device)[:, None]
        i = (row * width + column - number) % (self.count - number).clamp_min(1)
        others = i + torch.searchsorted((mine - column).contiguous(), i.contiguous(), right=True)
        local, order = torch.where(present, mine, others).sort(1)
        return Own(at.gather(1, order), present.gather(1, order), local)

    def select(
        self, values: Tensor, indices: Tensor, m: int, positive: bool
    ) -> tuple[Tensor, Tensor]:
        """The m largest entries of all ranks, from the min(m, count) largest of each one's units.

        values [B, w], indices [B, w] of this rank's units from 0 -> values, indices [B, m] int64
        from 0 in the dictionary; on all ranks the same, and the bits that came in.
        """
        indices = (indices + self.offset).int()
        count = self.count
        for level in reversed(self.levels):
            if len(level.counts) > 1:
                values, indices = _gather(values, indices, m, level)
            count = sum(level.counts)
            if values.shape[1] > min(m, count):
                top_m = implementation("top_m", values)
                values, at = top_m(values, min(m, count), positive)
                indices = indices.gather(1, at)
        return values, indices.long()

    def sum(self, t: Tensor) -> Tensor:
        """The sum over all ranks, in place; the same bits on all of them."""
        levels = [level for level in self.levels if len(level.counts) > 1]
        if not t.numel():
            return t
        if len(levels) > 1 and len(self.bounds) - 1 == dist.get_world_size():
            dist.all_reduce(t)  # all at once, in the order of the links that the backend knows
            return t
        for level in reversed(levels):
            dist.all_reduce(t, group=level.group)
        return t

    def whole(self, t: Tensor) -> Tensor:
        """[p, ...] of this rank's [count, ...], on every rank."""
        for level in reversed(self.levels):
            most = max(level.counts)
            if len(level.counts) == 1 or most == 0:
                continue
            sent = t.new_zeros(most, *t.shape[1:])
            sent[: len(t)] = t
            got = t.new_empty(len(level.counts) * most, *t.shape[1:])
            _all_gather(got, sent, level.group)
            t = torch.cat([a[:n] for a, n in zip(got.split(most), level.counts, strict=True)])
        return t

    def some(self, indices: Tensor) -> tuple[Units, Tensor]:
        """A dictionary of these units alone, ascending and the same on all ranks; and which of them
        are of this rank, from 0."""
        before = torch.searchsorted(indices, torch.tensor(self.bounds).to(indices.device)).tolist()
        units = copy.copy(self)
        units.p, units.bounds = len(indices), before
        units.levels = []
        span, start = len(before) - 1, 0
        for level, place in zip(self.levels, self.places, strict=True):
            span //= len(level.counts)
            ends = [before[start + i * span] for i in range(len(level.counts) + 1)]
            counts = tuple(b - a for a, b in itertools.pairwise(ends))
            units.levels.append(Level(level.group, counts))
            start += place * span
        units.offset, units.count = before[start], before[start + 1] - before[start]
        return units, indices[before[start] : before[start + 1]] - self.offset

    def agree(
        self, device: torch.device, facts: Mapping[str, Any], error: Exception | None
    ) -> None:
        """All ranks make the same call; a rank whose call is refused says so to the others.

        Raises:
            ValueError: on every rank, what differs, or what was refused where.
        """
        levels = [level for level in self.levels if len(level.counts) > 1]
        if not levels or not has_values(torch.empty(0, device=device)):
            if error is not None:
                raise error
            return
        # As many whatever is said, as a rank whose call is refused may have no facts.
        numbers = [_number(v) for v in facts.values()]
        numbers += [0] * (_FACTS - len(numbers))
        told = torch.tensor([int(error is not None), *numbers, *(-v for v in numbers)])
        told = told.to(device)
        for level in levels:
            dist.all_reduce(told, dist.ReduceOp.MAX, group=level.group)
        refused, *bounds = told.tolist()
        if refused:
            raise _everyones(levels, error)
        for i, name in enumerate(facts):
            if bounds[i] != -bounds[i + _FACTS]:
                everyone = _gathered(levels, {dist.get_rank(): facts[name]})
                raise ValueError(
                    f"{name} must be the same on all ranks of the mesh, got {everyone}"
                )


def _all_gather(got: Tensor, sent: Tensor, group: Any) -> None:
    """Of tensors of one shape; the name changed with torch 2.13."""
    getattr(dist, "all_gather_single", dist.all_gather_into_tensor)(got, sent, group=group)


def _cuts(count: int, size: int) -> list[int]:
    """As torch.chunk cuts: all but the last parts are of the same size."""
    most = -(-count // size)
    return [min(most * i, count) for i in range(size + 1)]


def _bounds(p: int, sizes: list[int]) -> list[int]:
    if not sizes:
        return [0, p]
    found = [0]
    for a, b in itertools.pairwise(_cuts(p, sizes[0])):
        found += [a + end for end in _bounds(b - a, sizes[1:])[1:]]
    return found


def has_values(t: Tensor) -> bool:
    """Not traced, fake or on meta."""
    return not torch.compiler.is_compiling() and type(t) is Tensor and t.device.type != "meta"


def _number(fact: Any) -> int:
    """One that differs where the fact does."""
    if isinstance(fact, int):
        return int(fact)
    return int.from_bytes(hashlib.blake2b(repr(fact).encode(), digest_size=7).digest(), "big")


def _gathered(levels: list[Level], mine: dict[int, Any]) -> dict[int, Any]:
    """What every rank has to say, by its number."""
    for level in reversed(levels):
        theirs: list[Any] = [None] * len(level.counts)
        dist.all_gather_object(theirs, mine, group=level.group)
        mine = {rank: what for one in theirs for rank, what in one.items()}
    return mine


def _everyones(levels: list[Level], error: Exception | None) -> Exception:
    mine = {} if error is None else {dist.get_rank(): f"{error}"}
    said = _gathered(levels, mine)
    if error is not None:
        return error
    return ValueError("; ".join(f"rank {rank} was refused: {what}" for rank, what in said.items()))


def _gather(values: Tensor, indices: Tensor, m: int, level: Level) -> tuple[Tensor, Tensor]:
    """The candidates of all ranks of a level side by side, in their order. One all-gather of
    values and indices, as they are, in one tensor of 32-bit words."""
    batch, words = len(values), values.element_size() // 4
    widths = [min(m, count) for count in level.counts]
    if batch == 0 or max(widths) == 0:
        return values.new_empty(batch, sum(widths)), indices.new_empty(batch, sum(widths))
    width = max(widths)
    sent = values.new_zeros(batch, width * (words + 1), dtype=torch.int32)
    own = values.shape[1]
    sent[:, : own * words] = values.contiguous().view(torch.int32)
    sent[:, width * words : width * words + own] = indices
    got = sent.new_empty(len(widths) * batch, sent.shape[1])
    _all_gather(got, sent, level.group)
    got = got.view(len(widths), batch, -1).transpose(0, 1)
    theirs = got[..., : width * words].contiguous().view(values.dtype).flatten(1)
    where = got[..., width * words :].flatten(1)
    if min(widths) < width:
        kept = torch.cat([torch.arange(w) + i * width for i, w in enumerate(widths)])
        kept = kept.to(values.device)
        theirs, where = theirs[:, kept], where[:, kept]
    return theirs, where
