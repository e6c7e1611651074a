"""An append-only file of variable-length records that any number of processes read while one of them writes.

A store is a folder of three files:

    data        the items of all records, end to end, one numpy dtype, no padding
    index       one fixed-size row per record: key, start and length in items, two integers of the caller's, and the checksum
                of all of that and of the record
    head.json   how many items and records count: the commit point, replaced by renaming

Only `head.json` says what is valid, so a process killed at any moment leaves the state of the last commit: bytes after
it are ignored by readers and cut off by the next writer. Committed bytes never change, so open readers stay right.
Opening reads the head alone: its cost and the memory it takes don't depend on the number of records. `Store.check` compares
records with their checksums, at about 1 GB/s.
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

ROW = np.dtype([("key", "<u8", 2), ("start", "<u8"), ("length", "<u4"), ("extra", "<i4", 2), ("crc", "<u4")])
CHECKED = ROW.itemsize - 4  # bytes of a row that its checksum covers, before those of the record
FOLD = np.uint64(0x9E3779B97F4A7C15)  # folds the halves of a key into one number to sort by
FULL = (errno.ENOSPC, errno.EDQUOT)


def write_aside(path: Path, data: bytes) -> None:
    """Replaces the file `path` by `data`, all or nothing, surviving a kill or a power cut at any point.

    Raises: OSError (ENOSPC) that names the path and the remedy when the disk is full; nothing half-written stays.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}.aside")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise named(error, path) from error


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def named(error: OSError, path: Path) -> OSError:
    """`error` itself, or for a full disk one that says in a line which path could not be written and what helps."""
    if error.errno not in FULL:
        return error
    where = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
    free = shutil.disk_usage(where).free / 2**20
    text = f"the disk is full ({free:.0f} MiB free) while caching; free some space or set data.cache_dir to another disk"
    return OSError(error.errno, text, str(path))


def key_of(digest: bytes) -> np.ndarray:
    """A record key, uint64 [2], from the first 16 bytes of a SHA-256 digest."""
    return np.frombuffer(digest[:16], dtype="<u8")


class Store:
    """Reads a store. Every array handed out is a read-only view of the memory-mapped file: nothing is copied."""

    def __init__(self, path: Path):
        """Opens the last committed state in O(1).

        path: the store's folder.
        Raises: FileNotFoundError where nothing was ever committed; Damaged where a file is shorter than its head says,
            or the head is not what was written.
        """
        self.path = Path(path)
        self.head: dict[str, Any] = unsealed_json(self.path / "head.json", remove=self.path)
        self.dtype = np.dtype(self.head["dtype"])
        self.items = self._map("data", self.dtype, self.head["items"])
        self.index = self._map("index", ROW, self.head["records"])

    def _map(self, name: str, dtype: np.dtype, count: int) -> np.ndarray:
        if count == 0:
            return np.empty(0, dtype)
        file = self.path / name
        if not file.is_file() or file.stat().st_size < count * dtype.itemsize:
            raise Damaged(file, remove=self.path, why=f"shorter than the {count} items that head.json promises")
        return np.asarray(np.memmap(file, dtype=dtype, mode="r", shape=(count,)))  # a plain view indexes twice as fast

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> np.ndarray:
        """Record number `row` as a view [length]."""
        entry = self.index[row]
        start = int(entry["start"])
        return self.items[start : start + int(entry["length"])]

    def check(self, rows: np.ndarray | None = None) -> None:
        """Compares records with their checksums: those of `rows`, int64 [n], or all.

        Raises: Damaged, with the store's folder to remove.
        """
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
        return {"path": self.path}  # workers map the files themselves: pickling must not copy the data

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Record numbers of `keys` (uint64 [n, 2]) as int64 [n]; -1 where the store has no such record."""
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
    """Appends records to a store; `commit` makes what was added so far durable and visible.

    One writer at a time: the caller holds the lock of the cache folder. As a context manager it commits at the end, but
    not after an error: records of one store may mean nothing without those of another, so that `fill` decides.
    """

    def __init__(self, path: Path, *, dtype: np.dtype | type):
        """Opens or creates the store in folder `path` for items of `dtype`; cuts off what was never committed.

        Raises: ValueError where the store on disk holds another dtype.
        """
        self.path, self.dtype = Path(path), np.dtype(dtype)
        self.head: dict[str, Any] = {"dtype": self.dtype.str, "items": 0, "records": 0}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if (self.path / "head.json").exists():
                self.head = unsealed_json(self.path / "head.json", remove=self.path)
            if np.dtype(self.head["dtype"]) != self.dtype:
                raise ValueError(f"{self.path} holds {self.head['dtype']}, not {self.dtype.str}; delete it to build it anew")
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
        """Appends `record` (a 1-D array, or bytes) under `key` (uint64 [2]), with two integers kept in the index."""
        array = np.frombuffer(record, np.uint8) if isinstance(record, bytes) else np.asarray(record)
        row = np.zeros(1, ROW)
        row["key"], row["start"], row["length"], row["extra"] = key, self._end, len(array), extra
        try:
            written = array.astype(self.dtype, copy=False).tobytes()
            row["crc"] = zlib.crc32(written, zlib.crc32(row.tobytes()[:CHECKED]))
            self._data.write(written)
        except OSError as error:
            self._retreat(error)
        self._rows.append(row)
        self._end += len(array)

    def commit(self) -> None:
        """Makes everything added so far valid: data first, then index, then the head that counts them."""
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
            self._retreat(error)
        self.head, self._rows = head, []

    def _retreat(self, error: OSError) -> NoReturn:
        """Gives everything uncommitted up, then raises `error` with the path and the remedy."""
        self.close()
        raise named(error, self.path) from error

    def close(self) -> None:
        """Releases the files, and the space of what was added and not committed."""
        sizes = {"data": self.head["items"] * self.dtype.itemsize, "index": self.head["records"] * ROW.itemsize}
        for file, (name, size) in zip((self._data, self._index), sizes.items(), strict=True):
            with contextlib.suppress(OSError):  # flushing what did not fit fails again; the file is cut right after
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
