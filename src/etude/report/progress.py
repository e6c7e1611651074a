"""A progress bar for the whole run: step, loss, validation metrics, time left."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar


class RunProgress(ProgressBar):
    """Shows the step out of all steps, the training loss, the last validation metrics and the time left.

    Lightning's own bar shows the progress of an epoch instead. If stderr is not a terminal, a line is printed at each validation
    in place of the bar.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: Any = None
        self._task: Any = None
        self._started = 0.0
        self._first_step = 0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started, self._first_step = time.monotonic(), trainer.global_step
        if not sys.stderr.isatty() or not self._enabled:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=Console(stderr=True),
        )
        self._bar.start()
        total = int(trainer.estimated_stepping_batches)
        self._task = self._bar.add_task("training", total=total, completed=trainer.global_step, figures="")

    @staticmethod
    def _figures(trainer: pl.Trainer) -> str:
        metrics = trainer.callback_metrics
        names = [name for name in ("train/loss", *sorted(n for n in metrics if n.startswith("val/"))) if name in metrics]
        return "  ".join(f"{name} {float(metrics[name]):.3f}" for name in names[:4])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None:
            figures = self._figures(trainer) if trainer.global_step % 10 == 0 else None
            self._bar.update(self._task, completed=trainer.global_step, **({"figures": figures} if figures else {}))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is not None or trainer.sanity_checking or not self._enabled:
            return
        if not trainer.is_global_zero or (not trainer.training and trainer.state.fn != "fit"):
            return
        done, total = trainer.global_step - self._first_step, int(trainer.estimated_stepping_batches)
        spent = time.monotonic() - self._started
        left = spent / max(1, done) * (total - trainer.global_step)
        print(
            f"step {trainer.global_step}/{total}  {self._figures(trainer)}  {spent / 60:.1f} min, {left / 60:.1f} left",
            file=sys.stderr,
            flush=True,
        )

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()
