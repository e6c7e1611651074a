"""What a run has read, with hashes: files of data, tokens, and checkpoints of other runs; `data.tsv` in its folder."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from etude.core.protocols import HasContents
from etude.core.ranks import rank
from etude.report.files import write_atomically

NAME = "data.tsv"
HEAD = "split\tfile\tsha256"
FILE = "checkpoint"  # instead of a split: a file of another run


def inputs(datamodule: Any, files: Mapping[str, Path]) -> str:
    """Returns the table: a row for each file of the data, one for what was made of them, one for each of `files`.

    files: checkpoints of other runs, by the option that names them.
    """
    rows = list(datamodule.contents()) if isinstance(datamodule, HasContents) else []
    rows += [(FILE, f"{option}={path}", file_hash(path)) for option, path in sorted(files.items())]
    return "\n".join([HEAD, *("\t".join(_plain(field) for field in row) for row in rows), ""])


def write_inputs(folder: Path, datamodule: Any, techniques: Iterable[Any], start: Path | None) -> None:
    """Writes `inputs` to a run's folder, with what its techniques read and the weights that it starts from."""
    if rank() > 0:
        return
    files = {f"technique.{each.name}.{name}": path for each in techniques for name, path in each.paths().items()}
    write_atomically(folder / NAME, inputs(datamodule, files if start is None else {**files, "weights": start}))


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(field: str) -> str:
    return field.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


def compare_inputs(before: str, now: str) -> str | None:
    """Returns the first file that differs between two tables of `inputs`, and how; None if they agree."""
    then, today = _by_file(before), _by_file(now)
    for key, digest in then.items():
        split, file = key
        if key not in today:
            elsewhere = next((other for other, name in today if name == file), None)
            return f"{file} of {split} is {'missing' if elsewhere is None else f'in {elsewhere} now'}"
        if today[key] != digest:
            return f"{file} of {split} has changed (sha256 {digest[:12]}..., now {today[key][:12]}...)"
    added = next((key for key in today if key not in then), None)
    return None if added is None else f"{added[1]} of {added[0]} is new"


def _by_file(table: str) -> dict[tuple[str, str], str]:
    rows = [line.split("\t") for line in table.splitlines()[1:]]
    return {(row[0], row[1]): row[2] for row in rows if len(row) == 3}
