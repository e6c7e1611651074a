"""An append-only store of variable-length records: any number of processes can read it while one writes.

A store is a folder of three files:

    data        the items of all records, end to end, one numpy dtype, no padding
    index       one fixed-size row per record: key, start and length in items, two integers for the caller, and a checksum of
                these fields and the record
    head.json   the number of valid items and records; a commit replaces it atomically

A process killed at any moment leaves the state of the last commit: bytes beyond the numbers in `head.json` are ignored by
readers and cut off by the next writer. Committed bytes never change, so open readers stay valid. Opening a store reads only
the head, so its cost does not depend on the number of records. `Store.check` verifies checksums at about 1 GB/s.
"""

import contextlib
import errno
import os
import shutil
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Self

import numpy as np

from etude.data.cache.intact import Damaged, sealed_json, unsealed_json
from etude.durable import write_durably

ROW = np.dtype([("key", "<u8", 2), ("start", "<u8"), ("length", "<u4"), ("extra", "<i4", 2), ("crc", "<u4")])
CHECKED = ROW.itemsize - 4  # bytes of an index row that the checksum covers, followed by those of the record
FOLD = np.uint64(0x9E3779B97F4A7C15)  # multiplier that combines the two halves of a key to one number for sorting
FULL = (errno.ENOSPC, errno.EDQUOT)


def write_aside(path: Path, data: bytes) -> None:
    """Writes a file of a cache whole or not at all; see `durable.replacing`.

    Raises: OSError; if the disk is full, it names the path and the remedy, and no partial file is left.
    """
    try:
        write_durably(path, data)
    except OSError as error:
        raise named(error, path) from error


def named(error: OSError, path: Path) -> OSError:
    """Returns `error` itself or, for a full disk, an error whose message names the path and the remedy."""
    if error.errno not in FULL:
        return error
    where = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
    free = shutil.disk_usage(where).free / 2**20
    text = f"the disk is full ({free:.0f} MiB free) while caching; free some space or set data.cache_dir to another disk"
    return OSError(error.errno, text, str(path))


def key_of(digest: bytes) -> np.ndarray:
    """Returns a record key, uint64 [2], from the first 16 bytes of a SHA-256 digest."""
    return np.frombuffer(digest[:16], dtype="<u8")


