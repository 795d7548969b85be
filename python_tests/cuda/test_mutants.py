"""Deliberate errors in the kernels' PTX: the problems below must notice nearly all of them."""

from __future__ import annotations

import datetime
import os
import re

import pytest
import torch

from deepl0_kernels import reference
from python_tests.ops.test_least_squares import system
from python_tests.oracle import as_bits, hostile, same_values, selectable
from python_tests.ptx import mutate
from python_tests.ptx.layout import Options
from python_tests.ptx.machine import Machine

from . import emulator as engine
from .test_omp import leaving, signals, unit
from .test_screen import normal, right
from .test_sparse import code
from .test_top_m_once import one_in_each_group

# Tried in every kernel, at PLACES that the problem reaches. (Constants of comparisons are left out:
# most are bounds of unrolled loops, where one more or less changes speed only.)
PLACES = 2
KINDS = ("drop barrier", "drop guard", "negate guard", "shuffle distance", "compare", "select",
         "arithmetic", "vote")  # fmt: skip


def adjacent(p: int, dtype: torch.dtype) -> tuple[torch.Tensor, int]:
    """Eleven keys one beside the other, and an m that some of them meet exactly: a comparison that
    leaves one entry out changes the cut."""
    kind, one = (torch.int32, 0x3F800000) if dtype == torch.float32 else (torch.int16, 0x3F80)
    step = torch.arange(p) * 7 % 11
    return (one + step).to(kind).view(dtype).repeat(2, 1), int((step >= 6).sum())


def selected(ops, u: torch.Tensor, m: int, positive: bool) -> bool:
    """Whether codes, dense rows and masks are the reference's."""
    at, bits = reference.top_m(u, m, positive)[1], selectable(u, positive)
    values, indices = ops.top_m(u, m, positive)
    kept, mask = ops.keep_top_m(u, m, positive)
    right = torch.equal(indices, at) and torch.equal(as_bits(values), bits.gather(1, at))
    chosen = torch.zeros(u.shape, dtype=torch.bool).scatter(1, at, True)
    right = right and torch.equal(as_bits(kept), bits * chosen)
    return right and torch.equal(mask, reference.keep_top_m(u, m, positive)[1])


