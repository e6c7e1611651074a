"""Chord symbols as musicians write them, one bar after another, and the scale in which a chord's passing notes lie."""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from etude.music.theory import ACCIDENTALS, LETTERS, MODES, Key, key_correlations

EXAMPLE = 'chords="Dm7 G7 Cmaj7 %" or chords="Am F | C G/B | NC"'
MOST_IN_A_BAR = 8
NO_CHORD = ("NC", "N.C.", "N.C")
SHARPENED = "FCGDAEB"  # the order in which key signatures sharpen letters; flats come from the other end

_ROOT = r"([A-G])(##|bb|[#b♯♭])?"
_QUALITIES = (  # the longest first; what is written -> (degrees of the triad, whether a 7 is a major one)
    (r"maj|Maj|MA|ma|M", {3: 4, 5: 7}, True),
    (r"[Δ△^]7?", {3: 4, 5: 7, 7: 11}, True),
    (r"min|mi|m|-", {3: 3, 5: 7}, False),
    (r"dim|°|o", {3: 3, 5: 6}, False),
    (r"[øØ]7?", {3: 3, 5: 6, 7: 10}, False),
    (r"aug|\+", {3: 4, 5: 8}, False),
)
_NATURAL = {2: 2, 3: 4, 4: 5, 5: 7, 6: 9, 9: 14, 11: 17, 13: 21}  # semitones of a major scale's degrees


@dataclass(frozen=True)
class Chord:
    """A chord symbol.

    symbol: as it was written. root, bass: pitch classes, 0 (C) to 11 (B); they differ in C/E.
    tones: pitch class and letter (0 C to 6 B) of each chord tone, the bass included.
    """

    symbol: str
    root: int
    bass: int
    tones: tuple[tuple[int, int], ...]

    @cached_property
    def pitch_classes(self) -> frozenset[int]:
        """The chord tones, the bass included."""
        return frozenset(pitch_class for pitch_class, _ in self.tones)

    def scale(self, key: Key) -> frozenset[int]:
        """The scale of a key with the chord's own version of each letter: over A7 in C major it has C sharp and no C."""
        own = {letter for _, letter in self.tones}
        return self.pitch_classes | {pitch_class for letter, pitch_class in enumerate(_spelled(key)) if letter not in own}


