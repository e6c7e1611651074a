"""What a study's data are, so that it notices when they have changed."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

WHOLE = 10**9  # bytes that are read in full: a second or two with an ordinary disk
BLOCK = 4096  # bytes of each block of a file that is not


@dataclass(frozen=True)
class Contents:
    """The data of a folder or a file. digest: differs where the data do. told: what it does not cover; "" if it covers all."""

    digest: str
    told: str = ""


def contents_of(root: str | None, *, whole: int = WHOLE) -> Contents:
    """Returns the digest of the files in a folder, the same wherever the folder is.

    It covers each file's name and bytes. Of more than `whole` bytes in all it covers each file's name and size and three blocks
    of it, which is told: reading a large corpus of audio would take minutes each time a sweep starts. Where nothing is, the path
    stands for it; for None it is empty.
    """
    if not root:
        return Contents("")
    path = Path(root).expanduser()
    if not path.exists():
        return Contents(root)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    total = sum(file.stat().st_size for file in files)
    found = hashlib.blake2b(digest_size=16)
    for file in files:
        name = file.relative_to(path).as_posix().encode(errors="surrogateescape")
        found.update(name + b"\0" + _digest(file, in_full=total <= whole))
    if total <= whole:
        return Contents(f"all:{found.hexdigest()}")
    told = (
        f"data.root={root} holds {total / 1e9:.1f} GB: of each file the study notices another name, size, beginning, middle or "
        f"end ({BLOCK:,} bytes each); give a new study= if you change anything else"
    )
    return Contents(f"parts:{found.hexdigest()}", told)


def _digest(file: Path, *, in_full: bool) -> bytes:
    """Returns the digest of a file's size and bytes, or of three blocks of them; of a file that can't be read, of its size."""
    size = file.stat().st_size
    found = hashlib.blake2b(f"{size}\0".encode(), digest_size=16)
    try:
        with file.open("rb") as opened:
            if in_full:
                while block := opened.read(2**20):
                    found.update(block)
            else:
                for start in (0, size // 2, max(0, size - BLOCK)):
                    opened.seek(start, os.SEEK_SET)
                    found.update(opened.read(BLOCK))
    except OSError:  # it can't be trained on either, and is then in quarantine.tsv
        pass
    return found.digest()
