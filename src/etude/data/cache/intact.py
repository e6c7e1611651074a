"""What a cache holds is compared with checksums when it is opened: a flipped bit is noticed, and what holds it is made anew.

Checksums are CRC-32, which finds every change of up to three bits. They guard against faults of disks and copies, not against
people.
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
MOST_TRIES = 8  # a folder that is damaged again and again lies on a broken disk


class Damaged(ValueError):
    """A file of a cache is not what was written.

    file: which. remove: the file or folder that has to go, with all that is only right together with it; it is made anew.
    """

    def __init__(self, file: Path, *, remove: Path, why: str) -> None:
        super().__init__(f"{file} is damaged ({why}); delete {remove}, and it is made anew")
        self.file, self.remove, self.why = file, remove, why


def made_anew(work: Callable[[], Result]) -> Result:
    """The result of `work`; where that finds damage, what is damaged is removed, a line says so, and `work` starts again.

    Raises: ValueError where it can't be removed, such as in a cache that may only be read.
    """
    for _ in range(MOST_TRIES - 1):
        try:
            return work()
        except Damaged as error:
            try:
                _remove(error.remove)
            except OSError as refused:
                raise ValueError(f"{error}; it can't be removed from here ({refused.strerror})") from error
            print(f"{error.file} is damaged ({error.why}); {error.remove} is made anew", file=sys.stderr)
    return work()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sealed(data: bytes) -> bytes:
    """The data with its checksum at the end."""
    return data + CHECKSUM.pack(zlib.crc32(data))


def unsealed(path: Path) -> bytes:
    """What was `sealed` in the file `path`.

    Raises: Damaged.
    """
    data = path.read_bytes()
    if len(data) < CHECKSUM.size or zlib.crc32(data[: -CHECKSUM.size]) != CHECKSUM.unpack(data[-CHECKSUM.size :])[0]:
        raise Damaged(path, remove=path, why="its checksum differs")
    return data[: -CHECKSUM.size]


def sealed_json(content: Any) -> bytes:
    """Plain values as JSON with their checksum."""
    text = json.dumps(content, sort_keys=True)
    return json.dumps({"content": content, "crc32": zlib.crc32(text.encode())}).encode()


def unsealed_json(path: Path, *, remove: Path | None = None) -> Any:
    """What `sealed_json` wrote to `path`. remove: what has to go with it; None for the file alone.

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
    """Writes the checksums of all files of a folder that won't change any more beside them."""
    sums = {path.name: checksum(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != SUMS}
    (folder / SUMS).write_bytes(sealed_json(sums))


def check_sums(folder: Path) -> None:
    """Compares the files of a folder with `write_sums`.

    Raises: Damaged, with the folder to remove.
    """
    try:
        sums = unsealed_json(folder / SUMS, remove=folder)
    except FileNotFoundError as error:
        raise Damaged(folder / SUMS, remove=folder, why="it is not there") from error
    for name, value in sums.items():
        path = folder / name
        if not path.is_file() or checksum(path) != value:
            raise Damaged(path, remove=folder, why="its checksum differs" if path.is_file() else "it is not there")


def checksum(path: Path) -> int:
    """CRC-32 of a file, in the memory of a block."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value
