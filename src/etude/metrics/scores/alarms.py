"""Alarms for a set of samples that are too much alike, repeat themselves, drift out of their key or copy.

The thresholds come from the same statistics of real music.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from etude.metrics.scores.notes import NoteArray
from etude.music.theory import MODES, Key, fifths_distance, key_correlations

Floats = NDArray[np.float64]
GRID = 12  # ticks per beat at which beats are compared
MAX_DISTANCE_BEATS = 4  # a beat counts as repeated if it equals one of so many beats before it
COLLAPSE_SHARE = 0.5  # of the diversity of real music, or of the run's own mean diversity; below it, samples have collapsed
MIN_SPREAD = 0.05  # least deviation that counts: of a share, or relative to a mean above 1


def repetition(notes: NoteArray) -> float:
    """Share of beats, after the first, that equal one of the four beats before; 0..1, NaN for fewer than two beats.

    Two beats are equal if the same pitches begin and end at the same positions (12 per beat). Notes that last beyond a
    beat are included, and two silent beats are equal. A chord held throughout gives nearly 1, and so does a short pattern
    repeated throughout.
    """
    notes = notes.resample(GRID)
    beats = -(-notes.end // GRID)
    if beats < 2:
        return math.nan
    first = notes.onset // GRID
    spans = np.maximum(-(-(notes.onset + notes.duration) // GRID) - first, 1)
    note = np.repeat(np.arange(len(notes)), spans)
    beat = first[note] + np.arange(len(note)) - np.repeat(np.cumsum(spans) - spans, spans)
    begin = np.maximum(notes.onset[note] - beat * GRID, -1)
    end = np.minimum((notes.onset + notes.duration)[note] - beat * GRID, GRID + 1)
    rows = np.stack([beat, notes.pitch[note], begin, end, notes.is_drum[note].astype(np.int64)], axis=1)
    rows = rows[np.lexsort(rows.T[::-1])]
    edges = np.searchsorted(rows[:, 0], np.arange(beats + 1))
    contents = [rows[a:b, 1:].tobytes() for a, b in pairwise(edges.tolist())]
    return sum(contents[i] in contents[max(i - MAX_DISTANCE_BEATS, 0) : i] for i in range(1, beats)) / (beats - 1)


def key_drift(notes: NoteArray) -> float:
    """Steps on the circle of fifths between the keys of a piece's two halves, 0..6; NaN if a half has no pitched note.

    A note belongs to the half in which it begins. Keys are estimated from durations, as in `etude.music.theory.estimate_key`.
    """
    notes = notes.pitched
    late = notes.onset * 2 >= notes.end
    halves = [np.bincount(notes.pitch[part] % 12, notes.duration[part], minlength=12) for part in (~late, late)]
    if not all(half.any() for half in halves):
        return math.nan
    best = [int(np.argmax(key_correlations(half).round(9))) for half in halves]
    return float(fifths_distance(*(Key(i % 12, MODES[i // 12]) for i in best)))


def diversity(features: Floats) -> float:
    """Mean distance between every two pieces of a set; NaN for fewer than two pieces.

    The distance is the root of the mean squared difference over features.

    Args:
        features: [n, d], standardised by real music. 1 to 2 is then high; 0 means that all pieces are equal.
    """
    n = len(features)
    if n < 2:
        return math.nan
    squares = ((features[:, None] - features[None]) ** 2).mean(axis=-1)
    return float(np.sqrt(squares)[np.triu_indices(n, k=1)].mean())


@dataclass(frozen=True)
class ReferenceStatistic:
    """Mean and standard deviation over pieces of real music of one statistic, such as repetition."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Floats) -> "ReferenceStatistic":
        """Computes it from the values of pieces, without NaN; both numbers are NaN if none is left."""
        defined = values[np.isfinite(values)]
        if not len(defined):
            return cls(math.nan, math.nan)
        return cls(float(defined.mean()), float(defined.std()))

    def above(self, value: float, *, tolerance: float) -> bool:
        """Whether `value`, a mean over samples, exceeds the mean by more than `tolerance` standard deviations."""
        spread = max(self.std, MIN_SPREAD * max(self.mean, 1.0))
        return value > self.mean + tolerance * spread  # False where either is NaN


def alarms(
    found: Mapping[str, float], real: Mapping[str, ReferenceStatistic], *, running_diversity: float | None, tolerance: float
) -> dict[str, str]:
    """Returns the raised alarms: name -> a line that says why. Empty if all is well.

    `collapse` is raised if the samples' diversity is below half of real music's, or below half of the running mean of
    earlier measurements. Any other statistic in `real` (repetition, key drift, copying) raises an alarm if the samples'
    mean exceeds real music's by more than `tolerance` of its standard deviations.

    Args:
        found: the samples' `diversity` and their means of the statistics named in `real`.
        real: each statistic of real music, `diversity` included, of which only the mean is used.
        running_diversity: running mean of the samples' diversity in earlier measurements, None before the first.
        tolerance: in standard deviations over pieces of real music, above 0.
    """
    raised = {}
    current, level = found["diversity"], real["diversity"].mean
    if current < COLLAPSE_SHARE * level:
        raised["collapse"] = f"diversity among samples is {current:.2f}, of real music {level:.2f}: they are much alike"
    elif running_diversity is not None and current < COLLAPSE_SHARE * running_diversity:
        raised["collapse"] = f"diversity among samples fell to {current:.2f}, it was about {running_diversity:.2f}"
    for name, of_real in real.items():
        if name != "diversity" and of_real.above(found[name], tolerance=tolerance):
            raised[name] = f"{name} is {found[name]:.2f}, of real music {of_real.mean:.2f} (deviation {of_real.std:.2f})"
    return raised
