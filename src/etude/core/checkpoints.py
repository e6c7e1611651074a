"""The callback that writes `last.ckpt`, from which a run can continue."""

import logging
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from etude.core import lightning
from etude.core.checkpoint_files import step_if_whole
from etude.core.emergency import WholeStep
from etude.core.kept_checkpoints import EXCEPTION, at_step, earlier, keep_copy, remove_others, step_of
from etude.core.optimizer_state import check_state
from etude.core.random_state import random_state, set_random_state
from etude.core.stopping import Stopped, install_handlers, restore_handlers
from etude.core.technique import Technique

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` every few steps, at the end of the run, and on a signal (Ctrl-C, SIGTERM, SIGHUP, SIGUSR1, SIGXCPU).

    A signal then ends the run with `Stopped`. A second Ctrl-C ends it at once. A signal to one rank stops all ranks.

    The checkpoint always holds the state after an optimizer step, between two batches. A resumed run therefore equals an
    uninterrupted one bit for bit, on the same hardware and with the same number of threads (which changes the order of sums). If
    a validation follows the step, a write that is due waits for its end. A signal does not wait: the checkpoint is written after
    the current batch of the validation, and the resumed run begins with that validation. There are two exceptions. While
    gradients are accumulated the next optimizer step is awaited, since they are not saved. The last validation of a run that a
    technique has stopped is completed, since nothing follows it.

    When the run has ended at `max_steps`, at `max_epochs` or because a technique stopped it, the file holds the task's
    `final_weights` for sampling, if a technique has set them, and also the training weights, from which a longer run continues.

    Args:
        path: the file.
        every_n_steps: optimizer steps between two writes, at least 1.
        keep: last.ckpt and so many less one of those before it, as last_step_N.ckpt; at least 1.
        stop_at: the optimizer step after which the run stops as on a signal; None for its end.
    """

    def __init__(self, *, path: Path, every_n_steps: int, keep: int = 1, stop_at: int | None = None) -> None:
        if stop_at is not None and stop_at < 1:
            raise ValueError(f"stop_at is {stop_at}, must be at least step 1, or null")
        for name, value, unit in (("save_every", every_n_steps, "step"), ("keep_last", keep, "checkpoint")):
            if value < 1:
                raise ValueError(f"{name} is {value}, must be at least 1 {unit}")
        self.path, self.every_n_steps, self.keep, self.stop_at = Path(path), every_n_steps, keep, stop_at
        self.stop_requested = False
        self.begun = False  # whether a batch has been trained since the run began or was resumed
        self._signal: int = signal.SIGINT
        self._saved_step = -1
        self._step_of_file: int | None = None  # of the file at `path`; None if there is none, or a damaged one
        self._validation_follows = False  # the current step is followed by a validation
        self._save_after_validation = False
        self._validating = False  # that validation has begun
        self._random_state: dict[str, Tensor] = {}  # at the start of the current validation
        self._interrupted = False  # the validation that follows the saved step is not part of the checkpoint
        self._stop_before_next_batch = False  # not at once: the loggers still have to write this batch
        self._saving = False
        self._handlers: dict[int, Any] = {}  # those before the run, while it goes on
        self._whole = WholeStep()

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested and number == signal.SIGINT:
            raise Stopped(number)
        self.stop_requested, self._signal = True, self._signal if self.stop_requested else number

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._handlers = install_handlers(self._request_stop)
        if trainer.is_global_zero and self.path.parent.is_dir():
            for left in self.path.parent.glob("*.part"):  # of a run that was killed while it wrote a file
                left.unlink()
        lightning.count_epochs(trainer)
        if self._interrupted:
            lightning.repeat_validation(trainer)
            self._validation_follows = self._save_after_validation = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning has set its own handler of SIGTERM, which would end the next validation without a checkpoint
        install_handlers(self._request_stop)
        self._saved_step = trainer.global_step
        self._step_of_file = step_if_whole(self.path)
        check_state(trainer.optimizers, pl_module.named_parameters())

    def state_dict(self) -> dict[str, Any]:
        return {"random_state": self._random_state} if self._interrupted else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._interrupted, self._random_state = True, state_dict["random_state"]

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        final: Any = getattr(pl_module, "final_weights", None)
        if self._saving and final and lightning.is_last_step(trainer):
            checkpoint["trained_weights"] = pl_module.state_dict()
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **final}

    def _save(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:  # the curve of a resumed run then has no gap
            logger.save()
        before = self._step_of_file
        if trainer.is_global_zero and self.keep > 1 and before is not None and before < trainer.global_step:
            keep_copy(self.path, at_step(self.path, before))
        self._saving = True
        trainer.save_checkpoint(self.path)
        self._saving = False
        self._saved_step = self._step_of_file = trainer.global_step
        if trainer.is_global_zero:
            # a run that goes on from an earlier checkpoint makes those of later steps anew
            before_this = [path for path in earlier(self.path) if step_of(path) < trainer.global_step]
            remove_others(self.path, before_this[: self.keep - 1])
            self.path.with_name(EXCEPTION).unlink(missing_ok=True)

    def _is_stop_requested(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size == 1:
            return self.stop_requested
        return trainer.strategy.reduce_boolean_decision(self.stop_requested, all=False)

    def _is_stop_due(self, trainer: pl.Trainer) -> bool:
        """Returns whether the run stops after this step, and after the validation that follows it."""
        planned = trainer.global_step == self.stop_at and not lightning.is_last_step(trainer)
        return self._is_stop_requested(trainer) or planned

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if self._stop_before_next_batch:
            raise Stopped(self._signal)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.begun = True
        if lightning.is_accumulating(trainer):
            return
        step = trainer.global_step
        self._whole.remember(trainer, pl_module)
        # not only in `on_train_end`: Lightning restores no position in the data from a checkpoint after the last epoch's end
        due = step % self.every_n_steps == 0 or lightning.is_last_step(trainer)
        if lightning.validation_follows(trainer):
            self._save_after_validation = due
            self._validation_follows = True
            return
        stop = self._is_stop_due(trainer)
        if due or stop:
            lightning.log_before_saving(trainer)
            self._save(trainer)
        self._stop_before_next_batch = stop

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._validation_follows:
            return
        if self._interrupted:
            set_random_state(pl_module.device, self._random_state)
            self._interrupted = False
        else:
            self._random_state = random_state(pl_module.device)
        self._validating = True
        self._common_batches = lightning.fewest_validation_batches(trainer)
        self._stop_in_validation(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if self._validation_follows and batch_idx < self._common_batches:
            self._stop_in_validation(trainer, pl_module)

    def _stop_in_validation(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the state of before the validation and ends the run, if that was requested."""
        if trainer.should_stop or not self._is_stop_requested(trainer):
            return
        for callback in lightning.callbacks_of(trainer):
            if isinstance(callback, Technique):
                callback.on_validation_interrupted(pl_module)
        lightning.interrupt_validation(trainer)
        self._interrupted = True
        self._save(trainer)
        raise Stopped(self._signal)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not self._validation_follows:
            return
        stop = self._is_stop_due(trainer)
        self._whole.remember(trainer, pl_module)
        if self._save_after_validation or stop:
            self._save(trainer)
        self._save_after_validation = self._validation_follows = self._validating = False
        if stop:
            raise Stopped(self._signal)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self._save(trainer)
        if self._is_stop_requested(trainer):
            raise Stopped(self._signal)

    def _release(self) -> None:
        restore_handlers(self._handlers)
        self._handlers = {}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        lightning.restore_after_error(trainer, self._handlers)
        self._release()
        if not isinstance(exception, Exception) or not self.begun or not trainer.is_global_zero:
            return
        path, at = self.path.with_name(EXCEPTION), f"training failed at step {trainer.global_step}"
        if self._whole.step == self._step_of_file and self.path.is_file():
            print(f"{at}; {self.path} holds the last whole step", file=sys.stderr)
        elif (fault := self._write_last_step(trainer, pl_module, path)) is None:
            print(f"{at}; {path} holds the last whole step, from which ckpt={self.path.parents[1]} goes on", file=sys.stderr)
        else:
            earlier = f"{self.path} of step {self._step_of_file} is unchanged" if self._step_of_file else "there is none"
            print(f"{at}; no checkpoint of this step, since {fault}; {earlier}", file=sys.stderr)

    def _write_last_step(self, trainer: pl.Trainer, task: pl.LightningModule, path: Path) -> str | None:
        """Writes the state after the last whole step, before a validation that has not ended; returns why it could not."""
        if not self._validation_follows:
            return self._whole.write(trainer, task, path)
        if not self._validating:
            return "the error came just before a validation"
        lightning.interrupt_validation(trainer)
        self._interrupted = True
        return self._whole.write(trainer, task, path, in_validation={self.state_key: self.state_dict()})

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._release()
