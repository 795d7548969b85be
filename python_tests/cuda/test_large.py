"""Offsets beyond 2^31, executed: rows of one batch that are that far apart, and the last rows of a
grid, at memory that is not there but for what these rows touch.

An address that was computed in 32 bits is in no tensor then, and the kernel stops there.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deepl0_kernels import reference
from python_tests.ops.test_least_squares import system
from python_tests.oracle import as_bits, hostile
from python_tests.ptx.engine import Pieces

from .emulator import base_name, rows_read_once
from .test_mutants import reaches
from .test_omp import same, signals, unit
from .test_top_m import check

FAR = (1 << 31) + 64  # entries
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # named from Python 3.13 on


def apart(rows: Tensor) -> Tensor:
    """Two rows FAR entries apart, in memory that is touched nowhere else."""
    size = (FAR + rows.shape[1]) * rows.element_size()
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    whole = torch.frombuffer(memory, dtype=rows.dtype)
    return whole.as_strided(rows.shape, (FAR, 1)).copy_(rows)


# Of a kernel and its arguments: the blocks of a row (-n: n rows a block), and by the place of an
# argument the bytes of a row behind a pointer, 0 of a number of rows, or a function of the number
# of the first row that gives what takes its place.
Moves = Callable[[str, list], tuple[int, dict]]


def far_down(emulator, moves: Moves) -> list[str]:
    """From now on kernels run as the last blocks of the largest grid, on rows of that number.
    Returns the kernels that ran."""
    ran = []

    def relocate(kernel: str, blocks: int, arguments: list) -> tuple[int, list]:
        ran.append(kernel)
        each, places = moves(kernel, arguments)
        first = ((1 << 31) - 64) // max(1, each) // 64 * 64
        arguments = list(arguments)
        for place, move in places.items():
            argument = arguments[place]
            if callable(move):
                arguments[place] = move(first)
            elif move == 0:
                arguments[place] = eight_bytes(number(argument) + first)
            elif not isinstance(argument, bytes):  # not null
                arguments[place] = Pieces([(first * move, argument)])
        emulator.block_order = lambda total: range(total - blocks, total)
        return (first * each if each > 0 else first // -each) + blocks, arguments

    emulator.relocate = relocate
    return ran


def number(argument: bytes) -> int:
    return int.from_bytes(argument, "little", signed=True)


def eight_bytes(value: int) -> bytes:
    return value.to_bytes(8, "little")


def of_selection(element: int) -> Moves:
    def moves(kernel: str, a: list) -> tuple[int, dict]:
        if kernel == "top_m_once_kernel":
            u, p, segments, out = (number(a[i]) for i in (1, 2, 4, 10))
            return segments, {0: u * element, 8: out * element, 9: out * 8, 11: (p + 7) // 8,
                              12: u * 8}  # fmt: skip
        if kernel == "top_m_block_kernel":
            u, p, segments, out = (number(a[i]) for i in (1, 2, 4, 10))
            return segments, {0: u * element, 7: u * 8, 8: out * element, 9: out * 8,
                              11: (p + 7) // 8}  # fmt: skip
        if kernel == "top_m_warp_kernel":
            u, p, m = (number(a[i]) for i in (1, 3, 4))
            width = m if isinstance(a[8], bytes) else p
            return -4, {0: u * element, 2: 0, 6: width * element, 7: m * 8, 8: (p + 7) // 8,
                        9: u * 8}  # fmt: skip
        assert kernel == "unpool_kept_kernel"
        m, p, tiles = (number(a[i]) for i in (2, 3, 4))
        return tiles, {0: m * element, 1: m * 8, 5: p * element, 6: (p + 7) // 8}

    return moves


def of_pursuit(kernel: str, a: list) -> tuple[int, dict]:
    """The objective after k atoms is FAR entries behind that after k - 1."""
    assert kernel in ("omp_kernel", "omp_positive_kernel")
    x, ld, m, rows = (number(a[i]) for i in (1, 6, 7, 13))

    def objective(first: int) -> Pieces:
        size = 4 * rows
        return Pieces((4 * (first + k * FAR), a[12][k * size :][:size]) for k in range(m + 1))

    return 1, {0: 4 * x, 2: 4 * ld, 9: 4 * m, 10: 8 * m, 11: 8, 12: objective,
               13: lambda first: eight_bytes(FAR)}  # fmt: skip


def of_systems(kernel: str, a: list) -> tuple[int, dict]:
    assert kernel == "least_squares_kernel"
    right, support, s = (number(a[i]) for i in (5, 7, 8))
    return 1, {4: 8 * right, 6: 8 * support, 9: 8 * s}


# (p, m, read once) -> kernels: a warp, a block, segments and their candidates of a row.
SELECTIONS = {
    (300, 20, False): "warp",
    (1301, 50, False): "block",
    (16400, 9, False): "block block",
    (2309, 70, True): "once",
    (20490, 9, True): "once warp",
    (131000, 33, True): "once once",
}


def kernels(words: str) -> list[str]:
    return [f"top_m_{word}_kernel" for word in words.split()]


def selected(ops, u: Tensor, m: int) -> None:
    got, want = ops.top_m(u, m, False), reference.top_m(u, m)
    assert torch.equal(got[1], want[1])
    assert torch.equal(as_bits(got[0]), as_bits(want[0]))


@pytest.mark.parametrize("case", list(SELECTIONS)[:-1], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_are_far_apart(ops, dtype, case):
    p, m, once = case
    with rows_read_once(once):
        selected(ops, apart(hostile((2, p), dtype, 3, "few_special")), m)


@pytest.mark.parametrize("case", SELECTIONS, ids=str)
def test_rows_far_down_a_batch(ops, emulator, case):
    p, m, once = case
    ran = far_down(emulator, of_selection(4))
    with rows_read_once(once):
        if p < 1 << 16:
            check(ops, hostile((2, p), torch.float32, 3, "few_special"), m)
        else:
            selected(ops, hostile((1, p), torch.float32, 3, "few_special"), m)
    found = SELECTIONS[case].split()
    assert ran[: len(found)] == [f"top_m_{word}_kernel" for word in found]


@pytest.mark.parametrize("positive", [False, True])
def test_pursuits_far_down_a_batch(ops, emulator, positive):
    D, x = unit(30, 61, 2), signals(4, 30, 2)

    def want(x: Tensor) -> tuple[Tensor, ...]:
        return reference.omp(x.double(), D.double(), 9, 1e-6, positive)

    same(ops.omp(apart(x[:2]), D, 9, 1e-6, positive), want(x[:2]))
    far_down(emulator, of_pursuit)
    same(ops.omp(x, D, 9, 1e-6, positive), want(x))


def far_systems() -> tuple[Tensor, Tensor, Tensor]:
    """The last row of the Gram matrix is FAR entries behind the first, its atom in every support,
    the longest or, of the second, the next; two are alike, so that the systems start again."""
    gram, right, _ = system(40, 50, 12, 3)
    longer = torch.ones(50, dtype=gram.dtype)
    longer[49], longer[0] = 2.0, 3.0
    gram *= longer[:, None] * longer
    support = torch.arange(38, 50).roll(1).repeat(3, 1)
    support[1, 1], support[:, 11] = 0, support[:, 2]
    far = apart(gram[:2]).as_strided((50, 50), (FAR // 49, 1))
    return far.copy_(gram), right, support


def test_systems_far_down_a_batch(ops, emulator):
    gram, right, support = far_systems()
    want = reference.least_squares(gram, right, support, 1e-5)

    def same_dense(got: Tensor) -> None:  # which of two is taken, rounding may decide
        dense = (torch.zeros(len(z), 50, dtype=z.dtype).scatter_add(1, support[: len(z)], z)
                 for z in (got, want[: len(got)]))  # fmt: skip
        torch.testing.assert_close(*dense)

    same_dense(ops.least_squares(gram, apart(right[:2]), apart(support[:2]), 1e-5))
    far_down(emulator, of_systems)
    same_dense(ops.least_squares(gram, right, support, 1e-5))


MOVES = {"top_m_once_kernel": of_selection(4), "omp_kernel": of_pursuit,
         "omp_positive_kernel": of_pursuit, "least_squares_kernel": of_systems}  # fmt: skip


@pytest.mark.parametrize("kernel", MOVES)
def test_an_offset_of_32_bits_is_noticed(ops, emulator, kernel):
    """Each 64-bit product of a kernel that is executed, cut to 32 bits."""
    D, x, systems = unit(12, 600, 2), signals(4, 12, 2), far_systems()
    x[1] = 0  # no atom is chosen: what is left is written at once
    texts = {}

    def problem(ops) -> bool:
        if kernel == "least_squares_kernel":
            ops.least_squares(*systems, 1e-5)
            return True
        if "omp" in kernel:
            ops.omp(x, D, 4, 1e-6, "positive" in kernel)
            return True
        with rows_read_once():
            for p in (1301, 20490):
                for select in (ops.top_m, ops.keep_top_m) if p < 2000 else (ops.top_m,):
                    select(hostile((1, p), torch.float32, 3, "normal"), 9, False)
        return True

    def record(name: str, text: str) -> str:
        if base_name(name) == kernel:
            texts[name] = text
        return text

    emulator.mutate = record
    problem(ops)
    far_down(emulator, MOVES[kernel])
    for name, text in texts.items():
        lines, noticed = text.split("\n"), 0

        def run(text: str, name: str = name) -> None:
            emulator.mutate = lambda ran, whole: text if ran == name else whole

        for i, line in enumerate(lines):
            if not re.search(r"\bm(ul|ad)\.lo\.s64", line):
                continue
            to = re.search(r"%rd\d+", line)[0]
            cut = f"\tshl.b64 {to}, {to}, 32;\n\tshr.s64 {to}, {to}, 32;"
            run("\n".join([*lines[: i + 1], cut, *lines[i + 1 :]]))
            try:
                problem(ops)
                error = ""
            except RuntimeError as stopped:
                error = str(stopped)
            noticed += "OutOfBounds" in error
            if "OutOfBounds" not in error:
                assert not reaches(problem, ops, run, text, i + 1), (line, error)
        assert noticed >= 2
