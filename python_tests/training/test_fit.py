"""The training loop: what it shows, when it stops, how codes fare meanwhile."""

from __future__ import annotations

import copy

import pytest
import torch

from deepl0_kernels.nn import DeepL0Encoder, DeepMSparseEncoder
from deepl0_kernels.training import Classifier, Course, fit_to_classes, fit_to_codes


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
        fit_to_codes(
            encoder, x, torch.full((32, 8), torch.nan),
            epochs=1, batch_size=16, lr=1e-3, clip=1.0, seed=0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(epochs=0), "epochs must be >= 1, got 0"),
        (dict(batch_size=0), "batch_size must be >= 1"),
        (dict(batch_size=33), "batch_size must be >= 1 and <= count = 32, got 33"),
        (dict(lr=0.0), "lr must be a finite number > 0, got 0.0"),
        (dict(clip=float("nan")), "clip must be a finite number > 0, got nan"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_numbers_are_named(change, words):
    encoder, x = DeepMSparseEncoder(6, 8, 2), torch.randn(32, 6)
    options = dict(epochs=1, batch_size=16, lr=1e-3, clip=1.0, seed=0) | change
    with pytest.raises(ValueError, match=words):
        fit_to_codes(encoder, x, torch.zeros(32, 8), **options)


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
