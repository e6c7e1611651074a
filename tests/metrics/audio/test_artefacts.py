"""Artefacts by hand: squeals above a maximum, clicks at the hop rate, and the range of levels."""

import math

import numpy as np
import pytest

from etude.metrics.audio.artefacts import click_level, loudness_range, squeal_share

RATE = 16_000


def noise(seconds: float, level: float = 0.1) -> np.ndarray:
    return level * np.random.default_rng(0).standard_normal(round(seconds * RATE))


def test_a_frame_squeals_if_one_band_is_above_its_maximum() -> None:
    mel, highest = np.full((4, 10), -3.0), np.array([-3.0, -2.0, -3.0, -3.0])
    assert squeal_share(mel, highest) == 0
    mel[2, 4] = -3.0 + 6.1 * math.log(10) / 20
    mel[1, 5] = -2.0 + 5.9 * math.log(10) / 20
    assert squeal_share(mel, highest) == 0.1 and squeal_share(mel, highest, margin_db=5) == 0.2
    with pytest.raises(ValueError, match="shape"):
        squeal_share(mel, highest[:3])


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_clicks_at_the_hop_rate_are_heard_and_noise_is_none(rate: int) -> None:
    samples = 0.001 * np.random.default_rng(0).standard_normal(6 * rate)
    samples[: 3 * rate] *= 100  # music
    assert click_level(samples, sample_rate=rate) < 1.5
    samples[np.round(np.arange(200, 370) * rate / 62.5).astype(int)] += 0.02
    assert click_level(samples, sample_rate=rate) > 5
    other = 0.001 * np.random.default_rng(0).standard_normal(6 * rate)
    other[np.round(np.arange(370) * rate / 71.3).astype(int)] += 0.02
    assert click_level(other, sample_rate=rate) < 1.5  # clicks at another rate


def test_digital_silence_and_few_samples_have_no_clicks() -> None:
    assert math.isnan(click_level(np.zeros(RATE), sample_rate=RATE))
    assert math.isnan(click_level(noise(0.2), sample_rate=RATE))


def test_the_range_of_two_levels_is_their_distance() -> None:
    both = np.concatenate([noise(20), noise(20, 0.03)])
    assert loudness_range(both, sample_rate=RATE) == pytest.approx(20 * math.log10(0.1 / 0.03), abs=0.3)
    assert loudness_range(noise(20), sample_rate=RATE) < 0.3
    assert loudness_range(np.concatenate([noise(20), noise(20, 1e-3)]), sample_rate=RATE) < 3  # gated
    assert math.isnan(loudness_range(noise(1), sample_rate=RATE))
