"""One process at a time prepares data in a cache folder."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from etude.data.cache.store import named


@contextlib.contextmanager
def held(cache_dir: Path) -> Iterator[None]:
    """Holds the lock of `cache_dir` (made where missing), saying so where another process has it.

    The system releases it with the process, however that ends. Raises: OSError where the folder can't be written.
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
