"""Checksums of cache files: damage is detected when a cache is opened, and the damaged part is rebuilt.

Checksums are CRC-32, which detects every change of up to three bits. They protect against faults of disks and copies, not
against deliberate changes.
"""

import json
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")
CHECKSUM = struct.Struct("<I")
SUMS = "sums.json"
MAX_TRIES = 8  # if the folder is damaged again so often, the disk is faulty


class Damaged(ValueError):
    """A file of a cache is damaged.

    file: the damaged file.
    remove: the file or folder to remove, which includes everything that depends on the file; it is then rebuilt.
    why: how the damage was detected.
    """

    def __init__(self, file: Path, *, remove: Path, why: str) -> None:
        super().__init__(f"{file} is damaged ({why}); delete {remove}, and it will be rebuilt")
        self.file, self.remove, self.why = file, remove, why


def rebuilding_damage(work: Callable[[], Result]) -> Result:
    """Returns the result of `work`; if it raises `Damaged`, removes the damaged part, prints a line and calls `work` again.

    Raises: ValueError if the damaged part can't be removed, for example in a read-only cache.
    """
    for _ in range(MAX_TRIES - 1):
        try:
            return work()
        except Damaged as error:
            try:
                _remove(error.remove)
            except OSError as refused:
                raise ValueError(f"{error}; it can't be removed from here ({refused.strerror})") from error
            print(f"{error.file} is damaged ({error.why}); {error.remove} is rebuilt", file=sys.stderr)
    return work()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sealed(data: bytes) -> bytes:
    """Returns the data with its checksum appended."""
    return data + CHECKSUM.pack(zlib.crc32(data))


def unsealed(path: Path) -> bytes:
    """Reads a file of `sealed` data and returns the data.

    Raises: Damaged.
    """
    data = path.read_bytes()
    if len(data) < CHECKSUM.size or zlib.crc32(data[: -CHECKSUM.size]) != CHECKSUM.unpack(data[-CHECKSUM.size :])[0]:
        raise Damaged(path, remove=path, why="its checksum differs")
    return data[: -CHECKSUM.size]


def sealed_json(content: Any) -> bytes:
    """Serialises plain values as JSON with a checksum."""
    text = json.dumps(content, sort_keys=True)
    return json.dumps({"content": content, "crc32": zlib.crc32(text.encode())}).encode()


def unsealed_json(path: Path, *, remove: Path | None = None) -> Any:
    """Reads the values of a file of `sealed_json`. remove: what to remove if it is damaged; None for the file alone.

    Raises: Damaged; FileNotFoundError.
    """
    data = path.read_bytes()
    try:
        found = json.loads(data)
        text = json.dumps(found["content"], sort_keys=True)
        whole = found["crc32"] == zlib.crc32(text.encode())
    except (ValueError, TypeError, KeyError) as error:
        raise Damaged(path, remove=remove or path, why="it can't be read") from error
    if not whole:
        raise Damaged(path, remove=remove or path, why="its checksum differs")
    return found["content"]


def write_sums(folder: Path) -> None:
    """Writes the checksums of all files of a folder, which must not change afterwards, to a file in it."""
    sums = {path.name: checksum(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != SUMS}
    (folder / SUMS).write_bytes(sealed_json(sums))


def check_sums(folder: Path) -> None:
    """Verifies the files of a folder by the checksums of `write_sums`.

    Raises: Damaged, which names the folder as what to remove.
    """
    try:
        sums = unsealed_json(folder / SUMS, remove=folder)
    except FileNotFoundError as error:
        raise Damaged(folder / SUMS, remove=folder, why="it is missing") from error
    for name, value in sums.items():
        path = folder / name
        if not path.is_file() or checksum(path) != value:
            raise Damaged(path, remove=folder, why="its checksum differs" if path.is_file() else "it is missing")


def checksum(path: Path) -> int:
    """Returns the CRC-32 of a file, read block by block."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value
