"""One bad item costs itself alone, whatever it does to its process."""

import os
import signal
import time
from pathlib import Path

import pytest

from etude.data.cache.pool import Failure, Limits, check_final, run


def work(item: object) -> object:
    if item == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "exit":
        os._exit(7)
    if item == "memory":
        raise MemoryError
    if isinstance(item, Path):  # crashes the first process that meets it
        if not item.exists():
            item.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "read"
    if item == "large":
        return len(bytearray(2**30))
    if item == "error":
        raise ValueError("two\nlines")
    if item == "hang":
        time.sleep(60)
    print("noise")
    return item


def test_bad_items_fail_alone_and_the_others_come_back(tmp_path: Path) -> None:
    items = [*range(5), "crash", *range(6, 12), "exit", "memory", "error", *range(15, 20)]
    results = dict(run(work, items, num_workers=2, log=tmp_path / "log"))
    assert sorted(results) == list(range(20))
    failed = {items[i]: r.reason for i, r in results.items() if isinstance(r, Failure)}
    assert set(failed) == {"crash", "exit", "memory", "error"}
    assert "crashed" in failed["crash"]
    assert "crashed" in failed["exit"]
    assert "memory" in failed["memory"]
    assert failed["error"] == "two lines"
    assert all(results[i] == item for i, item in enumerate(items) if isinstance(item, int))
    assert "noise" in (tmp_path / "log").read_text()


def test_a_hanging_item_is_given_up(tmp_path: Path) -> None:
    results = dict(run(work, [1, "hang", 2], num_workers=1, log=tmp_path / "log", limits=lambda item: Limits(seconds=2.0)))
    assert isinstance(results[1], Failure) and not results[1].final
    assert "longer than 2 s" in results[1].reason
    assert (results[0], results[2]) == (1, 2)


def test_an_item_is_tried_again_after_its_process_was_killed(tmp_path: Path) -> None:
    results = dict(run(work, [0, tmp_path / "once", 2], num_workers=1, log=tmp_path / "log"))
    assert results == {0: 0, 1: "read", 2: 2}


def test_only_a_refusal_by_the_work_itself_is_final(tmp_path: Path) -> None:
    results = dict(run(work, ["crash", "memory", "error"], num_workers=1, log=None))
    assert [results[i].final for i in range(3)] == [False, False, True]
    assert "crashed 2 times (exit code -11)" in results[0].reason
    check_final(results[2], "counting")
    with pytest.raises(ChildProcessError, match=r"counting failed: .*crashed 2 times.*tries it again"):
        check_final(results[0], "counting")


def test_memory_is_limited_for_each_item(tmp_path: Path) -> None:
    def limits(item: object) -> Limits:
        return Limits(memory_bytes=2**28 if item == "large" else None)

    results = dict(run(work, ["large", 1], num_workers=1, log=tmp_path / "log", limits=limits))
    assert isinstance(results[0], Failure) and "more memory" in results[0].reason and results[1] == 1
    assert dict(run(work, ["large"], num_workers=1, log=tmp_path / "log")) == {0: 2**30}


def test_nothing_to_do_starts_nothing(tmp_path: Path) -> None:
    assert list(run(work, [], num_workers=4, log=tmp_path / "log")) == []


def test_closing_early_ends_the_processes(tmp_path: Path) -> None:
    results = run(work, list(range(100)), num_workers=2, log=tmp_path / "log")
    next(results)
    start = time.monotonic()
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("count", [1, 3])
def test_order_of_items_does_not_matter(tmp_path: Path, count: int) -> None:
    assert dict(run(work, [5, 6, 7], num_workers=count, log=tmp_path / "log")) == {0: 5, 1: 6, 2: 7}
