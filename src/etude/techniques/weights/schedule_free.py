"""Technique schedule_free: uses the average of optimizer=schedule_free for validation, sampling and export."""

from typing import Any, ClassVar

import pytorch_lightning as pl

from etude.core.averaging import EvaluationWeights, refuse_split_weights
from etude.core.task import Task
from etude.core.technique import Power, Technique
from etude.optim.optimizers import ScheduleFree as Optimizer


class ScheduleFree(Technique):
    """Validates with, and saves, the average x of optimizer=schedule_free; the weights during training are y.

    x = y + (1 - 1 / b1) (z - y), where z are the optimizer's fast weights. x is computed when a validation begins or a checkpoint
    is written; afterwards y is restored bit for bit. The checkpoint's `state_dict` holds x; y is in the technique's state.

    When to use: with optimizer=schedule_free, which adds it by itself; never with another optimizer.

    Source: Defazio et al. 2024, algorithm 1.

    Raises:
        ValueError: the task trains with another optimizer, or its weights are sharded over devices.
    """

    claims: ClassVar[frozenset[Power]] = frozenset({Power.EVALUATION_WEIGHTS})

    def __init__(self) -> None:
        super().__init__()
        self._evaluation = EvaluationWeights()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        refuse_split_weights(trainer, self.name)
        if not isinstance(pl_module, Task) or stage != "fit":
            return
        optimizer = pl_module.build_optimizer()
        if not isinstance(optimizer, Optimizer):
            raise ValueError(
                f"technique schedule_free evaluates the average of optimizer=schedule_free, but {type(pl_module).__name__} "
                f"trains with {type(optimizer).__name__}; choose optimizer=schedule_free or remove the technique"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluation.restore(pl_module)

    def _average(self, trainer: pl.Trainer, task: pl.LightningModule) -> EvaluationWeights:
        """Computes the optimizer's average; there is none before training, or after a switch to another optimizer."""
        optimizer = trainer.optimizers[0] if trainer.optimizers else None
        if isinstance(optimizer, Optimizer):
            averages = {p.data_ptr(): value for p, value in optimizer.evaluation_weights().items()}
            weights = self._evaluation.float_weights(task)
            self._evaluation.values = {n: averages.get(w.data_ptr(), w.detach()).clone() for n, w in weights.items()}
        return self._evaluation

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._average(trainer, pl_module).swap(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluation.swap_back(pl_module)
        self._evaluation.values = {}

    def on_validation_interrupted(self, task: Task) -> None:
        self._evaluation.swap_back(task)
        self._evaluation.values = {}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._evaluation.swap_back(pl_module)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._average(trainer, pl_module).save(pl_module, checkpoint, self.state_key, with_average=False)
        self._evaluation.values = {}

    def state_dict(self) -> dict[str, Any]:
        return {"evaluates": "x"}  # not empty: Lightning does not save empty states

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._evaluation.load(state_dict)
