"""Ctrl-C and SIGTERM stop training between two batches, after the last checkpoint was written."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl


class SaveOnInterrupt(pl.Callback):
    """Saves `last.ckpt` when the user or a scheduler asks the run to stop, then stops.

    A batch that is under way is finished first: a checkpoint from the middle of a step could not be resumed exactly.
    A second Ctrl-C stops at once.

    Args:
        path: the checkpoint that is written.
    """

    def __init__(self, *, path: Path) -> None:
        self.path = path
        self.asked: int | None = None
        self._handlers: dict[int, Any] = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._ask)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.asked is not None:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.asked is not None and not trainer.sanity_checking:
            raise KeyboardInterrupt  # the checkpoint was written before validation began

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
