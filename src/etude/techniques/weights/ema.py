"""Technique ema: an exponential moving average of the weights, used for validation, sampling and export."""

from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.averaging import EvaluationWeights, refuse_split_weights
from etude.core.task import Task
from etude.core.technique import Power, StepSlot, Technique


class Ema(Technique):
    """Averages the weights exponentially over training and validates with the average.

    After each optimizer step average <- d * average + (1 - d) * weights, with d = min(decay, (1 + n) / (10 + n)) after n steps:
    the average forgets the initial weights quickly. The checkpoint's `state_dict` holds the average, so code that loads it for
    sampling or export needs to know nothing of this technique. The training weights are saved in the technique's state.

    With `every` = k the average takes the weights of every k-th step, with the product of the k values of d: the same memory of
    the past at a k-th of the cost, and up to k - 1 steps old when it is validated. Before the k-th step it takes each, so that a
    shorter run has an average, too.

    When to use: almost always; an update costs one more pass over the weights. Suggested: 0.999 for 1,000 to 10,000 steps,
    0.9999 for longer runs.

    Source: Polyak and Juditsky 1992; the warm-up of d follows TensorFlow's ExponentialMovingAverage.

    Args:
        decay: largest value of d, in (0, 1).
        every: steps between two updates of the average. With `ckpt=` a run from before this option existed keeps 1.
    """

    claims: ClassVar[frozenset[Power]] = frozenset({Power.EVALUATION_WEIGHTS})
    step_slot: ClassVar[StepSlot] = StepSlot.AVERAGE

    def __init__(self, *, decay: float = 0.999, every: int = 4) -> None:
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"ema.decay is {decay}, must be in (0, 1); 0.999 suits 1,000 to 10,000 steps")
        if every < 1:
            raise ValueError(f"ema.every is {every}, must be 1 or more steps; 4 keeps the cost below half a percent of a step")
        self.decay, self.every = decay, every
        self.updates = 0  # optimizer steps
        self._kept = 1.0  # product of d since the last update of the average
        self._evaluation = EvaluationWeights()
        self._weights: list[Tensor] = []  # the training weights, in the order of the averages

    @property
    def _average(self) -> dict[str, Tensor]:
        return self._evaluation.values

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        refuse_split_weights(trainer, self.name)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluation.restore(pl_module)
        if not self._evaluation.values:
            self._evaluation.values = {name: value.clone() for name, value in self._evaluation.float_weights(pl_module).items()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        weights = self._evaluation.float_weights(pl_module)
        self._weights = [weights[name] for name in self._average]

    def after_step(self, task: Task) -> None:
        self.updates += 1
        self._kept *= min(self.decay, (1 + self.updates) / (10 + self.updates))
        if self.updates % self.every == 0 or self.updates < self.every:
            torch._foreach_lerp_(list(self._average.values()), self._weights, 1 - self._kept)
            self._kept = 1.0

    def on_phase_start(self, task: Task) -> None:
        self._evaluation.extend(task)
        weights = self._evaluation.float_weights(task)
        self._weights = [weights[name] for name in self._average]

    def _swap(self, task: pl.LightningModule) -> None:
        self._evaluation.swap(task)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluation.swap_back(pl_module)

    def on_validation_interrupted(self, task: Task) -> None:
        self._evaluation.swap_back(task)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._evaluation.swap_back(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "kept": self._kept}

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._evaluation.save(pl_module, checkpoint, self.state_key)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        self._kept = state_dict.get("kept", 1.0)
        self._evaluation.load(state_dict)
