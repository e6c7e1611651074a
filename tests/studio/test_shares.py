"""Shares of right answers: exact intervals and tests against values computed by hand, and sentences that fit them."""

import math
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.studio.shares import FEWEST, LEVEL, Share, chance, percent, verdict


def tail(least: int, answers: int, chance: float) -> float:
    """The probability of at least `least` right answers."""
    return sum(comb(answers, k) * chance**k * (1 - chance) ** (answers - k) for k in range(least, answers + 1))


@pytest.mark.parametrize(
    ("right", "answers", "p_value"),
    [
        (9, 10, 22 / 1024),  # 2 (1 + 10) / 2^10
        (1, 10, 22 / 1024),
        (15, 20, 2 * (1 + 20 + 190 + 1140 + 4845 + 15504) / 2**20),
        (5, 5, 2 / 32),
        (10, 20, 1.0),
        (0, 0, 1.0),
    ],
)
def test_the_test_against_one_half_counts_both_tails(right: int, answers: int, p_value: float) -> None:
    assert Share(right, answers).p_value == pytest.approx(p_value, rel=1e-12)


def test_the_interval_is_that_of_clopper_and_pearson() -> None:
    # in closed form where none or all are right: 1 - (alpha / 2)^(1/n) and (alpha / 2)^(1/n)
    assert Share(0, 10).interval == pytest.approx((0, 1 - 0.025**0.1))
    assert Share(10, 10).interval == pytest.approx((0.025**0.1, 1))
    assert Share(14, 20).interval == pytest.approx((0.4572108, 0.8810684), abs=1e-7)  # R's binom.test(14, 20)
    assert Share(0, 0).interval == (0, 1)


@given(st.integers(1, 60), st.data())
def test_at_the_limits_of_the_interval_each_tail_has_a_fortieth(answers: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, answers))
    low, high = Share(right, answers).interval
    assert low <= right / answers <= high
    if right > 0:
        assert tail(right, answers, low) == pytest.approx(0.025, rel=1e-6)
    if right < answers:
        assert 1 - tail(right + 1, answers, high) == pytest.approx(0.025, rel=1e-6)


def test_the_fewest_answers_are_those_of_which_all_right_are_rare() -> None:
    assert Share(FEWEST, FEWEST).p_value <= LEVEL < Share(FEWEST - 1, FEWEST - 1).p_value


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="right is 3, must be 0 to the number of answers, 2"):
        Share(3, 2)
    assert math.isnan(Share(0, 0).share)


def test_the_sentence_says_what_the_answers_show() -> None:
    assert verdict("a", Share(18, 20)) == (
        "a: listeners can tell it from real music. 18 of 20 answers are right (90 %), where guessing gives half; the true share "
        "is likely 68 % to 99 %. Guessing gives a result so far from half with a chance of less than 1 in 1,000."
    )
    assert verdict("a", Share(12, 20)) == (
        "a: these answers do not show that listeners can tell it from real music. 12 of 20 answers are right (60 %), where "
        "guessing gives half; the true share may be anything from 36 % to 81 %."
    )
    assert "seems real to them" in verdict("a", Share(3, 20)) and "about 1 in 388" in verdict("a", Share(3, 20))
    assert verdict("a", Share(1, 1)).startswith("a: 1 answer, too few to say anything: of fewer than 6, even all could be right")
    assert verdict("a", Share(0, 0)).startswith("a: 0 answers, too few")


def test_percentages_never_claim_what_is_not_so() -> None:
    assert [percent(share) for share in (0.0, 0.001, 0.5, 0.999, 1.0)] == ["0 %", "under 1 %", "50 %", "over 99 %", "100 %"]
    assert [chance(p) for p in (0.0001, 0.02, 0.3)] == ["less than 1 in 1,000", "about 1 in 50", "about 30 %"]
