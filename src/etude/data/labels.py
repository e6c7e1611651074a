"""What is known about pieces as targets of training: columns of the manifest or of a user's CSV file, as numbers of classes."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from etude.music.score import printable

NO_LABEL = -1  # of padding, of a piece without a value, and of a value that no training piece has
FILE = "file"  # the column of a user's CSV that names a file as the manifest does
AUGMENTED = {"key": "transpose", "tempo_bpm": "tempo_scale"}  # columns that the augmentation of training makes untrue

Rows = Sequence[Mapping[str, object]]


def read_labels(path: str, *, known: Iterable[str], needed: Iterable[str], taken: Iterable[str]) -> dict[str, dict[str, str]]:
    """Returns the columns of a CSV file: column -> file -> value, "" where a cell is empty.

    Args:
        path: a CSV with a header line; its column `file` holds names as in the manifest, paths below the data's folder.
        known: files that may be named. needed: those that must be. taken: names that its columns can't have.

    Raises: ValueError in one line for a missing file, header or column, an unknown file, one that is missing or named twice.
    """
    option = f"data.labels_file={path}"
    if not Path(path).expanduser().is_file():
        raise ValueError(f"{option}: there is no such file; give a CSV with a column {FILE!r} and one for each label")
    with Path(path).expanduser().open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            rows, columns = list(reader), [name for name in reader.fieldnames or () if name != FILE]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{option}: it is no CSV in UTF-8 ({error}); write it anew as comma-separated text") from error
    if FILE not in (reader.fieldnames or ()) or not columns:
        raise ValueError(f"{option}: its header is {reader.fieldnames}; it needs a column {FILE!r} and one for each label")
    if double := sorted(set(columns) & set(taken)) or [name for name, count in Counter(columns).items() if count > 1]:
        raise ValueError(f"{option}: its column {double[0]!r} is there already; give it another name")
    if ragged := [number for number, row in enumerate(rows, start=2) if None in row or None in row.values()]:
        raise ValueError(f"{option}: line {ragged[0]} has not as many cells as the header; write one cell for each column")
    files = [printable(row[FILE]) for row in rows]
    for wrong, what in (
        ([name for name, count in Counter(files).items() if count > 1], "is named twice; keep one line"),
        (sorted(set(files) - set(known)), "is not among the data; names are as in the manifest's column 'file', such as "),
        (sorted(set(needed) - set(files)), "has no line; add one, with empty cells where nothing is known"),
    ):
        if wrong:
            example = next(iter(needed), "") if what.endswith("such as ") else ""
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise ValueError(f"{option}: {wrong[0]}{more} {what}{example}")
    return {column: {name: row[column].strip() for name, row in zip(files, rows, strict=True)} for column in columns}


class Labels:
    """Values of the chosen columns for the pieces of every split, and their classes: the training split's values, sorted.

    Args:
        targets: columns to train on.
        rows: of each split, a mapping of column to value for each piece, in the data's order.
        extra: columns of a user's file, see `read_labels`. name: the column of `rows` that such a file goes by.

    Raises: ValueError for a column that is not there, or that holds no names.
    """

    def __init__(
        self, targets: Sequence[str], rows: Mapping[str, Rows], *, extra: Mapping[str, Mapping[str, str]], name: str
    ) -> None:
        self._rows, self._extra, self._name = rows, extra, name
        self.classes: dict[str, tuple[str, ...]] = {}
        for column in targets:
            self.classes[column] = tuple(sorted({value for value in self.values("train", column) if value is not None}))
            if not self.classes[column]:
                raise ValueError(f"data.targets: no training piece has a {column}; choose another of {', '.join(self.columns)}")

    @property
    def columns(self) -> list[str]:
        """Names of all columns that there are."""
        return sorted({*self._extra, *(name for rows in self._rows.values() for name in (rows[0] if rows else ()))})

    def values(self, split: str, column: str) -> list[str | None]:
        """The value of each piece of a split, in the data's order; None where there is none.

        Raises: ValueError for an unknown column or split, and for a column of measurements.
        """
        if split not in self._rows:
            raise ValueError(f"split={split} is unknown; valid are {', '.join(self._rows)}")
        if column not in self.columns:
            raise ValueError(f"the data has no column {column!r} for labels; there are {', '.join(self.columns)}")
        found: list[str | None] = []
        for row in self._rows[split]:
            value = self._extra[column][str(row[self._name])] if column in self._extra else row[column]
            if isinstance(value, float | list):
                raise ValueError(f"the column {column!r} holds numbers such as {value}, not names; choose a column of names")
            found.append(None if value is None or value == "" else str(value))
        return found

    def numbers(self, split: str) -> dict[str, np.ndarray]:
        """The class of each piece of a split, int64 [n], for each target; `NO_LABEL` where it has none of the classes."""
        found = {}
        for column, names in self.classes.items():
            place: dict[str | None, int] = {name: number for number, name in enumerate(names)}
            found[column] = np.array([place.get(value, NO_LABEL) for value in self.values(split, column)], np.int64)
        return found


def refuse_augmented(targets: Iterable[str], **ranges: object) -> None:
    """Raises ValueError where a target would not be true of the augmented pieces; ranges: of each augmentation, None for none."""
    for column in targets:
        option = AUGMENTED.get(column)
        if option is not None and ranges.get(option) is not None:
            raise ValueError(
                f"data.targets names {column}, which data.{option}={ranges[option]} changes from pass to pass; "
                f"set data.{option}=null"
            )
