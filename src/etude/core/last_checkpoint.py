"""The checkpoint that a run continues from: written regularly, at the end, and when the run is asked to stop."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` every few steps, at the last step, and on Ctrl-C or SIGTERM, which then end the run.

    Always between two batches, so that a resumed run equals the uninterrupted one bit for bit: a batch under way is
    finished first. A second Ctrl-C stops at once.

    Args:
        path: the file; written aside, then renamed.
        every_n_steps: optimizer steps between two writes, at least 1.
    """

    def __init__(self, *, path: Path, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"save_every is {every_n_steps}, must be at least 1 step")
        self.path, self.every_n_steps = Path(path), every_n_steps
        self.asked = False
        self._saved_step = -1
        self._handlers: dict[int, Any] = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_step = trainer.global_step
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._ask)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = step % self.every_n_steps == 0 or step == trainer.max_steps or trainer.should_stop
        if self.asked or (due and step != self._saved_step):
            trainer.save_checkpoint(self.path)
            self._saved_step = step
        if self.asked:
            raise KeyboardInterrupt

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.asked and trainer.training:  # validation inside training: the last batch's checkpoint may be old
            raise KeyboardInterrupt

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
