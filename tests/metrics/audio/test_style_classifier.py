"""The classifier tells styles by their sound, on held-out audio too, whatever the level."""

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from etude.metrics.audio.style_classifier import StyleClassifier, train_style_classifier

BANDS, FRAMES, FLOOR = 16, 32, math.log(1e-5)


def segments(style: int, count: int, *, seed: int = 0) -> Tensor:
    """Noise in nats whose shape over the bands (0 dark, 1 bright) or over time (2 pulsed) is the style, at any level."""
    generator = torch.Generator().manual_seed(seed * 10 + style)
    noise = torch.randn(count, BANDS, FRAMES, generator=generator) - 5 + torch.randn(count, 1, 1, generator=generator)
    slope = torch.linspace(-1.5, 1.5, BANDS)[:, None]
    pulses = 2 * (torch.arange(FRAMES) % 4 == 0)
    return (noise + [-slope, slope, -slope + pulses][style]).clamp(min=FLOOR)


@cache
def classifier() -> StyleClassifier:
    return train_style_classifier(
        [segments(0, 60), segments(1, 20), segments(2, 60)],
        held_out_per_style=[segments(s, 40, seed=1) for s in range(3)],
        steps=150,
    )


def test_it_proves_itself_on_what_it_has_not_heard() -> None:
    assert classifier().held_out_accuracy > 0.95
    shares = [classifier().accuracy(segments(s, 40, seed=1), s) for s in range(3)]
    assert classifier().held_out_accuracy == pytest.approx(sum(shares) / 3)
    assert classifier().accuracy(segments(0, 40, seed=2), 1) < 0.05


@pytest.mark.parametrize("gain_nats", [-1.4, 1.4])
@pytest.mark.parametrize("style", [0, 1, 2])
def test_level_is_no_evidence(style: int, gain_nats: float) -> None:
    assert classifier().accuracy((segments(style, 40, seed=3) + gain_nats).clamp(min=FLOOR), style) > 0.9


def test_styles_that_differ_in_level_alone_are_hardly_told() -> None:
    plain = [segments(0, 80), (segments(0, 80, seed=5) + 0.5).clamp(min=FLOOR)]
    held = [segments(0, 80, seed=6), (segments(0, 80, seed=7) + 0.5).clamp(min=FLOOR)]
    assert train_style_classifier(plain, held_out_per_style=held, steps=100).held_out_accuracy < 0.75


def test_labels_without_meaning_are_not_learnt() -> None:
    alike = [segments(0, 60, seed=s) for s in (1, 2)]
    held = [segments(0, 100, seed=s) for s in (3, 4)]
    assert 0.3 < train_style_classifier(alike, held_out_per_style=held, steps=60).held_out_accuracy < 0.7


def test_any_number_of_frames_is_classifierd_and_one_by_one_as_together() -> None:
    for frames in (1, 2, 31, 100):
        assert classifier().predict(torch.randn(2, BANDS, frames) - 5).shape == (2,)
    many = segments(1, 300, seed=4)
    assert torch.equal(classifier().predict(many), torch.cat([classifier().predict(part) for part in many.split(7)]))


def test_the_seed_is_all_that_matters_and_the_callers_state_is_left_alone() -> None:
    parts = [segments(0, 10), segments(1, 10)]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = train_style_classifier(parts, seed=3, steps=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = (train_style_classifier(parts, seed=seed, steps=5) for seed in (3, 4))
    assert torch.equal(one.output.weight, again.output.weight) and not torch.equal(one.output.weight, other.output.weight)


def test_without_held_out_segments_the_last_fifth_is_kept() -> None:
    # the last fifth is labelled wrongly: a classifier that had learnt from it would know
    parts = [torch.cat([segments(s, 40), segments(1 - s, 10, seed=1)]) for s in (0, 1)]
    assert train_style_classifier(parts, steps=80).held_out_accuracy < 0.1


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(ValueError, match="has 1 style"):
        train_style_classifier([segments(0, 4)])
    with pytest.raises(ValueError, match="16 bands"):
        train_style_classifier([segments(0, 4), torch.zeros(4, 9, 32)])
    with pytest.raises(ValueError, match="two or more of each"):
        train_style_classifier([segments(0, 4), segments(1, 1)])
    with pytest.raises(ValueError, match="has 1 styles"):
        train_style_classifier([segments(0, 4), segments(1, 4)], held_out_per_style=[segments(0, 4)])
