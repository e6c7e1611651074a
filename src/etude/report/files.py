"""Files that are written whole or not at all."""

import os
from pathlib import Path


def write_atomically(path: Path, data: str | bytes) -> Path:
    """Write `data` beside `path`, then rename: a reader sees the old file or the new one, never half of one.

    Text is written as UTF-8; what UTF-8 cannot hold (lone surrogates of file names that are not UTF-8) is shown as a
    backslash escape.
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
