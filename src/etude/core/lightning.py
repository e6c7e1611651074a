"""Everything that Etude takes from inside Lightning, where the next release may change it without notice.

No other module touches such an attribute (tests/core/test_lightning.py); pyproject.toml keeps Lightning below its next minor
release. A new release is tried by running the suite; what has changed is mended here.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.amp import GradScaler


def trainer_of(module: pl.LightningModule) -> pl.Trainer | None:
    """The module's trainer, None where it has none; the public attribute raises there."""
    return module._trainer


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    """The trainer's callbacks, in the order in which they are called."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def set_callbacks(trainer: pl.Trainer, callbacks: list[pl.Callback]) -> None:
    """Gives the trainer other callbacks, or the same ones in another order."""
    trainer.callbacks = callbacks  # type: ignore[attr-defined]


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether a validation comes after the batch at hand; for `on_train_batch_end`."""
    epoch: Any = trainer.fit_loop.epoch_loop
    return bool(epoch._should_check_val_fx(trainer.fit_loop._data_fetcher) and not epoch.val_loop.skip)


def is_logged(trainer: pl.Trainer) -> bool:
    """Whether loggers are told of the step just done, or a validation may follow; for `on_train_batch_end`."""
    run: Any = trainer
    often = run.val_check_batch not in (0, float("inf")) and (run.fit_loop.total_batch_idx + 1) % run.val_check_batch == 0
    return bool(run.global_step % max(1, run.log_every_n_steps) == 0 or often or run.is_last_batch)


def is_accumulating(trainer: pl.Trainer) -> bool:
    """Whether the batch at hand only adds to the gradients. Some strategies ask for a step then all the same (DeepSpeed)."""
    return bool(trainer.fit_loop._should_accumulate())


def rebuild_optimizers(trainer: pl.Trainer) -> None:
    """Calls the task's `configure_optimizers` again, in the middle of a run; the new optimizer is empty."""
    trainer.strategy.setup_optimizers(trainer)


def scaler_of(trainer: pl.Trainer) -> GradScaler | None:
    """What scales the loss in 16-mixed precision; None in all others."""
    return getattr(trainer.precision_plugin, "scaler", None)


def forward_context(trainer: pl.Trainer | None) -> AbstractContextManager[None]:
    """The precision in which the run's forward passes are made; without a trainer, that of where it is called."""
    return trainer.precision_plugin.forward_context() if trainer is not None else nullcontext()


def mean_over_ranks(trainer: pl.Trainer, value: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, a new tensor without a graph."""
    found = trainer.strategy.reduce(value.detach().clone(), reduce_op="mean")
    assert isinstance(found, Tensor)
    return found
