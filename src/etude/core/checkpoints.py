"""The two checkpoints of a run: the best one, and the one that the run continues from."""

import logging
import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from etude.core import lightning

log = logging.getLogger(__name__)


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best checkpoint by `monitor`; a resumed run brings the earlier best into its own folder and must beat it."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        earlier, score = Path(state_dict["best_model_path"] or ""), state_dict["best_model_score"]
        if score is None or not earlier.is_file() or self.dirpath is None:
            return
        if earlier.name != f"{self.filename}{self.FILE_EXTENSION}":  # a file of other kind, which is nothing to copy
            return
        mine = Path(self.dirpath) / earlier.name
        if mine.resolve() != earlier.resolve():
            mine.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(earlier, mine)
        value = torch.as_tensor(score)
        self.best_model_path = self.kth_best_model_path = str(mine)
        self.best_model_score = self.current_score = self.kth_value = value
        self.best_k_models = {str(mine): value}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.enable_validation and not any(trainer.num_val_batches):
            log.warning("nothing is left to validate on, so there is no %s and no best.ckpt; see data.split", self.monitor)


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` every few steps, at the end, and on Ctrl-C or SIGTERM, which then end the run.

    Always after an optimizer step and between two batches, so that a resumed run equals the uninterrupted one bit for
    bit. Where a validation follows the step it is finished first, since a resumed run would not make up for it and what
    listens to validations would miss one. A second Ctrl-C stops at once. A signal to one rank stops all. Once the run is over
    it holds the task's `final_weights`, where a technique has set any, for sampling; a longer run goes on from the trained ones.

    Args:
        path: the file; written beside, then renamed.
        every_n_steps: optimizer steps between two writes, at least 1.
    """

    def __init__(self, *, path: Path, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"save_every is {every_n_steps}, must be at least 1 step")
        self.path, self.every_n_steps = Path(path), every_n_steps
        self.asked = False
        self._saved_step = -1
        self._between = False  # a validation follows an optimizer step,
        self._pending = False  # after which to write
        self._saving = False
        self._handlers: dict[int, Any] = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._ask)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_step = trainer.global_step

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        final: Any = getattr(pl_module, "final_weights", None)
        if self._saving and final and (trainer.should_stop or trainer.global_step == trainer.max_steps):
            checkpoint["trained_weights"] = pl_module.state_dict()
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **final}

    def _save(self, trainer: pl.Trainer) -> None:
        aside = self.path.with_name(self.path.name + ".part")
        self._saving = True
        trainer.save_checkpoint(aside)
        self._saving = False
        if trainer.is_global_zero:
            aside.replace(self.path)
        self._saved_step = trainer.global_step

    def _stop_asked(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size == 1:
            return self.asked
        return trainer.strategy.reduce_boolean_decision(self.asked, all=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._saved_step:  # gradients are being accumulated: half a step can't be resumed
            return
        due = step % self.every_n_steps == 0 or step == trainer.max_steps or trainer.should_stop
        stop = self._stop_asked(trainer)
        if lightning.validation_follows(trainer):
            self._pending = due or stop
            self._between = True
            return
        if due or stop:
            self._save(trainer)
        if stop:
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not self._between:
            return
        stop = self._stop_asked(trainer)
        if self._pending or stop:
            self._save(trainer)
        self._pending = self._between = False
        if stop:
            raise KeyboardInterrupt

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self._save(trainer)
        if self._stop_asked(trainer):
            raise KeyboardInterrupt

    def _release(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._release()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._release()
