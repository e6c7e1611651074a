"""Phases made from the data: one for every value of a column of its table of pieces, such as one genre after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl

from etude.core.phase_draws import ChoosesPieces, MayDropStyles, data_of
from etude.core.phases import Phase

OF_PHASE = frozenset(each.name for each in fields(Phase)) - {"name", "data", "modules", "max_steps"}


@dataclass(frozen=True)
class PhaseOfEach:
    """Which phases there are: one for each value of `column`.

    column: of the data's table of training pieces; pieces without a value are in no phase. order: the values in order, or lists
    of values for phases of several; None for all values, sorted; for a task that translates between styles, the first style with
    each of the others. folders: folders whose names are the values, in this order. max_steps: of each phase; None to share the
    run equally. options: the other options of every phase.
    """

    column: str = "genre"
    order: Sequence[Any] | None = None
    folders: Sequence[str] | None = None
    max_steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def checked(cls, options: Mapping[str, Any]) -> "PhaseOfEach":
        """Returns the phases that `options` describe. Raises: ValueError for an unknown key or a value out of range."""
        own = {name: value for name, value in options.items() if name in {"column", "order", "folders", "max_steps"}}
        others = {name: value for name, value in options.items() if name not in own}
        if unknown := sorted(others.keys() - OF_PHASE):
            known = ", ".join(sorted({"column", "order", "folders", "max_steps"} | OF_PHASE))
            raise ValueError(f"technique.stages.each has {unknown[0]!r}; the keys are {known}")
        if own.get("max_steps") is not None and own["max_steps"] < 1:
            raise ValueError(f"technique.stages.each: max_steps is {own['max_steps']}, must be at least 1 step for each phase")
        return cls(**own, options=others)

    def phases(self, trainer: pl.Trainer, task: pl.LightningModule) -> list[dict[str, Any]]:
        """Returns the options of the phases, in order.

        Raises: ValueError for data without such a column, fewer than two phases, a value without a piece to train on, or a run
            that is too short.
        """
        who = f"technique stages, for {type(task).__name__}"
        data = data_of(trainer)
        if not isinstance(data, ChoosesPieces):
            raise ValueError(
                f"{who}: the data ({type(data).__name__}) have no table of pieces to make phases of; give other data="
            )
        columns = data.pieces()
        if self.column not in columns:
            raise ValueError(f"{who}: there is no column {self.column!r}; the columns are {', '.join(sorted(columns))}")
        usable = columns["tokens"] > 0 if "tokens" in columns else np.ones(len(columns[self.column]), bool)
        there = values_of(columns[self.column][usable])
        together = styles_together(data, task, self.column)
        if together > 1:
            there = [style for style in cast(MayDropStyles, data).styles if style in there]
        groups = self._groups(there, who, together)
        if len(groups) < 2 and together > 1:
            raise ValueError(
                f"{who}: a phase needs at least {together} styles, and {', '.join(map(str, there))} make one phase only; give "
                "more styles, such as styles=[folk,rock,jazz] with stage.order=[[folk,rock],[folk,jazz]]"
            )
        if len(groups) < 2:
            raise ValueError(
                f"{who}: the training pieces have one {self.column} only, {', '.join(map(str, there))}; give at least two, "
                "such as data=folder data.root=DIR with a subfolder for each, or stage.folders=[DIR,DIR]"
            )
        length = self.max_steps or trainer.max_steps // len(groups)
        if length < 1:
            raise ValueError(f"{who}: {trainer.max_steps} steps are too few for {len(groups)} phases; set max_steps higher")
        if length * len(groups) > trainer.max_steps:
            raise ValueError(
                f"{who}: {len(groups)} phases of {length} steps are more than max_steps={trainer.max_steps}; set max_steps to "
                f"{length * len(groups)}, or stage.steps lower"
            )
        named = [{"name": "+".join(map(str, group)), "data": {self.column: list(group)}} for group in groups]
        last = len(named) - 1  # without a length it goes on to the end of the run
        return [
            {**each, **self.options, "max_steps": None if self.max_steps is None and number == last else length}
            for number, each in enumerate(named)
        ]

    def _groups(self, there: list[Any], who: str, together: int) -> list[list[Any]]:
        """Returns the values of each phase."""
        order: Sequence[Any] = self.order or []
        if self.order is None:
            first = there[: together - 1]
            order = [[*first, other] for other in there[together - 1 :]]
        if self.folders is not None and self.order is None:
            order = [Path(folder).expanduser().resolve().name for folder in self.folders]
        groups = [list(each) if isinstance(each, list | tuple) else [each] for each in order]
        for value in (value for group in groups for value in group):
            if value not in there:
                raise ValueError(
                    f"{who}: {self.column} {value!r} has no training piece, so its phase would be empty; there are "
                    f"{', '.join(map(str, there))}"
                )
        names = [tuple(group) for group in groups]
        if twice := [name for name in names if names.count(name) > 1 or not name]:
            raise ValueError(f"{who}: the order names {list(twice[0])} twice or has an empty phase; name each once")
        return groups


def values_of(column: np.ndarray) -> list[Any]:
    """Returns the different values of a column, sorted, without None, "" and what is not a number."""
    plain = {value.item() if isinstance(value, np.generic) else value for value in column}
    return sorted((value for value in plain if value is not None and value != "" and value == value), key=str)


def styles_together(data: Any, task: Any, column: str) -> int:
    """Returns how many values of a column a phase needs at least: if they are styles, those that the task needs at once, else 1.

    A task that needs all styles needs as many as there are.
    """
    if not isinstance(data, MayDropStyles) or column != "genre":
        return 1
    return min(task.min_styles or len(data.styles), len(data.styles))
