"""Groups by affinity: what a grouping is worth, and that the best one is found among all."""

import numpy as np
import pytest

from etude.metrics.sets.affinity import best_groups, partitions, worth


def test_all_ways_to_group_are_tried() -> None:
    assert [len(list(partitions(range(n)))) for n in range(6)] == [1, 1, 2, 5, 15, 52]  # Bell numbers
    found = {tuple(sorted(tuple(sorted(group)) for group in groups)) for groups in partitions(range(4))}
    assert len(found) == 15 and all(sorted(i for group in groups for i in group) == [0, 1, 2, 3] for groups in found)


def test_the_worth_is_the_sum_of_the_mean_help_that_each_task_gets() -> None:
    table = np.array([[9.0, 0.3, -0.1], [0.1, 9.0, 0.2], [0.4, -0.5, 9.0]])
    assert worth([[0, 1, 2]], table) == pytest.approx((0.1 + 0.4) / 2 + (0.3 - 0.5) / 2 + (-0.1 + 0.2) / 2)
    assert worth([[0, 1], [2]], table) == pytest.approx(0.1 + 0.3)
    assert worth([[0], [1], [2]], table) == 0


def test_tasks_that_help_each_other_are_grouped_and_harmful_ones_are_alone() -> None:
    table = np.full((4, 4), -0.2)
    table[0, 2] = table[2, 0] = 0.5
    assert best_groups(table) == [[0, 2], [1], [3]]
    assert best_groups(table, num_groups=2) == [[0, 2], [1, 3]]
    assert best_groups(table, num_groups=1) == [[0, 1, 2, 3]]
    assert best_groups(np.full((3, 3), 0.1)) == [[0, 1, 2]]  # of equally good ones, the fewest groups
    assert best_groups(np.full((2, 2), np.nan)) == [[0, 1]]  # never measured: nothing speaks against one group


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="num_groups=3 must be from 1 to 2"):
        best_groups(np.zeros((2, 2)), num_groups=3)
    with pytest.raises(ValueError, match="10 tasks can be grouped in too many ways"):
        best_groups(np.zeros((10, 10)))
