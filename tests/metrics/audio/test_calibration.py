"""Calibration: known errors, bins that add up, and a temperature that undoes the one that was applied."""

import numpy as np
import pytest

from etude.metrics.audio.calibration import (
    expected_calibration_error,
    fit_temperature,
    fit_temperatures,
    log_loss,
    reliability,
    sigmoid,
)


def drawn(count: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and truths that are as probable as these say."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-0.5, 2, count)
    return logits, (rng.random(count) < sigmoid(logits)).astype(float)


def test_what_is_drawn_as_said_has_hardly_an_error() -> None:
    logits, truths = drawn()
    assert expected_calibration_error(sigmoid(logits), truths) < 0.015


def test_the_error_is_the_gap_weighted_by_the_bins() -> None:
    said, true = [0.1, 0.1, 0.1, 0.1, 0.9], [0, 0, 1, 1, 1]
    assert expected_calibration_error(said, true, num_bins=2) == pytest.approx((4 * abs(0.5 - 0.1) + abs(1 - 0.9)) / 5)
    assert np.isnan(expected_calibration_error([], []))


def test_bins_hold_every_example_once() -> None:
    bins = reliability([0.0, 0.2, 0.5, 1.0], [0, 1, 0, 1], num_bins=5)
    assert bins.number.tolist() == [1, 1, 1, 0, 1] and bins.frequency[4] == 1 and np.isnan(bins.frequency[3])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_that_was_applied_is_found(temperature: float) -> None:
    logits, truths = drawn()
    found = fit_temperature(logits * temperature, truths)
    assert found == pytest.approx(temperature, rel=0.05)
    assert log_loss(logits * temperature / found, truths) <= log_loss(logits * temperature, truths) + 1e-9


def test_each_column_has_its_own_and_one_class_alone_has_none() -> None:
    logits, truths = drawn()
    columns = np.stack([2 * logits, logits, logits], axis=1)
    found = fit_temperatures(columns, np.stack([truths, truths, np.zeros_like(truths)], axis=1))
    assert found[0] == pytest.approx(2 * found[1], rel=0.01) and found[2] == 1.0
    assert fit_temperature([], []) == 1.0


def test_sigmoid_does_not_overflow() -> None:
    assert sigmoid([-1e4, 0.0, 1e4]).tolist() == [0.0, 0.5, 1.0]
