"""Notes from posteriors of a transcription network, and how well the notes of two recordings agree.

Shapes: f frames, 88 keys of the piano from A0, n notes.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_closing

from etude.metrics.audio.mel_features import count_matches

Floats = NDArray[np.float64]
LOWEST_KEY = 21  # MIDI pitch of the first key
ONSET, SOUNDING = 0.6, 0.3  # posteriors from which on a note begins, and sounds
GAP_SECONDS = 0.1  # interruption that does not end a note
SHORTEST_SECONDS, SHORTEST_ALONE = 0.1, 0.13  # of a note with an onset, and of one that only sounds


def decode_notes(sounding_fk: ArrayLike, onsets_fk: ArrayLike, *, frame_rate: float) -> Floats:
    """Returns notes as rows of (onset in seconds, end in seconds, MIDI pitch), float64 [n, 3], in the order of their onsets.

    A key sounds where its posterior is at least `SOUNDING`; interruptions of up to `GAP_SECONDS` are filled. In such a stretch a
    note begins at each local maximum of the onset posterior of at least `ONSET`, and lasts to the next one or to the end of the
    stretch. A stretch without an onset is a note from its beginning if it is long enough, as after a slow attack, unless a
    neighbouring key sounds louder throughout.

    Args:
        sounding_fk, onsets_fk: probabilities [f, 88] that a key sounds, and that it begins. frame_rate: frames per second.

    Source: Bittner et al. 2022 (basic-pitch) for the idea; the decoding is our own. Their threshold of 0.5 for onsets found more
    octaves that nobody played, on chords of five rendered instruments.
    """
    sounding, onsets = np.asarray(sounding_fk, np.float64), np.asarray(onsets_fk, np.float64)
    if sounding.ndim != 2 or sounding.shape != onsets.shape:
        raise ValueError(f"posteriors have the shapes {sounding.shape} and {onsets.shape}; give both as [frames, keys]")
    gap = max(1, round(GAP_SECONDS * frame_rate))
    peaks = _peaks(onsets) & (onsets >= ONSET)
    notes: list[tuple[float, float, float]] = []
    for key in range(sounding.shape[1]):
        active = np.pad(sounding[:, key] >= SOUNDING, gap + 1)
        active = binary_closing(active, np.ones(gap + 1, bool))[gap + 1 : -gap - 1] | (sounding[:, key] >= SOUNDING)
        for start, stop in _stretches(active):
            # the onset network is a few frames early at times
            first = max(0, start - 3)
            begins = first + np.flatnonzero(peaks[first:stop, key])
            shortest = SHORTEST_SECONDS
            if not len(begins):
                neighbours = sounding[start:stop, [k for k in (key - 1, key + 1) if 0 <= k < sounding.shape[1]]].mean(0)
                if neighbours.max(initial=0.0) > sounding[start:stop, key].mean():
                    continue
                begins, shortest = np.array([start]), SHORTEST_ALONE
            for begin, end in zip(begins, [*begins[1:], stop], strict=True):
                if (end - begin) / frame_rate >= shortest:
                    notes.append((begin / frame_rate, end / frame_rate, float(key + LOWEST_KEY)))
    return np.array(sorted(notes), np.float64).reshape(-1, 3)


def note_f1(found: ArrayLike, reference: ArrayLike, *, window_seconds: float = 0.05) -> float:
    """F-measure, 0..1, of two lists of notes [n, 3]; NaN if both are empty.

    2 matches / (notes of one + notes of the other), with the largest possible number of pairs of equal pitch, in semitones,
    whose onsets are at most `window_seconds` apart. Ends are not compared.

    Source: MIREX note tracking, onset only, as in mir_eval's `transcription.precision_recall_f1_overlap` with
    `offset_ratio=None`, which tolerates pitches up to 50 cents apart; here pitches are whole semitones.
    """
    first, second = (np.asarray(notes, np.float64).reshape(-1, 3) for notes in (found, reference))
    total = len(first) + len(second)
    if not total:
        return math.nan
    matches = 0
    for pitch in np.intersect1d(first[:, 2], second[:, 2]):
        own, other = (np.sort(notes[notes[:, 2] == pitch, 0]) for notes in (first, second))
        matches += count_matches(own, other, window=window_seconds)
    return 2 * matches / total


def _peaks(values_fk: Floats) -> NDArray[np.bool_]:
    """Whether each value is larger than the one before and at least as large as the one after, [f, k]."""
    padded = np.pad(values_fk, ((1, 1), (0, 0)), constant_values=-np.inf)
    peaks: NDArray[np.bool_] = (padded[1:-1] > padded[:-2]) & (padded[1:-1] >= padded[2:])
    return peaks


def _stretches(active_f: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Returns (first, one past the last) of each run of True."""
    edges = np.flatnonzero(np.diff(np.pad(active_f.astype(np.int8), 1)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
