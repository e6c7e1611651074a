"""Find near-duplicates of pieces in any key, tempo and instruments; `splits.py` keeps them in the same split.

The melody (highest sounding voice) is a sequence of steps, each an interval in semitones and a ratio of inter-onset
intervals. The set of its n-grams is summarised by a MinHash sketch. Pieces with similar sketches form groups, transitively.

Source: A. Broder, "On the resemblance and containment of documents", 1997 (MinHash); banding as in Leskovec, Rajaraman and
Ullman, "Mining of Massive Datasets", ch. 3.
"""

import hashlib

import numpy as np
from symusic import Score

NGRAM = 6
NUM_HASHES = 64
BANDS = 32  # of 2 hashes each: pieces of similarity 0.3 share a band with probability 0.95, of 0.5 with 0.9999
SIMILARITY = 0.3  # estimated Jaccard similarity of the n-gram sets from which on pieces are duplicates; unrelated ones have < 0.1
NEIGHBOURS = 32  # each piece is compared with at most so many others of a band, which limits the work for common n-grams
MIN_STEPS = 12  # shorter melodies are duplicates only if they are equal, since they have too few n-grams
_rng = np.random.default_rng(20120527)
_MULTIPLIER = _rng.integers(1, 2**63, NUM_HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSET = _rng.integers(0, 2**63, NUM_HASHES, dtype=np.uint64)


def _notes(score: Score) -> np.ndarray:
    """Returns onset, pitch and end of all pitched notes (of drums if there are no others), int64 [N, 3], sorted."""
    tracks = [t for t in score.tracks if len(t.notes) and not t.is_drum] or [t for t in score.tracks if len(t.notes)]
    parts = [track.notes.numpy() for track in tracks]
    rows = [np.stack([p["time"], p["pitch"], p["time"] + p["duration"]], axis=1) for p in parts]
    notes = np.concatenate(rows).astype(np.int64) if rows else np.empty((0, 3), np.int64)
    ordered: np.ndarray = notes[np.lexsort((notes[:, 1], notes[:, 0]))]
    return ordered


def content_hash(score: Score) -> str:
    """Returns the SHA-256 of onsets, ends and pitches; it does not depend on tempo, instruments and the file format."""
    notes = _notes(score)
    if len(notes):
        notes[:, [0, 2]] -= notes[0, 0]
    return hashlib.sha256(np.unique(notes, axis=0).tobytes()).hexdigest()


def melody(score: Score) -> tuple[np.ndarray, np.ndarray]:
    """Returns onsets and pitches, int64 [M] each, of the highest sounding voice.

    A note belongs to it if no higher note begins with it or still sounds.
    """
    notes = _notes(score)
    if len(notes) == 0:
        return notes[:, 0], notes[:, 1]
    last = np.append(notes[1:, 0] != notes[:-1, 0], True)  # the highest note of each onset
    onsets, pitches = [], []
    top, until = -1, -1
    for onset, pitch, end in notes[last].tolist():
        if onset >= until or pitch >= top:
            onsets.append(onset)
            pitches.append(pitch)
            top, until = pitch, end
    return np.array(onsets, np.int64), np.array(pitches, np.int64)


def sketch(score: Score) -> np.ndarray:
    """Returns the MinHash sketch of the melody's n-grams, uint32 [NUM_HASHES]; independent of key and tempo."""
    onsets, pitches = melody(score)
    intervals = np.clip(np.diff(pitches), -24, 24) + 24
    gaps = np.maximum(np.diff(onsets), 1)
    ratios = np.clip(np.rint(np.log2(gaps[1:] / gaps[:-1])), -3, 3).astype(np.int64) + 3 if len(gaps) > 1 else gaps[1:]
    steps = (intervals[1:] * 7 + ratios + 1).astype(np.uint64)
    if len(steps) < MIN_STEPS:
        digest = hashlib.sha256(steps.tobytes() + intervals[:1].tobytes()).digest()
        return np.random.default_rng(list(digest)).integers(0, 2**32, NUM_HASHES, dtype=np.uint32)
    grams = np.lib.stride_tricks.sliding_window_view(steps, NGRAM)
    with np.errstate(over="ignore"):
        code = grams @ (np.uint64(0x9E3779B97F4A7C15) ** np.arange(1, NGRAM + 1, dtype=np.uint64))
        code ^= code >> np.uint64(29)
        hashed = code[:, None] * _MULTIPLIER + _OFFSET
    smallest: np.ndarray = (hashed >> np.uint64(32)).min(axis=0).astype(np.uint32)
    return smallest


def groups(contents: np.ndarray, sketches: np.ndarray) -> np.ndarray:
    """Returns the group of each piece, int64 [n]: the smallest row among its duplicates, transitively.

    contents: content hashes [n], any dtype. sketches: uint32 [n, NUM_HASHES].
    """
    parent = np.arange(len(contents))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    def unite(first: int, second: int) -> None:
        low, high = sorted((root(first), root(second)))
        parent[high] = low

    for first, second in _equal_pairs(contents, 1).tolist():
        unite(first, second)
    rows = NUM_HASHES // BANDS
    for band in range(BANDS):
        keys = np.ascontiguousarray(sketches[:, band * rows : (band + 1) * rows]).view("u8").ravel()
        pairs = _equal_pairs(keys, NEIGHBOURS)
        alike = (sketches[pairs[:, 0]] == sketches[pairs[:, 1]]).mean(axis=1) >= SIMILARITY
        for first, second in pairs[alike].tolist():
            unite(first, second)
    return np.array([root(row) for row in range(len(parent))], np.int64)


def _equal_pairs(keys: np.ndarray, neighbours: int) -> np.ndarray:
    """Returns pairs of rows with equal keys, int64 [p, 2]: each row with up to `neighbours` equal ones before it."""
    _, inverse = np.unique(keys, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    ranked = inverse[order]
    pairs = []
    for step in range(1, neighbours + 1):
        same = np.flatnonzero(ranked[step:] == ranked[:-step])
        if len(same) == 0:
            break
        pairs.append(np.stack([order[same], order[same + step]], axis=1))
    return np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64)
