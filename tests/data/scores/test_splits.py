"""Splits keep groups of duplicates together, near their shares, and in place when files are added."""

import numpy as np
import pytest

from etude.data.scores.splits import assign_splits

RATIOS = {"train": 0.8, "val": 0.1, "test": 0.1}


def test_splits_keep_groups_together_and_near_their_shares() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2000, 5000)
    contents = [f"{row}" for row in range(5000)]
    split = assign_splits(group, contents, RATIOS)
    for number in range(2000):
        assert len({split[row] for row in np.flatnonzero(group == number)}) <= 1
    for name, share in RATIOS.items():
        assert abs(split.count(name) / 5000 - share) < 0.02


def test_adding_pieces_moves_no_other_group() -> None:
    contents = [f"piece {row}" for row in range(400)]
    before = assign_splits(np.arange(300), contents[:300], RATIOS)
    assert assign_splits(np.arange(400), contents, RATIOS)[:300] == before


@pytest.mark.parametrize("count", [3, 4, 6])
def test_no_split_is_empty_where_groups_suffice(count: int) -> None:
    split = assign_splits(np.arange(count), [f"{row}" for row in range(count)], RATIOS)
    assert set(split) == {"train", "val", "test"}


def test_a_share_of_zero_gets_nothing() -> None:
    split = assign_splits(np.arange(50), [f"{row}" for row in range(50)], {"train": 1.0, "val": 0.0, "test": 0.0})
    assert set(split) == {"train"}
