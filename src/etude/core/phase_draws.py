"""Decides which pieces each batch may hold when the phases of a run train on different pieces.

Loader workers draw batches ahead of training. So the data module can't use the current phase: it asks which phase the batch
with a given number will belong to. This is known in advance if a phase ends after its `max_steps`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np

from etude.core.any_task import AnyTask


@runtime_checkable
class ChoosesPieces(Protocol):
    """Data with a table of training pieces, from which rules choose; see `MusicDataModule`."""

    def pieces(self) -> dict[str, np.ndarray]: ...

    def admit(self, name: str, rule: Any) -> None: ...

    @property
    def lookahead(self) -> int: ...

    @property
    def epoch_batches(self) -> int: ...


@runtime_checkable
class MayDropStyles(Protocol):
    """Data whose batches normally hold examples of every style; the styles are the values of the column `genre`."""

    @property
    def styles(self) -> tuple[str, ...]: ...

    def may_leave_styles_out(self, name: str) -> None: ...


@runtime_checkable
class NetworksPerStyle(Protocol):
    """A task that says whether some of its networks get no gradient from a batch that lacks a style."""

    networks_per_style: bool


class PhaseLike(Protocol):
    """The attributes of `etude.core.phases.Phase` that are used here."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> Mapping[str, Any]: ...

    @property
    def max_steps(self) -> int | None: ...


def data_of(trainer: Any) -> Any:
    """Returns the data module of a trainer; None if it has none."""
    return getattr(trainer, "datamodule", None)


class PhasePieces:
    """The schedule that says which batches hold the pieces of which phase.

    If a phase ends after its `max_steps`, the change is exact: the first batch of the next phase is the first with its pieces.
    If a phase ends by `patience`, this is not known in advance: the first `lookahead` + 1 batches of the next phase (17 with up
    to four workers) may still hold pieces of the phase before.

    changes: [first batch, index of the phase], in order; batches are counted from the start of the run.
    """

    def __init__(self) -> None:
        self.changes: list[list[int]] = [[0, 0]]
        self._masks: list[np.ndarray] = []  # for each phase, which pieces it trains on
        self._lengths: list[int | None] = []
        self._data: ChoosesPieces | None = None
        self._known = False  # whether `changes` have been computed or loaded

    def register(self, task: AnyTask, sequence: Sequence[PhaseLike]) -> None:
        """Registers with the data module which pieces each phase trains on; does nothing if all phases use all pieces.

        Raises:
            ValueError: the data have no table of pieces, a column does not exist, or no piece remains.
        """
        if not any(phase.data for phase in sequence):
            return
        data = data_of(task.trainer)
        if not isinstance(data, ChoosesPieces):
            raise ValueError(
                f"a phase chooses pieces, but {type(task).__name__}'s data ({type(data).__name__}) has no table of pieces; "
                "leave data out of the phases"
            )
        columns = data.pieces()
        self._masks = [rows_of(phase, columns) for phase in sequence]
        if isinstance(data, MayDropStyles):
            for phase, mask in zip(sequence, self._masks, strict=True):
                _check_styles(phase, columns["genre"][mask], data.styles, task)
            data.may_leave_styles_out("phases")
        self._lengths = [phase.max_steps for phase in sequence]
        self._data = data
        data.admit("phases", partial(self.rule, task))

    def rule(self, task: AnyTask, rows: np.ndarray, draw: int) -> np.ndarray:
        """Returns 1 for each of `rows` (of the table of pieces) that the phase of batch number `draw` trains on, else 0."""
        if not self._known:  # not earlier: techniques may change the length of an epoch
            self.changes, self._known = self._expected(task, step=0), True
        index = next(index for first, index in reversed(self.changes) if first <= draw)
        admitted: np.ndarray = self._masks[index][rows].astype(np.float64)
        return admitted

    def on_phase_start(self, task: AnyTask) -> None:
        """Updates the schedule when a phase begins; batches that are drawn already do not change."""
        self._replan(task, step=task.steps_trained)

    def _replan(self, task: AnyTask, *, step: int) -> None:
        """Computes the schedule of batches that are not drawn yet; it stays the same if all phases ended as expected."""
        if self._data is None:
            return
        first = task.batches_trained + self._data.lookahead + 1
        expected = self._expected(task, step=step)
        kept = [change for change in self.changes if change[0] < first]
        index = next(index for begin, index in reversed(expected) if begin <= first)
        change_now = [[first, index]] if index != kept[-1][1] else []
        self.changes = [*kept, *change_now, *(change for change in expected if change[0] > first)]

    def _expected(self, task: AnyTask, *, step: int) -> list[list[int]]:
        """Returns the changes from the current phase on, if each phase ends after its `max_steps`."""
        assert self._data is not None
        phases, now, epoch = task.phases, task.batches_trained, self._data.epoch_batches
        found, end = [[now, phases.index]], phases.start_step
        for index in range(phases.index, len(self._lengths) - 1):
            length = self._lengths[index]
            if length is None:
                break
            end += length
            accumulate = task.trainer.accumulate_grad_batches
            batches = batches_of(max(0, end - step), at=now % epoch, epoch=epoch, accumulate=accumulate)
            found.append([now + batches, index + 1])
        return found

    def state_dict(self) -> list[list[int]]:
        return [list(change) for change in self.changes]

    def load(self, task: AnyTask, changes: Sequence[Sequence[int]], *, step: int) -> None:
        """Restores the changes from a checkpoint that was written at optimizer step `step`."""
        self.changes, self._known = [list(change) for change in changes], True
        self._replan(task, step=step)


