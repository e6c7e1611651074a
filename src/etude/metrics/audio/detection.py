"""How well defects and borders are found: precision and recall, average precision, confusion, matched borders.

Shapes: n examples, d classes, f frames.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etude.audio.grades import APART_SECONDS, pick_peaks
from etude.metrics.audio.mel_features import count_matches

Floats = NDArray[np.float64]


class PrecisionRecall(NamedTuple):
    """Precision and recall at each threshold, the thresholds falling."""

    precision: Floats
    recall: Floats
    threshold: Floats


def precision_recall(scores: ArrayLike, truths: ArrayLike) -> PrecisionRecall:
    """Returns precision and recall for "at least the threshold", at every different score.

    Args:
        scores: [n], higher for positives. truths: 0 or 1, [n], with at least one 1.

    Raises: ValueError if no example is positive.
    """
    order = np.argsort(-np.asarray(scores, np.float64).ravel(), kind="stable")
    ranked, true = np.asarray(scores, np.float64).ravel()[order], np.asarray(truths, np.float64).ravel()[order]
    if not true.sum():
        raise ValueError("truths has no positive example, so recall is not defined; give some")
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # equal scores share a threshold
    hits = np.cumsum(true)[last]
    return PrecisionRecall(hits / (last + 1), hits / true.sum(), ranked[last])


def average_precision(scores: ArrayLike, truths: ArrayLike) -> float:
    """Returns sum over thresholds of (recall - recall before) * precision, in [0, 1]; NaN if no example is positive.

    Source: the definition of scikit-learn's `average_precision_score`.
    """
    if not np.asarray(truths).any():
        return math.nan
    curve = precision_recall(scores, truths)
    return float(np.sum(np.diff(curve.recall, prepend=0.0) * curve.precision))


def confusion(probabilities_nd: ArrayLike, truths_nd: ArrayLike, *, threshold: float = 0.5) -> NDArray[np.int64]:
    """Returns counts [1 + d, 1 + d] over the examples with at most one true class: true class, then predicted class.

    The predicted class is the most probable one, or none (0) if it is below the threshold. Row and column 0 are "none".
    """
    said, true = np.asarray(probabilities_nd, np.float64), np.asarray(truths_nd, np.float64) > 0.5
    single = true.sum(1) <= 1
    row = np.where(true.any(1), true.argmax(1) + 1, 0)[single]
    column = np.where(said.max(1) >= threshold, said.argmax(1) + 1, 0)[single]
    found = np.zeros((true.shape[1] + 1,) * 2, np.int64)
    np.add.at(found, (row, column), 1)
    return found


class Matched(NamedTuple):
    """Numbers of borders: found, true, and matched one to one."""

    found: int
    true: int
    hits: int

    @property
    def f1(self) -> float:
        """2 hits / (found + true), in [0, 1]; NaN if there are none of either."""
        total = self.found + self.true
        return 2 * self.hits / total if total else math.nan


def match_borders(found: Sequence[ArrayLike], true: Sequence[ArrayLike], *, window_seconds: float) -> Matched:
    """Counts the borders of several clips, and those that match one to one within a window; times in seconds, ascending."""
    pairs = [(np.asarray(one, np.float64), np.asarray(two, np.float64)) for one, two in zip(found, true, strict=True)]
    hits = sum(count_matches(one, two, window=window_seconds) for one, two in pairs)
    return Matched(sum(len(one) for one, _ in pairs), sum(len(two) for _, two in pairs), hits)


WINDOW_SECONDS = {"onsets": 0.05, "sections": 0.5}  # between a border and the one that it matches, at most
THRESHOLDS = tuple(round(0.1 + 0.05 * step, 2) for step in range(15))


def border_times(marks_f: ArrayLike, *, frame_rate: float) -> Floats:
    """Returns the centres, in seconds, of the marked frames of [f]."""
    frames = np.flatnonzero(np.asarray(marks_f) > 0.5).astype(np.float64)
    return (frames + 0.5) / frame_rate


def score_borders(probability_bf: ArrayLike, marks_bf: ArrayLike, *, kind: str, frame_rate: float, threshold: float) -> Matched:
    """Counts the borders of a kind, "onsets" or "sections", in the rows of [b, f], and those that match."""
    options = {"frame_rate": frame_rate, "apart_seconds": APART_SECONDS[kind], "threshold": threshold}
    found = [pick_peaks(row, **options) for row in np.asarray(probability_bf)]
    true = [border_times(row, frame_rate=frame_rate) for row in np.asarray(marks_bf)]
    return match_borders(found, true, window_seconds=WINDOW_SECONDS[kind])


def best_threshold(probability_bf: ArrayLike, marks_bf: ArrayLike, *, kind: str, frame_rate: float) -> float:
    """Returns that of `THRESHOLDS` which gives the highest F1; the middle one where there are no borders."""
    scores = {
        each: score_borders(probability_bf, marks_bf, kind=kind, frame_rate=frame_rate, threshold=each).f1 for each in THRESHOLDS
    }
    known = {each: value for each, value in scores.items() if not math.isnan(value)}
    return max(known, key=lambda each: known[each]) if np.asarray(marks_bf).any() else THRESHOLDS[len(THRESHOLDS) // 2]
