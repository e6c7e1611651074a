"""All uses of private or undocumented attributes of Lightning.

A new release of Lightning may change these attributes without notice. No other module uses them (checked by
tests/core/test_lightning.py), and pyproject.toml keeps Lightning below its next minor release. To try a new release, run the
tests and repair this module.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loops.fit_loop import RestartStage, _FitLoop
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from torch import Tensor
from torch.amp.grad_scaler import GradScaler


def trainer_of(module: pl.LightningModule) -> pl.Trainer | None:
    """Returns the module's trainer, or None; the public attribute raises an error if there is none."""
    return module._trainer


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    """Returns the trainer's callbacks, in the order in which they are called."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def set_callbacks(trainer: pl.Trainer, callbacks: list[pl.Callback]) -> None:
    """Replaces the trainer's callbacks."""
    trainer.callbacks = callbacks  # type: ignore[attr-defined]


def wrote_now(trainer: pl.Trainer, path: Path) -> bool:
    """Returns whether a ModelCheckpoint has written the file `path` at the current optimizer step; the same on every rank."""
    return any(
        isinstance(callback, ModelCheckpoint)
        and Path(callback.best_model_path) == path
        and callback._last_global_step_saved == trainer.global_step
        for callback in trainer.checkpoint_callbacks
    )


def validation_follows(trainer: pl.Trainer) -> bool:
    """Returns whether a validation follows the current batch; for `on_train_batch_end`."""
    epoch: Any = trainer.fit_loop.epoch_loop
    return bool(epoch._should_check_val_fx(trainer.fit_loop._data_fetcher) and not epoch.val_loop.skip)


def fewest_validation_batches(trainer: pl.Trainer) -> float:
    """Returns the number of batches of a validation on the rank that has the fewest."""
    own = float(sum(trainer.num_val_batches))
    if trainer.world_size == 1:
        return own
    found = trainer.strategy.reduce(torch.tensor(own, device=trainer.strategy.root_device), reduce_op="min")
    return float(found)


def restore_after_error(trainer: pl.Trainer, handlers: dict[int, Any]) -> None:
    """After an error Lightning restores the signal handlers that it found when the run began: makes it restore these instead."""
    trainer._signal_connector._original_handlers.update(handlers)


def interrupt_validation(trainer: pl.Trainer) -> None:
    """Resets the progress of the current validation to its start; a checkpoint that is written now does not count it."""
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    for name in ("ready", "started", "processed", "completed"):
        setattr(progress.total, name, getattr(progress.total, name) - getattr(progress.current, name))
    progress.current.reset()


def count_epochs(trainer: pl.Trainer) -> None:
    """Lets a run that goes on from the end of an epoch count the next one; for `on_fit_start`.

    Without this, `current_epoch` and the checkpoints of a run that is continued twice there would be one epoch behind.
    """
    trainer.fit_loop.__class__ = _CountingFitLoop


def repeat_validation(trainer: pl.Trainer) -> None:
    """Lets a run whose checkpoint was written in a validation begin with that validation; for `on_fit_start`.

    Without this, Lightning would count the validation as completed, or end at once if the checkpoint is of the last step.
    """
    trainer.fit_loop.__class__ = _ResumedFitLoop
    trainer.fit_loop.epoch_loop.__class__ = _ResumedEpochLoop


class _ResumedEpochLoop(_TrainingEpochLoop):
    """Begins with a validation instead of a batch."""

    validation_due = True

    @property
    def done(self) -> bool:
        return not self.validation_due and super().done

    def advance(self, data_fetcher: Any) -> None:
        if not self.validation_due:
            super().advance(data_fetcher)

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        return self.validation_due or super()._should_check_val_fx(data_fetcher)

    def on_advance_end(self, data_fetcher: Any) -> None:
        if self.validation_due:
            self.val_loop.restarting = False  # all its batches
        super().on_advance_end(data_fetcher)
        self.validation_due = False


