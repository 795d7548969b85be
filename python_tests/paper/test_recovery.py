"""Sparse recovery on a tiny protocol: data, networks by stage, a run, its claims and times."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

from deepl0_kernels import cli
from deepl0_kernels._files import filled
from deepl0_kernels.paper import report
from deepl0_kernels.paper.pages import recovery as page
from deepl0_kernels.paper.recovery import networks, study
from deepl0_kernels.paper.recovery.networks import DEEP_HTP, DEEP_L0, DEEP_M, MATRICES, NUMBERS
from deepl0_kernels.paper.recovery.protocol import PROTOCOLS, Protocol, Recovery
from deepl0_kernels.paper.recovery.study import METHODS, ORACLE, SHOWN, UNTRAINED, Recovered

STUDY = Recovered()
SETTINGS = ("measurements=40", "nonzeros=5", "htp_m=7", "refit_m=12", "test=100", "training=128")
TINY = Protocol().quickened().changed(SETTINGS)
P = 80


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("recovery")
    few = [f"--set={setting}" for setting in SETTINGS]
    done = CliRunner().invoke(
        cli._app(), ["reproduce", "nmse", "--quick", "--p", str(P), "--out", str(out), *few]
    )
    assert done.exit_code == 0, done.output
    return out, STUDY.read(out)


def test_signals_are_those_of_the_protocol():
    data = Recovery(replace(PROTOCOLS["nmse"], test=400), 500, 3)
    (y, a), A = data.test(), data.matrix
    torch.testing.assert_close(A.norm(dim=0), torch.ones(500))
    assert (a != 0).sum(1).float().mean() == pytest.approx(50, rel=0.05)
    noise = y - a @ A.T
    power = noise.square().sum() / (a @ A.T).square().sum()
    assert 10 * power.log10() == pytest.approx(-40, abs=0.2)
    assert not torch.equal(data.training(0)[1][:400], data.training(1)[1][:400])
    assert not torch.equal(data.calibration()[1][:400], a)
    clean = Recovery(replace(PROTOCOLS["nmse-noiseless"], test=4), 500, 3)
    y, a = clean.test()
    torch.testing.assert_close(y, a @ clean.matrix.T)


@pytest.mark.parametrize("method", [*NUMBERS, *MATRICES, DEEP_HTP])
def test_stages_are_those_of_the_network(method):
    """What is trained and scored by stage is what the layers compute, whole or shortened."""
    data = Recovery(TINY, P, 0)
    network = networks.start(method, data.matrix, TINY).eval()
    y, _ = data.test()
    with torch.no_grad():
        codes = list(networks.stages(network, y))
        assert len(codes) == TINY.stages
        if isinstance(network, torch.nn.Module) and not isinstance(network, networks.Coupled):
            torch.testing.assert_close(network(y), codes[-1], rtol=1e-3, atol=1e-3)
        for k in (1, 4):
            short = networks.shortened(network, k)(y)
            torch.testing.assert_close(short, codes[k - 1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", [networks.COUPLED, networks.ALISTA])
def test_l1_networks_start_where_their_stages_converge(method):
    """Steps of 1 do not, of so many unknowns: training that began there never came back."""
    data = Recovery(TINY, 2 * P, 0)
    network = networks.start(method, data.matrix, TINY)
    networks.fit(network, data, "", False, gradient=False)
    y, a = data.test()
    found = study.errors(lambda y, a: networks.stages(network, y), y, a)
    assert max(found) < 0
    assert found[-1] < found[0] - 1


def test_training_does_not_forget_the_few_signals_that_diverge():
    """Their gradient is far longer than that of all others: clipped, it hardly counted, and errors
    after training were those of a network that diverges (+57 dB here)."""
    many = replace(TINY, test=5000, training=6400, number_epochs=2)
    data = Recovery(many, 5 * 40, 1)
    network = networks.start(networks.ALISTA, data.matrix, many)
    networks.fit(network, data, "", False)
    found = study.errors(lambda y, a: networks.stages(network, y), *data.test())
    assert found[-1] < -17, found


def test_supports_of_the_refitting_encoder_grow_where_signals_are_hard():
    hard = replace(TINY, test=2000, training=2000, refit_m=10, calibration=500)
    data = Recovery(hard, 5 * P, 2)
    found, entries = [], []
    for whole in (True, False):
        network = networks.start(DEEP_HTP, data.matrix, hard)
        if whole:
            networks.fit(network, data, "", False, gradient=False)
        else:
            networks.calibrate(network, *data.calibration())
        entries.append(network.m)
        rival = partial(networks.stages, network)
        found.append(study.errors(lambda y, a, rival=rival: rival(y), *data.test())[-1])
    assert entries[1] == 10
    assert entries[0] == (4, 5, 6, 7, 8, 8, 9, 9, *(10,) * 8)
    assert found[0] < found[1] - 1, found


def test_the_refitting_encoder_is_what_errs_least_of_four(monkeypatch):
    """Calibrated on signals at random or on hard ones too, with supports that grow or not."""
    few = replace(TINY, test=500, training=500, refit_m=10, calibration=200)
    data, tried = Recovery(few, 3 * P, 0), []
    y, a = data.training(0)

    def spied(network, seen, codes, **options):
        calibrate(network, seen, codes, **options)
        every = study.errors(lambda y, _: networks.stages(network, y), y, a)
        score = sum(k * every[k - 1] for k in SHOWN)
        tried.append(((codes != 0).sum(1).double().mean(), network.m[0], len(codes), score, every))

    calibrate = networks.calibrate
    monkeypatch.setattr(networks, "calibrate", spied)
    network = networks.start(DEEP_HTP, data.matrix, few)
    networks.fit(network, data, "", False, gradient=False)
    nonzeros, first, sizes, scores, errors = zip(*tried, strict=True)
    assert first == (10, 4, 10, 4)
    assert sizes == (200,) * 4
    assert nonzeros[0] == nonzeros[1] < nonzeros[2] - 1 == nonzeros[3] - 1
    kept = study.errors(lambda y, _: networks.stages(network, y), y, a)
    assert kept == pytest.approx(errors[scores.index(min(scores))], abs=1e-6)
    assert len({round(score, 6) for score in scores}) == 4


def test_every_method_recovers(run):
    out, results = run
    assert [cell["method"] for cell in results["cells"]] == list(METHODS)
    last = {cell["method"]: cell["nmse"][str(TINY.stages)] for cell in results["cells"]}
    assert min(last, key=last.__getitem__) == ORACLE
    assert last[DEEP_HTP] < min(last["ISTA"], last["FISTA"]) - 3
    for method in (DEEP_L0, DEEP_M, networks.ALISTA):
        assert last[method] < last["ISTA"], method
    for cell in results["cells"]:
        assert len(cell["nmse"]) == TINY.stages
        assert bool(cell["loss"]) == (cell["method"] not in UNTRAINED)
    assert (out / "nmse.svg").exists()
    text = (out / "recovery.md").read_text()
    assert "NMSE, SNR 40 dB, dB" in text
    assert "NA-ALISTA (published)" in text
    assert "below" in text
    assert "## Times" in text


def test_times_are_of_what_the_cells_hold(run):
    out, results = run
    found = json.loads((out / "times-nmse.json").read_text())
    timed = {(q["method"], q["stages"]) for q in found["points"]}
    assert timed == {(m, k) for m in METHODS if m != ORACLE for k in SHOWN}
    data = Recovery(TINY, P, 0)
    y, a = data.test()
    for cell in results["cells"]:
        if cell["method"] == ORACLE:
            continue
        path = study.path_of(out, f"nmse-{METHODS.index(cell['method'])}", P, 0)
        saved = study.record.read_arrays(path.with_suffix(".npz"))
        with torch.no_grad():
            z = study.rebuilt(cell["method"], data.matrix, TINY, saved, 4)(y)
        error = 10 * ((z - a).square().sum() / a.square().sum()).log10().item()
        assert error == pytest.approx(cell["nmse"]["4"], abs=0.05), cell["method"]


def test_a_run_without_training_is_the_same_as_far_as_it_goes(run, tmp_path):
    _, results = run
    untrained = replace(TINY, trained=0)
    few = STUDY.run({"nmse": untrained}, [P], [0], tmp_path, progress=False)
    assert [cell["method"] for cell in few["cells"]] == list(UNTRAINED)
    whole = {cell["method"]: cell["nmse"] for cell in results["cells"]}
    assert all(cell["nmse"] == whole[cell["method"]] for cell in few["cells"])
    report.write(tmp_path)


def test_choices_that_do_not_fit_are_named():
    for setting, words in (
        ("refit_m=41", "refit_m must be >= 1 and <= measurements = 40, got 41"),
        ("batch_size=129", "batch_size must be >= 1 and <= training = 128, got 129"),
        ("stages=8", "stages must be >= 16, got 8"),
    ):
        with pytest.raises(ValueError, match=words):
            TINY.changed([setting])


def test_the_page_is_drawn_from_its_record():
    text = page.PAGE.read_text()
    assert filled(text, page.parts()) == text


def test_a_record_keeps_other_sizes_and_seeds_of_its_protocol(run):
    _, results = run
    again = [
        {**cell, "p": p, "seed": seed, "environment": {}}
        for cell in results["cells"]
        for p, seed in ((P, 0), (2 * P, 1))
    ]
    new = results | {"cells": again, "sizes": [P, 2 * P], "seeds": [0, 1]}
    both = page.joined(results, new)
    assert [(c["seed"], c["p"]) for c in both["cells"]] == [(0, P)] * len(METHODS) + [
        (1, 2 * P)
    ] * len(METHODS)
    assert all(not cell["environment"] for cell in both["cells"])  # the new ones
    assert page.joined(new, results)["cells"][: len(METHODS)] == results["cells"]
    assert (both["sizes"], both["seeds"]) == ([P, 2 * P], [0, 1])
    assert {claim["claim"].split(",")[0] for claim in both["claims"]} == {
        f"p = {P}",
        f"p = {2 * P}",
    }
    missing = page.missing({"nmse": both})
    assert f"nmse, p = {P}: seeds beyond 0" in missing
    assert f"nmse, p = {2 * P}: seeds beyond 1" in missing
    other = {**new, "protocols": {"nmse": {**new["protocols"]["nmse"], "stages": 17}}}
    assert page.joined(results, other) is other


def test_a_method_of_fewer_seeds_is_compared_on_those(run):
    """And what is left to run is said of it alone."""
    _, results = run
    cells = [
        {**cell, "seed": seed, "nmse": {k: v - seed for k, v in cell["nmse"].items()}}
        for cell in results["cells"]
        for seed in range(3)
        if seed == 0 or cell["method"] not in ("HTP", "LISTA")
    ]
    for cell in cells:
        if cell["method"] == "HTP":
            cell["nmse"] = dict.fromkeys(cell["nmse"], -40.0)
    claims = STUDY.claims(["nmse"], cells, [P])
    against = [claim for claim in claims if claim["claim"].endswith("below HTP")]
    assert len(against) == len(SHOWN)
    one = {claim["claim"]: claim for claim in STUDY.claims(["nmse"], results["cells"], [P])}
    for claim in against:
        ours = next(
            c for text, c in one.items() if text.split(":")[0] == claim["claim"].split(":")[0]
        )
        assert claim["seeds"] == 1
        assert (claim["worse"], claim["better"]) == (-40.0, ours["better"])
    both = results | {"cells": cells, "sizes": [P], "seeds": [0, 1, 2]}
    assert f"nmse, p = {P}, HTP, LISTA: seeds beyond 0" in page.missing({"nmse": both})
