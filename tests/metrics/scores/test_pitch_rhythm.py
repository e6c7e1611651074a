"""Metrics of pitch and of time against values worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from symusic import TimeSignature

from etude.metrics.scores import pitch, rhythm, similarity
from etude.metrics.scores.notes import NoteArray
from tests.metrics.scores.scores import build, scores

SCALE = NoteArray.from_score(build([[(12 * i, 12, p) for i, p in enumerate((60, 62, 64, 65, 67, 69, 71, 72))]]))
EMPTY = NoteArray.from_score(build([[]]))


def test_a_major_scale():
    assert pitch.n_pitches_used(SCALE) == 8
    assert pitch.n_pitch_classes_used(SCALE) == 7
    assert pitch.pitch_range(SCALE) == 12
    assert pitch.pitch_entropy(SCALE) == pytest.approx(3.0)
    assert pitch.scale_consistency(SCALE) == 1.0
    assert pitch.pitch_in_scale_rate(SCALE, root=7, mode="major") == pytest.approx(7 / 8)
    assert pitch.step_share(SCALE) == 1.0
    histogram = pitch.interval_histogram(SCALE, largest=2)
    assert histogram.tolist() == [0, 0, 0, 2, 5]
    with pytest.raises(ValueError, match="choose one of"):
        pitch.pitch_in_scale_rate(SCALE, root=0, mode="dorian")


def test_melodic_intervals_follow_the_highest_note_of_each_track():
    notes = NoteArray.from_score(build([[(0, 4, 60), (0, 4, 64), (4, 4, 65), (8, 4, 40)], [(2, 4, 50), (3, 4, 57)]]))
    assert pitch.melodic_intervals(notes).tolist() == [1, -25, 7]
    assert pitch.interval_histogram(notes, largest=7).tolist()[0] == 1  # the leap of 25 counts in the last bin


@settings(max_examples=50, deadline=None)
@given(scores())
def test_transposing_moves_no_interval_and_turns_the_pitch_classes(score):
    notes = NoteArray.from_score(score)
    up = notes.replace(pitch=np.where(notes.is_drum, notes.pitch, notes.pitch + 5))
    assert pitch.melodic_intervals(up).tolist() == pitch.melodic_intervals(notes).tolist()
    assert pitch.pitch_class_histogram(up).tolist() == np.roll(pitch.pitch_class_histogram(notes), 5).tolist()


def test_what_has_no_notes_has_no_rate():
    for function in (
        pitch.scale_consistency,
        pitch.pitch_entropy,
        pitch.step_share,
        rhythm.empty_beat_rate,
        rhythm.empty_bar_rate,
        rhythm.groove_consistency,
        rhythm.drum_pattern_consistency,
        rhythm.notes_per_beat,
        rhythm.on_beat_share,
        similarity.repeated_bar_share,
        similarity.self_similarity,
    ):
        assert math.isnan(function(EMPTY)), function.__name__
    assert pitch.pitch_range(EMPTY) == 0


def test_entropy_of_a_fair_coin_is_one_bit():
    assert pitch.entropy(np.array([3, 3, 0])) == 1.0
    assert pitch.entropy(np.array([7])) == 0.0


def test_groove_of_a_repeated_bar_is_one_and_falls_by_each_difference():
    bar = [(0, 3, 60), (12, 3, 60)]
    again = [(48 + t, d, p) for t, d, p in bar]
    other = [(96, 3, 60), (96 + 13, 3, 60), (96 + 47, 1, 60)]
    notes = NoteArray.from_score(build([bar + again + other]))
    # bars 2 and 3 differ at positions 12, 13 and 47; the piece ends on a bar line, so an empty bar follows
    assert rhythm.groove_consistency(notes) == pytest.approx(1 - (0 + 3 + 3) / (48 * 3))
    assert rhythm.groove_consistency(notes, measure_ticks=48) == rhythm.groove_consistency(notes)
    with pytest.raises(ValueError, match="measure_ticks=0"):
        rhythm.groove_consistency(notes, measure_ticks=0)


def test_groove_leaves_out_neighbours_of_different_metre():
    score = build([[(t, 3, 60) for t in (0, 36, 72, 72 + 48)]], metre=(3, 4))
    score.time_signatures.append(TimeSignature(72, 4, 4))
    assert rhythm.groove_consistency(NoteArray.from_score(score)) == 1.0


def test_empty_bars_end_with_the_last_note():
    notes = NoteArray.from_score(build([[(0, 48, 60), (144, 48, 60)]]))
    assert rhythm.empty_bar_rate(notes) == pytest.approx(2 / 4)
    assert rhythm.empty_measure_rate(notes, measure_ticks=48) == pytest.approx(1 / 5)  # muspy: ends touch, one more bar
    with pytest.raises(ValueError, match="is below 1"):
        rhythm.empty_measure_rate(notes, measure_ticks=0)


def test_drum_patterns():
    drums = NoteArray.from_score(build([[(0, 1, 36), (3, 1, 36), (4, 1, 36), (8, 1, 36)]], drums={0}))
    assert rhythm.drum_in_pattern_rate(drums, metre="duple") == 0.5
    assert rhythm.drum_in_pattern_rate(drums, metre="triple") == 0.75
    assert rhythm.drum_pattern_consistency(drums) == 0.75
    with pytest.raises(ValueError, match="not a drum pattern"):
        rhythm.drum_in_pattern_rate(drums, metre="quadruple")


def test_onsets_and_durations_fall_into_their_bins():
    notes = NoteArray.from_score(build([[(0, 480, 60), (480, 240, 62), (720, 160, 64), (885, 3000, 65)]], ticks_per_quarter=480))
    onsets = rhythm.onset_histogram(notes)
    assert onsets.sum() == 4
    assert [onsets[0], onsets[6], onsets[10]] == [2, 1, 1]
    assert dict(zip(rhythm.DURATION_LABELS, rhythm.duration_histogram(notes), strict=True)) == {
        "<=1/8": 0,
        "1/4": 0,
        "1/3": 1,
        "1/2": 1,
        "3/4": 0,
        "1": 1,
        "1.5": 0,
        "2": 0,
        "3": 0,
        ">=4": 1,
    }
    assert rhythm.on_beat_share(notes) == 0.5
    assert rhythm.notes_per_beat(SCALE) == 1.0


def test_repetition():
    bar = [(0, 12, 60), (12, 12, 64)]
    same = NoteArray.from_score(build([[(48 * i + t, d, p) for i in range(4) for t, d, p in bar]]))
    assert similarity.repeated_bar_share(same) == 1.0
    assert similarity.self_similarity(same) == pytest.approx(1.0)
    moved = NoteArray.from_score(build([[(48 * i + t, d, p + i) for i in range(4) for t, d, p in bar]]))
    assert similarity.repeated_bar_share(moved) == 0.0
    assert similarity.self_similarity(moved) == 0.0
    half = NoteArray.from_score(build([[*bar, (48, 12, 60), (60, 12, 65)]]))
    assert similarity.self_similarity(half) == pytest.approx(0.5)  # one of two onsets in common: 1 / (sqrt 2 sqrt 2)
    assert similarity.self_similarity_matrix(half) == pytest.approx(np.array([[1, 0.5], [0.5, 1]]))
