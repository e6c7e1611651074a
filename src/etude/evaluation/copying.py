"""Detect copying from the training set by note n-grams that ignore key and tempo.

A piece is one sequence of notes ordered by onset, then pitch. An n-gram of n notes consists of its n - 1 melodic intervals
and its n - 1 inter-onset intervals divided by their greatest common divisor, so that a transposed, faster or slower copy
has the same n-grams. Onsets are rounded to a grid of 12 per beat. n-grams are compared by 64-bit hashes: with 10^9 of them
in the training set, the probability of a false match is 5e-11 per n-gram.

Pieces of real music share n-grams too (scales, hymn tunes, cadences), so always compare the share of samples with that of
held-out real music. Source: the longest-match and n-gram overlap tests of Yin et al., "Deep learning's shallow gains: a
comparative evaluation of algorithms for automatic music generation", Machine Learning 112, 2023.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from symusic import Score

from etude.metrics.scores.notes import NoteArray

GRID = 12
DEFAULT_LENGTHS = (8, 12, 16)
Hashes = NDArray[np.uint64]


def mix(values: NDArray[np.uint64]) -> Hashes:
    """Hashes 64-bit numbers by the finaliser of splitmix64 (Steele et al., OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def ngram_hashes(notes: NoteArray, *, length: int) -> Hashes:
    """Hash every n-gram of `length` notes, drums left out.

    Returns uint64 [notes - length + 1] in the order of the notes, empty for a shorter piece.

    Raises:
        ValueError: `length` below 3; two notes have one interval, which occurs in nearly every piece.
    """
    if length < 3:
        raise ValueError(f"length={length} is below 3 notes; choose 8 or more for a meaningful match")
    notes = notes.pitched.resample(GRID)
    if len(notes) < length:
        return np.zeros(0, np.uint64)
    intervals = np.lib.stride_tricks.sliding_window_view(np.diff(notes.pitch), length - 1)
    gaps = np.lib.stride_tricks.sliding_window_view(np.diff(notes.onset), length - 1)
    unit = np.maximum(np.gcd.reduce(gaps, axis=1), 1)
    hashes = np.full(len(gaps), length, np.uint64)
    for interval, gap in zip(intervals.T, gaps.T, strict=True):
        step = ((gap // unit) * 256 + interval + 128).astype(np.uint64)
        hashes = mix(hashes + np.uint64(0x9E3779B97F4A7C15) + step)
    return hashes


@dataclass(frozen=True)
class Copying:
    """How much of one piece also occurs in the training set.

    Attributes:
        share: n -> share of the piece's n-grams that occur in the training set, 0..1; NaN for a piece of fewer notes.
        longest: number of notes of the longest passage that also occurs in a training piece; 0 if below the smallest n.
        nearest: name of the training piece that shares the most n-grams of the smallest n; None without a match.
        nearest_share: share of the piece's n-grams (smallest n) that occur in this training piece, 0..1.
    """

    share: dict[int, float]
    longest: int
    nearest: str | None
    nearest_share: float


class NgramIndex:
    """An index of the n-grams of a training set, sorted for binary search.

    Memory: 16 bytes a note for the smallest n (hash, piece, position), at most 8 bytes a note for each further n.

    Args:
        scores: the training pieces; iterated over once.
        names: the name of each piece, reported as `nearest`.
        lengths: note n-gram lengths, each >= 3.

    Raises:
        ValueError: no lengths, a length below 3, or names that do not match the scores.
    """

    def __init__(self, scores: Iterable[Score], *, names: Sequence[str], lengths: Sequence[int] = DEFAULT_LENGTHS):
        if not lengths:
            raise ValueError("lengths is empty; give at least one n-gram length, for example [8, 12, 16]")
        self.lengths, self.names = tuple(sorted(set(lengths))), list(names)
        found: dict[int, list[Hashes]] = {n: [] for n in self.lengths}
        count = 0
        for score in scores:
            count += 1
            notes = NoteArray.from_score(score).pitched.resample(GRID)
            for n in self.lengths:
                found[n].append(ngram_hashes(notes, length=n))
        if count != len(self.names):
            raise ValueError(f"names has {len(self.names)} entries for {count} scores; give one name per score")
        smallest = self.lengths[0]
        sizes = [len(hashes) for hashes in found[smallest]]
        every = _joined(found[smallest])
        order = np.argsort(every, kind="stable")
        self._hashes = every[order]
        self._piece = np.repeat(np.arange(count, dtype=np.int32), sizes)[order]
        position = np.arange(len(every)) - np.repeat(np.cumsum([0, *sizes])[:-1], sizes)
        self._position = position.astype(np.int32)[order]
        self._sets = {n: np.unique(_joined(found[n])) for n in self.lengths[1:]}
        self._sets[smallest] = self._hashes

    def compare(self, score: Score) -> Copying:
        """Finds the n-grams of one piece in the training set."""
        notes = NoteArray.from_score(score).pitched.resample(GRID)
        hashes = {n: ngram_hashes(notes, length=n) for n in self.lengths}
        share = {n: float(np.mean(_contains(self._sets[n], h))) if len(h) else float("nan") for n, h in hashes.items()}
        smallest = self.lengths[0]
        query = hashes[smallest]
        first = np.searchsorted(self._hashes, query, side="left")
        counts = np.searchsorted(self._hashes, query, side="right") - first
        if not counts.any():
            return Copying(share=share, longest=0, nearest=None, nearest_share=0.0)
        # One row per (n-gram of the piece, position in the training set at which it occurs).
        at = np.repeat(np.arange(len(query)), counts)
        place = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        piece, offset = self._piece[place].astype(np.int64), self._position[place].astype(np.int64)
        per_piece = np.bincount(np.unique(np.stack([piece, at]), axis=1)[0], minlength=len(self.names))
        nearest = int(per_piece.argmax())
        return Copying(
            share=share,
            longest=_longest_run(piece, offset - at, at) + smallest - 1,
            nearest=self.names[nearest],
            nearest_share=float(per_piece[nearest] / len(query)),
        )


def _joined(parts: list[Hashes]) -> Hashes:
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _contains(ordered: Hashes, query: Hashes) -> NDArray[np.bool_]:
    if len(ordered) == 0:
        return np.zeros(len(query), bool)
    place = np.minimum(np.searchsorted(ordered, query), len(ordered) - 1)
    found: NDArray[np.bool_] = ordered[place] == query
    return found


def _longest_run(piece: NDArray[np.int64], diagonal: NDArray[np.int64], at: NDArray[np.int64]) -> int:
    """Returns the largest number of consecutive n-grams of the piece that are also consecutive in one training piece."""
    order = np.lexsort((at, diagonal, piece))
    piece, diagonal, at = piece[order], diagonal[order], at[order]
    breaks = (np.diff(piece) != 0) | (np.diff(diagonal) != 0) | (np.diff(at) != 1)
    edges = np.concatenate([[0], np.flatnonzero(breaks) + 1, [len(at)]])
    return int(np.diff(edges).max())


def copying_rows(groups: dict[str, Sequence[Score]], *, index: NgramIndex) -> list[dict[str, object]]:
    """Returns a table of copying with one row per group, such as samples and held-out real music.

    Args:
        groups: for example {"samples": [...], "held-out real": [...]}.

    Returns:
        Rows of {"group", "pieces", "share_<n>" for every n (mean over pieces), "longest_mean", "longest_max",
        "nearest_share_mean", "nearest_share_max", "nearest"}; `nearest` is the training piece with the largest share.

    Raises:
        ValueError: a group without scores.
    """
    rows: list[dict[str, object]] = []
    for group, scores in groups.items():
        found = [index.compare(score) for score in scores]
        if not found:
            raise ValueError(f"groups[{group!r}] is empty; give at least one score")
        worst = max(found, key=lambda item: item.nearest_share)
        shares = {n: np.array([item.share[n] for item in found]) for n in index.lengths}
        rows.append(
            {"group": group, "pieces": len(found)}
            | {f"share_{n}": float(np.nanmean(s)) if np.isfinite(s).any() else float("nan") for n, s in shares.items()}
            | {
                "longest_mean": float(np.mean([item.longest for item in found])),
                "longest_max": max(item.longest for item in found),
                "nearest_share_mean": float(np.mean([item.nearest_share for item in found])),
                "nearest_share_max": worst.nearest_share,
                "nearest": worst.nearest,
            }
        )
    return rows
