"""Figures of classifiers and of codes: what a run keeps for them, and what they show."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from deepl0_kernels._report import record
from deepl0_kernels.paper import report
from deepl0_kernels.paper.classification import figures as drawing
from deepl0_kernels.paper.classification.data import Place
from deepl0_kernels.paper.classification.protocol import PROTOCOLS
from deepl0_kernels.paper.classification.study import Classification
from deepl0_kernels.paper.classification.systems import METHODS, TDSC, TUNED_LISTA
from deepl0_kernels.paper.deep import DEEP_L0, DEEP_M
from deepl0_kernels.paper.study import path_of

STUDY = Classification()
TINY = replace(
    PROTOCOLS["table4"].quickened(),
    digits=300,
    held_out=200,
    dictionary_epochs=2,
    pretrain_epochs=1,
    epochs=4,
    tdsc_epochs=1,
    tdsc_max_iter=20,
    tdsc_batch_size=100,
    tdsc_lr=0.03,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("figures")
    return out, STUDY.run({"table4": TINY}, [32], [0], out, progress=False)


def beside(out, method):
    return path_of(out, f"table4-{METHODS.index(method)}", 32, 0).with_suffix(".npz")


def stored(out, method):
    return record.read_arrays(beside(out, method))


def test_a_run_keeps_what_its_figures_need(run):
    out, results = run
    for method in METHODS:
        arrays = stored(out, method)
        epochs = TINY.tdsc_epochs if method == TDSC else TINY.epochs
        assert arrays["filters"].shape == (32, 256)
        assert arrays["nonzeros"].shape == arrays["dead_units"].shape == (epochs + 1,)
        assert ("theta" in arrays) == (method in (TUNED_LISTA, DEEP_L0))
        assert "truth" not in arrays
        assert beside(out, method).stat().st_size < 2e4
    assert (stored(out, DEEP_M.format(20))["nonzeros"] == 20).all()
    l0 = stored(out, DEEP_L0)
    assert len(l0["theta_start"].unique()) == 1
    assert not torch.equal(l0["theta"], l0["theta_start"])
    assert all("arrays" not in cell for cell in results["cells"])


def test_the_report_shows_the_figures_and_says_what_an_old_run_lacks(run, tmp_path):
    out = shutil.copytree(run[0], tmp_path / "run")
    names = {f"figures/table4-{name}.svg" for name in ("confusion", "filters", "theta", "training")}
    page = report.write(out).read_text()
    files = {f"figures/{path.name}": path.read_bytes() for path in (out / "figures").iterdir()}
    assert set(files) == names
    assert STUDY.figures(run[1], "table4", out).files == files
    assert page.count("<svg") == 4
    assert "Not drawn" not in page
    for path in (out / "cells").glob("*.npz"):
        path.unlink()
    page = report.write(out).read_text()
    assert page.count("<svg") == 1
    assert "Not drawn: filters, theta, training." in page
    (out / "cells" / "table4-0-p32-seed0.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"seed0.npz cannot be read"):
        report.write(out)


def test_the_confusion_matrix_shows_every_count():
    matrix = [[8, 2, 0], [0, 5, 5], [0, 0, 0]]
    cells = [{"method": name, "error": 35.0, "confusion": matrix} for name in ("best", "worst")]
    figure = drawing.confusion(cells, ("a", "b", "c"))
    first, second, bar = figure.axes
    for axes in (first, second):
        shown = {(*t.get_position(), t.get_text()) for t in axes.texts}
        assert shown == {(0, 0, "8"), (1, 0, "2"), (1, 1, "5"), (2, 1, "5")}
        share = [[80, 20, 0], [0, 50, 50], [0, 0, 0]]
        assert axes.images[0].get_array().tolist() == share
        assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b", "c"]
    assert second.get_title() == "worst: 35.00 % wrong"
    assert bar.get_ylabel() == "share of the true class, %"


def test_the_class_map_shows_truth_prediction_and_errors():
    place = Place((2, 3), torch.tensor([0, 4]), torch.tensor([2, 3, 5]))
    truth = place.map(torch.tensor([0, 1]), torch.tensor([1, 1, 0]))
    assert truth.tolist() == [[1, 0, 2], [2, 2, 1]]
    predicted = place.map(torch.tensor([0, 0]), torch.tensor([1, 0, 0]))
    tested = torch.tensor([[False, False, True], [True, False, True]])
    arrays = {"truth": truth, "predicted": predicted, "tested": tested}
    figure = drawing.class_map("M", arrays, ("field", "wood"))
    shown = [axes.images[0].get_array() for axes in figure.axes]
    assert shown[0].tolist() == truth.tolist()
    assert shown[1].tolist() == predicted.tolist()
    assert shown[2].tolist() == [[1, 0, 3], [4, 2, 3]]
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert {"test, wrong: 1", "test, right: 2", "training, wrong: 1", "wood"} <= set(labels)
    assert figure.axes[0].get_xlabel() == "column, pixels"
    assert len(set(drawing.CLASSES)) == 16


def test_filters_are_pictures_or_spectra():
    rows = torch.arange(1.0, 71)[:, None] * torch.tensor([1.0, -0.5, 0.25, 0.0])
    figure = drawing.filters({"a": rows, "b": rows[:3]}, images=True)
    assert len(figure.axes) == 3  # with the bar of colours
    picture = figure.axes[0].images[0].get_array()
    assert picture.shape == (8 * 3 - 1, 8 * 3 - 1)
    assert picture[:2, :2].tolist() == [[1, -0.5], [0.25, 0]]
    assert picture.mask[2].all()
    assert "64 of 70 filters" in figure.axes[0].get_title()
    assert figure.axes[1].images[0].get_array().shape == (2, 3 * 3 - 1)
    spectra = torch.tensor([[0.0, 1, 4], [-2, 1, 0], [0, 0, 0]])
    figure = drawing.filters({"a": spectra.half()}, images=False)
    shown = figure.axes[0].images[0].get_array()
    assert shown.tolist() == [[-1, 0.5, 0], [0, 0, 0], [0, 0.25, 1]]
    assert figure.axes[0].get_xlabel() == "band"


def test_theta_and_training_are_drawn_as_they_are():
    theta = {"theta": torch.linspace(0.5, 2, 40), "theta_start": torch.full((40,), 0.9)}
    (axes,) = drawing.thresholds({"a": theta}).axes
    assert sum(bar.get_height() for bar in axes.patches) == 40
    assert axes.lines[0].get_xdata()[0] == pytest.approx(0.9)
    assert axes.get_ylabel() == "units, of p = 40"
    of = {
        "a": {"nonzeros": torch.tensor([3.0, 2.5]), "dead_units": torch.tensor([0, 1])},
        "b": {"nonzeros": torch.tensor([9.0, 8, 7]), "dead_units": torch.tensor([5, 4, 3])},
    }
    figure = drawing.course(of, 40, 256)
    for axes, key in zip(figure.axes, ("nonzeros", "dead_units"), strict=True):
        assert [line.get_ydata().tolist() for line in axes.lines] == [
            arrays[key].tolist() for arrays in of.values()
        ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert figure.axes[1].get_ylabel() == "dead units, of p = 40"


def test_the_best_method_is_on_the_map(run, monkeypatch):
    out, results = run
    drawn = []
    monkeypatch.setattr(drawing, "class_map", lambda method, *a: drawn.append(method))
    monkeypatch.setattr(drawing, "confusion", lambda seen, names: drawn.extend(seen))
    monkeypatch.setattr(drawing, "filters", lambda *a, **k: None)
    monkeypatch.setattr(record, "read_arrays", lambda path: {"truth": torch.zeros(1)})
    scene = {**results, "protocols": {"table4": {"data": "indian_pines"}}}
    found = STUDY.figures(scene, "table4", out)
    errors = sorted(cell["error"] for cell in results["cells"])
    assert [cell["error"] for cell in drawn[:2]] == [errors[0], errors[-1]]
    assert drawn[2] == drawn[0]["method"]
    assert found.lacking == ["confusion", "map", "filters", "theta", "training"]


def test_words_keep_clear_of_each_other_and_of_points():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    from deepl0_kernels._report import drawing as words

    figure, (axes,) = words.sheet(1, 1, (4, 3))
    axes.plot([1, 1.02, 5], [1, 1.05, 5], "o-")
    for at in ((1, 1), (1.02, 1.05), (1, 1)):
        words.label(axes, "a longer word\nof two lines", at, "black")

    def overlaps() -> int:
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw_without_rendering()
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        points = axes.transData.transform(axes.lines[0].get_xydata())
        pairs = [bool(Bbox.intersection(a, b)) for i, a in enumerate(boxes) for b in boxes[:i]]
        return sum(pairs) + sum(box.contains(*point) for box in boxes for point in points)

    assert overlaps() > 0
    words.spread(figure)
    assert overlaps() == 0
