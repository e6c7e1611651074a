"""A plateau counts what is no better, whichever way is better, and resumes where it stood."""

import math

import pytest

from etude.optim.plateau import Plateau


@pytest.mark.parametrize(
    ("mode", "values"), [("min", [3.0, 2.0, 1.6, 1.4, math.nan]), ("max", [-3.0, -2.0, -1.6, -1.4, math.nan])]
)
def test_the_best_is_the_value_itself_and_small_steps_are_none(mode: str, values: list[float]) -> None:
    plateau = Plateau(mode=mode, min_delta=0.5)
    assert [plateau.improves(value) for value in values] == [True, True, False, True, False]
    assert (plateau.best, plateau.waited) == (values[3], 1)
    resumed = Plateau(mode=mode, min_delta=0.5)
    resumed.load_state_dict(plateau.state_dict())
    assert not resumed.improves(values[3]) and resumed.waited == 2


@pytest.mark.parametrize(("mode", "best"), [("min", 1.5), ("max", -1.5)])
def test_a_state_of_before_the_mode_was_saved_is_read(mode: str, best: float) -> None:
    plateau = Plateau(mode=mode)
    plateau.load_state_dict({"best": 1.5} if mode == "min" else {"best": 1.5, "waited": 2})
    assert (plateau.best, plateau.waited) == (best, 0 if mode == "min" else 2)
