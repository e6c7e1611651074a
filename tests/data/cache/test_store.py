"""Laws of the append-only store: what was committed stays, what was not is not there, whatever happens in between."""

import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from etude.data.cache.store import Store, Writer, key_of, write_aside


def key(number: int) -> np.ndarray:
    return key_of(number.to_bytes(16, "big"))


def fill(path: Path, count: int) -> None:
    with Writer(path, dtype=np.uint16) as writer:
        for number in range(count):
            writer.add(key(number), np.full(number % 7, number), extra=(-number, number))


def test_records_come_back_without_copying(tmp_path: Path) -> None:
    fill(tmp_path / "s", 20)
    store = Store(tmp_path / "s")
    assert len(store) == 20
    for number in range(20):
        assert store[number].tolist() == [number] * (number % 7)
        assert store.index[number]["extra"].tolist() == [-number, number]
    assert np.shares_memory(store[5], store.items)
    assert not store[5].flags.writeable


def test_rows_finds_keys_and_says_which_are_absent(tmp_path: Path) -> None:
    fill(tmp_path / "s", 30)
    wanted = [29, 3, 77, 0]
    rows = Store(tmp_path / "s").rows(np.array([key(number) for number in wanted]))
    assert rows.tolist() == [29, 3, -1, 0]
    assert Store(tmp_path / "s").rows(np.empty((0, 2))).tolist() == []


def test_the_row_of_an_absent_key_is_no_record(tmp_path: Path) -> None:
    fill(tmp_path / "s", 3)
    store = Store(tmp_path / "s")
    with pytest.raises(IndexError, match="no record -1"):
        store[-1]
    with pytest.raises(IndexError, match="no record -1"):
        store.check(np.array([0, -1]))


def test_appending_keeps_open_readers_right(tmp_path: Path) -> None:
    fill(tmp_path / "s", 10)
    before = Store(tmp_path / "s")
    with Writer(tmp_path / "s", dtype=np.uint16) as writer:
        writer.add(key(99), np.arange(5))
    assert len(before) == 10
    assert before[9].tolist() == [9, 9]
    after = Store(tmp_path / "s")
    assert len(after) == 11
    assert after[10].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("torn", [b"", b"x", b"half a record that a kill left behind" * 9])
def test_a_torn_tail_is_ignored_and_cut_off(tmp_path: Path, torn: bytes) -> None:
    fill(tmp_path / "s", 10)
    for name in ("data", "index"):
        with (tmp_path / "s" / name).open("ab") as file:
            file.write(torn)
    assert Store(tmp_path / "s")[8].tolist() == [8]
    with Writer(tmp_path / "s", dtype=np.uint16) as writer:
        writer.add(key(10), np.array([7]))
    store = Store(tmp_path / "s")
    assert [store[row].tolist() for row in (8, 9, 10)] == [[8], [9, 9], [7]]


def test_uncommitted_records_do_not_exist(tmp_path: Path) -> None:
    fill(tmp_path / "s", 3)
    writer = Writer(tmp_path / "s", dtype=np.uint16)
    size = (tmp_path / "s" / "data").stat().st_size
    writer.add(key(50), np.arange(100_000))
    assert (tmp_path / "s" / "data").stat().st_size > size
    writer.close()
    assert (tmp_path / "s" / "data").stat().st_size == size
    assert len(Store(tmp_path / "s")) == 3


def test_an_error_commits_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "s", 3)
    with pytest.raises(RuntimeError), Writer(tmp_path / "s", dtype=np.uint16) as writer:
        writer.add(key(50), np.arange(10))
        raise RuntimeError
    assert len(Store(tmp_path / "s")) == 3


def test_a_file_shorter_than_its_head_says_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "s", 10)
    os.truncate(tmp_path / "s" / "data", 4)
    with pytest.raises(ValueError, match="shorter than"):
        Store(tmp_path / "s")


WRITER = """
import sys, numpy as np
from pathlib import Path
from etude.data.cache.store import Writer, key_of
with Writer(Path(sys.argv[1]), dtype=np.uint16) as writer:
    number = writer.head["records"]
    print("ready", flush=True)
    while True:
        writer.add(key_of(number.to_bytes(16, "big")), np.full(number % 500, number % 60000))
        number += 1
        if number % 3 == 0:
            writer.commit()
"""


def test_kill_at_any_moment_leaves_a_valid_store(tmp_path: Path) -> None:
    previous = 0
    for delay in (0.0, 0.01, 0.03, 0.05):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "s")], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if not (tmp_path / "s" / "head.json").exists():
            continue
        store = Store(tmp_path / "s")
        assert len(store) >= previous
        assert all((store[row] == row % 60000).all() and len(store[row]) == row % 500 for row in range(len(store)))
        previous = len(store)
    assert previous > 0


def test_opening_reads_the_head_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data of a store of 8 GiB (sparse) is never read, so opening takes no time and no memory."""
    fill(tmp_path / "s", 5)
    head = json.loads((tmp_path / "s" / "head.json").read_text())
    items = 2**32
    os.truncate(tmp_path / "s" / "data", items * 2)
    (tmp_path / "s" / "head.json").write_text(json.dumps({**head, "items": items}))
    start = time.perf_counter()
    for _ in range(100):
        Store(tmp_path / "s")
    assert time.perf_counter() - start < 1.0


def test_pickling_sends_the_path_not_the_data(tmp_path: Path) -> None:
    with Writer(tmp_path / "s", dtype=np.uint16) as writer:
        writer.add(key(0), np.arange(50_000))
    blob = pickle.dumps(Store(tmp_path / "s"))
    assert len(blob) < 1000
    assert pickle.loads(blob)[0].tolist() == list(range(50_000))


class Full(io.BytesIO):
    """A file on a full disk."""

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_line_and_leaves_the_old_state(tmp_path: Path) -> None:
    fill(tmp_path / "s", 4)
    sizes = {name: (tmp_path / "s" / name).stat().st_size for name in ("data", "index")}
    writer = Writer(tmp_path / "s", dtype=np.uint16)
    writer.add(key(8), np.arange(3))
    writer._index.close()
    writer._index = Full()
    with pytest.raises(OSError, match="disk is full") as caught:
        writer.commit()
    assert str(tmp_path / "s") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {name: (tmp_path / "s" / name).stat().st_size for name in sizes} == sizes
    assert len(Store(tmp_path / "s")) == 4


def test_write_aside_replaces_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_aside(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"data\.cache_dir"):
        write_aside(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "s", 2)
    with pytest.raises(ValueError, match="delete it"):
        Writer(tmp_path / "s", dtype=np.uint32)
