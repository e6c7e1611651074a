"""Technique forgetting: measures after each phase what the model can do on the held-out pieces of every phase."""

import csv
import io
import logging
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl

from etude.core.measuring import Measure, measured_set
from etude.core.phase_draws import data_of, rows_of
from etude.core.phase_protocols import GrowsInPhases, HoldsOut, RecallsPhases
from etude.core.phase_values import styles_together, values_of
from etude.core.sections import check_every, ends_now
from etude.core.task import Task
from etude.core.technique import StepSlot, Technique
from etude.metrics.sets.forgetting import transfer
from etude.optim.consolidation import evaluation_draws
from etude.report.files import write_atomically
from etude.report.forgetting_plot import forgetting_matrix

log = logging.getLogger(__name__)

START = "start"
NOTES = Measure("nll_per_note", "nats per note")


class Forgetting(Technique):
    """Writes the forgetting matrix: each measure of the task, on the held-out pieces of every phase, after every phase.

    The pieces of a phase are those of a split that its `data` choose; if the phases choose none, the pieces of each value of a
    column, or of each pair of styles for a task that translates between them. Of tokens the likelihood is also given per note,
    which does not depend on the tokenizer. The run's folder gets forgetting.csv and, at the end, forgetting.png; the log gets
    the table with the backward and the forward transfer (Lopez-Paz and Ranzato 2017). The weights are those of training, not
    their averages; a technique that keeps weights for each phase (packnet) is asked for them, and so is a network that grows
    (model=progressive). Training is not changed.

    When to use: whenever phases differ in their data; a measurement takes as long as a validation for each phase.

    Args:
        split: val or test. Choose on val; look at test once.
        column: whose values are measured where the phases choose no pieces; pieces without a value are left out.
        every: steps between two further measurements; None for the ends of the phases alone.

    Raises:
        ValueError: an option out of its range; a task without measures, data of which no part can be measured alone, several
            devices; fewer than two groups, or one without a held-out piece.
    """

    step_slot: ClassVar[StepSlot] = StepSlot.PLAN
    only_observes: ClassVar[bool] = True

    def __init__(self, *, split: str = "val", column: str = "genre", every: int | None = None) -> None:
        super().__init__()
        if split not in ("val", "test"):
            raise ValueError(f"technique.forgetting.split is {split!r}, must be val or test")
        check_every(self.name, every)
        self.split, self.column, self.every = split, column, every
        self.rows: list[dict[str, Any]] = []  # step, after, ends (the number of the phase that ended, None in between), values
        self.groups: dict[str, np.ndarray] = {}  # name -> which rows of the table

    # --- setup ---

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        assert isinstance(pl_module, Task)
        who, data = type(pl_module).__name__, data_of(trainer)
        if not pl_module.measures():
            raise ValueError(f"technique forgetting needs measures, and {who} has none; remove it from technique=[...]")
        if pl_module.example_axis is None:
            raise ValueError(
                f"technique forgetting measures some pieces alone, and pieces mean nothing to {who} without the others of their "
                "batch; remove it from technique=[...]"
            )
        if not isinstance(data, HoldsOut):
            raise ValueError(
                f"technique forgetting measures some pieces alone, which the data ({type(data).__name__}) of {who} does not "
                "offer; remove it from technique=[...] (stage=genres: ~technique.forgetting)"
            )
        if trainer.world_size > 1:
            raise ValueError(f"technique forgetting measures {who} on one device; set trainer.devices=1")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        phases = pl_module.phases.sequence
        columns = self._data(pl_module).held_out(self.split)
        if any(phase.data for phase in phases):
            self.groups = {phase.name: _rows_of(phase, columns, self.split) for phase in phases}
        else:
            if self.column not in columns:
                raise ValueError(
                    f"technique forgetting: there is no column {self.column!r}; the columns are {', '.join(sorted(columns))}"
                )
            together = styles_together(self._data(pl_module), pl_module, self.column)
            sets = combinations(values_of(columns[self.column]), together)
            self.groups = {"+".join(map(str, each)): np.isin(columns[self.column], each) for each in sets}
        if "tokens" in columns:
            self.groups = {name: rows & (columns["tokens"] > 0) for name, rows in self.groups.items()}
        if empty := [name for name, rows in self.groups.items() if not rows.any()]:
            raise ValueError(
                f"technique forgetting: there is no piece of {empty[0]} in the split {self.split}; give data.split a larger "
                "share for it, or technique.forgetting.split another value"
            )
        if len(self.groups) < 2:
            raise ValueError(
                f"technique forgetting compares pieces of several phases, and there is one kind, {next(iter(self.groups))}; "
                "remove it from technique=[...]"
            )

    # --- measuring ---

    def _data(self, task: Task) -> Any:
        return task.trainer.datamodule  # type: ignore[attr-defined]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        if not self.rows:
            self._measure(pl_module, after=START)

    def after_step(self, task: Task) -> None:
        if ends_now(task, self.every):
            self._measure(task, after=task.phase.name)

    def on_phase_end(self, task: Task) -> None:
        self._measure(task, after=task.phase.name, ends=task.phases.index)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        self.rows = [row for row in self.rows if row["step"] < pl_module.steps_trained or row["ends"] is not None]
        if not pl_module.phases.sequence or self.rows[-1]["ends"] != pl_module.phases.index:
            self._measure(pl_module, after=pl_module.phase.name or "end", ends=pl_module.phases.index)
        self._report(pl_module)

    def _measure(self, task: Task, *, after: str, ends: int | None = None) -> None:
        values: dict[str, list[float]] = {}
        recalling = [t for t in task.composition.techniques if isinstance(t, RecallsPhases)]
        by_phase = list(self.groups) == task.phases.names
        with evaluation_draws(task, seed=0):
            for number, rows in enumerate(self.groups.values()):
                with ExitStack() as stack:
                    if by_phase and isinstance(task, GrowsInPhases):
                        stack.enter_context(task.recalled(number))
                    for technique in recalling if by_phase else []:
                        stack.enter_context(technique.recalled(task, number))
                    for name, value in self._of(task, rows).items():
                        values.setdefault(name, []).append(value)
        self.rows.append({"step": task.steps_trained, "after": after, "ends": ends, "values": values})
        if task.trainer.is_global_zero:
            write_atomically(self._file(task, "csv"), self._csv(task))

    def _of(self, task: Task, rows: np.ndarray) -> dict[str, float]:
        """Returns each measure over the chosen pieces."""
        found, counts = measured_set(task, self._data(task).loader_of(self.split, rows))
        if self._per_note(task):
            nats = found["nll"] * counts["nll"]
            found[NOTES.name] = nats / float(self._data(task).held_out(self.split)["notes"][rows].sum())
        return found

    def _per_note(self, task: Task) -> bool:
        main = task.measures()[0]
        return (main.name, main.unit) == ("nll", "nats per token") and "notes" in self._data(task).held_out(self.split)

    def _measures(self, task: Task) -> dict[str, Measure]:
        """The measures by name, the one first that the table shows."""
        own = [measure for measure in task.measures() if measure.name in self.rows[0]["values"]]
        return {measure.name: measure for measure in ([NOTES] if self._per_note(task) else []) + own}

    # --- telling ---

    @property
    def logged_metrics(self) -> frozenset[str]:
        return frozenset(f"forgetting/{name}" for name in self.groups)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Task)
        if self.rows and self.is_logged(trainer):
            shown = next(iter(self._measures(pl_module)))
            for name, value in zip(self.groups, self.rows[-1]["values"][shown], strict=True):
                pl_module.log(f"forgetting/{name}", value)

    def _file(self, task: Task, kind: str) -> Path:
        return Path(task.trainer.default_root_dir) / f"forgetting.{kind}"

    def _csv(self, task: Task) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["step", "after", "ended", "measured", "measure", "unit", "value"])
        for row in self.rows:
            for name, measure in self._measures(task).items():
                for group, value in zip(self.groups, row["values"][name], strict=True):
                    writer.writerow(
                        [row["step"], row["after"], row["ends"] is not None, group, name, measure.unit, f"{value:.6g}"]
                    )
        return out.getvalue()

    def _report(self, task: Task) -> None:
        if not task.trainer.is_global_zero:
            return
        shown = [row for row in self.rows if row["after"] == START or row["ends"] is not None]
        names = [row["after"] for row in shown]
        for number, (name, measure) in enumerate(self._measures(task).items()):
            if number and not (name.endswith("accuracy") or name == "l1"):
                continue
            values = [row["values"][name] for row in shown]
            log.warning(_table(names, list(self.groups), values, unit=f"{name}, {measure.unit}"))
            if len(values) == len(self.groups) + 1:
                found = transfer(values[1:], values[0], higher_is_better=measure.higher_is_better)
                told = ", ".join(f"{key} {value:{'' if key == 'final' else '+'}.4f}" for key, value in found.items())
                log.warning(f"forgetting: {told} {measure.unit}")
            if not number:
                picture = forgetting_matrix(values, rows=names, columns=list(self.groups), unit=measure.unit, title=self.split)
                write_atomically(self._file(task, "png"), picture)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])


def _rows_of(phase: Any, columns: dict[str, np.ndarray], split: str) -> np.ndarray:
    try:
        return rows_of(phase, columns)
    except ValueError as error:
        if set(phase.data) <= set(columns):
            return np.zeros(len(next(iter(columns.values()))), bool)  # no piece, which is told with the remedy
        raise ValueError(f"technique forgetting, split {split}: {error}") from None


def _table(rows: list[str], columns: list[str], values: list[list[float]], *, unit: str) -> str:
    """Returns a matrix as lines of text."""
    width = max(9, *(len(name) + 1 for name in columns))
    first = max(len(name) for name in [*rows, "after"])
    lines = [f"forgetting: {unit}, measured on", " ".join([f"{'after':<{first}}", *(f"{name:>{width}}" for name in columns)])]
    lines += [
        " ".join([f"{name:<{first}}", *(f"{value:>{width}.4f}" for value in row)]) for name, row in zip(rows, values, strict=True)
    ]
    return "\n".join(lines)
