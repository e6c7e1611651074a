"""Chord symbols: their notes, their bars, and the scales of their passing notes."""

import pytest

from etude.music.chords import parse_chord, parse_progression
from etude.music.theory import NOTE_NAMES, Key

NOTES = {
    "C": "C E G", "Am": "A C E", "F#m7b5": "F# A C E", "Bbmaj7": "Bb D F A", "Dm7": "D F A C", "G7": "G B D F",
    "Cdim": "C Eb F#", "Cdim7": "C Eb F# A", "C°7": "C Eb F# A", "Bø": "B D F A", "Caug": "C E Ab", "C+7": "C E Ab Bb",
    "C6": "C E G A", "Cm6": "C Eb G A", "C6/9": "C E G A D", "C9": "C E G Bb D", "Cmaj9": "C E G B D", "C13": "C E G Bb D A",
    "Cm11": "C Eb G Bb D F", "Csus4": "C F G", "Csus": "C F G", "Csus2": "C D G", "G7sus4": "G C D F", "Cadd9": "C E G D",
    "C7b9": "C E G Bb C#", "E7#9": "E Ab B D G", "C7#11": "C E G Bb F#", "C7(b9,b13)": "C E G Bb C# Ab", "C7#5": "C E Ab Bb",
    "Cm(maj7)": "C Eb G B", "CmM7": "C Eb G B", "C5": "C G", "C/E": "C E G", "D/C": "D F# A C", "F##m": "G Bb D", "Cb": "B Eb F#",
    "CΔ": "C E G B", "C-7": "C Eb G Bb", "C7alt": "C E Bb C# Eb F# Ab", "Cno5": "C E", "C7no3": "C G Bb",
}  # fmt: skip


@pytest.mark.parametrize("symbol", NOTES)
def test_a_symbol_has_its_notes(symbol: str) -> None:
    assert {NOTE_NAMES[pc] for pc in parse_chord(symbol).pitch_classes} == set(NOTES[symbol].split())


@pytest.mark.parametrize("symbol", ["C", "Am", "F#m7b5", "Dm7", "G7", "Cdim7", "Caug", "C6", "C9", "Csus4", "C7b9"])
def test_music21_reads_the_same_notes(symbol: str) -> None:
    from music21.harmony import ChordSymbol

    assert parse_chord(symbol).pitch_classes == {pitch.pitchClass for pitch in ChordSymbol(symbol).pitches}


def test_a_slash_names_the_bass() -> None:
    assert (parse_chord("C/E").root, parse_chord("C/E").bass) == (0, 4)
    assert (parse_chord("C/Bb").bass, 10 in parse_chord("C/Bb").pitch_classes) == (10, True)
    assert parse_chord("C6/9").bass == 0


@pytest.mark.parametrize("symbol", ["H", "Cfoo", "c", "7", "C/", "C/H", "Cmaj7x", "Dmm", "C14", ""])
def test_what_is_no_symbol_is_refused_with_an_example(symbol: str) -> None:
    with pytest.raises(ValueError, match=r"is no chord symbol.*Dm7 G7 Cmaj7"):
        parse_chord(symbol)


def test_bars_and_repeats() -> None:
    def names(text: str) -> list[list[str]]:
        return [["NC" if chord is None else chord.symbol for chord in bar] for bar in parse_progression(text).bars]

    assert names("Dm7 G7 Cmaj7 %") == [["Dm7"], ["G7"], ["Cmaj7"], ["Cmaj7"]]
    assert names("| C G/B | Am | % || NC F |") == [["C", "G/B"], ["Am"], ["Am"], ["NC", "F"]]
    assert names("C | % G") == [["C"], ["C", "G"]]
    assert names("nc C") == [["NC"], ["C"]]
    two = parse_progression("C G")
    assert [two.bar(number)[0].symbol for number in range(5)] == ["C", "G", "C", "G", "C"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("% C", "begins with %"), ("", "empty bar"), ("C | | G", "empty bar"), ("C X", "'X' is no chord symbol"),
        ("C " * 9 + "|", "bar 1 has 9 chords"),
    ],
)  # fmt: skip
def test_bars_that_cannot_be_read_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_progression(text)


@pytest.mark.parametrize(
    ("text", "key"),
    [("Dm7 G7 Cmaj7 %", "C major"), ("Am Dm E7 Am", "A minor"), ("Eb Ab Bb7 Eb", "Eb major"), ("Em B7 Em Am6", "E minor")],
)
def test_the_key_of_chords(text: str, key: str) -> None:
    assert str(parse_progression(text).key()) == key


def test_the_scale_of_a_chord_has_its_own_version_of_each_letter() -> None:
    c, a = Key.parse("C major"), Key.parse("A minor")
    assert parse_chord("G7").scale(c) == {0, 2, 4, 5, 7, 9, 11}
    assert parse_chord("A7").scale(c) == {1, 2, 4, 5, 7, 9, 11}  # C sharp instead of C
    assert parse_chord("Fm").scale(c) == {0, 2, 4, 5, 7, 8, 11}  # A flat instead of A
    assert parse_chord("E7").scale(a) == {0, 2, 4, 5, 8, 9, 11}  # harmonic minor
    assert parse_chord("Bb").scale(Key.parse("Bb major")) == {10, 0, 2, 3, 5, 7, 9}
