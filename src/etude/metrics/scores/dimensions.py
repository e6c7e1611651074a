"""Scores, 0..1, of how close a set of pieces is to real music in rhythm, harmony, melody and structure.

Shapes: n pieces, d features.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from symusic import Score

from etude.metrics.scores.alarms import key_drift, repetition
from etude.metrics.scores.notes import NoteArray
from etude.metrics.scores.tables import piece_histograms, piece_metrics
from etude.metrics.sets.distributions import histogram_overlap, wasserstein

Floats = NDArray[np.float64]
MIN_SPREAD = 0.05  # least standard deviation that counts: of a share, or relative to a mean above 1
MAX_DEVIATIONS = 8.0  # standardised features are clipped to this many standard deviations
NUM_DRAWS = 8  # random divisions of real music, to measure how far parts of it are from each other

DIMENSIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # dimension: (metrics of a piece, histograms of a piece); see `etude.metrics.scores.tables`
    "rhythm": (
        ("notes per beat", "on the beat", "empty beats", "groove consistency", "drum pattern"),
        ("onset in the beat", "duration"),
    ),
    "harmony": (
        ("polyphony", "polyphony rate", "dissonance", "parallel fifths", "parallel octaves", "out of key", "key clarity"),
        ("pitch class above the tonic",),
    ),
    "melody": (
        ("pitches used", "pitch range", "pitch entropy", "pitch-class entropy", "stepwise motion"),
        ("melodic interval",),
    ),
    "structure": (("repeated bars", "self-similarity", "empty bars", "repetition", "key drift"), ()),
}


@dataclass(frozen=True)
class PieceFeatures:
    """The metrics and histograms of a set of pieces.

    Attributes:
        metrics: name -> float64 [n], NaN where it is not defined for a piece.
        histograms: name -> counts [n, bins].
    """

    metrics: Mapping[str, Floats]
    histograms: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.metrics.values())))

    def take(self, rows: NDArray[Any]) -> "PieceFeatures":
        """Returns the features of the pieces with these indices."""
        return PieceFeatures(
            {name: values[rows] for name, values in self.metrics.items()},
            {name: counts[rows] for name, counts in self.histograms.items()},
        )

    @property
    def matrix(self) -> Floats:
        """The metrics as one matrix, [n, d]."""
        return np.stack(list(self.metrics.values()), axis=1)

    def standardised(self, features: Floats) -> Floats:
        """Standardises a feature matrix [n, d] by this set's means and deviations; NaN becomes 0, values are clipped to -8..8."""
        mean, scale = (np.array(column) for column in zip(*map(_moments, self.metrics.values()), strict=True))
        standardised: Floats = np.nan_to_num((features - mean) / scale, nan=0.0).clip(-MAX_DEVIATIONS, MAX_DEVIATIONS)
        return standardised


def measure_features(scores: Sequence[Score]) -> PieceFeatures:
    """Computes every metric and histogram of `DIMENSIONS` for every piece.

    Raises:
        ValueError: no scores.
    """
    if not scores:
        raise ValueError("scores is empty; give at least one piece")
    names = [name for metrics, _ in DIMENSIONS.values() for name in metrics]
    rows, counts = [], []
    for score in scores:
        notes = NoteArray.from_score(score)
        rows.append({**piece_metrics(score), "repetition": repetition(notes), "key drift": key_drift(notes)})
        counts.append(piece_histograms(score))
    return PieceFeatures(
        {name: np.array([row[name] for row in rows], np.float64) for name in names},
        {name: np.stack([count[name] for count in counts]) for name in counts[0]},
    )


