"""Near-duplicates of pieces, whatever their key, tempo and instruments, and splits that keep them on one side.

The melody (highest sounding voice) becomes a sequence of steps, each an interval in semitones and a ratio of
inter-onset intervals; its set of n-grams is sketched by MinHash; pieces whose sketches agree are united, transitively.
Source: A. Broder, "On the resemblance and containment of documents", 1997 (MinHash; banding as in Leskovec, Rajaraman
    and
Ullman, "Mining of Massive Datasets", ch. 3).
"""

import collections
import hashlib

import numpy as np
from symusic import Score

NGRAM = 6
NUM_HASHES = 64
BANDS = 32  # of 2 hashes: pieces of similarity 0.3 meet with probability 0.95, of 0.5 with 0.9999
SIMILARITY = 0.3  # estimated Jaccard similarity of the n-gram sets from which pieces count as one; unrelated ones have < 0.1
NEIGHBOURS = 32  # pieces of one band that each is compared with: bounds the work where very many share an n-gram
MIN_STEPS = 12  # shorter melodies are compared whole: too few n-grams to tell a tune from a scale
_rng = np.random.default_rng(20120527)
_MULTIPLIER = _rng.integers(1, 2**63, NUM_HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSET = _rng.integers(0, 2**63, NUM_HASHES, dtype=np.uint64)


def _notes(score: Score) -> np.ndarray:
    """Onset, pitch and end of all pitched notes (of drums where there are no others), int64 [N, 3], sorted."""
    tracks = [t for t in score.tracks if len(t.notes) and not t.is_drum] or [t for t in score.tracks if len(t.notes)]
    parts = [track.notes.numpy() for track in tracks]
    rows = [np.stack([p["time"], p["pitch"], p["time"] + p["duration"]], axis=1) for p in parts]
    notes = np.concatenate(rows).astype(np.int64) if rows else np.empty((0, 3), np.int64)
    return notes[np.lexsort((notes[:, 1], notes[:, 0]))]


def content_hash(score: Score) -> str:
    """SHA-256 of when which pitches sound: equal for one piece in two files, or with other tempo or instruments."""
    notes = _notes(score)
    if len(notes):
        notes[:, [0, 2]] -= notes[0, 0]
    return hashlib.sha256(np.unique(notes, axis=0).tobytes()).hexdigest()


def melody(score: Score) -> tuple[np.ndarray, np.ndarray]:
    """Onsets and pitches, int64 [M] each, of the highest sounding voice.

    A note belongs to it if no higher note begins with it or still sounds: inner voices that move below a held note
        don't.
    """
    notes = _notes(score)
    if len(notes) == 0:
        return notes[:, 0], notes[:, 1]
    last = np.append(notes[1:, 0] != notes[:-1, 0], True)  # the highest of each onset
    onsets, pitches = [], []
    top, until = -1, -1
    for onset, pitch, end in notes[last].tolist():
        if onset >= until or pitch >= top:
            onsets.append(onset)
            pitches.append(pitch)
            top, until = pitch, end
    return np.array(onsets, np.int64), np.array(pitches, np.int64)


def sketch(score: Score) -> np.ndarray:
    """MinHash sketch of the melody's n-grams, uint32 [NUM_HASHES]: invariant under transposition and tempo."""
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
    return (hashed >> np.uint64(32)).min(axis=0).astype(np.uint32)


def groups(contents: np.ndarray, sketches: np.ndarray) -> np.ndarray:
    """Group of each piece, int64 [n]: the smallest row among its duplicates, taken transitively.

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
    """Pairs of rows with equal keys, int64 [p, 2]: each row with up to `neighbours` equal ones before it."""
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


def assign_splits(group: np.ndarray, contents: list[str], ratios: dict[str, float]) -> list[str]:
    """The split of each piece, by a hash of its group: adding files moves no other group.

    group: int64 [n] from `groups`. contents: content hashes, of which the group's smallest decides.
    ratios: split -> share; shares add up to 1. A split with a share above 0 is never left empty where there are as
        many groups as such splits: it takes the group whose hash is nearest to its own.
    """
    smallest: dict[int, str] = {}
    for row, content in zip(group.tolist(), contents, strict=True):
        smallest[row] = min(content, smallest.get(row, content))
    place = {row: int(hashlib.sha256(c.encode()).hexdigest()[:13], 16) / 16**13 for row, c in smallest.items()}
    names = [name for name, share in ratios.items() if share > 0]
    ends = np.cumsum([ratios[name] for name in names])
    chosen = {row: names[min(int(np.searchsorted(ends, at, side="right")), len(names) - 1)] for row, at in place.items()}
    for number, name in enumerate(names):
        count = collections.Counter(chosen.values())
        if count[name] == 0 and max(count.values()) > 1:
            middle = ends[number] - ratios[name] / 2
            rich = (row for row in chosen if count[chosen[row]] > 1)
            chosen[min(rich, key=lambda row: (abs(place[row] - middle), row))] = name
    return [chosen[row] for row in group.tolist()]