def select(p: int, dtype=torch.float32, positive: bool = False):
    def problem(ops) -> bool:
        rows = [(hostile((2, p), dtype, 7, s), m)
                for s, m in (("few_special", p // 5), ("ties", p // 3), ("normal", p))]  # fmt: skip
        return all(selected(ops, u, m, positive) for u, m in (*rows, adjacent(p, dtype)))

    return problem


def once(positive: bool):
    """Rows that are read once: of two tiles; where more is collected than there is room for, out
    of order and with ties; of common keys; whose first bar is reached by m entries only.

    A bar that lets too much pass changes no result: the instructions that a row takes, which do not
    depend on chance, are held to those of the first call.
    """
    rising = torch.rand(1, 4500, generator=torch.Generator().manual_seed(2)).sort(-1).values
    rows = (
        (hostile((1, 4501), torch.float32, 7, "few_special"), 70),
        (hostile((2, 2500), torch.float32, 7, "ties"), 20),
        ((torch.arange(7001) // 5).float()[None], 22),
        (rising * (rising > 0.995), 40),
        (one_in_each_group(256, torch.float32)[None].abs(), 60),
        (one_in_each_group(1024, torch.float32)[None].abs(), 125),
    )
    taken: list[int] = []

    def problem(ops) -> bool:
        right, counts = True, []
        with engine.rows_read_once():
            for u, m in rows:
                before = Machine.issued
                right = right and selected(ops, u, m, positive)
                counts.append(Machine.issued - before)
        taken[:] = taken or counts
        return right and all(abs(n - t) < 0.02 * t for n, t in zip(counts, taken, strict=True))

    return problem


def merged(ops) -> bool:
    """Candidates of slices, of hostile rows and with ties across them: a warp's."""
    rows = [
        (hostile((1, 20500), torch.float32, 7, s), 40) for s in ("few_special", "ties", "normal")
    ]
    with engine.rows_read_once():
        for u, m in (*rows, (torch.arange(20500.0)[None] // 5000, 25)):
            (values, indices), at = ops.top_m(u, m, False), reference.top_m(u, m)[1]
            right = torch.equal(indices, at) and torch.equal(
                as_bits(values), as_bits(u).gather(1, at)
            )
            if not right:
                return False
    return True


def batch(ops) -> bool:
    """Rows of one piece and of two; the last piece cut off."""
    image = 0x3F800000 + torch.arange(210, dtype=torch.int32).view(3, 70) * 7 % 31
    for u, m in (
        (hostile((5, 70), torch.float32, 7, "few_special"), 9),
        (hostile((2, 2061), torch.float32, 7, "ties"), 700),
        (image.view(torch.float32), 35),
    ):
        want = reference.batch_top_m(u, m, True)
        if not all(map(torch.equal, ops.batch_top_m(u, m, True)[1:], want[1:])):
            return False
    return True


def traps(call, indices: torch.Tensor, size: int) -> bool:
    """Whether an index just outside of [0, size) stops the kernel, by its own check."""
    for bad in (-1, size):
        wrong = indices.clone()
        wrong[-1, -1] = bad
        try:
            call(wrong)
        except RuntimeError as error:
            if "DeviceTrap" in str(error):
                continue
        return False
    return True


def gather(p: int, m: int):
    def problem(ops) -> bool:
        wx, St = (hostile(s, torch.float32, 3, "ties") for s in ((2, p), (p, p)))
        values, indices = code(2, p, m)
        values = (values.abs() > 1.6).float()  # small sums: many ties
        want = reference.top_m(wx + reference.unpool(values, indices, p) @ St, m)
        got = ops.gather_top_m(wx, values, indices, St, False)
        if not traps(lambda i: ops.gather_top_m(wx, values, i, St, False), indices, p):
            return False
        return torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])

    return problem


def grouped(indices: torch.Tensor, units: int) -> tuple[torch.Tensor, ...]:
    """What ``group`` returns: where each unit's list starts, the units, the entries."""
    order = indices.flatten().sort(stable=True)
    start = torch.searchsorted(order.values, torch.arange(units + 1))
    return start.int(), order.values.int(), order.indices.int()


def scattered() -> tuple[torch.Tensor, torch.Tensor, int]:
    """A code where some lists are long and most empty, and how many units there are."""
    c, indices = code(110, 300, 3)
    return c, indices // 7 * 7, 300


def lists(ops) -> bool:
    _, indices, units = scattered()
    if not all(map(torch.equal, ops.group(indices, units), grouped(indices, units))):
        return False
    return traps(lambda i: ops.group(i, units), indices, units)


def pursuit(positive: bool, rows_kept: bool = True):
    """Random signals; ties in exact sums, with places left over; atoms that leave; dependent ones.

    Bits are held to those of the first call: a barrier or a sum that goes wrong may spare the
    support.
    """
    eye = torch.eye(24)[:, torch.arange(150) % 24]
    flat = torch.full((2, 24), -0.5)
    flat[1, :5] = torch.tensor([3.0, 0, 2, 0, -1])
    first: list[torch.Tensor] = []

    def problem(ops) -> bool:
        wide = (signals(1, 60, 1), unit(60, 1100, 1), 19)
        if not rows_kept:
            cases = [wide]
        else:
            cases = [(signals(2, 30, 2), unit(30, 530, 2), 10), (flat, eye, 7), (-flat, eye, 7)]
            cases += [(*leaving(40, 60, 1), 25)] if positive else []
        right, found = True, []
        for x, D, m in cases:
            got = ops.omp(x, D, m, 1e-6, positive)
            want = reference.omp(x.double(), D.double(), m, 1e-6, positive)
            right = right and torch.equal(got[1], want[1]) and torch.equal(got[2], want[2])
            for g, w in ((got[0], want[0]), (got[3], want[3])):
                right = right and torch.allclose(g.double(), w, rtol=1e-3, atol=1e-4)
            found += got
        first[:] = first or found
        return right and all(map(torch.equal, found, first))

    return problem


def refitted():
    """Systems of several warps and of one, places without an atom, atoms that depend on others, in
    one warp and in two: those are exact. Bits are held to those of the first call."""
    first: list[torch.Tensor] = []
    alike = torch.where(torch.arange(70)[:, None] % 35 == torch.arange(70) % 35, 1.0, 0.0).double()
    order = torch.randperm(70, generator=torch.Generator().manual_seed(3))[None]
    right = torch.arange(1.0, 71, dtype=torch.float64)[None]

    def problem(ops) -> bool:
        gram, of, support = system(70, 80, 45, 1)
        gone = support.masked_fill(support % 5 == 1, -1)
        cases = [(gram, of, support), (gram, of, gone), (alike, right, order)]
        cases += [(alike, right[:, :9], order[:, :9] % 40)]
        correct, found = True, []
        for case in cases:
            found.append(ops.least_squares(*case, 1e-5))
            want = reference.least_squares(*case, 1e-5)
            correct = correct and torch.allclose(found[-1], want, rtol=1e-9, atol=1e-12)
        first[:] = first or found
        correct = correct and all(map(same_values, found, first))
        return correct and traps(
            lambda at: ops.least_squares(alike, right, at - 1, 1e-5), order + 1, 71
        )

    return problem


def combined(ops) -> bool:
    c, indices, units = scattered()
    dense = torch.zeros(len(c), units).scatter_add(1, indices, c)
    for n in (133, 12):  # packs cut off, and whole
        x = torch.randn(len(c), n)
        got = ops.combine(*grouped(indices, units), c, x)
        if not torch.allclose(got, dense.t() @ x, rtol=1e-4, atol=1e-4):
            return False
    return True


def sums(kernel: str):
    """The sums over supports: the calls that launch one kernel of them."""

    def problem(ops) -> bool:
        batch, p, m = 12, 41, 35
        du, upper = code(batch, p, m)
        z, lower = code(batch, p, m)
        S, whole = torch.randn(p, p), torch.randn(p, 40)  # of cut off and of whole packs
        dense, out = reference.unpool(du, upper, p), torch.ones(p, p)
        product = dense.t() @ reference.unpool(z, lower, p)

        def outer(du_at, z_at):
            ops.outer_atomic(du_at, du, z_at, z, out, False)
            return out

        def close(got, want) -> bool:
            return torch.allclose(got, want, rtol=1e-3, atol=1e-4)

        if kernel == "outer_kernel":
            start, _, entry = grouped(upper, p)
            ops.outer(start, entry, du, lower, z, out, True)
            return close(out, 1 + product)
        if kernel == "outer_atomic_kernel":
            right = close(outer(upper, lower), product)
            right = right and traps(lambda i: outer(i, lower), upper, p)
            return right and traps(lambda i: outer(upper, i), upper, p)
        if kernel == "product_on_support_kernel":
            want = (dense @ S).gather(1, lower)
            right = close(ops.product_on_support(upper, du, lower, S), want)
            right = right and traps(lambda i: ops.product_on_support(i, du, lower, S), upper, p)
            return right and traps(lambda i: ops.product_on_support(upper, du, i, S), upper, p)
        if kernel == "gather_rows_kernel":
            right = all(close(ops.gather_rows(du, upper, a, True), dense @ a) for a in (S, whole))
            return right and traps(lambda i: ops.gather_rows(du, i, S, True), upper, p)
        assert kernel == "row_dots_kernel"
        for a in (S, whole):
            rows = torch.randn(batch, a.shape[1])
            if not close(ops.row_dots(upper, a, rows), (rows @ a.t()).gather(1, upper)):
                return False
        return traps(lambda i: ops.row_dots(i, S, torch.ones(batch, p)), upper, p)

    return problem


def transposed(ops) -> bool:
    """Tiles cut off on both sides, rows of a stride of their own."""
    matrix = torch.randn(70, 80)[:, :45]
    return torch.equal(ops.transpose(matrix), matrix.t())


def screened(positive: bool):
    """Stages of several tiles of rows, units and terms: apart and near to each other, hostile, of
    equal units, of few positive ones, unaligned.

    A bound that is too large changes no result: the instructions that a call takes are held to
    those of the first time.
    """
    near = normal(1, 44) + 2.0**-9 * normal(150, 44, seed=3)
    few_special = hostile((4, 50), torch.float32, 7, "few_special")
    problems = (
        (normal(3, 70), normal(300, 70, seed=1), normal(300, seed=2), 7),
        (normal(2, 44, seed=4), near, None, 10),
        (few_special[:, 1:], hostile((150, 49), torch.float32, 8, "few_special"), None, 9),
        (normal(2, 20), normal(1, 20).expand(400, -1), None, 5),
        (normal(2, 20), normal(150, 20, seed=5), normal(150, seed=6) - 9, 40),
        (normal(2, 6) * 2.0**70, normal(70, 6), None, 70),  # not screened, all kept
    )
    taken: list[int] = []

    def problem(ops) -> bool:
        correct, counts = True, []
        for x, W, bias, m in problems:
            before = Machine.issued
            z = code(len(x), len(W), 60 if m == len(W) else 7)
            z = (z[0] * 2.0**70, z[1]) if m == len(W) else z
            correct = correct and right(ops, x, W, bias, m, positive)
            correct = correct and right(ops, x, W, bias, m, positive, z)
            counts.append(Machine.issued - before)
        taken[:] = taken or counts
        return correct and all(abs(n - t) < 1e-3 * t for n, t in zip(counts, taken, strict=True))

    return problem


def fused():
    """Stages of exact sums, which are those of the product and the threshold, bit for bit: tiles
    and steps cut off, W x again and added, u saved and not."""
    first: list[tuple[torch.Tensor, ...]] = []

    def problem(ops) -> bool:
        wanted = []
        for rows, n, p, kind in ((131, 40, 45, "helu"), (3, 257, 137, "soft")):
            x, W, S, bias = (hostile(s, torch.bfloat16, i, "ties")
                             for i, s in enumerate(((rows, n), (p, n), (p, p), (p,))))  # fmt: skip
            args = (x, W, S, bias, (torch.arange(p) % 9).float(), 2, 0.5, kind)
            want = first[len(wanted)] if first else ops.encode_l0_saving(*args)
            wanted.append(want)
            with engine.stages_fused():
                if not all(map(same_values, ops.encode_l0_saving(*args), want)):
                    return False
                if n == 40 and not same_values(ops.encode_l0(*args), want[0]):
                    return False
        first[:] = wanted
        return True

    return problem


SUMS = ("outer_kernel", "outer_atomic_kernel", "product_on_support_kernel", "gather_rows_kernel",
        "row_dots_kernel")  # fmt: skip

# By the kernel; after a comma, of nonnegative codes.
PROBLEMS = {
    "top_m_warp_kernel": select(253),
    "top_m_warp_kernel, positive": select(253, positive=True),
    "top_m_warp_kernel, candidates": merged,
    "top_m_block_kernel, positive": select(1101, torch.bfloat16, positive=True),
    "top_m_block_kernel": select(1101, torch.bfloat16),
    "top_m_once_kernel": once(False),
    "top_m_once_kernel, positive": once(True),
    "batch_histogram_kernel": batch,
    "batch_digit_kernel": batch,
    "batch_count_kernel": batch,
    "batch_place_kernel": batch,
    "batch_write_kernel": batch,
    "gather_top_m_warp_kernel": gather(120, 35),
    "gather_top_m_block_kernel": gather(1030, 300),
    "omp_kernel": pursuit(False),
    "omp_kernel, rows of D'D": pursuit(False, rows_kept=False),
    "omp_positive_kernel": pursuit(True),
    "least_squares_kernel": refitted(),
    "transpose_kernel": transposed,
    "sort_count_kernel": lists,
    "sort_scan_kernel": lists,
    "sort_scatter_kernel": lists,
    "combine_kernel": combined,
    "combine_edges_kernel": combined,
    **{name: sums(name) for name in SUMS},
    "threshold_stage_kernel": fused(),
    "screen_rows_kernel": screened(False),
    "screen_units_kernel": screened(False),
    "screen_product_kernel": screened(False),
    "screen_select_kernel": screened(False),
    "screen_select_kernel, positive": screened(True),
    "screen_throughout_kernel": screened(False),
}

# Their barrier before the second round of sums: more than 2048 tiles have one, these problems not.
BETWEEN_ROUNDS = ("sort_scan_kernel", "sort_scatter_kernel")

mutate.KINDS.setdefault(
    "vote",
    mutate._substitute(r"(vote\.sync\.ballot\.b32\s+%r\d+, )(%p\d+)", lambda m: f"{m[1]}!{m[2]}"),
)


def reaches(problem, ops, run, text: str, line: int) -> bool:
    """Whether the problem executes the line of the text: it then stops at a trap there."""
    lines = text.split("\n")
    run("\n".join([*lines[: line - 1], "\ttrap;", *lines[line - 1 :]]))
    try:
        problem(ops)
    except RuntimeError as error:
        return "Trap" in str(error)
    return False


def due(day: datetime.date) -> list[str]:
    """A third of the problems by the day: all of them take minutes of a processor."""
    if os.environ.get("DEEPL0_EVERYTHING") == "1":
        return list(PROBLEMS)
    return list(PROBLEMS)[day.toordinal() % 3 :: 3]


@pytest.mark.parametrize("kernel", due(datetime.date.today()))
def test_mutants_are_noticed(ops, emulator, kernel):
    problem, kernel = PROBLEMS[kernel], kernel.split(",")[0]
    used: dict[str, str] = {}

    def record(name: str, text: str) -> str:
        if engine.base_name(name) == kernel:
            used[name] = text
        return text

    def run(text: str) -> None:
        torch.manual_seed(5)
        emulator.mutate = lambda ran, whole: text if ran == name else whole

    if kernel == "screen_throughout_kernel":
        emulator.set_device(1, engine.BIG[1])  # a block has several rows
    torch.manual_seed(5)
    emulator.mutate = record
    assert problem(ops)
    assert used, f"{kernel} does not run"
    emulator.options = Options(max_steps=200_000)  # a mutant may not end
    name, text = max(used.items(), key=lambda item: len(item[1]))
    missed, tried = [], 0
    for kind in KINDS:
        places = 0
        for mutant in mutate.mutants(text, 11, [kind], per_kind=8):
            run(mutant.text)
            try:
                noticed = not problem(ops)
            except RuntimeError as error:
                noticed = re.search(r"CUDA: \w+_kernel: ", str(error)) is not None
            if not noticed and not reaches(problem, ops, run, text, mutant.line):
                continue
            places += 1
            if not noticed:
                missed.append(str(mutant))
            if places == PLACES:
                break
        tried += places
    print(f"{kernel}: {tried - len(missed)} of {tried} noticed", *missed, sep="\n  ")
    # What is left changes nothing here: reads of padding that is multiplied by zero or not stored,
    # a guard that is true for all, the check of an index that is in range.
    assert tried >= 3
    assert len(missed) < tried
    assert 2 * len(missed) <= tried + 2, "\n".join(missed)
    strict = [m for m in missed if m.startswith(("drop barrier", "vote"))]
    assert len(strict) == (kernel in BETWEEN_ROUNDS), strict
