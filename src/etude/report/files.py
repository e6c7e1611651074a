"""Atomic writing of files."""

import os
from pathlib import Path


def write_atomically(path: Path, data: str | bytes) -> Path:
    """Writes `data` to a temporary file beside `path` and renames it, so that `path` is never half-written.

    Text is written as UTF-8; characters that UTF-8 cannot represent (lone surrogates, from file names that are not UTF-8) are
    written as backslash escapes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        aside.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "backslashreplace"))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path
