"""Technique swa: stochastic weight averaging, the mean of the weights over the last part of the run."""

from typing import Any, ClassVar

import pytorch_lightning as pl
import torch

from etude.core.averaging import EvaluationWeights, refuse_split_weights
from etude.core.task import Task
from etude.core.technique import Power, StepSlot, Technique


class Swa(Technique):
    """Averages the weights of every `every`-th step over the last part of the run and validates with the average.

    average <- average + (weights - average) / (n + 1), where n is the number of weights averaged before. Until the first weights
    are added, validation and checkpoints use the training weights. As with `ema`, the checkpoint's `state_dict` holds the
    average, and the training weights are saved in the technique's state.

    When to use: instead of `ema` if the learning rate stays high to the end (scheduler=constant, or wsd with a short decay). The
    mean of distant weights then lies in a flatter region of the loss than any of them. If the learning rate falls to zero, the
    weights hardly differ at the end, and `ema` is simpler.

    Source: Izmailov et al. 2018, algorithm 1. Two deviations: the learning rate is left to the schedule, and BatchNorm
    statistics are averaged like weights instead of being computed in a separate pass.

    Args:
        start: share of the run after which averaging begins, in [0, 1).
        every: steps between two additions to the average, at least 1.

    Raises:
        ValueError: start is outside [0, 1), or every is below 1; in training, the length of the run is unknown.
    """

    claims: ClassVar[frozenset[Power]] = frozenset({Power.EVALUATION_WEIGHTS})
    step_slot: ClassVar[StepSlot] = StepSlot.AVERAGE

    def __init__(self, *, start: float = 0.75, every: int = 10) -> None:
        super().__init__()
        if not 0 <= start < 1:
            raise ValueError(f"swa.start is {start}, must be in [0, 1), a share of the run; 0.75 is common")
        if every < 1:
            raise ValueError(f"swa.every is {every}, must be at least 1 update; 10 is a good start")
        self.start, self.every = start, every
        self.taken = 0
        self._evaluation = EvaluationWeights()
        self._first = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        refuse_split_weights(trainer, self.name)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluation.restore(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError("swa.start is a share of the run: set trainer.max_steps or trainer.max_epochs")
        self._first = max(1, round(self.start * total))

    def after_step(self, task: Task) -> None:
        step = task.steps_trained
        if step < self._first or (step - self._first) % self.every:
            return
        weights = self._evaluation.float_weights(task)
        if not self._evaluation.values:
            self._evaluation.values = {name: value.clone() for name, value in weights.items()}
        else:
            averages = list(self._evaluation.values.values())
            torch._foreach_lerp_(averages, [weights[name] for name in self._evaluation.values], 1 / (self.taken + 1))
        self.taken += 1

    def on_phase_start(self, task: Task) -> None:
        self._evaluation.extend(task)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluation.swap(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluation.swap_back(pl_module)

    def on_validation_interrupted(self, task: Task) -> None:
        self._evaluation.swap_back(task)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._evaluation.swap_back(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._evaluation.save(pl_module, checkpoint, self.state_key)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.taken = state_dict["taken"]
        self._evaluation.load(state_dict)
