"""Atomic writing of files."""

from pathlib import Path

from etude.durable import write_durably


def write_atomically(path: Path, data: str | bytes) -> Path:
    """Writes `data` to the file `path`, which is never half-written; see `durable.replacing`.

    Text is written as UTF-8; characters that UTF-8 cannot represent (lone surrogates, from file names that are not UTF-8) are
    written as backslash escapes.
    """
    path = Path(path)
    write_durably(path, data if isinstance(data, bytes) else data.encode("utf-8", "backslashreplace"))
    return path
