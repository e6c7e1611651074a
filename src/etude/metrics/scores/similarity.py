"""Metrics of repetition: equal and similar bars of a piece."""

import math

import numpy as np
from numpy.typing import NDArray

from etude.metrics.scores.notes import NoteArray

GRID = 12  # ticks per beat at which bars are compared


def bars_of(notes: NoteArray) -> tuple[NoteArray, NDArray[np.int64], NDArray[np.int64]]:
    """Returns the notes on the grid, the bar of each note and its position inside that bar."""
    notes = notes.resample(GRID)
    bar = np.searchsorted(notes.bar_starts, notes.onset, side="right") - 1
    return notes, bar, notes.onset - notes.bar_starts[bar]


def repeated_bar_share(notes: NoteArray) -> float:
    """Share of bars, after the first, that equal an earlier bar exactly; 0..1, NaN with fewer than two bars.

    Two bars are equal if the same pitches begin at the same positions (12 per beat) and have the same durations. Bars in
    which no note begins are left out.
    """
    notes, bar, position = bars_of(notes)
    if len(notes) == 0:
        return math.nan
    order = np.lexsort((notes.is_drum, notes.duration, notes.pitch, position, bar))
    rows = np.stack([position, notes.pitch, notes.duration, notes.is_drum.astype(np.int64)], axis=1)[order]
    _, firsts = np.unique(bar[order], return_index=True)
    contents = {rows[a:b].tobytes() for a, b in zip(firsts, [*firsts[1:], len(rows)], strict=True)}
    return 1 - (len(contents) - 1) / (len(firsts) - 1) if len(firsts) > 1 else math.nan


def repeated_passages(notes: NoteArray, *, length: int) -> tuple[int, int]:
    """Returns how many passages of `length` notes a track has played before, and how many passages there are.

    A passage is consecutive notes of one track, in the order of onset and pitch; two are equal if their pitches and the distances
    between their onsets are. Drums are left out.

    Raises:
        ValueError: length below 1.
    """
    if length < 1:
        raise ValueError(f"length is {length}; give at least 1 note")
    repeated, every = 0, 0
    for track in np.unique(notes.track[~notes.is_drum]).tolist():
        mine = np.flatnonzero(notes.track == track)
        onset, pitch = notes.onset[mine].tolist(), notes.pitch[mine].tolist()
        seen: set[tuple[int, ...]] = set()
        for first in range(len(mine) - length + 1):
            span = range(first, first + length)
            passage = tuple(value for i in span for value in (onset[i] - onset[first], pitch[i]))
            repeated += passage in seen
            every += 1
            seen.add(passage)
    return repeated, every


def self_similarity(notes: NoteArray) -> float:
    """Mean over bars of the cosine similarity to the most similar other bar, 0..1; NaN with fewer than two bars.

    A bar is represented by the number of onsets at each (position, pitch class), with 12 positions per beat. Drums, and
    bars in which no note begins, are left out. 1 means that every bar has an equal one.
    Source: the self-similarity matrix of Foote, "Visualizing music and audio using self-similarity", ACM MM 1999,
    reduced to the mean of each row's largest off-diagonal entry.
    """
    similar = self_similarity_matrix(notes)
    if len(similar) < 2:
        return math.nan
    np.fill_diagonal(similar, -1.0)
    return float(similar.max(axis=1).mean())


def self_similarity_matrix(notes: NoteArray) -> NDArray[np.float64]:
    """Cosine similarity of every two bars in which a pitched note begins: float64 [bars, bars], 0..1."""
    notes, bar, position = bars_of(notes.pitched)
    bars, row = np.unique(bar, return_inverse=True)
    cells, column = np.unique(position * 12 + notes.pitch % 12, return_inverse=True)
    counts = np.zeros((len(bars), len(cells)))
    np.add.at(counts, (row, column), 1.0)
    norms = np.linalg.norm(counts, axis=1, keepdims=True)
    unit = counts / norms
    similarity: NDArray[np.float64] = np.clip(unit @ unit.T, 0.0, 1.0)
    return similarity


def recurrence(similar: NDArray[np.float64], *, bars: int) -> float:
    """How much passages of so many bars come back, 0..1; NaN for a piece of fewer than twice as many bars.

    A passage is compared with every other that does not overlap it, bar by bar; the mean similarity to the most similar one is
    averaged over all passages. 1 means that every passage has an equal one. Without repetition the value is above 0, too, since
    bars of one key and rhythm are alike; so compare with the same bars in random order.

    Args:
        similar: of a piece's bars, see `self_similarity_matrix`.
        bars: length of a passage.

    Raises:
        ValueError: bars below 1.

    Source: a plain form of the structureness indicators of Wu and Yang 2020, "The Jazz Transformer on the front line".
    """
    if bars < 1:
        raise ValueError(f"bars is {bars}; give at least 1")
    count = len(similar) - bars + 1
    if len(similar) < 2 * bars:
        return math.nan
    together = np.mean([similar[i : i + count, i : i + count] for i in range(bars)], axis=0)
    apart = np.abs(np.subtract.outer(np.arange(count), np.arange(count))) >= bars
    best = np.where(apart, together, -1.0).max(axis=1)
    return float(best[best >= 0].mean())
