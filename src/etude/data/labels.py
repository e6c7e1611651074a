"""Labels: columns of the manifest or of a user's CSV file as targets of training, converted to class indices."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from etude.music.score import printable

NO_LABEL = -1  # class of padding, of pieces without a value, and of values that no training piece has
FILE = "file"  # the column of a user's CSV with the names of files, as in the manifest
AUGMENTED = {"key": "transpose", "tempo_bpm": "tempo_scale"}  # columns that are wrong for augmented pieces, and the augmentation

Rows = Sequence[Mapping[str, object]]


def read_labels(path: str, *, known: Iterable[str], needed: Iterable[str], taken: Iterable[str]) -> dict[str, dict[str, str]]:
    """Returns the columns of a CSV file: column -> file -> value, "" where a cell is empty.

    Args:
        path: a CSV with a header line; its column `file` holds names as in the manifest, paths below the data's folder.
        known: all files that may have a line.
        needed: files that must have a line.
        taken: names of existing columns, which the CSV can't have.

    Raises: ValueError, in one line, for a missing CSV, header or column, or a file that is unknown, missing or named twice.
    """
    option = f"data.labels_file={path}"
    if not Path(path).expanduser().is_file():
        raise ValueError(f"{option}: there is no such file; give a CSV with a column {FILE!r} and one for each label")
    with Path(path).expanduser().open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            rows, columns = list(reader), [name for name in reader.fieldnames or () if name != FILE]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{option}: it is not a CSV in UTF-8 ({error}); save it as comma-separated text") from error
    if FILE not in (reader.fieldnames or ()) or not columns:
        raise ValueError(f"{option}: its header is {reader.fieldnames}; it needs a column {FILE!r} and one for each label")
    if double := sorted(set(columns) & set(taken)) or [name for name, count in Counter(columns).items() if count > 1]:
        raise ValueError(f"{option}: its column {double[0]!r} exists already; give it another name")
    if ragged := [number for number, row in enumerate(rows, start=2) if None in row or None in row.values()]:
        raise ValueError(f"{option}: line {ragged[0]} has more or fewer cells than the header; write one cell for each column")
    files = [printable(row[FILE]) for row in rows]
    for wrong, what in (
        ([name for name, count in Counter(files).items() if count > 1], "is named twice; keep one line"),
        (sorted(set(files) - set(known)), "is not among the data; names are as in the manifest's column 'file', such as "),
        (sorted(set(needed) - set(files)), "has no line; add one, with empty cells for unknown values"),
    ):
        if wrong:
            example = next(iter(needed), "") if what.endswith("such as ") else ""
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise ValueError(f"{option}: {wrong[0]}{more} {what}{example}")
    return {column: {name: row[column].strip() for name, row in zip(files, rows, strict=True)} for column in columns}


class Labels:
    """The values of the target columns for the pieces of each split, and their classes (the values in training, sorted).

    Args:
        targets: the columns to train on.
        rows: split -> column -> value of each piece, in the order of the data.
        extra: the columns of a user's CSV, see `read_labels`.
        name: the column of `rows` with the file names that the CSV uses.

    Raises: ValueError for a missing column, or a column of numbers.
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
        """The names of all columns."""
        return sorted({*self._extra, *(name for rows in self._rows.values() for name in (rows[0] if rows else ()))})

    def values(self, split: str, column: str) -> list[str | None]:
        """Returns the value of each piece of a split, in the order of the data; None if it has none.

        Raises: ValueError for an unknown column or split, and for a column of numbers.
        """
        if split not in self._rows:
            raise ValueError(f"split={split} is unknown; valid are {', '.join(self._rows)}")
        if column not in self.columns:
            raise ValueError(
                f"the data has no column {column!r} for labels; there are {', '.join(self.columns)}: set heads or data.targets "
                "to some of them, or add your own by data.labels_file"
            )
        found: list[str | None] = []
        for row in self._rows[split]:
            value = self._extra[column][str(row[self._name])] if column in self._extra else row[column]
            if isinstance(value, int | float | list):
                raise ValueError(f"the column {column!r} holds numbers such as {value}, not names; choose a column of names")
            found.append(None if value is None or value == "" else str(value))
        return found

    def numbers(self, split: str) -> dict[str, np.ndarray]:
        """Returns target -> class of each piece of a split, int64 [n]; `NO_LABEL` if its value is not one of the classes."""
        found = {}
        for column, names in self.classes.items():
            place: dict[str | None, int] = {name: number for number, name in enumerate(names)}
            found[column] = np.array([place.get(value, NO_LABEL) for value in self.values(split, column)], np.int64)
        return found


def refuse_augmented(targets: Iterable[str], named_by: str = "data.targets", **ranges: object) -> None:
    """Raises ValueError where a target would not be true of the augmented pieces; ranges: of each augmentation, None for none."""
    for column in targets:
        option = AUGMENTED.get(column)
        if option is not None and ranges.get(option) is not None:
            raise ValueError(
                f"{named_by} names {column}, which data.{option}={ranges[option]} changes from pass to pass; "
                f"set data.{option}=null"
            )
