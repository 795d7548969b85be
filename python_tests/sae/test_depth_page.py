"""What docs/sae.md says of stages is what stands on record."""

from __future__ import annotations

import statistics

import pytest

from bench import sae_depth
from deepl0_kernels._files import filled
from deepl0_kernels._report import record


def test_the_page_and_its_figure_are_drawn_from_the_record():
    found = record.read_json(sae_depth.RECORD)
    text = sae_depth.PAGE.read_text()
    assert filled(text, {"depth": sae_depth.section(found)}) == text
    readme = sae_depth.README.read_text()
    assert filled(readme, {"sae depth": sae_depth.headline(found)}) == readme
    assert sae_depth.FIGURE.exists()


def test_the_record_is_of_the_plan():
    """Whole columns of the table, the first ones of the plan, each with the same data."""
    runs = record.read_json(sae_depth.RECORD)["runs"]
    seen = [
        tuple(run["settings"][key] for key in ("p", "m", "positive", "seed", "steps", "grown"))
        for run in runs
    ]
    plan = [(s.p, s.m, s.positive, s.seed, s.steps, s.grown) for s in sae_depth.plan()]
    assert seen == plan[: len(seen)]
    assert len(seen) >= 4
    assert len(seen) % 2 == 0
    for key in ("activations", "held_out"):
        assert len({run["settings"][key]["digest"] for run in runs}) == 1


@pytest.mark.parametrize("p", sae_depth.sizes(record.read_json(sae_depth.RECORD)))
def test_what_the_page_says_of_it(p):
    by_method = sae_depth.cells(record.read_json(sae_depth.RECORD), p)

    def mean(method, key):
        return statistics.mean(row["fvu"] for row in by_method[method][key])

    for key in by_method["K = 1"]:
        positive, _ = key
        assert (mean("K = 2, untuned", key) > mean("K = 1", key)) == positive
        falling = ["K = 1, tuned", "K = 2, tuned", "K = 3, tuned", "K = 4, tuned", "OMP"]
        errors = [mean(method, key) for method in falling]
        helps = (p, key) != (sae_depth.WIDE, (True, 16))
        assert (errors == sorted(errors, reverse=True)) == helps
        assert errors[2] < errors[1] < errors[0]
        assert (mean("K = 4, tuned", key) < mean(sae_depth.AT_ONCE, key)) == helps
        # Entries that grow: of signed codes always, of nonnegative ones with four stages.
        for method in falling[3:4] if positive else falling[1:4]:
            grown = method + sae_depth.GROWING
            if key in by_method.get(grown, {}):
                assert mean(grown, key) < mean(method, key)
                if method == falling[3]:
                    assert mean(grown, key) < mean(sae_depth.AT_ONCE, key)
