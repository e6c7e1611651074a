"""Filling a cache: the time left goes by sizes, and an interruption or a crash saves what is done."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from etude.data.cache.fill import fill, time_left
from etude.data.cache.pool import Failure, check_final
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


def fill_inline(work: Callable[[int], int], keep: Callable[[int, Any], None], commit: Callable[[], None], cache: Path) -> None:
    fill(work, [1, 2, 3], keep, commit, title="counting", unit="numbers", cache_dir=cache, num_workers=1, inline_seconds=60.0)


def test_a_lack_of_memory_is_no_verdict_on_an_item(tmp_path: Path) -> None:
    found: dict[int, Any] = {}

    def work(item: int) -> int:
        if item == 2:
            raise MemoryError
        if item == 3:
            raise ValueError("odd")
        return item

    fill_inline(work, found.__setitem__, lambda: None, tmp_path)
    assert found == {0: 1, 1: Failure("needs more memory than it may take", final=False), 2: Failure("odd", final=True)}


def test_finished_work_is_saved_when_an_item_must_be_tried_again(tmp_path: Path) -> None:
    kept: list[int] = []
    saved: list[int] = []

    def keep(index: int, result: int) -> None:
        if index == 2:
            check_final(Failure("crashed", final=False), "counting")
        kept.append(result)

    with pytest.raises(ChildProcessError, match="finished work is saved"):
        fill_inline(lambda item: item, keep, lambda: saved.extend(kept), tmp_path)
    assert saved == [1, 2]
