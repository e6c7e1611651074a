"""Metrics of the pitches that a piece uses. Drums are left out everywhere.

Where muspy has the metric, the value is muspy's (Dong et al., "MusPy: A Toolkit for Symbolic Music Generation", ISMIR
2020), on an array instead of a loop over notes.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.metrics.scores.notes import NUM_PITCHES, NoteArray

SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}


def pitch_histogram(notes: NoteArray) -> NDArray[np.int64]:
    """Count the notes of each pitch. Returns int64 [128]."""
    return np.bincount(notes.pitched.pitch, minlength=NUM_PITCHES)


def pitch_class_histogram(notes: NoteArray) -> NDArray[np.int64]:
    """Count the notes of each pitch class, C first. Returns int64 [12]."""
    return np.bincount(notes.pitched.pitch % 12, minlength=12)


def n_pitches_used(notes: NoteArray) -> int:
    """Count the different pitches, 0..128. Source: muspy `n_pitches_used`."""
    return int(np.count_nonzero(pitch_histogram(notes)))


def n_pitch_classes_used(notes: NoteArray) -> int:
    """Count the different pitch classes, 0..12. Source: muspy `n_pitch_classes_used`."""
    return int(np.count_nonzero(pitch_class_histogram(notes)))


def pitch_range(notes: NoteArray) -> int:
    """Highest minus lowest pitch in semitones, 0..127.

    Source: muspy `pitch_range`. Deviation: a piece of drums alone has range 0 (muspy returns -127).
    """
    pitch = notes.pitched.pitch
    return int(pitch.max() - pitch.min()) if len(pitch) else 0


def pitch_in_scale_rate(notes: NoteArray, *, root: int, mode: str) -> float:
    """Share of notes in the scale of `root` (0..11, C is 0) and `mode` ('major' or natural 'minor').

    rate = notes in the scale / notes, 0..1; NaN without notes.

    Raises:
        ValueError: any other mode.

    Source: Dong et al., "MuseGAN", AAAI 2018; muspy `pitch_in_scale_rate`.
    """
    if mode not in SCALES:
        raise ValueError(f"mode={mode!r} is not a scale; choose one of {sorted(SCALES)}")
    histogram = pitch_class_histogram(notes)
    total = histogram.sum()
    return float(histogram[(np.array(SCALES[mode]) + root) % 12].sum() / total) if total else math.nan


def scale_consistency(notes: NoteArray) -> float:
    """The largest pitch-in-scale rate over the 24 major and natural minor scales, 7/12..1; NaN without notes.

    Source: Mogren, "C-RNN-GAN", 2016; muspy `scale_consistency`.
    """
    # A natural minor scale has the pitch classes of its relative major, so the twelve major scales are all.
    histogram = pitch_class_histogram(notes)
    total = histogram.sum()
    roots = np.arange(12)[:, None] + np.array(SCALES["major"])
    return float(histogram[roots % 12].sum(axis=1).max() / total) if total else math.nan


def entropy(histogram: NDArray[Any]) -> float:
    """Shannon entropy -sum p log2 p of a histogram of counts in bits, 0..log2(bins); NaN if it is empty."""
    total = histogram.sum()
    if total <= 0:
        return math.nan
    share = histogram[histogram > 0] / total
    return float(-(share * np.log2(share)).sum()) + 0.0  # + 0.0 turns the -0.0 of a single bin into 0.0


def pitch_entropy(notes: NoteArray) -> float:
    """Entropy of the pitch histogram in bits, 0..7; NaN without notes. Source: muspy `pitch_entropy`."""
    return entropy(pitch_histogram(notes))


def pitch_class_entropy(notes: NoteArray) -> float:
    """Entropy of the pitch-class histogram in bits, 0..log2(12) = 3.58; NaN without notes.

    Source: Wu & Yang, "The Jazz Transformer on the Front Line", ISMIR 2020; muspy `pitch_class_entropy`.
    """
    return entropy(pitch_class_histogram(notes))


def interval_histogram(notes: NoteArray, *, largest: int = 24) -> NDArray[np.int64]:
    """Count the melodic intervals between successive notes of a track in semitones; upward intervals are positive.

    The melody of a track is the highest note at each onset (the skyline; Uitdenbogerd & Zobel, 1998).

    Returns:
        int64 [2 * largest + 1]; index `largest` is the repeated note; larger intervals count in the outermost bins.
    """
    steps = melodic_intervals(notes)
    return np.bincount(np.clip(steps, -largest, largest) + largest, minlength=2 * largest + 1)


def melodic_intervals(notes: NoteArray) -> NDArray[np.int64]:
    """Melodic intervals in semitones of every track's skyline, one track after another."""
    notes = notes.pitched
    order = np.lexsort((notes.pitch, notes.onset, notes.track))
    track, onset, pitch = notes.track[order], notes.onset[order], notes.pitch[order]
    # The highest note of a (track, onset) is the last of its run.
    top = np.ones(len(order), bool)
    top[:-1] = (track[1:] != track[:-1]) | (onset[1:] != onset[:-1])
    track, pitch = track[top], pitch[top]
    intervals: NDArray[np.int64] = np.diff(pitch)[track[1:] == track[:-1]]
    return intervals


def step_share(notes: NoteArray) -> float:
    """Share of melodic intervals of at most two semitones, 0..1; NaN without intervals.

    Source: conjunct motion, Huron, "Tone and Voice", Music Perception 19(1), 2001.
    """
    steps = melodic_intervals(notes)
    return float(np.mean(np.abs(steps) <= 2)) if len(steps) else math.nan
