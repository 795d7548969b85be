"""Tables of methods by code size and seed, cell by cell, into a folder that can be resumed.

run.json        the choices that each table is computed by
cells/*.json    one cell: scores, seconds, machine, versions, commit
cells/*.npz     arrays that it has beside, if any
<name>.json     all of it; :mod:`.report` draws the rest from it

A cell is computed from its seed alone, so a run can be interrupted anywhere between two cells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from torch import Tensor

from .._optional import require
from .._report import record
from .._report.drawing import Drawn, Heading
from ..ops import checks
from ..solvers import learn_dictionary
from .claims import judged, verdicts
from .deep import SPARSITIES

Cell = dict[str, Any]
T = TypeVar("T")

SIZES = (128, 256, 512)  # the paper's
CLAIMS = "Claims, judged by the means"


class Column(NamedTuple):
    """Of a table: whose figures it holds, and where its published values stand among those of a
    method, if there are any."""

    title: str
    p: int
    metric: str
    at: int | None


@dataclass(frozen=True)
class Table:
    """A table of the paper, the choices it is computed by, and its values at p of ``SIZES``.

    ``metric`` is the key of a row's figure, ``digits`` are those that the paper gives; ``problem``,
    where cells are made for one and not for a table, is that of its cells.
    """

    title: str
    protocol: Any
    published: Mapping[str, Sequence[float]]
    problem: str = ""
    metric: str = "error"
    unit: str = "%"
    digits: int = 2

    def columns(self, sizes: Sequence[int]) -> list[Column]:
        """What it shows of these sizes."""
        return [
            Column(f"p = {p}", p, self.metric, SIZES.index(p) if p in SIZES else None)
            for p in sizes
        ]

    @property
    def heading(self) -> str:
        """What its figures are."""
        return f"{self.title if self.problem else 'error'}, {self.unit}"


@dataclass
class Job:
    """What cells of one table and seed share; dictionaries are made when a cell asks for them.

    ``protocol`` is that of the table; it has ``dictionary_epochs`` and ``dictionary_lr``.
    """

    protocol: Any
    seed: int
    progress: bool = False
    folder: Path = Path()  # of the cells
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What ``make`` gave the first cell that asked for ``key``."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def dictionary(self, x: Tensor, p: int, **sparsity: Any) -> Tensor:
        """D [n, p] of x [N, n]; ``sparsity`` is m or lam."""

        def learn() -> Tensor:
            return learn_dictionary(
                x,
                p,
                **sparsity,
                epochs=self.protocol.dictionary_epochs,
                batch_size=min(256, len(x)),
                lr=self.protocol.dictionary_lr,
                seed=self.seed,
                progress=self.progress,
            ).D

        return self.once((p, *sparsity.items()), learn)


class Study(ABC):
    """A family of tables that one kind of cell makes; here a cell is one method."""

    name: ClassVar[str]  # of the files
    text_file: ClassVar[str]
    title: ClassVar[str]
    tables: ClassVar[dict[str, Table]]
    methods: ClassVar[Sequence[str]] = ()
    # What a row says beside its error, and with how many digits; what a line of the CSV holds.
    scores: ClassVar[dict[str, int]] = {}
    columns: ClassVar[Sequence[str]] = ()
    needs: ClassVar[Sequence[str]] = ("matplotlib", "pandas", "scipy", "tabulate")
    cell_keys: ClassVar[Sequence[str]] = (
        "table", "method", "p", "seed", "error", "loss", "environment"
    )  # fmt: skip
    choices_key: ClassVar[str] = "protocols"  # of the results
    sizes: ClassVar[Sequence[int]] = SIZES  # unless others are asked for
    mark: ClassVar[str] = "paper"  # of published values, whose source is
    source: ClassVar[str] = (
        "Values marked (paper) are those of Wang, Ling, Huang 2016, whose protocol is partly open; "
        "they are a reference, not a target that these rows were tuned to."
    )

    # What a study is

    def signals(self, protocol: Any, seed: int) -> Tensor:
        """The signals [N, n] that the cells train on, where they do not depend on their size."""
        raise NotImplementedError(f"signals of {type(self).__name__} depend on their size")

    def largest_m(self, protocol: Any) -> int:
        """No code can be smaller."""
        return max(SPARSITIES)

    def fits(self, protocol: Any, x: Tensor) -> None:
        """The choices fit the signals x [N, n], else a ValueError."""
        return

    def check_signals(self, table: str, protocol: Any, sizes: Sequence[int], seed: int) -> None:
        """Protocol and sizes fit the signals, else a ValueError."""
        x = self.signals(protocol, seed)
        self.fits(protocol, x)
        for p in sizes:
            checks.integer("p", p, 1, len(x), f"the training signals of {table}")

    def race(
        self, results: dict[str, Any], out: Path, seconds: float, again: bool = False
    ) -> list[tuple[dict[str, Any], str]]:
        """Take the times that ``out`` lacks, or all of them ``again``; each, and what it says.

        Raises:
            FileNotFoundError: ``out`` lacks a cell. ValueError: it is of other choices.
        """
        return []

    @abstractmethod
    def cell(self, part: str, method: str, p: int, job: Job) -> Cell:
        """One cell; ``arrays`` of the result, if there, is no JSON but is stored beside it.

        Raises:
            RuntimeError: training diverged.
        """

    @abstractmethod
    def claims(self, tables: Sequence[str], cells: list[Cell], sizes: Sequence[int]) -> list[Cell]:
        """The orderings that the paper claims, and whether they hold."""

    @abstractmethod
    def figures(self, results: dict[str, Any], table: str, out: Path) -> Drawn:
        """The figures of a table, of the run in ``out``."""

    # Where its tables differ from those of other studies

    def note(self, protocols: dict[str, Any]) -> dict[str, Any]:
        """The protocols by the names that a folder notes them by."""
        return protocols

    def header(self, protocols: dict[str, Any]) -> dict[str, Any]:
        """The choices as the results hold them."""
        return {"protocols": {name: asdict(protocol) for name, protocol in protocols.items()}}

    def parts(self, protocols: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, str]]]:
        """Name, protocol, and the methods that are a cell each, by the stem of their file."""
        for table, protocol in protocols.items():
            yield table, protocol, {f"{table}-{i}": m for i, m in enumerate(self.methods)}

    def rows(self, cells: list[Cell], table: str) -> list[Cell]:
        """A row a method, p and seed: method, p, seed and figures of each."""
        return [cell for cell in cells if cell["table"] == table]

    def order(self, rows: list[Cell]) -> Sequence[str]:
        """The methods of a table as it lists them."""
        return self.methods

    def remark(self, results: dict[str, Any], table: str, method: str, p: int) -> str:
        """What stands behind an entry of a table."""
        return ""

    def lines(self, results: dict[str, Any]) -> list[Cell]:
        """Those of the CSV."""
        return [{key: cell[key] for key in self.columns} for cell in results["cells"]]

    def judgement(self, results: dict[str, Any], out: Path) -> list[Any]:
        """What the report says below the tables."""
        return [Heading(CLAIMS), verdicts(results)]

    # Running

    def check(
        self, protocols: dict[str, Any], sizes: Sequence[int], seeds: Sequence[int], out: Path
    ) -> None:
        """Everything that can be wrong with a run, before any work and before ``out`` is touched.

        Raises:
            ValueError: an unknown table, a choice out of its range, a size that does not fit, data
                that are damaged, or ``out`` holds a run of another protocol.
            FileNotFoundError: a data set is not where the protocol looks for it.
        """
        for name, given in (("tables", protocols), ("sizes", sizes), ("seeds", seeds)):
            if not given:
                raise ValueError(f"{name} must not be empty")
        for table, protocol in protocols.items():
            if table not in self.tables:
                raise ValueError(f"tables must be among {', '.join(self.tables)}, got {table!r}")
            protocol.check()
            for p in sizes:
                if p < (least := self.largest_m(protocol)):
                    raise ValueError(f"p must be at least M = {least}, got {p}")
        for table, protocol in protocols.items():
            self.check_signals(table, protocol, sizes, seeds[0])
        record.agree(out / "run.json", self.note(protocols), write=False)

    def run(
        self,
        protocols: dict[str, Any],
        sizes: Sequence[int],
        seeds: Sequence[int],
        out: Path,
        progress: bool = True,
    ) -> dict[str, Any]:
        """Compute what ``out`` lacks of the tables that ``protocols`` names. Returns the results.

        Errors are those of :meth:`check` and of :meth:`cell`.
        """
        for module in (*self.needs, *(("tqdm",) if progress else ())):
            require(module, "deepl0 reproduce")
        self.check(protocols, sizes, seeds, out)
        note = out / "run.json"
        cells: list[Cell] = []
        for part, protocol, methods in self.parts(protocols):
            added = record.agree(note, self.note({part: protocol}), write=True)
            done = len(cells)
            try:
                for seed in seeds:
                    job = Job(protocol, seed, progress, out / "cells")
                    for p in sizes:
                        for stem, method in methods.items():
                            path = path_of(out, stem, p, seed)
                            if not path.exists():
                                self._store(path, self.cell(part, method, p, job))
                            cells.append(record.read_json(path, self.cell_keys))
            except (ValueError, RuntimeError):
                # Choices that made no cell must not stand in the way of better ones.
                if len(cells) == done and added:
                    record.retract(note, added, methods)
                raise
        results = {
            "tables": list(protocols),
            **self.header(protocols),
            "sizes": list(sizes),
            "seeds": list(seeds),
            "cells": cells,
            "claims": self.claims(list(protocols), cells, sizes),
        }
        record.write_json(out / f"{self.name}.json", results)
        return results

    def _store(self, path: Path, cell: Cell) -> None:
        if arrays := cell.pop("arrays", None):
            record.write_arrays(path.with_suffix(".npz"), arrays)
        record.write_json(path, cell)
        unfinished(path).unlink(missing_ok=True)

    def read(self, folder: Path, name: str | None = None) -> dict[str, Any]:
        """The results of a run, or those of a table that a record keeps under another name.

        Raises:
            FileNotFoundError: the folder holds none.
            ValueError: they cannot be read.
        """
        keys = ("tables", self.choices_key, "sizes", "seeds", "cells", "claims")
        return record.read_json(folder / f"{name or self.name}.json", keys)


def path_of(out: Path, stem: str, p: int, seed: int) -> Path:
    """The JSON of a cell."""
    return out / "cells" / f"{stem}-p{p}-seed{seed}.json"


def unfinished(path: Path) -> Path:
    """What a cell keeps of itself until it is done."""
    return path.parent / "cache" / f"{path.stem}-rows.json"


def values(rows: list[Cell], method: str, p: int, key: str = "error") -> list[Any]:
    """The figure ``key`` of each seed, in the order of the seeds."""
    found = [row for row in rows if (row["method"], row["p"]) == (method, p)]
    return [row[key] for row in sorted(found, key=lambda row: row["seed"])]


def falling(
    table: str, methods: Sequence[str], rows: list[Cell], sizes: Sequence[int]
) -> list[Cell]:
    """The claim that every method errs less with the largest code than with the smallest."""
    low, high = min(sizes), max(sizes)
    if low == high:
        return []
    return [
        judged(
            table,
            f"{method}: p = {high} below p = {low}",
            values(rows, method, high),
            values(rows, method, low),
        )
        for method in methods
    ]
