"""Accuracy over classes against scikit-learn, and the temperature against a grid."""

import numpy as np
import pytest
from sklearn import metrics

from etude.metrics.sets import classes


def draws(seed: int, n: int = 300, c: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.choice(c, n, p=[0.6, 0.25, 0.1, 0.05])
    return 3 * (rng.normal(size=(n, c)) + 1.5 * np.eye(c)[true]), true


def test_they_are_scikit_learns() -> None:
    logits, true = draws(0)
    said = logits.argmax(-1)
    assert classes.accuracy(said, true) == pytest.approx(metrics.accuracy_score(true, said))
    assert classes.balanced_accuracy(said, true) == pytest.approx(metrics.balanced_accuracy_score(true, said))
    assert (classes.confusion(said, true, num_classes=4) == metrics.confusion_matrix(true, said)).all()
    assert classes.log_loss(logits, true) == pytest.approx(metrics.log_loss(true, classes.softmax(logits)))
    assert np.isnan(classes.accuracy([], [])) and np.isnan(classes.balanced_accuracy([], []))


def test_the_temperature_has_the_lowest_log_loss_and_calibrates() -> None:
    logits, true = draws(1, n=4000)
    found = classes.fit_temperature(logits, true)
    grid = np.exp(np.linspace(-2, 2, 401))
    assert found == pytest.approx(grid[np.argmin([classes.log_loss(logits / t, true) for t in grid])], rel=0.02)
    before, after = (classes.calibration_error(classes.softmax(logits / t), true) for t in (1.0, found))
    assert after < 0.03 < before


def test_the_calibration_error_is_the_gap() -> None:
    probabilities = np.array([[0.8, 0.2]] * 10)
    assert classes.calibration_error(probabilities, np.array([0] * 5 + [1] * 5)) == pytest.approx(0.3)


def test_the_reliability_is_the_confidence_and_accuracy_of_bins() -> None:
    probabilities = np.array([[0.95, 0.05]] * 4 + [[0.45, 0.55]] * 2)
    said, right, count = classes.reliability(probabilities, np.array([0, 0, 0, 1, 1, 0]), num_bins=10)
    assert count.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 4]
    assert said[[5, 9]] == pytest.approx([0.55, 0.95]) and right[[5, 9]] == pytest.approx([0.5, 0.75])
    assert said[0] == right[0] == 0
