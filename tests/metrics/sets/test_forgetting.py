"""The figures of a forgetting matrix, by hand."""

import math

import pytest

from etude.metrics.sets.forgetting import transfer

NATS = [[1.0, 4.0, 5.0], [1.6, 2.0, 4.4], [2.0, 2.5, 3.0]]
START = [5.0, 5.0, 5.0]


def test_the_figures_are_those_of_a_matrix_solved_by_hand() -> None:
    found = transfer(NATS, START)
    assert found["final"] == pytest.approx(7.5 / 3)
    assert found["backward_transfer"] == pytest.approx(-((2.0 - 1.0) + (2.5 - 2.0)) / 2)
    assert found["forward_transfer"] == pytest.approx(((5 - 4.0) + (5 - 4.4)) / 2)
    assert found["forgetting"] == pytest.approx(0.75)


def test_of_accuracies_higher_is_better() -> None:
    found = transfer([[0.9, 0.2], [0.5, 0.8]], [0.1, 0.1], higher_is_better=True)
    assert found["backward_transfer"] == pytest.approx(-0.4) and found["forward_transfer"] == pytest.approx(0.1)
    assert found["forgetting"] == pytest.approx(0.4)


def test_a_model_that_never_changes_forgets_nothing() -> None:
    found = transfer([[2.0, 3.0]] * 2, [2.0, 3.0])
    assert found == {"final": 2.5, "backward_transfer": 0.0, "forward_transfer": 0.0, "forgetting": 0.0}


def test_one_phase_has_no_transfer_and_other_shapes_are_told() -> None:
    assert math.isnan(transfer([[1.0]], [2.0])["backward_transfer"])
    with pytest.raises(ValueError, match=r"measured_pp is \(1, 2\)"):
        transfer([[1.0, 2.0]], [1.0, 2.0])
