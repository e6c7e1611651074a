"""When samples go wrong as a set: they are all alike, they go round in circles, they lose their key.

Each threshold is set by what real music does.
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
REACH = 4  # beats before, of which a beat may be a repetition
COLLAPSE = 0.5  # of real music's diversity, or of the run's own level
SMALLEST_SPREAD = 0.05  # of a share, or of a mean: real music that hardly differs sets no sharper threshold


def repetition(notes: NoteArray) -> float:
    """Share of beats, after the first, that sound exactly as one of the four beats before; 0..1, NaN below two beats.

    Equal beats have the same pitches beginning and ending at the same positions (12 per beat), notes held over a beat's
    edges included; two beats of silence are equal. A chord that is held for ever comes to 1, as does an endless figure.
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
    return sum(contents[i] in contents[max(i - REACH, 0) : i] for i in range(1, beats)) / (beats - 1)


def key_drift(notes: NoteArray) -> float:
    """Steps on the circle of fifths between the keys of a piece's first and second half, 0..6; NaN where one is silent.

    A note belongs to the half in which it begins; keys by duration as in `etude.music.theory.estimate_key`.
    """
    notes = notes.pitched
    late = notes.onset * 2 >= notes.end
    halves = [np.bincount(notes.pitch[part] % 12, notes.duration[part], minlength=12) for part in (~late, late)]
    if not all(half.any() for half in halves):
        return math.nan
    best = [int(np.argmax(key_correlations(half).round(9))) for half in halves]
    return float(fifths_distance(*(Key(i % 12, MODES[i // 12]) for i in best)))


def diversity(features: Floats) -> float:
    """Mean distance between every two pieces, sqrt of the mean squared difference over features; NaN below two pieces.

    Args:
        features: [n, d], standardised by real music, so that 1 to 2 is much and 0 means that all are one.
    """
    n = len(features)
    if n < 2:
        return math.nan
    squares = ((features[:, None] - features[None]) ** 2).mean(axis=-1)
    return float(np.sqrt(squares)[np.triu_indices(n, k=1)].mean())


@dataclass(frozen=True)
class Level:
    """What real music does in one statistic of a piece: mean and standard deviation over pieces."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Floats) -> "Level":
        defined = values[np.isfinite(values)]
        if not len(defined):
            return cls(math.nan, math.nan)
        return cls(float(defined.mean()), float(defined.std()))

    def above(self, value: float, *, tolerance: float) -> bool:
        """Whether a mean over samples lies more than `tolerance` deviations of real music above its mean."""
        spread = max(self.std, SMALLEST_SPREAD * max(self.mean, 1.0))
        return value > self.mean + tolerance * spread  # False where either is NaN


def alarms(
    found: Mapping[str, float], real: Mapping[str, Level], *, running_diversity: float | None, tolerance: float
) -> dict[str, str]:
    """Which alarms ring, each with a line that says why; empty where all is well.

    `collapse`: the samples' diversity is below half of real music's, or below half of its running level. Any other
    statistic of `real` (repetition, key drift, copying): the samples' mean is above real music's by more than `tolerance`
    of its standard deviations.

    Args:
        found: the samples' `diversity` and means of the statistics named in `real`.
        real: level of each statistic; `diversity` among them, of which only the mean counts.
        running_diversity: level of earlier runs, None before the first.
        tolerance: in standard deviations over real pieces, above 0.
    """
    ringing = {}
    own, level = found["diversity"], real["diversity"].mean
    if own < COLLAPSE * level:
        ringing["collapse"] = f"diversity among samples is {own:.2f}, of real music {level:.2f}: they are much alike"
    elif running_diversity is not None and own < COLLAPSE * running_diversity:
        ringing["collapse"] = f"diversity among samples fell to {own:.2f}, it was about {running_diversity:.2f}"
    for name, of_real in real.items():
        if name != "diversity" and of_real.above(found[name], tolerance=tolerance):
            ringing[name] = f"{name} is {found[name]:.2f}, of real music {of_real.mean:.2f} (deviation {of_real.std:.2f})"
    return ringing