def _moments(values: Floats) -> tuple[float, float]:
    """Mean and standard deviation; the deviation is limited from below, so that one can divide by it."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return math.nan, 1.0
    mean = float(defined.mean())
    return mean, max(float(defined.std()), MIN_SPREAD * max(abs(mean), 1.0))


def distances(samples: PieceFeatures, real: PieceFeatures) -> dict[str, float]:
    """Returns the distance of samples from real music in each feature, 0 if they agree.

    For a metric, it is the Wasserstein distance of its distributions over pieces, in standard deviations of real music; it
    is infinite if the metric is defined for no sample. For a histogram, it is 1 minus the overlap of the pooled histograms,
    0..1. A feature that is defined for fewer than three real pieces is left out.
    """
    found = {}
    for name, values in real.metrics.items():
        defined = values[np.isfinite(values)]
        if len(defined) >= min(3, len(real)) and len(defined):
            sampled = samples.metrics[name][np.isfinite(samples.metrics[name])]
            found[name] = wasserstein(sampled, defined) / _moments(values)[1] if len(sampled) else math.inf
    for name, counts in real.histograms.items():
        if counts.any():
            shared = histogram_overlap(samples.histograms[name].sum(axis=0), counts.sum(axis=0))
            found[name] = 1 - (0.0 if math.isnan(shared) else shared)
    return found


def distances_within_real(real: PieceFeatures, *, count: int, seed: int = 0) -> dict[str, float]:
    """Returns the distance of `count` real pieces from the other real pieces in each feature, the mean of eight random draws.

    This is the distance that perfect samples can be expected to have. `count` is limited to half of the real pieces. With
    fewer than four real pieces the result is empty, which stands for distances of 0.
    """
    count = min(count, len(real) // 2)
    if count < 2:
        return {}
    draw = np.random.default_rng(seed)
    rows = [draw.permutation(len(real)) for _ in range(NUM_DRAWS)]
    found = [distances(real.take(row[:count]), real.take(row[count:])) for row in rows]
    names = set.intersection(*(set(part) for part in found))
    means = {name: float(np.mean([part[name] for part in found])) for name in sorted(names)}
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def closeness(samples: PieceFeatures, real: PieceFeatures, *, expected: Mapping[str, float]) -> dict[str, float]:
    """Returns the closeness of samples to real music in each feature: 1 as close as other real music, 0 far away.

    For a metric exp(-max(distance - expected distance, 0)), for a histogram min(1, overlap / expected overlap).

    Args:
        expected: the result of `distances_within_real`; features that are missing there count as 0.
    """
    found = {}
    for name, distance in distances(samples, real).items():
        allowed = expected.get(name, 0.0)
        if name in real.histograms:
            found[name] = min((1 - distance) / max(1 - allowed, 1e-9), 1.0)
        else:
            found[name] = math.exp(-max(distance - allowed, 0.0))
    return found


def dimension_scores(closeness: Mapping[str, float]) -> dict[str, float]:
    """Returns the mean closeness of the features of each dimension, and the mean of the dimensions as `quality`; all 0..1.

    A dimension is NaN, and left out of `quality`, if none of its features is defined for the real music, such as melody in
    music for drums alone.
    """
    scores = {}
    for dimension, (metrics, histograms) in DIMENSIONS.items():
        values = [closeness[name] for name in (*metrics, *histograms) if name in closeness]
        scores[dimension] = float(np.mean(values)) if values else math.nan
    defined = [score for score in scores.values() if not math.isnan(score)]
    return {**scores, "quality": float(np.mean(defined)) if defined else math.nan}


def quality_of_pieces(samples: PieceFeatures, real: PieceFeatures) -> Floats:
    """Returns how close each single sample is to real music, float64 [n]: 1 within its usual spread, 0 far away or without notes.

    As `closeness` does for sets, but with the distance of one piece: exp(-max(|z| - m, 0)) for each metric, where z is its value
    in standard deviations of real music from the mean, and m is the mean |z| of real pieces. The result is the mean over metrics,
    then over dimensions; histograms, which need many notes, and metrics that a sample does not define are left out.
    """
    mine, theirs = np.abs(real.standardised(samples.matrix)), np.abs(real.standardised(real.matrix))
    close = np.exp(-np.maximum(mine - theirs.mean(axis=0), 0.0))
    close[~np.isfinite(samples.matrix) | ~np.isfinite(real.matrix).any(axis=0)] = math.nan
    names = list(samples.metrics)
    quality = np.zeros((len(samples), len(DIMENSIONS)))
    for place, (metrics, _) in enumerate(DIMENSIONS.values()):
        values = close[:, [names.index(name) for name in metrics]]
        known = np.isfinite(values)
        quality[:, place] = np.where(known.any(1), np.nansum(values, axis=1) / np.maximum(known.sum(1), 1), math.nan)
    counted = np.isfinite(quality)
    found: Floats = np.nansum(quality, axis=1) / np.maximum(counted.sum(1), 1)
    return found
