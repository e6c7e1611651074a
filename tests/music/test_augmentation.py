"""Augmentations form groups (transposing there and back is nothing) and carry their labels along."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from symusic import KeySignature, Note, Score, Tempo, Track

from etude.music.augmentation import scale_tempo, scale_velocity, transpose, transposed_to, transposition_range
from etude.music.instruments import DRUM_NAMES, INSTRUMENT_NAMES, INSTRUMENT_RANGES
from etude.music.score import duration_seconds
from etude.music.theory import Key, estimate_key, key_correlations, pitch_class_durations


def make(pitches: list[int], *, program: int = 0, drums: bool = True) -> Score:
    score = Score(480)
    track = Track(program=program)
    track.notes.extend([Note(240 * i, 240, pitch, 60 + i) for i, pitch in enumerate(pitches)])
    score.tracks.append(track)
    if drums:
        kit = Track(is_drum=True)
        kit.notes.append(Note(0, 100, 36, 120))
        score.tracks.append(kit)
    score.key_signatures.append(KeySignature(0, 2, 0))  # D major
    return score


def pitches(score: Score) -> list[list[int]]:
    return [[note.pitch for note in track.notes] for track in score.tracks]


@given(st.lists(st.integers(24, 103), min_size=1, max_size=12), st.integers(-12, 12), st.integers(-12, 12))
@example([24, 35, 40, 52, 101, 101], 0, -1)  # C major and F major
def test_transpositions_add_up(notes: list[int], first: int, second: int) -> None:
    score = make(notes)
    twice = transpose(transpose(score, first), second)
    once = transpose(score, first + second)
    assert pitches(twice) == pitches(once) == [[p + first + second for p in notes], [36]]
    assert pitches(score) == [notes, [36]]
    for moved in (twice, once):
        assert Key.from_signature(moved.key_signatures[0]) == Key.parse("D major").transposed(first + second)
    likely = key_correlations(pitch_class_durations(score)).round(9)
    if (likely == likely.max()).sum() == 1:  # of equally likely keys the lowest tonic wins, which is another one elsewhere
        assert estimate_key(once) == estimate_key(score).transposed(first + second)


MAJOR, MINOR = [60, 62, 64, 65, 67, 64, 60, 55, 60], [60, 62, 63, 65, 67, 63, 60, 55, 60]


@given(st.integers(-12, 12), st.sampled_from([MAJOR, MINOR]), st.integers(0, 11), st.sampled_from(["major", "minor"]))
def test_a_score_is_transposed_to_a_key_of_its_mode_by_at_most_half_an_octave(
    shift: int, scale: list[int], tonic: int, mode: str
) -> None:
    score = make([pitch + shift for pitch in scale])
    moved = transposed_to(score, Key(tonic, mode))
    if (mode == "major") != (scale is MAJOR):
        assert moved is None
        return
    assert moved is not None and estimate_key(moved) == Key(tonic, mode)
    (interval,) = {after - before for after, before in zip(pitches(moved)[0], pitches(score)[0], strict=True)}
    assert -5 <= interval <= 6 and pitches(moved)[1] == [36]


def test_what_has_no_notes_or_no_room_is_not_transposed_to_a_key() -> None:
    assert transposed_to(Score(480), Key(0, "major")) is None
    assert transposed_to(make([*MAJOR, 127, 0], drums=False), Key(6, "major")) is None


def test_transposing_out_of_midi_is_refused_with_the_range() -> None:
    with pytest.raises(ValueError, match="semitones is 8, must be -10 to 7"):
        transpose(make([10, 120]), 8)
    assert pitches(transpose(make([10, 120]), 7))[0] == [17, 127]


def test_range_of_the_instrument_widened_to_what_it_plays() -> None:
    violin = 40
    assert INSTRUMENT_NAMES[violin] == "Violin" and INSTRUMENT_RANGES[violin] == (55, 96)
    assert transposition_range(make([60, 90], program=violin)) == (-5, 6)
    assert transposition_range(make([50, 90], program=violin)) == (0, 6)
    both = make([60, 90], program=violin)
    both.tracks.append(make([62, 70], program=73).tracks[0])  # flute, 60 to 96
    assert transposition_range(both) == (-2, 6)
    drums = make([])
    assert transposition_range(drums) == (0, 0)


def test_instrument_table_is_whole() -> None:
    assert len(INSTRUMENT_NAMES) == len(INSTRUMENT_RANGES) == 128 == len(set(INSTRUMENT_NAMES))
    assert all(0 <= low < high <= 127 for low, high in INSTRUMENT_RANGES)
    assert sorted(DRUM_NAMES) == list(range(35, 82))


@given(st.floats(0.25, 4))
def test_tempo_scales_time_and_leaves_ticks(factor: float) -> None:
    score = make([60, 62, 64])
    before = duration_seconds(score)
    fast = scale_tempo(score, factor)
    assert duration_seconds(fast) == pytest.approx(before / factor, rel=1e-5)
    assert fast.tempos[0].qpm == pytest.approx(120 * factor, rel=1e-5)
    assert [n.time for n in fast.tracks[0].notes] == [n.time for n in score.tracks[0].notes]
    assert len(score.tempos) == 0


def test_tempo_marks_are_all_scaled_and_the_default_written_out() -> None:
    score = make([60, 62, 64])
    score.tempos.append(Tempo(240, 60))
    assert [(mark.time, mark.qpm) for mark in scale_tempo(score, 2).tempos] == [(0, 240), (240, 120)]
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be above 0"):
            scale_tempo(score, wrong)


@given(st.integers(-200, 200))
def test_velocity_is_shifted_within_its_range(delta: int) -> None:
    score = make([60, 62, 64])
    louder = scale_velocity(score, delta)
    assert [n.velocity for n in louder.tracks[0].notes] == [min(127, max(1, 60 + i + delta)) for i in range(3)]
    assert [n.velocity for n in score.tracks[0].notes] == [60, 61, 62]
    assert pitches(louder) == pitches(score)
