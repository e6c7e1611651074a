"""Scores of dimensions, and the distances they are made of."""

import math

import numpy as np
import pytest
from scipy.stats import wasserstein_distance
from symusic import Score

from etude.evaluation.controls import shuffled_control
from etude.metrics.scores.dimensions import (
    DIMENSIONS,
    closeness,
    dimension_scores,
    distances,
    distances_within_real,
    measure_features,
)
from etude.metrics.scores.tables import HISTOGRAMS, PIECE_METRICS
from etude.metrics.sets.distributions import wasserstein
from tests.metrics.scores.scores import build
from tests.songs import song

PIECES = [song(seed) for seed in range(40)]
REAL = measure_features(PIECES[:28])
EXPECTED = distances_within_real(REAL, count=12)


def scores(pieces: list[Score]) -> dict[str, float]:
    return dimension_scores(closeness(measure_features(pieces), REAL, expected=EXPECTED))


def test_every_dimension_is_made_of_known_measures() -> None:
    known = {*PIECE_METRICS, "repetition", "key drift"}
    for metrics, histograms in DIMENSIONS.values():
        assert set(metrics) <= known and set(histograms) <= set(HISTOGRAMS)


def test_other_music_of_the_kind_is_near_and_the_set_itself_nearest() -> None:
    other, itself = scores(PIECES[28:]), scores(PIECES[:28])
    assert all(value == pytest.approx(1) for value in itself.values())
    assert all(0.75 < value <= 1 for value in other.values())


def test_shuffled_onsets_lose_rhythm_most() -> None:
    shuffled = scores(shuffled_control(PIECES[28:]))
    assert shuffled["rhythm"] < 0.55 and shuffled["quality"] < scores(PIECES[28:])["quality"] - 0.2
    assert shuffled["rhythm"] < shuffled["melody"]


def test_silence_scores_little_and_nothing_breaks() -> None:
    silent = build([[]])
    found = scores([silent] * 4)
    assert all(0 <= value < 0.5 for value in found.values())


def test_a_dimension_that_real_music_lacks_is_left_out() -> None:
    drums = [build([[(12 * i, 6, 38) for i in range(16)]], drums=(0,)) for _ in range(6)]
    real = measure_features(drums)
    found = dimension_scores(closeness(real, real, expected=distances_within_real(real, count=3)))
    assert found["rhythm"] == pytest.approx(1)
    assert math.isnan(dimension_scores({"on the beat": 1.0})["melody"]) and found["quality"] == pytest.approx(1)


def test_distance_is_in_deviations_of_real_music() -> None:
    moved = measure_features(PIECES[:28])
    values = REAL.metrics["pitch range"]
    moved.metrics["pitch range"][:] = values + 2 * values.std()  # type: ignore[index]
    assert distances(moved, REAL)["pitch range"] == pytest.approx(2)
    assert closeness(moved, REAL, expected={})["pitch range"] == pytest.approx(math.exp(-2))


def test_wasserstein_is_scipys() -> None:
    draw = np.random.default_rng(0)
    for n, m in ((1, 1), (5, 9), (40, 3)):
        a, b = draw.normal(size=n).round(1), draw.normal(size=m).round(1)
        assert wasserstein(a, b) == pytest.approx(wasserstein_distance(a, b))
    with pytest.raises(ValueError, match="0 values"):
        wasserstein(np.zeros(0), np.zeros(3))


def test_no_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="scores is empty"):
        measure_features([])
