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
    starts the count and the search for the best weights anew. If the phases train on different pieces (stage=genres), only the
    last one is watched: a run that stopped earlier, or went back, would never have learned the pieces of the last.

    With `finish`, a run that has reached its plateau at step s is not stopped at once: the learning rate falls linearly from what
    the schedule gives to 0 in the next `finish` * s steps (rounded to whole intervals between validations, at least one), and the
    validation at their end is the last. What a schedule gains by its decay is so gained by a run that ends early, too.

    When to use: small data, on which the validation loss rises again. Suggested: a patience of 5 validations. A run whose length
    is not known in advance: many steps, a schedule that stays constant for long, and finish=0.2.
    Source: Prechelt 1998, criterion UP; Haegele et al. 2024 for a decay that may begin at any step, and its length.

    Args:
        monitor: a metric that validation logs; None for the task's main metric. mode: "min" if lower values are better, "max" if
            higher values are.
        patience: validations without improvement, at least 1. min_delta: a value must be better by more than this, 0 or more.
        min_gain: and by more than this share of the best value, in [0, 1); None for none.
        finish: length of the decay as a share of the steps before it, in (0, 1]; None stops at once.
        restore: restore the best weights at the end.
    """

    def __init__(
        self,
        *,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        patience: int = 5,
        min_delta: float = 0.0,
        min_gain: float | None = None,
        finish: float | None = None,
        restore: bool = True,
    ) -> None:
        super().__init__()
        check_mode("early_stopping.mode", mode)
        if patience < 1 or min_delta < 0:
            raise ValueError(
                f"technique.early_stopping.patience is {patience}, must be at least 1, and min_delta {min_delta}, at least 0"
            )
        if not 0 <= (min_gain or 0.0) < 1:
            raise ValueError(f"technique.early_stopping.min_gain is {min_gain}, must be a share in [0, 1), such as 0.01, or null")
        if finish is not None and not 0 < finish <= 1:
            raise ValueError(f"technique.early_stopping.finish is {finish}, must be a share in (0, 1], such as 0.2, or null")
        self.monitor, self.mode, self.patience, self.restore = monitor, mode, patience, restore
        self.finish = finish
        self.plateau = Plateau(mode=mode, min_delta=min_delta, min_gain=min_gain or 0.0)
        self.decay: tuple[int, int] | None = None  # first step and length of the decay, once it has begun
        self._waited = 0  # validations without improvement before the decay
        self._validated_at = 0  # the step of the last validation
        self._rates: list[float] = []  # learning rates at the beginning of the decay, where there is no schedule
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
            self.plateau = Plateau(mode=self.mode, min_delta=self.plateau.min_delta, min_gain=self.plateau.min_gain)
            self.decay = None
            task.final_weights = self._weights = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.decay is not None and self.patience > self._waited:
            self.decay = None  # the run is continued with more patience
        ended = self.plateau.waited >= self.patience if self.decay is None else trainer.global_step >= sum(self.decay)
        trainer.should_stop = trainer.should_stop or (ended and (self.decay is not None or self.finish is None))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if self.decay is None:
            return
        start, length = self.decay
        factor = max(0.0, 1 - (trainer.global_step - start) / length)
        for optimizer, scheduled in zip(trainer.optimizers, self._scheduled(trainer), strict=True):
            for group, rate in zip(optimizer.param_groups, scheduled, strict=True):
                group["lr"] = rate * factor

    def _scheduled(self, trainer: pl.Trainer) -> list[list[float]]:
        """Returns the learning rates of the optimizer's groups as they would be without the decay."""
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
        return [[float(rate) for rate in schedule.get_last_lr()] for schedule in schedules] or [self._rates]

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
        if not pl_module.phases.is_last and any(phase.data for phase in pl_module.phases.sequence):
            self._validated_at = trainer.global_step
            return
        if self.plateau.improves(float(value)):
            pl_module.final_weights = self._weights = self._candidate
        best, waited = self.plateau.best, self.plateau.waited
        step, interval = trainer.global_step, max(1, trainer.global_step - self._validated_at)
        self._validated_at = step
        if self.decay is not None:
            trainer.should_stop = trainer.should_stop or step >= sum(self.decay)
        elif waited >= self.patience:
            what = f"early_stopping: {self.monitor} has not improved on {best:.4f} for {counted(waited, 'validation')}"
            if self.finish is None:
                log.warning(f"{what}; stopping at step {step}")
                trainer.should_stop = True
            else:
                self.decay = step, max(1, round(self.finish * step / interval)) * interval
                self._waited = waited
                self._rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
                log.warning(f"{what}; the learning rate falls to 0 until step {sum(self.decay)}, where the run ends")

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
        state = {"decay": self.decay, "decay_waited": self._waited, "rates": self._rates, "validated_at": self._validated_at}
        return {**self.plateau.state_dict(), "weights": self._weights, **state}

    @classmethod
    def kept_options(cls, state: Mapping[str, Any]) -> frozenset[str]:
        return watched_options(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.plateau.load_state_dict(state_dict)
        self._weights = dict(state_dict["weights"])
        decay = state_dict.get("decay")  # earlier versions had none
        self.decay = None if decay is None else (int(decay[0]), int(decay[1]))
        self._waited = int(state_dict.get("decay_waited", 0))
        self._rates, self._validated_at = list(state_dict.get("rates", ())), int(state_dict.get("validated_at", 0))
