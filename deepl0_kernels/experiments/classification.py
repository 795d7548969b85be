"""Tables 4 and 5: encoders and their rivals as classifiers of MNIST and Indian Pines.

classification-run.json   the protocol of each table
cells/table*-*.json       one method, code size and seed: scores, confusion matrix, seconds
classification.json, classification.csv, classification.md

One cell is computed from its seed alone, so a run can be interrupted anywhere between two cells.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import scenes
from .._files import write_atomically
from .._optional import require
from ..datasets import Digits, mnist, mnist_subset, preprocess, random_shifts
from ..nn import LISTA, DeepL0Encoder, DeepMSparseEncoder
from ..solvers import TaskDrivenDictionary, fista, learn_dictionary
from . import record
from .scores import confusion, scores
from .training import Classifier, fit_to_classes, fit_to_codes

SPARSITIES = (10, 20, 30)
TDSC = "TDSC"
TUNED_LISTA = "LISTA, tuned"
DEEP_L0 = "Deep l0-Regularized"
DEEP_M = "Deep M-Sparse, M = {}"
METHODS = (TDSC, TUNED_LISTA, DEEP_L0, *(DEEP_M.format(m) for m in SPARSITIES))
SIZES = (128, 256, 512)

# Errors in percent at p of SIZES, where the text of the paper gives them.
PAPER = {
    "table4": {
        TDSC: (0.71, 0.55, 0.53),
        TUNED_LISTA: (0.74, 0.62, 0.57),
        DEEP_L0: (0.72, 0.58, 0.52),
        DEEP_M.format(10): (0.69, 0.54, 0.51),
    },
    "table5": {
        TDSC: (15.55, 15.27, 15.21),
        TUNED_LISTA: (16.12, 16.05, 15.97),
        DEEP_L0: (15.20, 15.07, 15.01),
        DEEP_M.format(10): (13.77, 13.56, 13.52),
    },
}
TITLES = {
    "table4": "Classification error on MNIST, %",
    "table5": "Classification error on Indian Pines, %",
}


@dataclass(frozen=True)
class Protocol:
    """The choices of one table; a run stores them beside its results.

    All methods see the same signals and start from dictionaries learned without labels: the deep
    encoders from those of their own problem, LISTA and TDSC from that of the l0-regularised one
    (TDSC's atoms scaled to norm 1). The deep encoders are trained end to end from there; LISTA is
    first a regressor of l1 codes, as in the paper. The last epoch counts: no epoch is chosen by its
    test error.
    """

    data: str = "mnist"  # "mnist" from $DEEPL0_DATA, "subset" of it, or "indian_pines"
    digits: int = 60_000
    held_out: int = 10_000
    min_std: float = 0.1
    shift: int = 1  # of the training digits, at random and anew in each epoch; 0: none
    fraction: float = 0.2  # of each class of Indian Pines for training
    context: int = 0  # radius of the mean spectrum appended to a pixel's; 0: none
    lam: float = 0.5
    num_stages: int = 2
    dictionary_epochs: int = 6
    dictionary_lr: float = 1e-2
    epochs: int = 40
    batch_size: int = 128
    lr: float = 3e-3
    clip: float = 1.0
    pretrain_epochs: int = 10
    pretrain_lr: float = 1e-3
    tdsc_lam: float = 0.1  # for signals of norm 1, which TDSC is given
    tdsc_lam2: float = 1e-2
    tdsc_nu: float = 1e-5
    tdsc_epochs: int = 10
    tdsc_batch_size: int = 200
    tdsc_lr: float = 0.3
    tdsc_tol: float = 1e-4
    tdsc_max_iter: int = 300

    def quickened(self) -> Protocol:
        """A run of minutes that exercises everything; its errors say little."""
        few: dict[str, Any] = dict(dictionary_epochs=4, pretrain_epochs=3, tdsc_max_iter=100)
        if self.data == "indian_pines":
            return replace(self, fraction=0.1, epochs=60, tdsc_epochs=5, **few)
        few.update(data="subset", digits=4_000, held_out=1_000, epochs=8, tdsc_epochs=2)
        return replace(self, **few)


PROTOCOLS = {
    "table4": Protocol(),
    # A thirtieth of the signals: more passes over them make as many steps.
    "table5": Protocol(
        data="indian_pines",
        shift=0,
        lr=1e-3,
        epochs=200,
        dictionary_epochs=40,
        pretrain_epochs=60,
        tdsc_epochs=40,
        tdsc_batch_size=100,
    ),
}


@dataclass
class Labelled:
    """Training and test signals and labels; ``begin`` makes an epoch's training signals."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    discarded_test: int = 0
    begin: Callable[[int], None] | None = field(default=None, repr=False)

    def counts(self) -> dict[str, int]:
        return {
            "training_signals": len(self.x),
            "test_signals": len(self.x_test),
            "discarded_test": self.discarded_test,
        }


def labelled(protocol: Protocol, seed: int) -> Labelled:
    """The data of a table. ``seed`` chooses the split of Indian Pines and the moves of digits."""
    if protocol.data == "indian_pines":
        return _pixels(protocol, seed)
    return _digits(protocol, mnist() if protocol.data == "mnist" else mnist_subset(), seed)


def _digits(protocol: Protocol, digits: Digits, seed: int) -> Labelled:
    images = digits.x[: protocol.digits]
    train = preprocess(images, min_std=protocol.min_std)
    test = preprocess(digits.x_test[: protocol.held_out], min_std=protocol.min_std)
    images = images[train.kept]
    data = Labelled(
        train.x,
        digits.y[: protocol.digits][train.kept],
        test.x,
        digits.y_test[: protocol.held_out][test.kept],
        10,
        test.discarded,
    )

    def begin(epoch: int) -> None:
        moved = random_shifts(images, protocol.shift, 1_000_003 * (seed + 1) + epoch)
        patches = preprocess(moved, min_std=protocol.min_std)
        # A digit that its move has emptied stays where it was.
        data.x[patches.kept] = patches.x

    if protocol.shift:
        data.begin = begin
    return data


def _pixels(protocol: Protocol, seed: int) -> Labelled:
    pixels = scenes.labelled_pixels(scenes.indian_pines(), protocol.context)
    train, test = scenes.stratified_split(pixels.y, protocol.fraction, seed)
    # Bands differ in scale by what they measure; the training pixels alone say by how much.
    mean, std = pixels.x[train].mean(0), pixels.x[train].std(0)
    x = (pixels.x - mean) / std.clamp_min(torch.finfo(std.dtype).tiny)
    return Labelled(x[train], pixels.y[train], x[test], pixels.y[test], len(scenes.NAMES))


class Problems:
    """Data and dictionaries of one table and seed, made when a cell asks for them."""

    def __init__(self, protocol: Protocol, seed: int, progress: bool) -> None:
        self.protocol, self.seed, self.progress = protocol, seed, progress
        self._dictionaries: dict[tuple[int, int | None], Tensor] = {}

    def data(self) -> Labelled:
        """Signals as they were read: the moves of one training are not the next one's start."""
        return labelled(self.protocol, self.seed)

    def dictionary(self, x: Tensor, p: int, m: int | None) -> Tensor:
        """D [n, p] of the m-sparse problem, or of the l0-regularised one."""
        if (p, m) not in self._dictionaries:
            protocol = self.protocol
            self._dictionaries[p, m] = learn_dictionary(
                x,
                p,
                m=m,
                lam=protocol.lam if m is None else None,
                epochs=protocol.dictionary_epochs,
                batch_size=min(256, len(x)),
                lr=protocol.dictionary_lr,
                seed=self.seed,
                progress=self.progress,
            ).D
        return self._dictionaries[p, m]


def cell(table: str, method: str, p: int, problems: Problems) -> dict[str, Any]:
    """One method trained and scored."""
    protocol, seed = problems.protocol, problems.seed
    data = problems.data()
    start = time.perf_counter()
    sparsity = {DEEP_M.format(m): m for m in SPARSITIES}.get(method)
    D = problems.dictionary(data.x.clone(), p, sparsity)
    learned = time.perf_counter()
    torch.manual_seed(seed)
    description = f"{table}, {method}, p = {p}, seed {seed}"
    if method == TDSC:
        losses, predict, encode = _task_driven(protocol, D, data, problems)
    else:
        losses, predict, encode = _encoder(
            protocol, method, sparsity, D, data, problems, description
        )
    trained = time.perf_counter()
    if not losses[-1] < losses[0]:
        raise RuntimeError(f"{description} did not learn: loss {losses[0]:.4g} to {losses[-1]:.4g}")
    with torch.no_grad():
        matrix = confusion(data.y_test, predict(data.x_test), data.classes)
        training = confusion(data.y, predict(data.x), data.classes)
        codes = encode(data.x_test)
    found = scores(matrix)
    if data.discarded_test:
        # A digit without contrast is not recognised.
        found["error"] = 100 - found["overall_accuracy"] * len(data.y_test) / (
            len(data.y_test) + data.discarded_test
        )
    used = codes != 0
    return {
        "table": table,
        "method": method,
        "p": p,
        "seed": seed,
        **found,
        "training_error": scores(training)["error"],
        "confusion": matrix.tolist(),
        "nonzeros": used.sum(1).double().mean().item(),
        "dead_units": int((~used.any(0)).sum()),
        "loss": losses,
        "signals": data.counts(),
        "seconds": {"dictionary": learned - start, "training": trained - learned},
    }


_Fitted = tuple[list[float], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def _encoder(
    protocol: Protocol,
    method: str,
    m: int | None,
    D: Tensor,
    data: Labelled,
    problems: Problems,
    description: str,
) -> _Fitted:
    p, K = D.shape[1], protocol.num_stages
    options: dict[str, Any] = dict(
        batch_size=min(protocol.batch_size, len(data.x)),
        clip=protocol.clip,
        seed=problems.seed,
        progress=problems.progress,
        description=description,
    )
    encoder: nn.Module
    if method == TUNED_LISTA:
        encoder = LISTA.from_dictionary(D, protocol.lam, K)
        codes = fista(data.x, D, protocol.lam, history=False).dense
        fit_to_codes(
            encoder,
            data.x.clone(),
            codes,
            epochs=protocol.pretrain_epochs,
            lr=protocol.pretrain_lr,
            **options,
        )
    elif m is None:
        encoder = DeepL0Encoder.from_dictionary(D, protocol.lam, K)
    else:
        encoder = DeepMSparseEncoder.from_dictionary(D, m, K)
    network = Classifier(encoder, p, data.classes)
    losses = fit_to_classes(
        network,
        data.x,
        data.y,
        epochs=protocol.epochs,
        lr=protocol.lr,
        begin=data.begin,
        **options,
    )
    return losses, lambda x: network(x).argmax(1), encoder


def _task_driven(protocol: Protocol, D: Tensor, data: Labelled, problems: Problems) -> _Fitted:
    scale = data.x.shape[1] ** -0.5  # mean square 1 to norm 1
    unit = D / D.norm(dim=0).clamp_min(torch.finfo(D.dtype).tiny)
    model = TaskDrivenDictionary(
        unit,
        data.classes,
        protocol.tdsc_lam,
        protocol.tdsc_lam2,
        protocol.tdsc_nu,
        tol=protocol.tdsc_tol,
        max_iter=protocol.tdsc_max_iter,
    )
    first = model.fit_head(scale * data.x, data.y)
    losses = model.fit(
        scale * data.x,
        data.y,
        epochs=protocol.tdsc_epochs,
        batch_size=min(protocol.tdsc_batch_size, len(data.x)),
        lr=protocol.tdsc_lr,
        seed=problems.seed,
        progress=problems.progress,
    )
    return (
        [first, *losses],
        lambda x: model(scale * x).argmax(1),
        lambda x: model.encode(scale * x),
    )


def check(tables: Sequence[str], sizes: Sequence[int], seeds: Sequence[int]) -> None:
    """Everything that can be wrong with the arguments, before any work."""
    for name in tables:
        if name not in PROTOCOLS:
            raise ValueError(f"tables must be among {', '.join(PROTOCOLS)}, got {name!r}")
    if not (tables and sizes and seeds):
        raise ValueError("tables, sizes and seeds must not be empty")
    for p in sizes:
        if p < max(SPARSITIES):
            raise ValueError(f"p must be at least M = {max(SPARSITIES)}, got {p}")


def run(
    tables: Sequence[str],
    protocols: dict[str, Protocol],
    sizes: Sequence[int],
    seeds: Sequence[int],
    out: Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Compute what ``out`` lacks, then write results, CSV and text. Returns the results.

    Raises:
        ValueError: an unknown table, a size that does not fit, or ``out`` holds a run of another
            protocol.
        FileNotFoundError: a data set is not where the protocol looks for it.
    """
    check(tables, sizes, seeds)
    if progress:
        require("tqdm", "deepl0 reproduce")
    _claim_folder(out, tables, protocols)
    cells = []
    for table in tables:
        for seed in seeds:
            problems = Problems(protocols[table], seed, progress)
            for p in sizes:
                for i, method in enumerate(METHODS):
                    path = out / "cells" / f"{table}-{i}-p{p}-seed{seed}.json"
                    if not path.exists():
                        record.write_json(path, cell(table, method, p, problems))
                    cells.append(json.loads(path.read_text()))
    results = {
        "tables": list(tables),
        "protocols": {name: asdict(protocols[name]) for name in tables},
        "sizes": list(sizes),
        "seeds": list(seeds),
        "environment": record.environment(),
        "cells": cells,
        "claims": claims(tables, cells, sizes),
    }
    record.write_json(out / "classification.json", results)
    write_atomically(out / "classification.csv", _csv(cells).encode())
    write_atomically(out / "classification.md", text(results).encode())
    return results


def values(cells: list[dict[str, Any]], table: str, method: str, p: int, key: str) -> list[float]:
    """The figure ``key`` of each seed, in the order of the seeds."""
    found = [c for c in cells if (c["table"], c["method"], c["p"]) == (table, method, p)]
    return [c[key] for c in sorted(found, key=lambda c: c["seed"])]


def claims(
    tables: Sequence[str], cells: list[dict[str, Any]], sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """The orderings that the paper claims: means, and on how many seeds each holds."""
    found = []

    def add(table: str, claim: str, better: list[float], worse: list[float]) -> None:
        found.append(
            {
                "table": table,
                "claim": claim,
                "better": sum(better) / len(better),
                "worse": sum(worse) / len(worse),
                "seeds_holding": sum(b < w for b, w in zip(better, worse, strict=True)),
                "seeds": len(better),
                "holds": sum(better) < sum(worse),
            }
        )

    def errors(method: str, p: int) -> list[float]:
        return values(cells, table, method, p, "error")

    for table in tables:
        for p in sizes:
            lista, l0 = errors(TUNED_LISTA, p), errors(DEEP_L0, p)
            sparse = [errors(DEEP_M.format(m), p) for m in SPARSITIES]
            best = min(sparse, key=sum)
            add(table, f"p = {p}: {DEEP_L0} below {TUNED_LISTA}", l0, lista)
            add(table, f"p = {p}: best Deep M-Sparse below {TUNED_LISTA}", best, lista)
            if table == "table5":
                add(table, f"p = {p}: best Deep M-Sparse below {DEEP_L0}", best, l0)
        low, high = min(sizes), max(sizes)
        if low < high:
            for method in METHODS:
                text = f"{method}: p = {high} below p = {low}"
                add(table, text, errors(method, high), errors(method, low))
    return found


def text(results: dict[str, Any]) -> str:
    """Markdown: tables beside the paper's values, claims, protocols."""
    import statistics

    lines: list[str] = []
    sizes, cells = results["sizes"], results["cells"]

    def figure(seen: list[float], digits: int) -> str:
        shown = f"{statistics.mean(seen):.{digits}f}"
        return f"{shown} ± {statistics.stdev(seen):.{digits}f}" if len(seen) > 1 else shown

    for table in results["tables"]:
        lines += [f"## {table}: {TITLES[table]}", ""]
        lines.append("| method | " + " | ".join(f"p = {p} | paper" for p in sizes) + " |")
        lines.append("|:--|" + "--:|" * (2 * len(sizes)))
        for method in METHODS:
            row = []
            for p in sizes:
                paper = PAPER[table].get(method)
                row.append(figure(values(cells, table, method, p, "error"), 2))
                row.append(f"{paper[SIZES.index(p)]:.2f}" if paper and p in SIZES else "")
            lines.append(f"| {method} | " + " | ".join(row) + " |")
        p = max(sizes)
        lines += ["", f"At p = {p}:", ""]
        columns = ("overall_accuracy", "average_accuracy", "kappa", "training_error", "nonzeros")
        lines.append("| method | " + " | ".join(c.replace("_", " ") for c in columns) + " |")
        lines.append("|:--|" + "--:|" * len(columns))
        for method in METHODS:
            seen = [
                figure(values(cells, table, method, p, c), 4 if c == "kappa" else 2)
                for c in columns
            ]
            lines.append(f"| {method} | " + " | ".join(seen) + " |")
        lines.append("")
    lines += ["## Claims, judged by the means", ""]
    for claim in results["claims"]:
        verdict = "holds" if claim["holds"] else "**does not hold**"
        lines.append(
            f"* {claim['table']}, {claim['claim']}: {claim['better']:.2f} and "
            f"{claim['worse']:.2f}: {verdict} ({claim['seeds_holding']} of {claim['seeds']} seeds)"
        )
    for table, protocol in results["protocols"].items():
        lines += ["", f"## Protocol of {table}", ""]
        lines += [f"* {key}: {value}" for key, value in protocol.items()]
    environment = results["environment"]
    lines += [
        "",
        f"Seeds {results['seeds']}; {environment['machine']}, torch {environment['torch']}, "
        f"deepl0_kernels {environment['deepl0_kernels']}. The paper's protocol is partly open: its "
        "values are a reference, not a target that these rows were tuned to.",
    ]
    return "\n".join(lines) + "\n"


_COLUMNS = (
    "table", "method", "p", "seed", "error", "overall_accuracy", "average_accuracy", "kappa",
    "training_error", "nonzeros", "dead_units",
)  # fmt: skip


def _csv(cells: list[dict[str, Any]]) -> str:
    import csv
    import io

    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    return buffer.getvalue()


def _claim_folder(out: Path, tables: Sequence[str], protocols: dict[str, Protocol]) -> None:
    """Cells of different protocols must not meet in one table."""
    path = out / "classification-run.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for name in tables:
        this = json.loads(json.dumps(asdict(protocols[name])))
        before = known.setdefault(name, this)
        changed = [key for key in this if before.get(key) != this[key]]
        if changed:
            raise ValueError(
                f"{out} holds a run of {name} with another protocol ({', '.join(changed)} differ); "
                "give another folder"
            )
    record.write_json(path, known)