class _CountingFitLoop(_FitLoop):
    """Begins the next epoch as usual if the checkpoint was written after the last batch of one."""

    def reset(self) -> None:
        super().reset()
        progress: Any = self.epoch_progress.current
        if self.restarted_mid_epoch and progress.processed == progress.started:
            self._restart_stage = RestartStage.NONE


class _ResumedFitLoop(_CountingFitLoop):
    """Runs a validation that is due even if the last step has been made."""

    @property
    def done(self) -> bool:
        due = isinstance(self.epoch_loop, _ResumedEpochLoop) and self.epoch_loop.validation_due
        return not due and super().done


def is_last_step(trainer: pl.Trainer) -> bool:
    """Returns whether the run ends with the step that was just made: at `max_steps`, at `max_epochs` or by `should_stop`."""
    last_of_epoch = trainer.is_last_batch or trainer.fit_loop.epoch_loop._num_ready_batches_reached()
    last_of_epochs = last_of_epoch and trainer.current_epoch + 1 == trainer.max_epochs
    return trainer.should_stop or trainer.global_step == trainer.max_steps or last_of_epochs


def is_logged(trainer: pl.Trainer) -> bool:
    """Returns whether this step is written to the loggers or a validation may follow; for `on_train_batch_end`."""
    run: Any = trainer
    often = run.val_check_batch not in (0, float("inf")) and (run.fit_loop.total_batch_idx + 1) % run.val_check_batch == 0
    return bool(run.global_step % max(1, run.log_every_n_steps) == 0 or often or run.is_last_batch)


def log_before_saving(trainer: pl.Trainer) -> None:
    """Writes this step's metrics to the loggers, which Lightning would do after `on_train_batch_end`; it then does not repeat it.

    Without this, a run that is killed just after it wrote a checkpoint would lack the metrics of that step when it goes on.
    """
    connector: Any = trainer._logger_connector
    connector.__class__ = _OnceAStep
    connector.on_batch_end()
    connector.update_train_step_metrics()


class _OnceAStep(_LoggerConnector):
    """Logs the metrics of an optimizer step once."""

    logged_step = -1

    def update_train_step_metrics(self) -> None:
        if self.trainer.global_step != self.logged_step:
            super().update_train_step_metrics()
            self.logged_step = self.trainer.global_step


def is_accumulating(trainer: pl.Trainer) -> bool:
    """Returns whether the current batch only accumulates gradients; DeepSpeed calls `optimizer_step` nevertheless."""
    return bool(trainer.fit_loop._should_accumulate())


def rebuild_optimizers(trainer: pl.Trainer) -> None:
    """Calls the task's `configure_optimizers` again, in the middle of a run; the new optimizer has no state."""
    trainer.strategy.setup_optimizers(trainer)


def scaler_of(trainer: pl.Trainer) -> GradScaler | None:
    """Returns the gradient scaler of 16-mixed precision; None for other precisions."""
    return getattr(trainer.precision_plugin, "scaler", None)


def forward_context(trainer: pl.Trainer | None) -> AbstractContextManager[None]:
    """Returns the autocast context of the run's forward passes; one that does nothing if there is no trainer."""
    return trainer.precision_plugin.forward_context() if trainer is not None else nullcontext()


def mean_over_ranks(trainer: pl.Trainer, value: Tensor) -> Tensor:
    """Returns the mean of a tensor over all ranks, as a new tensor without a graph."""
    found = trainer.strategy.reduce(value.detach().clone(), reduce_op="mean")
    assert isinstance(found, Tensor)
    return found


def loops_state(trainer: pl.Trainer) -> dict[str, Any]:
    """Returns what a checkpoint holds of the loops and the loaders: how far the run has come."""
    found: dict[str, Any] = trainer._checkpoint_connector._get_loops_state_dict()
    return found


def dump_checkpoint(trainer: pl.Trainer) -> dict[str, Any]:
    """Returns what `trainer.save_checkpoint` would write."""
    found: dict[str, Any] = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    return found
