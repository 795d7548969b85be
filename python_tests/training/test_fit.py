"""The training loop: what it shows, when it stops, how codes fare meanwhile."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from deepl0_kernels.nn import DeepL0Encoder, DeepMSparseEncoder
from deepl0_kernels.training import Classifier, Course, fit_to_classes, fit_to_codes, minimise

OPTIONS = dict(epochs=1, batch_size=16, lr=1e-3, clip=1.0, seed=0)


def test_training_shows_a_bar_when_asked(capsys):
    x = torch.randn(32, 6)
    options = dict(epochs=2, batch_size=16, lr=1e-3, clip=1.0, seed=0, description="tiny encoder")
    for progress in (False, True):
        encoder = DeepMSparseEncoder(6, 8, 2)
        fit_to_codes(encoder, x, encoder(x).detach(), progress=progress, **options)
        shown = capsys.readouterr()
        assert shown.out == ""
        assert ("tiny encoder: " in shown.err and "/4" in shown.err) == progress


def test_training_that_diverges_is_an_error():
    encoder = DeepMSparseEncoder(6, 8, 2)
    x = torch.randn(32, 6)
    with pytest.raises(RuntimeError, match="diverged"):
        fit_to_codes(encoder, x, torch.full((32, 8), torch.nan), **OPTIONS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(epochs=0), "epochs must be >= 1, got 0"),
        (dict(batch_size=0), "batch_size must be >= 1"),
        (dict(batch_size=33), "batch_size must be >= 1 and <= count = 32, got 33"),
        (dict(lr=0.0), "lr must be a finite number > 0, got 0.0"),
        (dict(clip=float("nan")), "clip must be a finite number > 0, got nan"),
        (dict(weight_decay=-1.0), "weight_decay must be a finite number >= 0, got -1.0"),
        (dict(weight_decay=float("inf")), "weight_decay must be a finite number >= 0, got inf"),
        (dict(vector_rate=0.0), "vector_rate must be a finite number > 0, got 0.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_numbers_are_named(change, words):
    encoder, x = DeepMSparseEncoder(6, 8, 2), torch.randn(32, 6)
    with pytest.raises(ValueError, match=words):
        fit_to_codes(encoder, x, torch.zeros(32, 8), **OPTIONS | change)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((31, 8), r"a must have shape \[N, p\] = \(32, 8\), got \(31, 8\)"),
        ((33, 8), r"a must have shape \[N, p\] = \(32, 8\), got \(33, 8\)"),
        ((32, 1), r"a must have shape \[N, p\] = \(32, 8\), got \(32, 1\)"),
        ((32,), r"a must have at least 2 dimension\(s\), got \(32,\)"),
    ],
)
def test_codes_that_are_not_those_of_the_signals_are_refused(shape, words):
    encoder, x = DeepMSparseEncoder(6, 8, 2), torch.randn(32, 6)
    with pytest.raises(ValueError, match=words):
        fit_to_codes(encoder, x, torch.zeros(shape), **OPTIONS)


@pytest.mark.parametrize(
    ("y", "weights", "words"),
    [
        (
            torch.zeros(33, dtype=torch.int64),
            None,
            r"y must have shape \[N\] = \(32,\), got \(33,\)",
        ),
        (torch.zeros(32), None, "y must be int64, got torch.float32"),
        (torch.full((32,), -100), None, "y must be >= 0, got -100"),  # ignored by cross_entropy
        (torch.full((32,), 4), None, "y must be < classes = 4, got 4"),
        (
            torch.arange(32) % 4,
            torch.ones(1),
            r"weights must have shape \[N\] = \(32,\), got \(1,\)",
        ),
    ],
)
def test_classes_that_are_not_those_of_the_signals_are_refused(y, weights, words):
    network, x = Classifier(DeepMSparseEncoder(6, 8, 2), 8, 4), torch.randn(32, 6)
    with pytest.raises(ValueError, match=words):
        fit_to_classes(network, x, y, weights, **OPTIONS)


def test_an_encoder_without_parameters_may_be_classified():
    network = Classifier(torch.nn.Identity(), 6, 2)
    fit_to_classes(network, torch.randn(32, 6), torch.arange(32) % 2, **OPTIONS)
    assert network.head.weight.any()


def plain(network, x, a, epochs, batch, lr, clip):
    """The loop in full: losses, and the width of the ramp in each epoch."""
    generator = torch.Generator().manual_seed(3)
    adam = torch.optim.Adam(network.parameters(), lr, betas=(0.9, 0.99))
    steps = epochs * (len(x) // batch)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        adam, lr, total_steps=steps, pct_start=0.2 if steps == 10 else 0.1
    )
    losses, widths = [], []
    for epoch in range(epochs):
        network.sigma = max(0.2 * 0.1**epoch, 0.05)
        widths.append(network.sigma)
        order, found = torch.randperm(len(x), generator=generator), []
        for rows in order.split(batch)[: len(x) // batch]:
            loss = (network(x[rows]) - a[rows]).square().sum() / batch
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
            adam.step()
            rate.step()
            found.append(loss.item())
        losses.append(sum(found) / len(found))
    return losses, widths


@pytest.mark.parametrize("epochs", [1, 2, 5, 7])
def test_the_loop_is_adam_with_one_cycle_and_a_ramp_that_narrows(epochs):
    """5 epochs of 2 steps are the count for which the cycle's usual share divides by zero."""
    x, D = torch.randn(21, 6), torch.randn(6, 9)
    mine = DeepL0Encoder.from_dictionary(D, 0.1)
    theirs, a = copy.deepcopy(mine), torch.randn(21, 9)
    want, widths = plain(theirs, x, a, epochs, 8, 1e-2, 0.5)
    seen = []
    losses = fit_to_codes(
        mine, x, a, epochs=epochs, batch_size=8, lr=1e-2, clip=0.5, seed=3,
        begin=lambda epoch: seen.append((epoch, mine.sigma, mine.training)),
    )  # fmt: skip
    assert losses == pytest.approx(want, rel=1e-6)
    assert seen == [(epoch, pytest.approx(width), True) for epoch, width in enumerate(widths)]
    assert not mine.training
    torch.testing.assert_close(mine.state_dict(), theirs.state_dict())


