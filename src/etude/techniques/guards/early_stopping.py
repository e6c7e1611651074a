"""Technique early_stopping: ends a run when a metric no longer improves, and restores the best weights."""

import logging
from collections.abc import Mapping
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.sharding import is_sharded
from etude.core.task import Task
from etude.core.technique import Technique
from etude.optim.plateau import Plateau, check_mode, watched_options
from etude.wording import counted

log = logging.getLogger(__name__)


class EarlyStopping(Technique):
    """Stops when `monitor` has not improved by more than `min_delta` for `patience` validations, and restores the best weights.

    The best weights are those that were validated, that is, the average if a technique such as `ema` validates with one. When
    training ends, early or not, they are copied into the model. `last.ckpt` then holds them for sampling, and also the training
    weights, from which a longer run continues. A run that was stopped stops again when it is continued. A phase that adds modules
    starts the count and the search for the best weights anew.

    When to use: small data, on which the validation loss rises again. Suggested: a patience of 5 validations.
    Source: Prechelt 1998, criterion UP.

    Args:
        monitor: a metric that validation logs; None for the task's main metric. mode: "min" if lower values are better, "max" if
            higher values are.
        patience: validations without improvement, at least 1. min_delta: a value must be better by more than this, 0 or more.
        restore: restore the best weights at the end.
    """

    def __init__(
        self,
        *,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        patience: int = 5,
        min_delta: float = 0.0,
        restore: bool = True,
    ) -> None:
        super().__init__()
        check_mode("early_stopping.mode", mode)
        if patience < 1 or min_delta < 0:
            raise ValueError(
                f"technique.early_stopping.patience is {patience}, must be at least 1, and min_delta {min_delta}, at least 0"
            )
        self.monitor, self.mode, self.patience, self.restore = monitor, mode, patience, restore
        self.plateau = Plateau(mode=mode, min_delta=min_delta)
        self._weights: dict[str, Tensor] = {}

    @property
    def logged_metrics(self) -> frozenset[str]:
        return frozenset({"early_stopping/waited"})

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.restore and is_sharded(trainer):
            raise ValueError(
                f"technique early_stopping keeps whole weights, but trainer=fsdp shards those of {type(pl_module).__name__}; set "
                "technique.early_stopping.restore=false"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        if self.monitor is None:
            if not pl_module.logged_metrics:
                raise ValueError(
                    f"technique early_stopping: {type(pl_module).__name__} logs nothing; give early_stopping.monitor"
                )
            self.monitor = pl_module.logged_metrics[0]
        pl_module.check_metric(self.monitor, "technique.early_stopping.monitor", self.mode)
        pl_module.final_weights = self._weights

    def on_phase_start(self, task: Task) -> None:
        """Forgets the best weights and their metric if the phase adds modules, which those weights lack."""
        if task.phase.modules:
            self.plateau = Plateau(mode=self.mode, min_delta=self.plateau.min_delta)
            task.final_weights = self._weights = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.plateau.waited >= self.patience

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # at this point the model still has the average, if there is one
        self._candidate = {n: v.detach().clone() for n, v in pl_module.state_dict().items()} if self.restore else {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, Task)
        value = trainer.callback_metrics.get(str(self.monitor))
        if value is None:
            found = ", ".join(sorted(trainer.callback_metrics))
            raise ValueError(f"technique.early_stopping.monitor is {self.monitor!r}, which was not logged; there are {found}")
        if self.plateau.improves(float(value)):
            pl_module.final_weights = self._weights = self._candidate
        best, waited = self.plateau.best, self.plateau.waited
        if waited >= self.patience:
            log.warning(
                f"early_stopping: {self.monitor} has not improved on {best:.4f} for {counted(waited, 'validation')}; "
                f"stopping at step {trainer.global_step}"
            )
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.is_logged(trainer):
            pl_module.log("early_stopping/waited", float(self.plateau.waited))

    @torch.no_grad()
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.restore and self._weights:
            for name, value in pl_module.state_dict().items():
                value.copy_(self._weights[name])

    def state_dict(self) -> dict[str, Any]:
        return {**self.plateau.state_dict(), "weights": self._weights}

    @classmethod
    def kept_options(cls, state: Mapping[str, Any]) -> frozenset[str]:
        return watched_options(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.plateau.load_state_dict(state_dict)
        self._weights = dict(state_dict["weights"])