class Store:
    """Reads a store. All returned arrays are read-only views of the memory-mapped files, without copies."""

    def __init__(self, path: Path):
        """Opens the last committed state in O(1).

        path: the store's folder.
        Raises: FileNotFoundError if nothing was ever committed; Damaged if the head is damaged or a file is too short.
        """
        self.path = Path(path)
        self.head: dict[str, Any] = unsealed_json(self.path / "head.json", remove=self.path)
        self.dtype = np.dtype(self.head["dtype"])
        self.items = self._map("data", self.dtype, self.head["items"])
        self.index = self._map("index", ROW, self.head["records"])

    def _map(self, name: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
        if count == 0:
            return np.empty(0, dtype)
        file = self.path / name
        if not file.is_file() or file.stat().st_size < count * dtype.itemsize:
            raise Damaged(file, remove=self.path, why=f"shorter than the {count} items that head.json states")
        return np.asarray(
            np.memmap(file, dtype=dtype, mode="r", shape=(count,))
        )  # indexing a plain array is twice as fast as a memmap

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> np.ndarray:
        """Returns record number `row` as a view [length].

        Raises: IndexError for a number that no record has, such as the -1 of `rows`.
        """
        if row < 0:
            raise IndexError(f"{self.path} has no record {row}; -1 is the row of a key that it lacks")
        entry = self.index[row]
        start = int(entry["start"])
        return self.items[start : start + int(entry["length"])]

    def check(self, rows: np.ndarray | None = None) -> None:
        """Verifies the checksums of the records `rows`, int64 [n], or of all.

        Raises: Damaged, which names the store's folder as what to remove; IndexError for a number that no record has.
        """
        if rows is not None and (rows < 0).any():
            raise IndexError(f"{self.path} has no record {rows.min()}; -1 is the row of a key that it lacks")
        bounds: Any = self.index.view(np.uint8).reshape(-1, ROW.itemsize)
        data: Any = self.items.view(np.uint8)
        width = self.dtype.itemsize
        for row in range(len(self)) if rows is None else rows.tolist():
            entry = self.index[row]
            start = int(entry["start"]) * width
            record = data[start : start + int(entry["length"]) * width]
            if zlib.crc32(record, zlib.crc32(bounds[row, :CHECKED])) != int(entry["crc"]):
                raise Damaged(self.path / "data", remove=self.path, why=f"the checksum of record {row} differs")

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}  # worker processes map the files themselves, so that pickling does not copy the data

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Returns the record numbers of `keys` (uint64 [n, 2]), int64 [n]; -1 for keys that the store does not have."""
        keys = np.asarray(keys, dtype="<u8").reshape(-1, 2)
        if len(self) == 0 or len(keys) == 0:
            return np.full(len(keys), -1, np.int64)
        known = self.index["key"]
        folded = known[:, 0] ^ (known[:, 1] * FOLD)
        order = np.argsort(folded, kind="stable")
        at = np.searchsorted(folded[order], keys[:, 0] ^ (keys[:, 1] * FOLD))
        rows = order[np.minimum(at, len(order) - 1)]
        return np.where((known[rows] == keys).all(axis=1), rows, -1)


class Writer:
    """Appends records to a store; `commit` saves them and makes them visible to readers.

    Only one writer at a time is allowed: the caller must hold the lock of the cache folder. As a context manager it commits
    at the end, but not after an exception: records may depend on those of another store, so `fill` commits all of them.
    """

    def __init__(self, path: Path, *, dtype: np.dtype[Any] | type):
        """Opens or creates the store in folder `path` for items of `dtype`; removes records that were never committed.

        Raises: ValueError if the store has another dtype.
        """
        self.path, self.dtype = Path(path), np.dtype(dtype)
        self.head: dict[str, Any] = {"dtype": self.dtype.str, "items": 0, "records": 0}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if (self.path / "head.json").exists():
                self.head = unsealed_json(self.path / "head.json", remove=self.path)
            if np.dtype(self.head["dtype"]) != self.dtype:
                raise ValueError(f"{self.path} holds {self.head['dtype']}, not {self.dtype.str}; delete it to rebuild it")
            self._data = self._open("data", self.head["items"] * self.dtype.itemsize)
            self._index = self._open("index", self.head["records"] * ROW.itemsize)
        except OSError as error:
            raise named(error, self.path) from error
        self._end = self.head["items"]
        self._rows: list[np.ndarray] = []

    def _open(self, name: str, size: int) -> BinaryIO:
        file = (self.path / name).open("ab")
        file.truncate(size)
        return file

    def add(self, key: np.ndarray, record: np.ndarray | bytes, *, extra: tuple[int, int] = (0, 0)) -> None:
        """Appends `record` (a 1-D array, or bytes) under `key` (uint64 [2]), with two integers in the index."""
        array = np.frombuffer(record, np.uint8) if isinstance(record, bytes) else np.asarray(record)
        row = np.zeros(1, ROW)
        row["key"], row["start"], row["length"], row["extra"] = key, self._end, len(array), extra
        try:
            written = array.astype(self.dtype, copy=False).tobytes()
            row["crc"] = zlib.crc32(written, zlib.crc32(row.tobytes()[:CHECKED]))
            self._data.write(written)
        except OSError as error:
            self._discard(error)
        self._rows.append(row)
        self._end += len(array)

    def commit(self) -> None:
        """Saves everything added so far: first the data, then the index, then the head."""
        if not self._rows:
            return
        try:
            self._index.write(np.concatenate(self._rows).tobytes())
            for file in (self._data, self._index):
                file.flush()
                os.fsync(file.fileno())
            head = {"dtype": self.dtype.str, "items": self._end, "records": self.head["records"] + len(self._rows)}
            write_aside(self.path / "head.json", sealed_json(head))
        except OSError as error:
            self._discard(error)
        self.head, self._rows = head, []

    def _discard(self, error: OSError) -> NoReturn:
        """Discards everything that is not committed, then raises `error` with the path and the remedy."""
        self.close()
        raise named(error, self.path) from error

    def close(self) -> None:
        """Closes the files and removes records that were not committed."""
        sizes = {"data": self.head["items"] * self.dtype.itemsize, "index": self.head["records"] * ROW.itemsize}
        for file, (name, size) in zip((self._data, self._index), sizes.items(), strict=True):
            with contextlib.suppress(OSError):  # after a full disk, flushing fails again; the file is truncated next
                file.close()
            if (self.path / name).stat().st_size > size:
                os.truncate(self.path / name, size)
        self._rows = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.close()
