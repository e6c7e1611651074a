"""The time left goes by sizes: short files first don't promise an early end."""

from pathlib import Path

import pytest

from etude.data.cache.fill import time_left
from etude.data.scores.build import reading_cost


def test_the_time_left_is_right_at_once_where_sizes_tell_the_time() -> None:
    sizes = [1.0] * 50 + [40.0] * 50  # seconds; by items, 50 s would seem left at the half, and it is 2,000
    for number in range(1, len(sizes)):
        spent = sum(sizes[:number])
        assert time_left(spent, sum(sizes[:number]), sum(sizes)) == pytest.approx(sum(sizes[number:]))


def test_notation_counts_more_than_midi_of_the_same_size(tmp_path: Path) -> None:
    costs = []
    for name in ("a.mid", "a.MIDI", "a.abc", "a.mxl"):
        (tmp_path / name).write_bytes(bytes(1000))
        costs.append(reading_cost(tmp_path / name))
    assert costs[0] == costs[1] < costs[2] < costs[3]
