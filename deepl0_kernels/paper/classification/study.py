"""Tables 4 and 5: encoders and their rivals as classifiers of MNIST and Indian Pines.

A cell holds scores, the confusion matrix, seconds and the machine; what figures need beside that
stands in ``cells/table*-*.npz`` (see :func:`arrays`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ... import scenes
from ..._report import record
from ..._report.drawing import Drawn, save
from ...training import Course
from ..claims import judged
from ..deep import DEEP_L0, DEEP_M, SPARSITIES, sparsity
from ..scores import classification as scored
from ..scores import confusion
from ..study import Cell, Job, Study, Table, falling, path_of, values
from . import figures, systems
from .data import Labelled, labelled
from .protocol import PROTOCOLS, Protocol
from .systems import METHODS, TDSC, TUNED_LISTA


class Classification(Study):
    name = "classification"
    text_file = "classification.md"
    title = "Deep l0 encoders as classifiers"
    tables: ClassVar = {
        "table4": Table(
            "Classification of MNIST",
            PROTOCOLS["table4"],
            {
                TDSC: (0.71, 0.55, 0.53),
                TUNED_LISTA: (0.74, 0.62, 0.57),
                DEEP_L0: (0.72, 0.58, 0.52),
                DEEP_M.format(10): (0.69, 0.54, 0.51),
            },
        ),
        "table5": Table(
            "Classification of Indian Pines",
            PROTOCOLS["table5"],
            {
                TDSC: (15.55, 15.27, 15.21),
                TUNED_LISTA: (16.12, 16.05, 15.97),
                DEEP_L0: (15.20, 15.07, 15.01),
                DEEP_M.format(10): (13.77, 13.56, 13.52),
            },
        ),
    }
    methods = METHODS
    scores: ClassVar = {
        "average_accuracy": 2,
        "kappa": 4,
        "training_error": 2,
        "nonzeros": 1,
        "dead_units": 1,
    }
    columns = ("table", "method", "p", "seed", "error", "overall_accuracy", *scores)

    def signals(self, protocol: Protocol, seed: int) -> Tensor:
        return labelled(protocol, seed).x

    def cell(self, part: str, method: str, p: int, job: Job) -> Cell:
        """One method trained and scored; also an error if its loss is not below a guess's."""
        protocol, seed = job.protocol, job.seed
        # Read anew: the moves of one training are not the next one's start.
        data = labelled(protocol, seed)
        start = time.perf_counter()
        D = job.dictionary(data.x, p, **sparsity(method, protocol))
        learned = time.perf_counter()
        torch.manual_seed(seed)
        description = f"{part}, {method}, p = {p}, seed {seed}"
        fitted = systems.fit(method, protocol, D, data, seed, job.progress, description)
        losses = fitted.losses
        trained = time.perf_counter()
        if not losses[-1] < math.log(data.classes):
            raise RuntimeError(
                f"{description} learned nothing: loss {losses[-1]:.4g}, as of a guess"
            )
        if data.begin is not None:
            data = labelled(protocol, seed)  # the training digits where they were
        with torch.no_grad():
            predicted, predicted_test = fitted.predict(data.x), fitted.predict(data.x_test)
            used = fitted.encode(data.x_test) != 0
        matrix = confusion(data.y_test, predicted_test, data.classes)
        training = confusion(data.y, predicted, data.classes)
        found = scored(matrix)
        # A digit without contrast, which is discarded, is not recognised.
        right = found["overall_accuracy"] * len(data.y_test)
        found["error"] = 100 - right / (len(data.y_test) + data.discarded_test)
        return {
            "table": part,
            "method": method,
            "p": p,
            "seed": seed,
            **found,
            "training_error": scored(training)["error"],
            "confusion": matrix.tolist(),
            "nonzeros": used.sum(1).double().mean().item(),
            "dead_units": int((~used.any(0)).sum()),
            "loss": losses,
            "signals": data.counts(),
            "seconds": {"dictionary": learned - start, "training": trained - learned},
            "environment": record.environment(),
            "arrays": arrays(fitted, data, predicted, predicted_test),
        }

    def claims(self, tables: Sequence[str], cells: list[Cell], sizes: Sequence[int]) -> list[Cell]:
        found = []
        for table in tables:
            rows = self.rows(cells, table)
            for p in sizes:
                lista, l0 = values(rows, TUNED_LISTA, p), values(rows, DEEP_L0, p)
                best = min((values(rows, DEEP_M.format(m), p) for m in SPARSITIES), key=sum)
                sparse = f"p = {p}: best Deep M-Sparse below"
                found.append(judged(table, f"p = {p}: {DEEP_L0} below {TUNED_LISTA}", l0, lista))
                found.append(judged(table, f"{sparse} {TUNED_LISTA}", best, lista))
                if table == "table5":
                    found.append(judged(table, f"{sparse} {DEEP_L0}", best, l0))
            found += falling(table, METHODS, rows, sizes)
        return found

    def figures(self, results: dict[str, Any], table: str, out: Path) -> Drawn:
        """Every figure that the run in ``out`` has the data for.

        They show the largest code size and the first seed; the confusion matrix is that of the
        method with the fewest errors and of that with the most, the class map that of the first of
        them.
        """
        p, seed = max(results["sizes"]), min(results["seeds"])
        cells = [c for c in results["cells"] if (c["table"], c["p"], c["seed"]) == (table, p, seed)]
        cells.sort(key=lambda cell: cell["error"])
        stored: dict[str, dict[str, Tensor]] = {}
        for i, method in enumerate(METHODS):
            path = path_of(out, f"{table}-{i}", p, seed)
            stored[method] = record.read_arrays(path.with_suffix(".npz"))

        def having(key: str) -> dict[str, dict[str, Tensor]]:
            return {method: arrays for method, arrays in stored.items() if key in arrays}

        scene = results["protocols"][table]["data"] == "indian_pines"
        names = scenes.NAMES if scene else tuple(map(str, range(10)))
        drawn: dict[str, Any] = {"confusion": None}
        if all("confusion" in cell for cell in cells):
            drawn["confusion"] = figures.confusion([cells[0], cells[-1]], names)
        if scene:
            mapped = having("truth")
            best = next((cell["method"] for cell in cells if cell["method"] in mapped), None)
            drawn["map"] = best and figures.class_map(best, mapped[best], names)
        filters = {method: arrays["filters"] for method, arrays in having("filters").items()}
        drawn["filters"] = filters and figures.filters(filters, images=not scene)
        theta = having("theta")
        drawn["theta"] = theta and figures.thresholds(theta)
        course = having("nonzeros")
        signals = min(Course.SIGNALS, cells[0]["signals"]["training_signals"])
        drawn["training"] = course and figures.course(course, p, signals)
        files: dict[str, bytes] = {}
        for name, figure in drawn.items():
            if figure:
                files |= save(figure, f"{table}-{name}", ("svg",), "figures/")
        lacking = [name for name, figure in drawn.items() if not figure]
        return Drawn(files, f"Figures: p = {p}, seed {seed}.", lacking)


def arrays(
    fitted: systems.Fitted, data: Labelled, predicted: Tensor, predicted_test: Tensor
) -> dict[str, Tensor]:
    """What the figures of a cell need beside its scores.

    filters [p, n] float16; nonzeros and dead_units [epochs + 1]: the start, then after each epoch;
    theta and theta_start [p] of an encoder with thresholds; of a scene truth and predicted
    [h, w] uint8, classes from 1, 0 where no signal is, and tested [h, w] bool.
    """
    found = {
        "filters": fitted.filters.half(),
        "nonzeros": torch.tensor(fitted.course.nonzeros),
        "dead_units": torch.tensor(fitted.course.dead_units),
    }
    if fitted.theta is not None and fitted.theta_start is not None:
        found |= {"theta": fitted.theta, "theta_start": fitted.theta_start}
    if place := data.place:
        test = torch.ones_like(data.y_test)
        found |= {
            "truth": place.map(data.y, data.y_test),
            "predicted": place.map(predicted, predicted_test),
            "tested": place.map(torch.zeros_like(data.y), test) == 2,
        }
    return found
