"""Metrics of rhythm: onsets and durations of notes.

Where muspy has the metric, the value is muspy's at the same resolution (Dong et al., "MusPy", ISMIR 2020). At a fine
resolution nearly every position in a bar is empty, so compute the metrics of positions at 12 ticks per beat:
`notes.resample(12)`.
"""

import math

import numpy as np
from numpy.typing import NDArray

from etude.metrics.scores.notes import NoteArray

DURATION_EDGES_BEATS = np.array([3 / 16, 7 / 24, 5 / 12, 0.625, 0.875, 1.25, 1.75, 2.5, 3.5])
DURATION_LABELS = ("<=1/8", "1/4", "1/3", "1/2", "3/4", "1", "1.5", "2", "3", ">=4")
DRUM_METRES = ("duple", "triple")


def empty_beat_rate(notes: NoteArray) -> float:
    """Share of beats in which no note sounds, 0..1; NaN for an empty piece.

    rate = 1 - touched beats / beats, beats = end // ticks_per_beat + 1. A note touches every beat from its onset to its
    end, the beat that begins at its end included. Drums count. Source: muspy `empty_beat_rate`.
    """
    return _empty_rate(notes, notes.ticks_per_beat)


def empty_measure_rate(notes: NoteArray, *, measure_ticks: int) -> float:
    """Share of measures of `measure_ticks` in which no note sounds, 0..1, counted as in `empty_beat_rate`.

    Source: Dong et al., "MuseGAN", AAAI 2018; muspy `empty_measure_rate`.
    """
    return _empty_rate(notes, measure_ticks)


def _empty_rate(notes: NoteArray, length: int) -> float:
    if length < 1:
        raise ValueError(f"measure_ticks={length} is below 1; give the ticks in a measure, for example 4 * 480")
    if notes.end < 1:
        return math.nan
    num_cells = notes.end // length + 1
    first, last = notes.onset // length, (notes.onset + notes.duration) // length
    cover = np.bincount(first, minlength=num_cells + 1) - np.bincount(last + 1, minlength=num_cells + 1)
    return 1 - np.count_nonzero(np.cumsum(cover)[:num_cells]) / num_cells


def empty_bar_rate(notes: NoteArray) -> float:
    """Share of the bars of the time signatures in which no note sounds, 0..1; NaN without notes.

    Unlike in muspy, bars follow changes of metre, a note that ends on a bar line does not count for the next bar, and the
    empty bar after a piece that ends on a bar line does not count.
    """
    if notes.end < 1:
        return math.nan
    starts = notes.bar_starts[:-1][notes.bar_starts[:-1] < notes.end]
    first = np.searchsorted(starts, notes.onset, side="right") - 1
    last = np.searchsorted(starts, notes.onset + np.maximum(notes.duration, 1) - 1, side="right") - 1
    size = len(starts) + 1
    cover = np.cumsum(np.bincount(first, minlength=size) - np.bincount(last + 1, minlength=size))
    return 1 - np.count_nonzero(cover[:-1]) / len(starts)


def groove_consistency(notes: NoteArray, *, measure_ticks: int | None = None) -> float:
    """One minus the mean Hamming distance of the onset patterns of neighbouring bars, 0..1.

    1 - 1 / (T - 1) sum_i d(G_i, G_i+1) / Q: G_i is the binary vector of the Q positions of bar i, one where a note
    begins. NaN with fewer than two bars. Drums count. Use it at 12 ticks per beat: at 480 nearly every position is
    empty in any music, and shuffled onsets score 0.98.

    Args:
        measure_ticks: ticks in a bar, the same for the whole piece, as in muspy. None takes the bars of the time
            signatures and compares neighbours of equal length; for a constant metre both are equal.

    Source: Wu & Yang, "The Jazz Transformer on the Front Line", ISMIR 2020; muspy `groove_consistency`.
    """
    if measure_ticks is None:
        bar = np.searchsorted(notes.bar_starts, notes.onset, side="right") - 1
        position, lengths = notes.onset - notes.bar_starts[bar], np.diff(notes.bar_starts)
    elif measure_ticks < 1:
        raise ValueError(f"measure_ticks={measure_ticks} is below 1; give the ticks in a measure, or None")
    else:
        bar, position = np.divmod(notes.onset, measure_ticks)
        lengths = np.full(notes.end // measure_ticks + 1, measure_ticks)
    comparable = lengths[1:] == lengths[:-1]
    if len(notes) == 0 or not comparable.any():
        return math.nan
    # d(G, G') = |G| + |G'| - 2 |G and G'|, on the set of occupied positions, without a dense pattern.
    stride = int(lengths.max())
    occupied = np.unique(bar * stride + position)
    per_bar = np.bincount(occupied // stride, minlength=len(lengths))
    before = np.searchsorted(occupied, occupied - stride)  # np.isin would build a table over all ticks
    both = occupied[before] == occupied - stride
    shared = np.bincount(occupied[both] // stride, minlength=len(lengths))[1:]
    distance = per_bar[:-1] + per_bar[1:] - 2 * shared
    return float(1 - distance[comparable].sum() / lengths[1:][comparable].sum())


def drum_in_pattern_rate(notes: NoteArray, *, metre: str) -> float:
    """Share of drum onsets on the quarters ('duple') or thirds ('triple') of a beat, 0..1; NaN without drums.

    Raises:
        ValueError: any other metre.

    Source: Dong et al., "MuseGAN", AAAI 2018; muspy `drum_in_pattern_rate` (where the ticks of a beat can't be
    divided by 4 they are divided by 2; where they can't be divided at all, only onsets on the beat count).
    """
    if metre not in DRUM_METRES:
        raise ValueError(f"metre={metre!r} is not a drum pattern; choose one of {DRUM_METRES}")
    divisors = (4, 2) if metre == "duple" else (3,)
    parts = next((part for part in divisors if notes.ticks_per_beat % part == 0), 1)
    position = notes.onset[notes.is_drum] % (notes.ticks_per_beat // parts)
    return float(np.mean(position == 0)) if len(position) else math.nan


def drum_pattern_consistency(notes: NoteArray) -> float:
    """The larger of the duple and the triple drum-in-pattern rate, 0..1; NaN without drums.

    Source: muspy `drum_pattern_consistency`.
    """
    return max(drum_in_pattern_rate(notes, metre=metre) for metre in DRUM_METRES)


def onset_histogram(notes: NoteArray, *, bins_per_beat: int = 12) -> NDArray[np.int64]:
    """Count the onsets at each position inside a beat. Returns int64 [bins_per_beat]; bin 0 is on the beat."""
    at_grid = notes.resample(bins_per_beat)
    return np.bincount(at_grid.onset % bins_per_beat, minlength=bins_per_beat)


def duration_histogram(notes: NoteArray) -> NDArray[np.int64]:
    """Count the pitched notes by length: each counts in the nearest bin of `DURATION_LABELS` (in beats). Returns int64 [10]."""
    beats = notes.pitched.duration / notes.ticks_per_beat
    return np.bincount(np.searchsorted(DURATION_EDGES_BEATS, beats, side="right"), minlength=len(DURATION_LABELS))


def notes_per_beat(notes: NoteArray) -> float:
    """Onsets per beat, >= 0, drums included; NaN for an empty piece."""
    return len(notes) * notes.ticks_per_beat / notes.end if notes.end else math.nan


def on_beat_share(notes: NoteArray) -> float:
    """Share of notes that begin on a beat (to a 24th of a beat), 0..1; NaN without notes."""
    histogram = onset_histogram(notes)
    return float(histogram[0] / histogram.sum()) if len(notes) else math.nan