def test_groups_have_their_own_rates():
    linear = torch.nn.Linear(3, 2)
    before = copy.deepcopy(linear)
    minimise(
        linear, lambda rows: linear(torch.ones(len(rows), 3)).square().sum(), 4,
        epochs=3, batch_size=2, lr=1e-2, clip=1.0, seed=0,
        groups=[{"params": [linear.weight], "lr": 1e-9}, {"params": [linear.bias]}],
    )  # fmt: skip
    assert (linear.weight - before.weight).abs().max() < 1e-7
    assert (linear.bias - before.bias).abs().min() > 1e-3


def test_matrices_decay_and_vectors_have_a_rate_of_their_own():
    linear = torch.nn.Linear(3, 2)
    before = copy.deepcopy(linear)

    def train(**options):
        linear.load_state_dict(before.state_dict())
        minimise(
            linear, lambda rows: linear.bias.sum() + 0 * linear.weight.sum(), 4,
            epochs=3, batch_size=2, lr=1e-2, clip=1.0, seed=0, **options,
        )  # fmt: skip
        return linear.weight / before.weight, linear.bias - before.bias

    kept, moved = train()
    torch.testing.assert_close(kept, torch.ones(2, 3))
    # Without a gradient a step multiplies by 1 - rate * decay; the rates are those of the cycle.
    decayed, unchanged = train(weight_decay=2.0)
    scheduled = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(scheduled, 1e-2, total_steps=6, pct_start=0.1)
    left = 1.0
    for _ in range(6):
        left *= 1 - 2.0 * scheduled.param_groups[0]["lr"]
        scheduled.step()
        rate.step()
    torch.testing.assert_close(decayed, torch.full((2, 3), left))
    assert torch.equal(unchanged, moved)
    torch.testing.assert_close(train(vector_rate=5.0)[1], 5 * moved)


def test_thresholds_of_untied_encoders_are_no_matrices():
    """Rows of thresholds have the rate of vectors and no decay."""
    encoder = DeepL0Encoder(4, 6, 3, tied=False)
    before, W = encoder.log_theta.detach().clone(), encoder.W.detach().clone()
    minimise(
        encoder, lambda rows: 0 * sum(p.sum() for p in encoder.parameters()), 8,
        epochs=2, batch_size=4, lr=1e-2, clip=1.0, seed=0, weight_decay=1.0,
    )  # fmt: skip
    assert encoder.log_theta.shape == (3, 6)
    assert torch.equal(encoder.log_theta, before)
    assert (encoder.W.abs() < W.abs()).all()


@pytest.mark.parametrize("epochs", [1, 2, 9])
def test_a_factor_of_0_takes_the_ramp_to_its_floor_in_the_last_epoch(epochs):
    encoder = DeepL0Encoder(6, 9)
    seen = []
    fit_to_codes(
        encoder, torch.randn(8, 6), torch.randn(8, 9), epochs=epochs, batch_size=8, lr=1e-2,
        clip=0.5, seed=3, sigma_factor=0, sigma_floor=0.05,
        begin=lambda epoch: seen.append(encoder.sigma),
    )  # fmt: skip
    assert seen[0] == pytest.approx(0.2)
    if epochs > 1:
        assert seen[-1] == pytest.approx(0.05)
        ratios = [b / a for a, b in itertools.pairwise(seen)]
        assert ratios == pytest.approx([ratios[0]] * (epochs - 1))


def test_sparsity_over_training_is_that_of_the_encoder_after_each_epoch():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(600, 16, generator=g), torch.randint(0, 3, (600,), generator=g)
    options = dict(epochs=3, batch_size=50, lr=1e-2, clip=1.0, seed=0)

    def fit(looks):
        torch.manual_seed(0)
        encoder = DeepL0Encoder(16, 40)
        course, seen = Course(encoder, encoder, x), []

        def begin(epoch):
            course.look()
            assert encoder.training
            seen.append(copy.deepcopy(encoder))

        begin = begin if looks else None
        network = Classifier(encoder, 40, 3)
        losses = fit_to_classes(network, x, y, begin=begin, **options)
        course.look()
        return losses, course, [*seen, encoder]

    losses, course, encoders = fit(looks=True)
    rows = [round(i * 599 / 255) for i in range(256)]
    for i, encoder in enumerate(encoders):
        codes = encoder.eval()(x)[rows]
        count = sum(int(value != 0) for code in codes.tolist() for value in code)
        assert course.nonzeros[i] == pytest.approx(count / 256)
        assert course.dead_units[i] == sum(not codes[:, j].any() for j in range(40))
    assert len(course.nonzeros) == len(encoders) == 4
    # Looking changes nothing.
    assert fit(looks=False)[0] == losses


def test_a_classifier_that_is_reset_starts_at_zero_again():
    network = Classifier(DeepMSparseEncoder(6, 12, 3), 12, 4)
    torch.nn.init.ones_(network.head.weight)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert not network(torch.randn(5, 6)).any()
