"""Which pieces a phase trains on, told to the data before they are drawn.

Batches are drawn ahead of training. So the data are not asked what phase is under way, but of which phase the batch with a given
number will be: known in advance where a phase ends with its `max_steps`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np

from etude.core.any_task import AnyTask


@runtime_checkable
class ChoosesPieces(Protocol):
    """Data with a table of training pieces, of which rules choose; see `MusicDataModule`."""

    def pieces(self) -> dict[str, np.ndarray]: ...

    def admit(self, name: str, rule: Any) -> None: ...

    @property
    def lookahead(self) -> int: ...

    @property
    def epoch_batches(self) -> int: ...


@runtime_checkable
class HasStyles(Protocol):
    """Data whose batches hold rows of each of several styles, the values of the column `genre`."""

    @property
    def styles(self) -> tuple[str, ...]: ...

    def may_leave_styles_out(self, name: str) -> None: ...


class HasData(Protocol):
    """A phase, of which only this matters here; see `etude.core.phases.Phase`."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> Mapping[str, Any]: ...

    @property
    def max_steps(self) -> int | None: ...


class Draws:
    """From which batch on training draws the pieces of which phase.

    An end by `max_steps` is known in advance: the batch of the first step of the next phase is the first with its pieces,
    whatever workers have loaded ahead. An end by `patience` is not: the first `lookahead` + 1 batches of the next phase (17 with
    up to four workers) may still hold the pieces of the one before; where the phase has `max_steps` too, none after these.

    changes: [first batch, number of the phase], in order; batches are counted from the start of the run.
    """

    def __init__(self) -> None:
        self.changes: list[list[int]] = [[0, 0]]
        self._masks: list[np.ndarray] = []  # of each phase, whether a piece is trained on
        self._lengths: list[int | None] = []
        self._data: ChoosesPieces | None = None
        self._known = False  # whether `changes` are of this run yet

    def choose(self, task: AnyTask, sequence: Sequence[HasData]) -> None:
        """Tells the data which pieces each phase trains on, where one leaves any out.

        Raises:
            ValueError: the data have no table of pieces or no such column, or nothing is left.
        """
        if not any(phase.data for phase in sequence):
            return
        data: Any = getattr(task.trainer, "datamodule", None)
        if not isinstance(data, ChoosesPieces):
            raise ValueError(
                f"a phase chooses pieces, {type(task).__name__}'s data ({type(data).__name__}) has no table of them; "
                "leave data out of the phases"
            )
        columns = data.pieces()
        self._masks = [_mask(phase, columns) for phase in sequence]
        if isinstance(data, HasStyles):
            for phase, mask in zip(sequence, self._masks, strict=True):
                _check_styles(phase, columns["genre"][mask], data.styles, task)
            data.may_leave_styles_out("phases")
        self._lengths = [phase.max_steps for phase in sequence]
        self._data = data
        data.admit("phases", partial(self.rule, task))

    def rule(self, task: AnyTask, rows: np.ndarray, draw: int) -> np.ndarray:
        """1 for each piece (row of the table) that the phase of this batch trains on."""
        if not self._known:  # only now has every technique had its say in the length of an epoch
            self.changes, self._known = self._expected(task, step=0), True
        number = next(number for first, number in reversed(self.changes) if first <= draw)
        admitted: np.ndarray = self._masks[number][rows].astype(np.float64)
        return admitted

    def boundary(self, task: AnyTask) -> None:
        """Takes notice that the next phase begins with the batch at hand; what is drawn already can't change any more."""
        self._replan(task, step=task.steps_trained)

    def _replan(self, task: AnyTask, *, step: int) -> None:
        """Lets batches that nobody has drawn yet follow what is known now; where nothing has surprised, nothing changes."""
        if self._data is None:
            return
        first = task.batches_trained + self._data.lookahead + 1
        expected = self._expected(task, step=step)
        kept = [change for change in self.changes if change[0] < first]
        number = next(number for begin, number in reversed(expected) if begin <= first)
        turn = [[first, number]] if number != kept[-1][1] else []
        self.changes = [*kept, *turn, *(change for change in expected if change[0] > first)]

    def _expected(self, task: AnyTask, *, step: int) -> list[list[int]]:
        """The changes from the phase under way on, where each ends with its `max_steps`."""
        assert self._data is not None
        phases, now, epoch = task.phases, task.batches_trained, self._data.epoch_batches
        found, end = [[now, phases.index]], phases.start_step
        for number in range(phases.index, len(self._lengths) - 1):
            length = self._lengths[number]
            if length is None:
                break
            end += length
            accumulate = task.trainer.accumulate_grad_batches
            batches = batches_of(max(0, end - step), at=now % epoch, epoch=epoch, accumulate=accumulate)
            found.append([now + batches, number + 1])
        return found

    def state_dict(self) -> list[list[int]]:
        return [list(change) for change in self.changes]

    def load(self, task: AnyTask, changes: Sequence[Sequence[int]], *, step: int) -> None:
        """Goes on from the changes of a checkpoint written at optimizer step `step`."""
        self.changes, self._known = [list(change) for change in changes], True
        self._replan(task, step=step)


def batches_of(steps: int, *, at: int, epoch: int, accumulate: int) -> int:
    """How many batches the next `steps` optimizer steps take, `at` batches after the beginning of an epoch of `epoch` batches.

    A step takes `accumulate` batches, but the last of an epoch may take fewer: gradients don't go over its end.
    """
    epochs, rest = divmod(at // accumulate + steps, -(-epoch // accumulate))
    return epochs * epoch + rest * accumulate - at


def _mask(phase: HasData, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    mask = np.ones(len(next(iter(columns.values()))), bool)
    for name, wanted in phase.data.items():
        if name not in columns:
            raise ValueError(f"data of {phase.name} names {name!r}; columns are {', '.join(sorted(columns))}")
        values = columns[name]
        if isinstance(wanted, list | tuple) and np.issubdtype(values.dtype, np.number):
            mask &= (values >= wanted[0]) & (values <= wanted[-1])
        else:
            mask &= np.isin(values, wanted if isinstance(wanted, list | tuple) else [wanted])
    if not mask.any():
        raise ValueError(f"data of {phase.name} leaves no piece; {dict(phase.data)} is too narrow")
    return mask


def _check_styles(phase: HasData, genres: np.ndarray, styles: Sequence[str], task: AnyTask) -> None:
    """Raises: ValueError where the task can't train on so few styles."""
    left = [style for style in styles if style in genres]
    least = task.min_styles or len(styles)
    if len(left) < min(least, len(styles)):
        raise ValueError(
            f"data of {phase.name} leaves pieces of {', '.join(left)} only; {type(task).__name__} needs at least {least} of the "
            f"styles {', '.join(styles)} in every phase"
        )
