"""All uses of private or undocumented attributes of Lightning.

A new release of Lightning may change these attributes without notice. No other module uses them (checked by
tests/core/test_lightning.py), and pyproject.toml keeps Lightning below its next minor release. To try a new release, run the
tests and repair this module.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytorch_lightning as pl
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


def validation_follows(trainer: pl.Trainer) -> bool:
    """Returns whether a validation follows the current batch; for `on_train_batch_end`."""
    epoch: Any = trainer.fit_loop.epoch_loop
    return bool(epoch._should_check_val_fx(trainer.fit_loop._data_fetcher) and not epoch.val_loop.skip)


def is_logged(trainer: pl.Trainer) -> bool:
    """Returns whether this step is written to the loggers or a validation may follow; for `on_train_batch_end`."""
    run: Any = trainer
    often = run.val_check_batch not in (0, float("inf")) and (run.fit_loop.total_batch_idx + 1) % run.val_check_batch == 0
    return bool(run.global_step % max(1, run.log_every_n_steps) == 0 or often or run.is_last_batch)


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
