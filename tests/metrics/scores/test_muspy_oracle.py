"""Every metric that muspy has equals muspy's, on drawn scores and on real files."""

import math

import pytest
from hypothesis import given, settings
from muspy import metrics as oracle
from symusic import Score

from etude.metrics.scores import harmony, pitch, rhythm
from etude.metrics.scores.notes import NoteArray
from tests.metrics.scores.scores import build, scores, to_muspy


def pairs(score, measure):
    """(name, ours, muspy's) of every metric of both."""
    notes, music = NoteArray.from_score(score), to_muspy(score)
    yield "n_pitches_used", pitch.n_pitches_used(notes), oracle.n_pitches_used(music)
    yield "n_pitch_classes_used", pitch.n_pitch_classes_used(notes), oracle.n_pitch_classes_used(music)
    if len(notes.pitched):
        yield "pitch_range", pitch.pitch_range(notes), oracle.pitch_range(music)
    for root in (0, 5, 11):
        for mode in ("major", "minor"):
            yield (
                f"pitch_in_scale_rate {root} {mode}",
                pitch.pitch_in_scale_rate(notes, root=root, mode=mode),
                oracle.pitch_in_scale_rate(music, root, mode),
            )
    yield "scale_consistency", pitch.scale_consistency(notes), oracle.scale_consistency(music)
    yield "pitch_entropy", pitch.pitch_entropy(notes), oracle.pitch_entropy(music)
    yield "pitch_class_entropy", pitch.pitch_class_entropy(notes), oracle.pitch_class_entropy(music)
    yield "empty_beat_rate", rhythm.empty_beat_rate(notes), oracle.empty_beat_rate(music)
    yield (
        "empty_measure_rate",
        rhythm.empty_measure_rate(notes, measure_ticks=measure),
        oracle.empty_measure_rate(music, measure),
    )
    yield "polyphony", harmony.polyphony(notes), oracle.polyphony(music)
    for threshold in (0, 1, 2):
        yield (
            f"polyphony_rate {threshold}",
            harmony.polyphony_rate(notes, threshold=threshold),
            oracle.polyphony_rate(music, threshold),
        )
    if len(notes):
        expected = oracle.groove_consistency(music, measure)
        yield "groove_consistency", rhythm.groove_consistency(notes, measure_ticks=measure), expected
        yield "groove_consistency by metre", rhythm.groove_consistency(notes), expected
    for metre in ("duple", "triple"):
        yield (
            f"drum_in_pattern_rate {metre}",
            rhythm.drum_in_pattern_rate(notes, metre=metre),
            oracle.drum_in_pattern_rate(music, metre),
        )
    yield ("drum_pattern_consistency", rhythm.drum_pattern_consistency(notes), oracle.drum_pattern_consistency(music))


def assert_equal(score, measure):
    for name, ours, theirs in pairs(score, measure):
        assert ours == pytest.approx(float(theirs), abs=1e-9, nan_ok=True), name


@settings(max_examples=150, deadline=None)
@given(scores())
def test_equal_on_any_score(score):
    metre = score.time_signatures[0]
    assert_equal(score, score.ticks_per_quarter * metre.numerator)


def test_equal_on_real_files(shared_data):
    for path in sorted((shared_data / "scores" / "folk").glob("*.mid"))[:8]:
        score = Score(str(path)).resample(12, min_dur=1)
        metre = score.time_signatures[0]
        assert_equal(score, 12 * 4 * metre.numerator // metre.denominator)


def test_the_two_deviations():
    """Where muspy's value is no sensible figure ours differs, and only there."""
    drums = build([[(0, 1, 36)]], drums={0})
    assert oracle.pitch_range(to_muspy(drums)) == -127
    assert pitch.pitch_range(NoteArray.from_score(drums)) == 0
    nothing = NoteArray.from_score(build([[]]))
    assert math.isnan(rhythm.groove_consistency(nothing))
