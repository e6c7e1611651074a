"""Tables of several runs: options that differ, final and best metrics, differing environments; as text and as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etude.report.comparison.runs import Points, Run
from etude.report.reports import format_cell

MEASURED = ("val/", "test/", "live/")  # what the names of metrics begin with that are not losses of training
HIGHER = ("quality", "rhythm", "harmony", "melody", "structure", "style", "accuracy", "overlap", "similarity", "correlation")
LOWER = (
    "loss", "nll", "l1", "frechet", "mcd", "error", "copying", "alerts", "perplexity", "distance", "stft", "cycle", "mse",
)  # fmt: skip
MISSING = "–"


class Value(NamedTuple):
    """A metric of a run: its best value with its step (None if no direction is known), and its last value."""

    best: float | None
    best_step: int | None
    final: float


def differences(tables: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Returns the keys whose values differ: (key, value in each table, `MISSING` where it has none).

    Keys that all tables have come first, then the others, both in the order of the first table that has them.
    """
    keys = list(dict.fromkeys(key for table in tables for key in table))
    rows = [(key, [table.get(key, MISSING) for table in tables]) for key in keys]
    differing = [(key, values) for key, values in rows if any(value != values[0] for value in values)]
    return sorted(differing, key=lambda row: any(row[0] not in table for table in tables))


def short_names(runs: Sequence[Run], *, most: int = 3) -> list[str]:
    """Returns for each run what tells it from the others: its label, or "key=value, ..." where at most `most` options differ."""
    rows = [(key, values) for key, values in differences([run.options for run in runs]) if key not in ("ckpt", "name", "outputs")]
    rows = [row for row in rows if not row[0].startswith(("trial.", "logger."))]
    shown = [", ".join(f"{key.rpartition('.')[2]}={values[place]}" for key, values in rows) for place in range(len(runs))]
    if not 0 < len(rows) <= most or len(set(shown)) < len(runs) or max(map(len, shown)) > 60:
        return [run.label for run in runs]
    return shown


def higher_is_better(name: str, runs: Sequence[Run]) -> bool | None:
    """Returns whether higher values of a metric are better; None if that is not known."""
    for run in runs:
        if run.monitor == name and run.options.get("monitor_mode") in ("min", "max"):
            return bool(run.options["monitor_mode"] == "max")
    if name.startswith("train/"):  # the batch of one step: the luckiest one says nothing
        return None
    last = name.rpartition("/")[2].replace("-", "_")

    def is_one_of(words: Sequence[str]) -> bool:
        return any(last == word or last.endswith(f"_{word}") for word in words)

    if is_one_of(LOWER):
        return False
    return True if name.startswith(MEASURED) and is_one_of(HIGHER) else None


def value_of(points: Points, *, higher: bool | None) -> Value:
    """Returns the best and the last value of a curve."""
    final = points[-1][1]
    if higher is None:
        return Value(None, None, final)
    step, best = max(points, key=lambda point: (point[1] if higher else -point[1], -point[0]))
    return Value(best, int(step), final)


def metric_names(runs: Sequence[Run]) -> list[str]:
    """Returns the metrics for the table: what runs monitor, then what is measured on held-out data, then train/loss."""
    names = dict.fromkeys(name for run in runs for name in run.curves)
    monitored = [name for name in dict.fromkeys(run.monitor for run in runs) if name in names]
    measured = [name for name in names if name.startswith(MEASURED) and name not in monitored]
    return [*monitored, *measured, *(name for name in ("train/loss",) if name in names and name not in monitored)]


def values(runs: Sequence[Run], name: str) -> list[Value | None]:
    """Returns a metric's values in each run, None where it has none."""
    higher = higher_is_better(name, runs)
    return [value_of(run.curves[name], higher=higher) if name in run.curves else None for run in runs]


def best_places(numbers: Sequence[float | None], *, higher: bool | None) -> set[int]:
    """Returns the places of the best numbers; none if fewer than two are given or no direction is known."""
    given = [number for number in numbers if number is not None]
    if higher is None or len(given) < 2 or min(given) == max(given):
        return set()
    best = max(given) if higher else min(given)
    return {place for place, number in enumerate(numbers) if number == best}


def as_csv(runs: Sequence[Run]) -> str:
    """Returns compare.csv: a row for each run with its metrics, and the options that differ."""
    names, options = metric_names(runs), differences([run.options for run in runs])
    columns: dict[str, list[Any]] = {
        "run": [run.label for run in runs], "folder": [str(run.folder) for run in runs], "task": [run.task for run in runs],
        "steps": [run.steps for run in runs], "commit": [run.environment.get("commit", "") for run in runs],
        "notes": ["; ".join(run.notes) for run in runs],
    }  # fmt: skip
    for name in names:
        found = values(runs, name)
        if any(value is not None and value.best is not None for value in found):
            columns[f"{name} best"] = [value.best if value else None for value in found]
            columns[f"{name} best step"] = [value.best_step if value else None for value in found]
        columns[f"{name} final"] = [value.final if value else None for value in found]
    for key, cells in options:
        columns[f"option {key}"] = ["" if cell is MISSING else cell for cell in cells]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def as_text(runs: Sequence[Run], *, width: int, most: int = 4) -> str:
    """Returns a table for the terminal: runs with their best (or last) metrics, the best marked with a star.

    width: characters of a line. most: metrics shown.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "run", "steps"):
        table.add_column(heading, justify="right" if heading != "run" else "left", overflow="fold")
    columns: list[list[str]] = []
    for name in metric_names(runs)[:most]:
        found, higher = values(runs, name), higher_is_better(name, runs)
        numbers = [None if value is None else value.final if value.best is None else value.best for value in found]
        stars = best_places(numbers, higher=higher)
        columns.append([f"{format_cell(number)}{'*' if place in stars else ' '}" for place, number in enumerate(numbers)])
        table.add_column(f"{name} {'last' if higher is None else 'best'}", justify="right", overflow="fold")
    notes = [", ".join(run.notes) for run in runs]
    if any(notes):
        table.add_column("notes", overflow="fold")
    for place, (run, name) in enumerate(zip(runs, short_names(runs), strict=True)):
        cells = [str(place + 1), name, str(run.steps), *(column[place] for column in columns)]
        table.add_row(*cells, *([notes[place]] if any(notes) else []))
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table, markup=False)
    file: Any = console.file
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
