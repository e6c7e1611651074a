"""A Lightning callback that hands the metrics of a training to its trial."""

import time
from typing import Any

import pytorch_lightning as pl

from etude.core import lightning
from etude.sweeps.trial import RunningTrial


class TrialCallback(pl.Callback):
    """Hands the metrics of one training to the trial; it is a part of the checkpoint, so a trial that goes on has them."""

    def __init__(self, running: RunningTrial) -> None:
        self.running = running
        self._began: float | None = None
        self._spent = running.seconds  # of earlier trainings, and of this one until it was stopped
        plan = running.plan
        self._prunes_in_training = plan.pruner != "none" and plan.pruning_metric.startswith("train/")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.running.check(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.monotonic()
        if self.running.first_step and trainer.global_step == 0:  # a later phase, whose data may be others: its values count
            self.running.values = {}
        self.running.parameters = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._prunes_in_training and lightning.is_logged(trainer):
            self._report(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or self._began is None:
            return
        self._count_seconds()
        self.running.take({name: float(value) for name, value in trainer.callback_metrics.items()})
        if self.running.plan.pruner != "none" and not self._prunes_in_training:
            self._report(trainer)

    def _report(self, trainer: pl.Trainer) -> None:
        """Reports the metric that prunes, on the first rank; all ranks follow its decision."""
        value = trainer.callback_metrics.get(self.running.plan.pruning_metric)
        ends = False
        if value is not None and trainer.is_global_zero:
            ends = self.running.reports(float(value), self.running.first_step + trainer.global_step)
        if trainer.world_size > 1:
            ends = bool(trainer.strategy.reduce_boolean_decision(ends, all=False))
        if ends:
            self.running.pruned = True
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._count_seconds()
        self._began = None
        self.running.take({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.running.first_step += trainer.global_step

    def _count_seconds(self) -> None:
        assert self._began is not None
        self.running.seconds = self._spent + time.monotonic() - self._began

    def state_dict(self) -> dict[str, Any]:
        running = self.running
        if self._began is not None:  # a trial may be stopped long after its last validation
            self._count_seconds()
        return {"seconds": running.seconds, "values": dict(running.values), "seen": sorted(running.seen)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._spent = self.running.seconds = float(state_dict["seconds"])
        self.running.values, self.running.seen = dict(state_dict["values"]), set(state_dict["seen"])
