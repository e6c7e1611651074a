"""Detection figures against scikit-learn, and against borders that are matched by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from etude.audio.grades import pick_peaks
from etude.metrics.audio.detection import (
    average_precision,
    best_threshold,
    confusion,
    match_borders,
    precision_recall,
    score_borders,
)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, truths = rng.normal(size=200).round(1), rng.random(200) < 0.3  # rounded: many are equal
    assert average_precision(scores, truths) == pytest.approx(average_precision_score(truths, scores))
    found = precision_recall(scores, truths)
    precision, recall, threshold = precision_recall_curve(truths, scores)
    assert np.allclose(found.precision[::-1], precision[:-1]) and np.allclose(found.recall[::-1], recall[:-1])
    assert np.allclose(found.threshold[::-1], threshold)


def test_without_positives_there_is_no_curve() -> None:
    assert math.isnan(average_precision([0.1, 0.2], [0, 0]))
    with pytest.raises(ValueError, match="no positive example"):
        precision_recall([0.1], [0])


def test_confusion_counts_examples_with_one_class_or_none() -> None:
    said = [[0.9, 0.1], [0.2, 0.1], [0.3, 0.8], [0.6, 0.7], [0.9, 0.9]]
    true = [[1, 0], [0, 0], [0, 1], [1, 0], [1, 1]]
    assert confusion(said, true).tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]


def test_peaks_are_apart_and_a_plateau_is_one() -> None:
    values = np.zeros(40)
    values[[5, 7, 20, 21, 22, 35]] = [0.9, 0.8, 0.6, 0.6, 0.6, 0.2]
    found = pick_peaks(values, frame_rate=10, apart_seconds=0.3, threshold=0.5)
    assert found == pytest.approx([0.55, 2.05])
    assert len(pick_peaks([], frame_rate=10, apart_seconds=0.3, threshold=0.5)) == 0


def test_borders_match_one_to_one_within_the_window() -> None:
    found = match_borders([[1.0, 1.02, 5.0], [2.0]], [[1.01, 5.2], []], window_seconds=0.05)
    assert (found.found, found.true, found.hits) == (4, 2, 1) and found.f1 == pytest.approx(2 / 6)
    assert math.isnan(match_borders([[]], [[]], window_seconds=0.05).f1)


def test_the_best_threshold_separates() -> None:
    marks, said = np.zeros((2, 100)), np.full((2, 100), 0.01)
    marks[:, 50], said[:, 50], said[:, 10] = 1, 0.5, 0.3
    chosen = best_threshold(said, marks, kind="sections", frame_rate=62.5)
    assert 0.3 < chosen <= 0.5
    assert score_borders(said, marks, kind="sections", frame_rate=62.5, threshold=chosen).f1 == 1
    assert score_borders(said, marks, kind="sections", frame_rate=62.5, threshold=0.2).f1 == pytest.approx(2 / 3)
    assert 0 < best_threshold(said, np.zeros((2, 100)), kind="onsets", frame_rate=62.5) < 1
