"""Keys: names are unambiguous, signatures agree with them, estimation agrees with music21 and moves with the music."""

import numpy as np
import pytest
from symusic import Note, Score, Track

from etude.music.score import read_score
from etude.music.theory import (
    MAJOR_PROFILE,
    MINOR_PROFILE,
    MODES,
    Key,
    estimate_key,
    fifths_distance,
    has_key,
    key_correlations,
    note_name,
    pitch_class_durations,
    scale_pitch_classes,
)

KEYS = [Key(tonic, mode) for mode in MODES for tonic in range(12)]


def melody(*pitches: int, is_drum: bool = False) -> Score:
    score = Score(480)
    track = Track(is_drum=is_drum)
    track.notes.extend([Note(480 * i, 480, pitch, 64) for i, pitch in enumerate(pitches)])
    score.tracks.append(track)
    return score


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_names_and_signatures_lead_back_to_the_key(key: Key) -> None:
    assert Key.parse(str(key)) == key
    assert Key.from_signature(key.signature()) == key
    assert -6 <= key.signature().key <= 6
    assert key.transposed(7).transposed(-7) == key and key.transposed(12) == key
    # the signature's sharps are those of the name: music21 agrees
    from music21.key import Key as Oracle

    name, mode = str(key).replace("b", "-").split()
    assert Oracle(name, mode).sharps == key.signature().key


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("G major", "G major"),
        ("f# minor", "F# minor"),
        ("Bb", "Bb major"),
        ("am", "A minor"),
        ("c", "C minor"),
        ("E-flat minor", "Eb minor"),
        ("B- major", "Bb major"),
        ("D#", "Eb major"),
        ("Cb major", "B major"),
        ("  c sharp   minor ", "C# minor"),
        ("b", "B minor"),
        ("bb", "Bb minor"),
        ("A♭ maj", "Ab major"),
    ],
)
def test_parse(text: str, name: str) -> None:
    assert str(Key.parse(text)) == name


@pytest.mark.parametrize("text", ["", "H major", "G mayor", "7", "G dorian", "majorG"])
def test_parse_refuses_and_lists_the_keys(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be one of C, Db.* major and C, C#.* minor"):
        Key.parse(text)


def test_wrong_parts_are_named() -> None:
    with pytest.raises(ValueError, match="tonic is 12"):
        Key(12, "major")
    with pytest.raises(ValueError, match="mode is 'dorian'"):
        Key(0, "dorian")


def test_scales_and_distances() -> None:
    assert scale_pitch_classes(Key.parse("G major")) == {7, 9, 11, 0, 2, 4, 6}
    assert scale_pitch_classes(Key.parse("E minor")) == scale_pitch_classes(Key.parse("G major"))
    assert fifths_distance(Key.parse("C major"), Key.parse("A minor")) == 0
    assert fifths_distance(Key.parse("C major"), Key.parse("E major")) == 4
    assert fifths_distance(Key.parse("F# major"), Key.parse("C major")) == 6
    assert fifths_distance(Key.parse("Db major"), Key.parse("B major")) == 2
    assert [note_name(pitch) for pitch in (0, 60, 61, 70, 127)] == ["C-1", "C4", "C#4", "Bb4", "G9"]


def test_correlation_with_a_profile_itself_is_one() -> None:
    correlations = key_correlations(np.stack([np.roll(MAJOR_PROFILE, 7), 3 * np.roll(MINOR_PROFILE, 2) + 1]))
    assert correlations.shape == (2, 24)
    assert correlations[0, 7] == pytest.approx(1) and correlations[1, 12 + 2] == pytest.approx(1)
    assert (correlations <= 1 + 1e-12).all() and correlations.argmax(axis=1).tolist() == [7, 14]
    assert (key_correlations(np.ones(12)) == 0).all()


def test_durations_leave_drums_out() -> None:
    score = melody(60, 72, 64)
    score.tracks.append(melody(38, is_drum=True).tracks[0])
    assert pitch_class_durations(score).tolist() == [960, 0, 0, 0, 480, 0, 0, 0, 0, 0, 0, 0]
    assert estimate_key(melody(38, is_drum=True)) == Key(0, "major")


def test_drums_silence_and_whole_tones_have_no_key() -> None:
    assert has_key(melody(60, 64, 67)) and has_key(melody(60))
    assert not any(map(has_key, (melody(38, is_drum=True), Score(480), melody(*range(60, 72, 2)), melody(*range(60, 72)))))


@pytest.mark.parametrize("semitones", range(-5, 7))
def test_the_estimate_moves_with_the_music(semitones: int) -> None:
    pitches = [60, 62, 64, 65, 67, 69, 71, 72, 67, 64, 60]
    assert estimate_key(melody(*(p + semitones for p in pitches))) == Key(0, "major").transposed(semitones)


def test_estimates_equal_those_of_music21() -> None:
    from music21 import common, converter
    from music21.analysis.discrete import KrumhanslKessler

    for work in ("bwv66.6", "bwv227.1", "bwv4.8", "bwv10.7", "bwv85.6", "bwv104.6"):
        path = common.getCorpusFilePath() / "bach" / f"{work}.mxl"
        expected = KrumhanslKessler().getSolution(converter.parse(path, forceSource=True))
        got = estimate_key(read_score(path))
        assert (got.tonic, got.mode) == (expected.tonic.pitchClass, expected.mode)
