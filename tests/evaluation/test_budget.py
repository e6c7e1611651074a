"""The time budget, with a clock set by hand."""

import pytest

from etude.evaluation.budget import TimeBudget


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def spend(budget: TimeBudget, clock: Clock, seconds: float) -> None:
    with budget.spending():
        clock.now += seconds


def test_the_share_is_of_the_rest() -> None:
    clock = Clock()
    budget = TimeBudget(0.1, clock=clock)
    budget.start()
    clock.now += 50
    assert budget.fits(5.0) and not budget.fits(5.1)
    spend(budget, clock, 5.0)
    assert budget.training_seconds == 50 and budget.share_spent == pytest.approx(0.1)
    assert not budget.fits(0.1)
    clock.now += 10
    assert budget.fits(1.0)


def test_what_was_spent_too_much_is_earned_back() -> None:
    clock = Clock()
    budget = TimeBudget(0.1, clock=clock)
    budget.start()
    clock.now += 1
    spend(budget, clock, 4.0)
    for _ in range(100):
        clock.now += 1
        if budget.fits(2.0):
            spend(budget, clock, 2.0)
            assert budget.share_spent <= 0.1
    assert budget.spent == pytest.approx(10.0)


def test_failures_and_pauses() -> None:
    clock = Clock()
    budget = TimeBudget(0.1, clock=clock)
    assert budget.share_spent == 0 and not budget.running
    budget.start()
    clock.now += 10
    with pytest.raises(RuntimeError), budget.spending():
        clock.now += 3
        raise RuntimeError
    budget.stop()
    clock.now += 1000
    assert (budget.spent, budget.training_seconds) == (3, 10)


def test_a_resumed_run_goes_on_counting() -> None:
    clock = Clock()
    budget = TimeBudget(0.1, clock=clock)
    budget.start()
    clock.now += 20
    spend(budget, clock, 1.0)
    other = TimeBudget(0.1, clock=clock)
    other.load_state_dict(budget.state_dict())
    clock.now += 500  # between the two runs
    other.start()
    clock.now += 5
    assert (other.spent, other.training_seconds) == (1, 25)