def batches_of(steps: int, *, at: int, epoch: int, accumulate: int) -> int:
    """Returns how many batches the next `steps` optimizer steps take.

    at: batches of the current epoch that are done. epoch: batches of an epoch. accumulate: batches of a step; the last step of
    an epoch may take fewer, since gradients are not accumulated over its end.
    """
    epochs, rest = divmod(at // accumulate + steps, -(-epoch // accumulate))
    return epochs * epoch + rest * accumulate - at


def rows_of(phase: PhaseLike, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns which pieces a phase trains on, bool [n]. Of numbers, a list of two is a range; other lists hold values."""
    mask = np.ones(len(next(iter(columns.values()))), bool)
    for name, wanted in phase.data.items():
        if name not in columns:
            raise ValueError(f"data of {phase.name} names {name!r}; the columns are {', '.join(sorted(columns))}")
        values = columns[name]
        if isinstance(wanted, list | tuple) and len(wanted) == 2 and np.issubdtype(values.dtype, np.number):
            mask &= (values >= wanted[0]) & (values <= wanted[1])
        else:
            mask &= np.isin(values, wanted if isinstance(wanted, list | tuple) else [wanted])
    if not mask.any():
        raise ValueError(f"data of {phase.name} matches no piece; {dict(phase.data)} is too narrow")
    return mask


def _has_idle_networks(task: AnyTask) -> bool:
    """Whether a batch that lacks a style leaves some of the task's networks without a gradient."""
    return isinstance(task, NetworksPerStyle) and task.networks_per_style


def _check_styles(phase: PhaseLike, genres: np.ndarray, styles: Sequence[str], task: AnyTask) -> None:
    """Raises: ValueError if the task can't train on so few styles, or not on several devices."""
    left = [style for style in styles if style in genres]
    if len(left) < len(styles) and _has_idle_networks(task) and task.trainer.world_size > 1:
        raise ValueError(
            f"data of {phase.name} leaves pieces of {', '.join(left)} only; on several devices every batch must train all "
            f"networks of {type(task).__name__}, and those of other styles would get no gradient; "
            "set task.shared=true or trainer.devices=1"
        )
    least = task.min_styles or len(styles)
    if len(left) < min(least, len(styles)):
        raise ValueError(
            f"data of {phase.name} leaves pieces of {', '.join(left)} only; {type(task).__name__} needs at least {least} of the "
            f"styles {', '.join(styles)} in every phase, such as [{', '.join(styles[:least])}]"
        )
