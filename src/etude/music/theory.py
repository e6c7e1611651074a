"""Keys: names, scales, signatures, and estimation of the key from the notes."""

import re
from dataclasses import dataclass

import numpy as np
from symusic import KeySignature, Score

MODES = ("major", "minor")
# the usual spellings: at most six sharps or flats, and G-sharp and E-flat minor rather than A-flat and D-sharp minor
MAJOR_NAMES = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
MINOR_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B")
NOTE_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
ACCIDENTALS = {"": 0, "#": 1, "♯": 1, "b": -1, "♭": -1, "-": -1}

# Probe-tone ratings of the twelve pitch classes above the tonic.
# Source: Krumhansl & Kessler 1982, "Tracing the dynamic changes in perceived tonal organization"; table in Krumhansl
# 1990, "Cognitive Foundations of Musical Pitch", p. 30.
MAJOR_PROFILE = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
MINOR_PROFILE = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])
MAJOR_SCALE = (0, 2, 4, 5, 7, 9, 11)
MINOR_SCALE = (0, 2, 3, 5, 7, 8, 10)  # natural


@dataclass(frozen=True, order=True)
class Key:
    """A major or minor key; `tonic` is a pitch class, 0 (C) to 11 (B)."""

    tonic: int
    mode: str

    def __post_init__(self) -> None:
        if self.tonic not in range(12):
            raise ValueError(f"tonic is {self.tonic}, must be a pitch class from 0 (C) to 11 (B)")
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}, must be 'major' or 'minor'; give one of these")

    def __str__(self) -> str:
        return f"{(MAJOR_NAMES if self.mode == 'major' else MINOR_NAMES)[self.tonic]} {self.mode}"

    @classmethod
    def parse(cls, text: str) -> "Key":
        """Parses the name of a key: 'G major', 'f# minor', 'Bb', 'E-flat minor', 'Am', 'c' (lower case alone: minor).

        Raises:
            ValueError: not the name of a key; the message lists the valid names.
        """
        match = re.fullmatch(
            r"\s*([A-Ga-g])(-?flat|-?sharp|[#♯b♭-])?\s*(major|maj|minor|min|m)?\s*",
            re.sub(r"(?i)\s*-?\s*(flat|sharp)", r"\1", text),
        )
        if match is None:
            names = ", ".join(MAJOR_NAMES) + " major and " + ", ".join(MINOR_NAMES) + " minor"
            raise ValueError(f"key is {text!r}, must be one of {names}; give it as in 'G major'")
        letter, accidental, mode = match.group(1), match.group(2) or "", match.group(3)
        shift = ACCIDENTALS[{"flat": "b", "sharp": "#"}.get(accidental.lower(), accidental)]
        if mode is None:
            mode = "minor" if letter.islower() else "major"
        return cls((LETTERS[letter.upper()] + shift) % 12, "major" if mode.startswith("maj") else "minor")

    @classmethod
    def from_signature(cls, signature: KeySignature) -> "Key":
        """The key of a key signature: `signature.key` sharps (negative: flats), tonality 0 major or 1 minor."""
        return cls((7 * signature.key + 9 * signature.tonality) % 12, MODES[signature.tonality])

    def signature(self, time: int = 0) -> KeySignature:
        """The key signature of this key at tick `time`, with the same spelling as its name."""
        relative_major = (self.tonic + (3 if self.mode == "minor" else 0)) % 12
        sharps = (7 * relative_major + 5) % 12 - 5  # -5 .. 6
        if self == Key(3, "minor"):
            sharps = -6  # E flat minor
        return KeySignature(time, sharps, MODES.index(self.mode))

    def transposed(self, semitones: int) -> "Key":
        """The key `semitones` higher (negative: lower), of the same mode."""
        return Key((self.tonic + semitones) % 12, self.mode)


def scale_pitch_classes(key: Key) -> frozenset[int]:
    """The seven pitch classes of the major or natural minor scale of `key`."""
    return frozenset((key.tonic + step) % 12 for step in (MAJOR_SCALE if key.mode == "major" else MINOR_SCALE))


def fifths_distance(first: Key, second: Key) -> int:
    """Steps on the circle of fifths between the signatures of two keys, 0 (same or relative key) to 6."""
    steps = int(first.signature().key - second.signature().key) % 12
    return min(steps, 12 - steps)


def note_name(pitch: int) -> str:
    """The name of a MIDI pitch with its octave: 60 is C4 (scientific pitch notation)."""
    return f"{NOTE_NAMES[pitch % 12]}{pitch // 12 - 1}"


def pitch_class_durations(score: Score) -> np.ndarray:
    """Sounding ticks of each pitch class, float [12]; drum tracks are left out."""
    histogram = np.zeros(12)
    for track in score.tracks:
        if not track.is_drum and len(track.notes):
            notes = track.notes.numpy()
            histogram += np.bincount(notes["pitch"].astype(np.int64) % 12, notes["duration"], minlength=12)
    return histogram


def key_correlations(histogram: np.ndarray) -> np.ndarray:
    """Correlates pitch-class weights [..., 12] with the 24 key profiles: [..., 24], 12 major tonics, then 12 minor.

    Pearson correlation; 0 if all weights are equal.

    Source: Krumhansl 1990, chapter 4 (the Krumhansl-Schmuckler algorithm).
    """
    profiles = np.stack([np.roll(profile, tonic) for profile in (MAJOR_PROFILE, MINOR_PROFILE) for tonic in range(12)])
    profiles = profiles - profiles.mean(axis=1, keepdims=True)
    weights = histogram - histogram.mean(axis=-1, keepdims=True)
    norm = np.linalg.norm(weights, axis=-1, keepdims=True) * np.linalg.norm(profiles, axis=1)
    correlations: np.ndarray = np.divide(weights @ profiles.T, norm, out=np.zeros_like(norm), where=norm > 1e-12)
    return correlations


def estimate_key(score: Score) -> Key:
    """Estimates the key of a score: the one whose profile correlates best with the durations of the pitch classes.

    Of equal correlations, major comes before minor and the lowest tonic first. A score of drums alone gives C major.

    Source: Krumhansl & Kessler 1982; Krumhansl 1990, chapter 4.
    """
    best = int(np.argmax(_fit(score)))
    return Key(best % 12, MODES[best // 12])


def has_key(score: Score) -> bool:
    """Returns whether one key fits best: not so without pitched notes, nor where several do, as in whole tones."""
    fit = _fit(score)
    return bool((fit == fit.max()).sum() == 1)


def _fit(score: Score) -> np.ndarray:
    """Returns how well the 24 keys fit, [24], so rounded that the order in which durations are added makes no difference."""
    fit: np.ndarray = key_correlations(pitch_class_durations(score)).round(9)
    return fit
