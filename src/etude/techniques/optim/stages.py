"""Technique stages: several phases in one run, each with its own frozen modules, learning rates, loss weights and data."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytorch_lightning as pl

from etude.core.phase_values import PhaseOfEach
from etude.core.phases import Phase
from etude.core.task import Task
from etude.core.technique import StepSlot, Technique
from etude.optim.plateau import Plateau, check_mode
from etude.wording import counted

log = logging.getLogger(__name__)

KEYS = frozenset(field.name for field in dataclasses.fields(Phase))


class Stages(Technique):
    """Trains a sequence of phases in one run. Each phase is a mapping with these keys:

    - name: for messages and other options.
    - frozen: prefixes of the names of parameters that are not trained; `embeddings` stands for all embedding tables.
    - lr: factor of the learning rates. layer_decay: residual block l of L is trained with the learning rate
      lr * layer_decay^(L - l), and the embeddings like a block below the first (Howard and Ruder 2018; Clark et al. 2020).
    - loss_weights: these replace the task's weights of the same names.
    - data: {column: value, [values] or [lowest, highest]} of the manifest's columns; only matching pieces are
      drawn. Two numbers are a range; a list of more or fewer numbers holds the values themselves.
    - modules: arguments for the task's `add_modules`, which is called when the phase begins.
    - max_steps: length of the phase in optimizer steps, which is also the length of the schedule, started afresh; None for the
      rest of the run. warmup: share of the phase, in [0, 1); None keeps the schedule's own value.
    - monitor (None: the task's main metric), mode ("min" or "max"), patience, min_delta, min_steps: the phase ends when the
      metric has not improved by more than `min_delta` for `patience` validations, but not before `min_steps`.

    A phase ends between two optimizer steps, and the reason is logged. The optimizer keeps its state of all parameters that
    remain. If a phase ends after its `max_steps`, all batches of the next phase hold the next phase's pieces. If it ends by
    `patience`, the first 17 may not (more with over four loader workers), since they are drawn ahead. The run ends with its last
    phase, and at the latest after the trainer's max_steps. The position is saved by the task (`etude.core.phases`), so resuming
    is exact within a phase, too.

    When to use: to train first on broad data, then on your own; first new layers, then all. `stage=progression` is an example.

    With `each` there is a phase for every value of a column of the data instead: {column: genre, order: null, folders: null,
    max_steps: null} and any of the keys above but name and data, which then hold for all of these phases. They come in the order
    of `order` (values, or lists of values for a phase of several; None for all values, sorted) or of `folders` (whose names are
    the values). Without `max_steps` they share the run equally.

    Args:
        stages: the phases in order, at least one.
        each: a phase for every value of a column; instead of `stages`.

    Raises:
        ValueError: an unknown key, or a phase without an end; in setup, an unknown parameter, column, metric or value, a single
            value, or a value without a piece to train on.
    """

    step_slot: ClassVar[StepSlot] = StepSlot.PLAN

    def __init__(self, *, stages: Sequence[Mapping[str, Any]] | None = None, each: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if stages and each:
            raise ValueError("technique.stages: stages and each are both given; give the phases, or a column, not both")
        self.each = None if each is None else PhaseOfEach.checked(each)
        self.phases = [self._phase(stage, number, len(stages or ())) for number, stage in enumerate(stages or (), start=1)]
        self.plateau = Plateau()
        self.reason = ""  # why the phase is about to end; "" if it is not

    @staticmethod
    def _phase(stage: Mapping[str, Any], number: int, count: int) -> Phase:
        if unknown := set(stage) - KEYS:
            raise ValueError(
                f"technique.stages.stages[{number - 1}] has {sorted(unknown)[0]!r}; the keys are {', '.join(sorted(KEYS))}"
            )
        try:
            made = Phase(**{"name": f"stage {number}", **stage})
        except ValueError as error:
            raise ValueError(f"technique.stages: {error}") from None
        check_mode(f"stages.stages[{number - 1}].mode", made.mode)
        if number < count and made.max_steps is None and made.patience is None:
            raise ValueError(f"technique.stages: {made.name} never ends; give it max_steps or patience")
        return made

    @property
    def logged_metrics(self) -> frozenset[str]:
        return frozenset({"stages/number"})

    # --- setup ---

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        assert isinstance(pl_module, Task)
        if self.each is not None:
            self.phases = [self._phase(each, number, 0) for number, each in enumerate(self.each.phases(trainer, pl_module), 1)]
        if not self.phases:
            raise ValueError(
                f"technique stages has no stages for this {type(pl_module).__name__}; choose stage=progression, or give "
                "technique.stages.stages=[{name: ..., max_steps: ...}, ...]"
            )
        if trainer.max_steps < 1:
            raise ValueError(f"technique stages needs the length of {type(pl_module).__name__}'s run in steps; set max_steps")
        try:
            pl_module.phases.set_sequence(pl_module, self.phases)
        except ValueError as error:
            raise ValueError(f"technique stages: {error}") from None
        self.plateau = _plateau(pl_module.phase)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        for phase in self.phases:
            if phase.patience is not None:
                pl_module.check_metric(_monitor(phase, pl_module), f"technique.stages: monitor of {phase.name}", phase.mode)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        self._finish(trainer, pl_module)  # a run that had ended ends again

    # --- change of phase: decided after a step or a validation, made before the next batch ---

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, Task)
        if self.reason and not pl_module.accumulating and not pl_module.phases.is_last:
            self._next(trainer, pl_module)

    def after_step(self, task: Task) -> None:
        length = task.phase.max_steps
        if length is not None and task.steps_trained - task.phases.start_step >= length:
            self.reason = self.reason or f"its {counted(length, 'step is', 'steps are')} over"
        self._finish(task.trainer, task)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Task)
        if self.is_logged(trainer):
            pl_module.log("stages/number", float(pl_module.phases.index + 1))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        phase = pl_module.phase
        if trainer.sanity_checking or phase.patience is None:
            return
        monitor = _monitor(phase, pl_module)
        value = trainer.callback_metrics.get(monitor)
        if value is None:
            found = ", ".join(sorted(trainer.callback_metrics))
            raise ValueError(f"technique.stages: monitor of {phase.name} is {monitor!r}, not logged; there are {found}")
        self.plateau.improves(float(value))
        best, waited = self.plateau.best, self.plateau.waited
        if waited >= phase.patience and pl_module.steps_trained - pl_module.phases.start_step >= phase.min_steps:
            self.reason = self.reason or f"{monitor} has not improved on {best:.4f} for {counted(waited, 'validation')}"
        self._finish(trainer, pl_module)

    def _finish(self, trainer: pl.Trainer, task: Task) -> None:
        """Ends the run if its last phase has ended."""
        if not self.reason or task.accumulating or not task.phases.is_last or trainer.should_stop:
            return
        if task.steps_trained < trainer.max_steps:
            log.warning(f"stages: {task.phase.name}, the last one, ends at step {task.steps_trained}: {self.reason}")
        trainer.should_stop = True

    def _next(self, trainer: pl.Trainer, task: Task) -> None:
        over, reason, self.reason = task.phase.name, self.reason, ""
        task.phases.advance(task)
        self.plateau = _plateau(task.phase)
        log.warning(f"stages: {over} ends at step {task.steps_trained}: {reason}; {task.phase.name} begins")

    # --- state; the position is part of the task's state ---

    def state_dict(self) -> dict[str, Any]:
        return {**self.plateau.state_dict(), "reason": self.reason}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(pl_module, Task)
        self.plateau = _plateau(pl_module.phase)  # with the options of the checkpoint's phase

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.reason = state_dict["reason"]
        self.plateau.load_state_dict(state_dict)


def _plateau(phase: Phase) -> Plateau:
    return Plateau(mode=phase.mode, min_delta=phase.min_delta)


def _monitor(phase: Phase, task: Task) -> str:
    return phase.monitor or task.logged_metrics[0]
