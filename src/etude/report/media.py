"""Samples with their pictures, sounds and values: a table in a run's folder, and the loggers that can show them."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from lightning_utilities.core.rank_zero import rank_zero_only

from etude.report.files import write_atomically

if TYPE_CHECKING:
    import pytorch_lightning as pl

TABLE = "samples.csv"
FILES = ("picture", "sound", "score")  # columns that name files beside the table
Writer = TypeVar("Writer", bound=Callable[..., Any])


@dataclass(frozen=True)
class Sample:
    """One sample of a model.

    Attributes:
        name: shown above it, unique within a table.
        picture: a PNG file; None if there is none.
        sound: a WAV file; None if there is none.
        score: a MIDI file; None if there is none.
        values: column -> value: what was asked, what came out, measurements.
    """

    name: str
    picture: Path | None = None
    sound: Path | None = None
    score: Path | None = None
    values: Mapping[str, object] = field(default_factory=dict)


@runtime_checkable
class Dashboard(Protocol):
    """A logger that shows more than curves. Steps are optimizer steps."""

    def show_options(self, options: Mapping[str, Any], *, monitor: str, folder: Path) -> None:
        """Shows the options of a run as it begins. monitor: the metric that picks its best checkpoint. folder: the run's."""
        ...

    def show_picture(self, name: str, file: Path, *, step: int) -> None:
        """Shows a PNG file."""
        ...

    def show_sound(self, name: str, file: Path, *, step: int) -> None:
        """Shows a WAV file."""
        ...

    def show_table(self, name: str, samples: Sequence[Sample], *, step: int) -> None:
        """Shows one row for each sample."""
        ...

    def show_result(self, result: Mapping[str, float], *, checkpoints: Mapping[str, Path], step: int) -> None:
        """Shows the final values of a run. checkpoints: "best" and "last" -> file, as far as they exist."""
        ...


def few(**options: Any) -> Callable[[Writer], Writer]:
    """Marks a function that writes samples: `options` are enough while a model trains; see `core.protocols.FewSamples`."""

    def mark(function: Writer) -> Writer:
        function.__dict__.update(few=options)
        return function

    return mark


def write_table(folder: Path, samples: Sequence[Sample]) -> Path:
    """Writes samples.csv to `folder`, which holds the samples' files: a row for each sample; returns its path."""
    columns = list(dict.fromkeys(column for sample in samples for column in sample.values))
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["sample", *FILES, *columns])
    for sample in samples:
        files = (getattr(sample, kind) for kind in FILES)
        writer.writerow(
            [sample.name, *(file.name if file else "" for file in files), *(sample.values.get(column, "") for column in columns)]
        )
    return write_atomically(folder / TABLE, text.getvalue())


def read_table(folder: Path) -> list[Sample]:
    """Returns the samples that samples.csv in `folder` lists; none without that file. Files that are gone are left out."""
    path = folder / TABLE
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("sample")]
    return [
        Sample(
            row["sample"],
            **{kind: folder / row[kind] if row.get(kind) and (folder / row[kind]).is_file() else None for kind in FILES},
            values={name: number(value) for name, value in row.items() if name not in ("sample", *FILES) and value},
        )
        for row in rows
    ]


def number(text: str) -> object:
    """Returns a number where the text is one, otherwise the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@rank_zero_only
def show_samples(loggers: Iterable[Any], name: str, samples: Sequence[Sample], *, step: int) -> None:
    """Sends pictures, sounds and a table of the samples to the loggers that are dashboards, under `name`."""
    for logger in loggers:
        if samples and isinstance(logger, Dashboard):
            for sample in samples:
                if sample.picture is not None:
                    logger.show_picture(f"{name}/{sample.name}", sample.picture, step=step)
                if sample.sound is not None:
                    logger.show_sound(f"{name}/{sample.name}", sample.sound, step=step)
            logger.show_table(f"{name}/table", samples, step=step)


def log_pictures(trainer: "pl.Trainer", name: str, files: Iterable[Path]) -> None:
    """Sends PNG files to every logger that is a dashboard, under `name` and the files' stems."""
    for file in files:
        for logger in trainer.loggers:
            if isinstance(logger, Dashboard):
                logger.show_picture(f"{name}/{file.stem}", file, step=trainer.global_step)


def log_sounds(trainer: "pl.Trainer", name: str, files: Iterable[Path]) -> None:
    """Sends WAV files to every logger that is a dashboard, under `name` and the files' stems."""
    for file in files:
        for logger in trainer.loggers:
            if isinstance(logger, Dashboard):
                logger.show_sound(f"{name}/{file.stem}", file, step=trainer.global_step)
