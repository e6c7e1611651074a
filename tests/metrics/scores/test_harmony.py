"""Metrics of simultaneous notes against values worked out by hand."""

import math

import pytest
from hypothesis import given, settings

from etude.metrics.scores import harmony
from etude.metrics.scores.notes import NoteArray
from tests.metrics.scores.scores import build, scores


def notes_of(*tracks, **options):
    return NoteArray.from_score(build(list(tracks), **options))


def test_polyphony_weighs_by_time_and_counts_a_doubled_pitch_once():
    notes = notes_of([(0, 12, 60), (0, 4, 64)], [(0, 4, 64), (6, 6, 67)], [(0, 48, 36)], drums={2})
    assert harmony.polyphony(notes) == pytest.approx((4 * 2 + 2 * 1 + 6 * 2) / 12)
    assert harmony.polyphony_rate(notes, threshold=1) == pytest.approx(10 / 48)  # of the whole piece, drums included


def test_interval_classes_of_a_dominant_seventh():
    notes = notes_of([(0, 24, p) for p in (55, 59, 62, 65, 67)])  # G B D F G: ten pairs for two beats
    assert harmony.interval_class_time(notes).tolist() == [2, 0, 4, 4, 4, 4, 2]
    assert harmony.dissonance_share(notes) == pytest.approx((0 + 4 + 2) / 20)
    assert math.isnan(harmony.dissonance_share(notes_of([(0, 12, 60), (12, 12, 62)])))


@settings(max_examples=50, deadline=None)
@given(scores())
def test_every_pair_is_in_one_interval_class(score):
    notes = NoteArray.from_score(score)
    counts = notes.sounding.polyphony
    pairs = (counts * (counts - 1) / 2) @ notes.sounding.ticks / notes.ticks_per_beat
    assert harmony.interval_class_time(notes).sum() == pytest.approx(pairs)


def test_voices_carry_their_highest_note_and_rests():
    notes = notes_of([(0, 4, 60), (0, 8, 64)], [], [(4, 8, 40)])
    assert notes.sounding.times.tolist() == [0, 4, 8, 12]
    assert harmony.voice_lines(notes).tolist() == [[64, -1], [64, 40], [-1, 40]]


def test_parallels():
    upper, lower = [(0, 12, 67), (12, 12, 69), (24, 12, 71), (36, 12, 72)], [(0, 12, 60), (12, 12, 62)]
    fifths = notes_of(upper[:2], lower)
    assert harmony.parallel_share(fifths, interval=7) == 1.0
    assert harmony.parallel_share(fifths, interval=0) == 0.0
    assert harmony.parallel_share(notes_of(lower, upper[:2]), interval=7) == 1.0  # the order of the voices is nothing
    twelfths = notes_of(upper[:2], [(t, d, p - 12) for t, d, p in lower])
    assert harmony.parallel_share(twelfths, interval=7) == 1.0
    octaves = notes_of(upper, [(t, d, p - 12) for t, d, p in upper])
    assert harmony.parallel_share(octaves, interval=0) == 1.0
    # contrary motion from a fifth to a twelfth is not parallel, nor is a voice that stays
    contrary = notes_of([(0, 12, 67), (12, 12, 69)], [(0, 12, 60), (12, 12, 50)])
    assert harmony.parallel_share(contrary, interval=7) == 0.0
    assert math.isnan(harmony.parallel_share(notes_of(upper[:2], [(0, 24, 60)]), interval=7))
    with pytest.raises(ValueError, match="interval=5"):
        harmony.parallel_share(fifths, interval=5)
