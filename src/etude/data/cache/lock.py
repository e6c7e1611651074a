"""The lock of a cache folder: only one process at a time prepares data in it."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from etude.data.cache.store import named


@contextlib.contextmanager
def held(cache_dir: Path) -> Iterator[None]:
    """Holds the lock of `cache_dir`, which is created if missing; prints a line while another process holds it.

    The lock is released when the process ends, however it ends. Raises: OSError if the folder can't be written.
    """
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise named(error, cache_dir) from error
    lock = FileLock(cache_dir / "lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"another process is preparing data in {cache_dir}; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
