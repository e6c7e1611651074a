"""What is told of chords, registers, simultaneous notes and notes in a bar is what the notes are."""

import numpy as np
import pytest
from symusic import Note, Score, TimeSignature, Track

from etude.generation.heard import bass_shares, chord_shares, heard_rows, heard_values, most_at_a_time, notes_of_bars, portion
from etude.music.chords import parse_progression
from etude.music.passages import Passage


def waltz() -> Score:
    """Two bars of 3/4: a violin, C E G then a dotted half A; a cello on C, then on F with a quarter of G sharp at the end."""
    score = Score(480)
    score.time_signatures.append(TimeSignature(0, 3, 4))
    score.tracks.append(Track(program=40, notes=[Note(480 * i, 480, p, 80) for i, p in enumerate((60, 64, 67))]))
    score.tracks[0].notes.append(Note(1440, 1440, 69, 80))
    score.tracks.append(Track(program=42, notes=[Note(0, 1440, 48, 80), Note(1440, 960, 41, 80), Note(2400, 480, 44, 80)]))
    score.tracks.append(Track(is_drum=True, notes=[Note(480 * i, 240, 38, 80) for i in range(6)]))
    return score


def test_shares_of_chords_and_of_their_bass_notes() -> None:
    piece = portion(waltz())
    assert piece.bars.tolist() == [0, 1440, 2880]
    assert np.allclose(chord_shares(piece, parse_progression("C F")), [1, 5 / 6])
    assert np.allclose(chord_shares(piece, parse_progression("C | F E")), [1, (720 + 720 + 480) / 2880])
    assert np.allclose(chord_shares(piece, parse_progression("NC F")), [np.nan, 5 / 6], equal_nan=True)
    assert bass_shares(piece, parse_progression("C F")) == 1
    assert bass_shares(piece, parse_progression("C/E F")) == 0.5
    silent = portion(waltz(), num_bars=4)
    assert chord_shares(silent, parse_progression("C F C F")).tolist()[2:] == [0, 0]  # nothing sounds there


def test_numbers_of_notes() -> None:
    piece = portion(waltz(), programs=[40, 42])
    assert (most_at_a_time(piece), most_at_a_time(piece, "violin"), most_at_a_time(piece, 2)) == (2, 1, 1)
    assert notes_of_bars(piece).tolist() == [4, 3] and notes_of_bars(piece, "cello").tolist() == [1, 2]
    assert notes_of_bars(piece, "drums").tolist() == [3, 3] and notes_of_bars(piece, "flute").tolist() == [0, 0]


def test_only_what_was_written_counts() -> None:
    whole, prompt = waltz(), waltz()
    for track in prompt.tracks:
        track.notes = [note for note in track.notes if note.time < 1440]
    continued = portion(whole, prompt=prompt)
    assert continued.bars.tolist() == [1440, 2880] and sorted(continued.pitch.tolist()) == [38, 38, 38, 41, 44, 69]
    assert np.allclose(chord_shares(continued, parse_progression("F C")), [5 / 6])  # the first chord is that of the first new bar
    filled = portion(whole, prompt=whole, passage=Passage(0, 1, (1,)))
    assert filled.bars.tolist() == [0, 1440] and filled.pitch.tolist() == [48]


def test_rows_tell_what_was_asked_and_what_came() -> None:
    labels = {
        "chords": "C F", "register": {"all": [41, 69], "cello": ["C2", "C3"]}, "polyphony": 1,
        "density": {2: [1, 2], "violin": 3},
    }  # fmt: skip
    rows = heard_rows(labels, [portion(waltz(), programs=[40, 42])] * 2)
    assert rows == [
        ("chords", "C F", "92% of the sounding time, the bass note lowest at 100% of the chords", "100% of 4 bars"),
        ("register", "F2 to A4", "F2 to A4", "100% of 2"),
        ("register of cello", "C2 to C3", "F2 to C3", "100% of 2"),
        ("polyphony", "at most 1", "2", "0% of 2"),
        ("density of 2", "1 to 2", "1 to 2", "100% of 2"),
        ("density of violin", "3 to 3", "1 to 3", "0% of 2"),
    ]
    assert heard_values({"density": [2, None]}, portion(waltz())) == {"got density": "3 to 4"}
    assert heard_rows({"key": "C major"}, [portion(waltz())]) == []


@pytest.mark.parametrize("num_bars", [1, 3])
def test_bars_behind_the_last_note_are_as_long_as_those_before(num_bars: int) -> None:
    assert portion(waltz(), num_bars=num_bars).bars.tolist() == [1440 * bar for bar in range(num_bars + 1)]