@dataclass(frozen=True)
class Progression:
    """Chords bar by bar, repeated for as long as music goes on.

    bars: the chords that share each bar evenly; None where there is no chord (NC), so that anything may be played.
    """

    bars: tuple[tuple[Chord | None, ...], ...]

    def bar(self, number: int) -> tuple[Chord | None, ...]:
        """The chords of a bar, counted from 0."""
        return self.bars[number % len(self.bars)]

    @cached_property
    def chords(self) -> tuple[Chord, ...]:
        """The different chords, in their order."""
        return tuple(dict.fromkeys(chord for bar in self.bars for chord in bar if chord is not None))

    def key(self) -> Key:
        """The key that fits best: that of the chord tones by their durations, with the root counted twice.

        Source: Krumhansl 1990, chapter 4, applied to chord tones.
        """
        weights = np.zeros(12)
        for bar in self.bars:
            for chord in bar:
                if chord is not None:
                    weights[list(chord.pitch_classes)] += 1 / len(bar)
                    weights[chord.root] += 1 / len(bar)
        best = int(np.argmax(key_correlations(weights).round(9)))
        return Key(best % 12, MODES[best // 12])


def _spelled(key: Key) -> list[int]:
    """The pitch class that each letter, C to B, has in the signature of a key."""
    sharps = int(key.signature().key)
    altered = SHARPENED[:sharps] if sharps > 0 else SHARPENED[::-1][:-sharps]
    return [(pitch_class + (np.sign(sharps) if letter in altered else 0)) % 12 for letter, pitch_class in LETTERS.items()]


def parse_progression(text: str) -> Progression:
    """Parses chords: one a bar, or with bar lines (|) the chords between two of them share the bar evenly.

    % repeats the bar before; within a bar of several chords, the chord before. NC is a bar or a part of it without a chord.

    Raises:
        ValueError: a symbol that can't be read, an empty bar, or too many chords in a bar; the message names it.
    """
    lines = [line.split() for line in re.sub(r"\|+", "|", text.strip()).strip("|").split("|")]
    bars = lines if "|" in text else [[symbol] for symbol in lines[0]]
    if not bars or not all(bars):
        raise ValueError(f"chords={text!r} has an empty bar; write % to repeat the bar before, or NC for no chord: {EXAMPLE}")
    found: list[tuple[Chord | None, ...]] = []
    for number, bar in enumerate(bars, 1):
        if len(bar) > MOST_IN_A_BAR:
            raise ValueError(f"chords: bar {number} has {len(bar)} chords, more than {MOST_IN_A_BAR}; put a | between bars")
        if bar[0] == "%" and not found:
            raise ValueError(f"chords={text!r} begins with %, which repeats the bar before; begin with a chord: {EXAMPLE}")
        found.append(found[-1] if bar == ["%"] else _bar(bar, found[-1][-1] if found else None))
    return Progression(tuple(found))


def _bar(symbols: list[str], before: Chord | None) -> tuple[Chord | None, ...]:
    chords: list[Chord | None] = []
    for symbol in symbols:
        before = before if symbol == "%" else None if symbol.upper() in NO_CHORD else parse_chord(symbol)
        chords.append(before)
    return tuple(chords)


def parse_chord(symbol: str) -> Chord:
    """Parses a symbol such as Dm7, G7, Cmaj7, F#m7b5, Bb6/9, E7#9, Gsus4, Cadd9, A13 or C/E.

    A 13 is written without the 11th, as it is played. The alterations of "alt" are b9, #9, #11 and b13, without a fifth.

    Raises:
        ValueError: it can't be read.
    """
    match = re.fullmatch(rf"{_ROOT}(.*?)(?:/{_ROOT})?", symbol)
    degrees = None if match is None else _degrees(match.group(3))
    if match is None or degrees is None:
        raise ValueError(f"chords: {symbol!r} is no chord symbol that can be read; write it as in {EXAMPLE}")
    letter = "CDEFGAB".index(match.group(1))
    root = _pitch_class(match.group(1), match.group(2))
    tones = {(root, letter): None}
    tones |= {((root + semitones) % 12, (letter + degree - 1) % 7): None for degree, semitones in degrees}
    bass = root
    if match.group(4) is not None:
        bass = _pitch_class(match.group(4), match.group(5))
        tones[bass, "CDEFGAB".index(match.group(4))] = None
    return Chord(symbol, root, bass, tuple(tones))


def _pitch_class(letter: str, accidental: str | None) -> int:
    return (LETTERS[letter] + sum(ACCIDENTALS[sign] for sign in accidental or "")) % 12


def _degrees(text: str) -> list[tuple[int, int]] | None:
    """Degrees and semitones above the root of what follows the root's name; None if it can't be read."""
    triad, major_seventh = {3: 4, 5: 7}, False
    for pattern, degrees, major in _QUALITIES:
        if match := re.match(pattern, text):
            text, triad, major_seventh = text[match.end() :], dict(degrees), major
            break
    if match := re.match(r"\(?(?:maj|Maj|MA|ma|M|Δ)(?=7|9|11|13)", text):  # Cm(maj7), CmM9
        text, major_seventh = text[match.end() :], True
    seventh = 11 if major_seventh else 9 if triad == {3: 3, 5: 6} else 10
    match = re.match(r"6/9|69|13|11|9|7|6|5", text)
    if match:
        text = text[match.end() :]
        triad = _extended(triad, match.group(), seventh)
    return _modified(triad, text)


def _extended(triad: dict[int, int], number: str, seventh: int) -> dict[int, int]:
    if number == "5":
        return {5: 7}
    if number in ("6", "69", "6/9"):
        return {**triad, 6: 9, **({9: 14} if number != "6" else {})}
    upper = {"7": (), "9": (9,), "11": (9, 11), "13": (9, 13)}[number]
    return {**triad, 7: seventh, **{degree: _NATURAL[degree] for degree in upper}}


def _modified(degrees: dict[int, int], text: str) -> list[tuple[int, int]] | None:
    """Degrees with what stands behind the number: suspensions, added and omitted notes, alterations."""
    altered: list[tuple[int, int]] = []
    word = re.compile(r"[(),]|(sus)([24])?|add([b#♭♯])?(2|4|6|9|11|13)|(?:no|omit)([35])|([b#♭♯+-])(5|6|9|11|13)|(alt)")
    while text:
        match = word.match(text)
        if match is None:
            return None
        text = text[match.end() :]
        sus, fourth, sign, added, omitted, alteration, degree, alt = match.groups()
        if sus:
            degrees.pop(3, None)
            degrees[int(fourth or 4)] = _NATURAL[int(fourth or 4)]
        elif added:
            degrees[int(added)] = _NATURAL[int(added)] + (ACCIDENTALS[sign] if sign else 0)
        elif omitted:
            degrees.pop(int(omitted), None)
        elif alteration:
            shift = {"+": 1, "-": -1}.get(alteration) or ACCIDENTALS[alteration]
            degrees.pop(int(degree), None)
            altered.append((int(degree), _NATURAL[int(degree)] + shift))
        elif alt:
            degrees = {3: 4, 7: 10}
            altered += [(9, 13), (9, 15), (11, 18), (13, 20)]
    return [*degrees.items(), *altered]
