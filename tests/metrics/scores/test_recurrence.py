"""Passages that come back: exact values on forms of a few letters."""

import math

import numpy as np
import pytest

from etude.metrics.scores.similarity import recurrence


def form(letters: str) -> np.ndarray:
    """1 for equal bars, 0 for others."""
    names = np.array(list(letters))
    return (names[:, None] == names[None]).astype(float)


def test_what_comes_back_as_a_whole_counts_as_one() -> None:
    assert recurrence(form("abcdabcd"), bars=4) == 1.0  # the passages of bars 1 and 5; those between overlap everything
    assert recurrence(form("abab"), bars=2) == 1.0
    assert recurrence(form("abcdefgh"), bars=4) == 0.0


def test_passages_are_compared_bar_by_bar() -> None:
    # ab cb: passages ab and cb share their second bar; bc overlaps both
    assert recurrence(form("abcb"), bars=2) == 0.5
    assert recurrence(form("abba"), bars=2) == 0.0  # a reversed passage has not come back
    assert recurrence(form("abba"), bars=1) == 1.0


def test_bars_in_random_order_lose_long_passages_and_keep_single_bars() -> None:
    letters = "abcdefgh" * 3
    mixed = "".join(np.random.default_rng(0).permutation(list(letters)))
    assert recurrence(form(mixed), bars=1) == recurrence(form(letters), bars=1) == 1.0
    assert recurrence(form(mixed), bars=8) < 0.5 < recurrence(form(letters), bars=8) == 1.0


def test_short_pieces_have_none() -> None:
    assert math.isnan(recurrence(form("abcdefg"), bars=4))
    with pytest.raises(ValueError, match="bars is 0"):
        recurrence(form("ab"), bars=0)
