"""The note arrays: bars, resampling and the sounding segments."""

import numpy as np
import pytest
from hypothesis import given, settings
from symusic import TimeSignature

from etude.metrics.scores.notes import NoteArray
from etude.music.score import bar_ticks
from tests.metrics.scores.scores import build, scores


def test_notes_are_sorted_and_keep_their_track():
    notes = NoteArray.from_score(build([[(4, 2, 60), (0, 2, 67)], [(0, 4, 48)]], drums={1}))
    assert notes.onset.tolist() == [0, 0, 4]
    assert notes.pitch.tolist() == [48, 67, 60]
    assert notes.track.tolist() == [1, 0, 0]
    assert notes.is_drum.tolist() == [True, False, False]
    assert (len(notes), notes.end, notes.num_tracks, notes.pitched.pitch.tolist()) == (3, 6, 2, [67, 60])


def test_bars_follow_the_time_signatures():
    score = build([[(0, 12 * 12, 60)]], metre=(3, 4))
    score.time_signatures.append(TimeSignature(72, 2, 4))
    assert NoteArray.from_score(score).bar_starts.tolist() == [0, 36, 72, 96, 120, 144, 168]


@settings(max_examples=60, deadline=None)
@given(scores())
def test_bars_are_the_score_s_and_hold_every_note(score):
    notes = NoteArray.from_score(score)
    bars = bar_ticks(score)
    assert notes.bar_starts[: len(bars)].tolist() == bars.tolist()
    assert np.all(np.diff(notes.bar_starts) > 0)
    assert notes.bar_starts[-2] <= notes.end < notes.bar_starts[-1]


@settings(max_examples=60, deadline=None)
@given(scores())
def test_resampling_to_a_multiple_and_back_changes_nothing_but_zero_lengths(score):
    notes = NoteArray.from_score(score)
    finer = notes.resample(notes.ticks_per_beat * 5)
    back = finer.resample(notes.ticks_per_beat)
    assert back.onset.tolist() == notes.onset.tolist()
    assert back.pitch.tolist() == notes.pitch.tolist()
    assert np.array_equal(back.duration, np.maximum(notes.duration, 1))
    assert finer.bar_starts[: len(notes.bar_starts)].tolist() == (notes.bar_starts * 5).tolist()


def test_resampling_rounds_to_the_nearest_tick():
    notes = NoteArray.from_score(build([[(5, 10, 60), (25, 1, 60), (470, 20, 62)]], ticks_per_quarter=480)).resample(12)
    assert notes.onset.tolist() == [0, 1, 12]
    assert notes.duration.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="ticks_per_beat=0 is below 1"):
        notes.resample(0)


@settings(max_examples=60, deadline=None)
@given(scores())
def test_sounding_is_the_dense_piano_roll(score):
    notes = NoteArray.from_score(score)
    dense = np.zeros((notes.end, 128), bool)
    for onset, duration, pitch in zip(notes.pitched.onset, notes.pitched.duration, notes.pitched.pitch, strict=True):
        dense[onset : onset + duration, pitch] = True
    sounding = notes.sounding
    first = int(sounding.times[0]) if len(sounding.times) else 0
    assert np.array_equal(np.repeat(sounding.roll, sounding.ticks, axis=0), dense[first : first + sounding.ticks.sum()])
    assert dense.sum() == sounding.ticks @ sounding.polyphony
    assert sounding.pitch_classes.sum() == sounding.roll.sum()


def test_a_score_in_seconds_is_refused():
    with pytest.raises(ValueError, match="must be in ticks"):
        NoteArray.from_score(build([[(0, 1, 60)]]).to("second"))
