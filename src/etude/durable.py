"""Writing so that a reader finds the earlier content or the new one, never a part, also after a kill or a power failure.

Every folder may import it; it imports nothing of Etude.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside `path`, at which a file, or a folder of files, is made; at the end of the context it takes its place.

    It is synced to the disk and then renamed; then the folder that holds it is synced. If anything fails, the earlier file stays
    as it is and what was made is removed. A folder can only take a place that is free. What a killed process leaves is named
    .NAME.PROCESS.part.

    Raises: OSError, for example of a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        for made in (aside, *aside.rglob("*")):
            _sync(made)
        aside.replace(path)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)
    _sync(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all; see `replacing`. Raises: OSError."""
    with replacing(path) as aside:
        aside.write_bytes(data)


def copy_durably(source: Path, target: Path) -> None:
    """Copies a file whole or not at all; see `replacing`. Raises: OSError."""
    with replacing(target) as aside:
        shutil.copyfile(source, aside)


def _sync(path: Path) -> None:
    """Writes what the system holds of a file, or of a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
