"""Metrics of tonality: how well the notes fit a key. Drums are left out."""

import math

import numpy as np
from numpy.typing import NDArray

from etude.metrics.scores.notes import NoteArray
from etude.metrics.scores.pitch import pitch_class_histogram
from etude.music.theory import Key, key_correlations, scale_pitch_classes


def out_of_key_share(notes: NoteArray, *, key: Key) -> float:
    """Share of notes whose pitch class is not in the scale of `key`, 0..1; NaN without notes.

    Minor scales are natural minor, so the raised leading tones of a minor piece count as out of key. Compare the value
    with that of real music.
    """
    histogram = pitch_class_histogram(notes)
    total = histogram.sum()
    return float(1 - histogram[list(scale_pitch_classes(key))].sum() / total) if total else math.nan


def last_chord(notes: NoteArray) -> NDArray[np.int64]:
    """The pitches that sound until the end of the last pitched note, ascending, int64; empty without pitched notes."""
    roll = notes.sounding.roll
    return np.flatnonzero(roll[-1]) if len(roll) else np.zeros(0, np.int64)


def ends_on_tonic_triad(notes: NoteArray, *, key: Key) -> bool:
    """Whether the last chord is a major or minor triad on the tonic of `key`, with the tonic in the bass.

    A major chord in a minor key (the Picardy third) counts, and so does a triad without its fifth, which four-part
    endings often leave out. A tonic alone does not count.
    """
    chord = last_chord(notes)
    if len(chord) == 0 or chord[0] % 12 != key.tonic:
        return False
    return set((chord - key.tonic) % 12) in ({0, 4, 7}, {0, 3, 7}, {0, 4}, {0, 3})


def key_clarity(notes: NoteArray) -> float:
    """The correlation of the piece's pitch-class durations with the best-fitting key profile, -1..1; NaN without notes.

    Tonal music has about 0.9; a chromatic scale has 0.
    Source: Krumhansl, "Cognitive Foundations of Musical Pitch", 1990, ch. 4; as a measure of clarity Lartillot &
    Toiviainen, "A Matlab toolbox for musical feature extraction from audio", DAFx 2007.
    """
    notes = notes.pitched
    if not notes.duration.any():
        return math.nan
    return float(key_correlations(np.bincount(notes.pitch % 12, notes.duration, minlength=12)).max())
