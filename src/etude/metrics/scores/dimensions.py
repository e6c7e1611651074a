"""How near a set of pieces comes to real music in rhythm, harmony, melody and structure: one number each, 0..1.

Shapes: n pieces, d features.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from symusic import Score

from etude.metrics.scores.alarms import key_drift, repetition
from etude.metrics.scores.notes import NoteArray
from etude.metrics.scores.tables import piece_histograms, piece_metrics
from etude.metrics.sets.distributions import histogram_overlap, wasserstein

Floats = NDArray[np.float64]
SMALLEST_SPREAD = 0.05  # of a share, or of a mean: a metric in which real music hardly varies
LARGEST = 8.0  # deviations beyond which a feature says no more
DRAWS = 8  # divisions of real music that say how far it is from itself

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
class Described:
    """A set of pieces in numbers.

    Attributes:
        metrics: name -> float64 [n], NaN where a piece does not define it.
        histograms: name -> counts [n, bins].
    """

    metrics: Mapping[str, Floats]
    histograms: Mapping[str, NDArray]

    def __len__(self) -> int:
        return len(next(iter(self.metrics.values())))

    def take(self, rows: NDArray) -> "Described":
        """Those pieces."""
        return Described(
            {name: values[rows] for name, values in self.metrics.items()},
            {name: counts[rows] for name, counts in self.histograms.items()},
        )

    @property
    def features(self) -> Floats:
        """The metrics side by side, [n, d]."""
        return np.stack(list(self.metrics.values()), axis=1)

    def standardised(self, features: Floats) -> Floats:
        """`features` of other pieces in this set's means and deviations [n, d], 0 where not defined, at most 8 either way."""
        mean, scale = (np.array(column) for column in zip(*map(_moments, self.metrics.values()), strict=True))
        return np.nan_to_num((features - mean) / scale, nan=0.0).clip(-LARGEST, LARGEST)


def describe(scores: Sequence[Score]) -> Described:
    """Measures every metric and histogram of `DIMENSIONS` of every piece.

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
    return Described(
        {name: np.array([row[name] for row in rows], np.float64) for name in names},
        {name: np.stack([count[name] for count in counts]) for name in counts[0]},
    )


def _moments(values: Floats) -> tuple[float, float]:
    """Mean and a deviation that is never nearly 0."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return math.nan, 1.0
    mean = float(defined.mean())
    return mean, max(float(defined.std()), SMALLEST_SPREAD * max(abs(mean), 1.0))


def distances(samples: Described, real: Described) -> dict[str, float]:
    """How far samples are from real music in each feature, 0 where they agree.

    Of a metric the Wasserstein distance of its distributions over pieces in real music's standard deviations, infinite
    where no sample defines what real music does; of a histogram the mass that the pooled ones do not share, 0..1. A feature
    that fewer than three real pieces define is left out.
    """
    found = {}
    for name, values in real.metrics.items():
        defined = values[np.isfinite(values)]
        if len(defined) >= min(3, len(real)) and len(defined):
            mine = samples.metrics[name][np.isfinite(samples.metrics[name])]
            found[name] = wasserstein(mine, defined) / _moments(values)[1] if len(mine) else math.inf
    for name, counts in real.histograms.items():
        if counts.any():
            shared = histogram_overlap(samples.histograms[name].sum(axis=0), counts.sum(axis=0))
            found[name] = 1 - (0.0 if math.isnan(shared) else shared)
    return found


def own_distances(real: Described, *, count: int, seed: int = 0) -> dict[str, float]:
    """How far `count` real pieces are from the other real ones, mean of eight draws: what samples can be expected to reach.

    count is cut to half of the real pieces. Empty, which stands for 0, below four of them.
    """
    count = min(count, len(real) // 2)
    if count < 2:
        return {}
    draw = np.random.default_rng(seed)
    rows = [draw.permutation(len(real)) for _ in range(DRAWS)]
    found = [distances(real.take(row[:count]), real.take(row[count:])) for row in rows]
    names = set.intersection(*(set(part) for part in found))
    means = {name: float(np.mean([part[name] for part in found])) for name in sorted(names)}
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def closeness(samples: Described, real: Described, *, own: Mapping[str, float]) -> dict[str, float]:
    """Each feature's closeness to real music, 1 where samples are as near to it as it is to itself, 0 far away.

    Of a metric exp(-max(distance - own distance, 0)), of a histogram min(1, shared mass / own shared mass).

    Args:
        own: of `own_distances`; empty for 0.
    """
    found = {}
    for name, distance in distances(samples, real).items():
        expected = own.get(name, 0.0)
        if name in real.histograms:
            found[name] = min((1 - distance) / max(1 - expected, 1e-9), 1.0)
        else:
            found[name] = math.exp(-max(distance - expected, 0.0))
    return found


def dimension_scores(closeness: Mapping[str, float]) -> dict[str, float]:
    """Mean closeness of the features of each dimension, and of the dimensions as `quality`; all 0..1.

    NaN for a dimension none of whose features real music defines (melody, in music for drums alone), which quality leaves
    out.
    """
    scores = {}
    for dimension, (metrics, histograms) in DIMENSIONS.items():
        values = [closeness[name] for name in (*metrics, *histograms) if name in closeness]
        scores[dimension] = float(np.mean(values)) if values else math.nan
    defined = [score for score in scores.values() if not math.isnan(score)]
    return {**scores, "quality": float(np.mean(defined)) if defined else math.nan}
