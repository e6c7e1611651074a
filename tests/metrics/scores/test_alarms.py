"""Alarms: their statistics by hand, their thresholds on constructed sets."""

import math

import numpy as np
import pytest

from etude.metrics.scores.alarms import ReferenceStatistic, alarms, diversity, key_drift, repetition
from etude.metrics.scores.notes import NoteArray
from tests.metrics.scores.scores import build

LEVELS = {
    "diversity": ReferenceStatistic(1.0, 0.0),
    "repetition": ReferenceStatistic(0.1, 0.1),
    "key drift": ReferenceStatistic(1.0, 0.5),
}
FINE = {"diversity": 0.9, "repetition": 0.15, "key drift": 1.2}


def notes(*track: tuple[int, int, int], **options: object) -> NoteArray:
    return NoteArray.from_score(build([list(track)], **options))


def test_a_held_chord_and_a_figure_repeat_a_scale_does_not() -> None:
    assert repetition(notes((0, 96, 60))) == pytest.approx(5 / 7)  # the second and the last beat are new
    assert repetition(notes(*((12 * i, 12, 60) for i in range(8)))) == 1
    assert repetition(notes(*((12 * i, 12, 60 + i % 4) for i in range(16)))) == pytest.approx(12 / 15)
    assert repetition(notes(*((12 * i, 12, 60 + i) for i in range(8)))) == 0


def test_silence_repeats_and_a_short_piece_says_nothing() -> None:
    assert repetition(notes((0, 12, 60), (48, 12, 62))) == pytest.approx(2 / 4)  # the second and third beats of rest
    assert math.isnan(repetition(notes((0, 12, 60))))
    assert math.isnan(repetition(notes()))


def test_the_resolution_does_not_matter() -> None:
    fine = notes(*((480 * i, 240 + 120 * (i % 2), 60) for i in range(6)), ticks_per_quarter=480)
    coarse = notes(*((12 * i, 6 + 3 * (i % 2), 60) for i in range(6)))
    assert repetition(fine) == repetition(coarse) == pytest.approx(4 / 5)


def test_key_drift_counts_fifths_between_halves() -> None:
    scale = (0, 4, 7, 0, 2, 4, 5, 7, 9, 11, 7, 0)

    def piece(shift: int) -> NoteArray:
        return notes(
            *((12 * i, 12, 60 + p) for i, p in enumerate(scale)),
            *((12 * (12 + i), 12, 60 + p + shift) for i, p in enumerate(scale)),
        )

    assert [key_drift(piece(shift)) for shift in (0, 7, 2, 6)] == [0, 1, 2, 6]
    assert math.isnan(key_drift(notes((0, 12, 60))))


def test_diversity_is_the_mean_distance() -> None:
    assert diversity(np.zeros((5, 3))) == 0
    assert diversity(np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])) == pytest.approx(2 / 3)
    assert math.isnan(diversity(np.zeros((1, 3))))


def test_music_like_real_music_rings_nothing() -> None:
    assert alarms(FINE, LEVELS, running_diversity=0.95, tolerance=1.0) == {}


@pytest.mark.parametrize("name", ["repetition", "key drift"])
def test_more_than_real_music_rings_by_its_own_spread(name: str) -> None:
    level = LEVELS[name]
    for tolerance in (1.0, 2.0):
        for sign in (-1, 1):
            found = FINE | {name: level.mean + (tolerance + 0.01 * sign) * level.std}
            ringing = alarms(found, LEVELS, running_diversity=None, tolerance=tolerance)
            assert set(ringing) == ({name} if sign > 0 else set())


def test_collapse_is_half_of_real_music_or_of_the_runs_own_level() -> None:
    assert set(alarms(FINE | {"diversity": 0.49}, LEVELS, running_diversity=None, tolerance=1)) == {"collapse"}
    assert alarms(FINE | {"diversity": 0.6}, LEVELS, running_diversity=1.0, tolerance=1) == {}
    assert "fell" in alarms(FINE | {"diversity": 0.6}, LEVELS, running_diversity=1.3, tolerance=1)["collapse"]


def test_what_is_not_defined_rings_nothing() -> None:
    nothing = dict.fromkeys(FINE, math.nan)
    assert alarms(nothing, LEVELS, running_diversity=1.0, tolerance=1) == {}
    assert math.isnan(ReferenceStatistic.of(np.array([math.nan])).mean)
