"""What the dashboards of a run are shown as it begins and as it ends."""

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only

from etude.report.media import Dashboard, read_table, show_samples


class ShowsOptions(pl.Callback):
    """Shows a run's options to its dashboards before the first step.

    Args:
        folder: of the run.
        monitor: the metric that picks the best checkpoint.
    """

    def __init__(self, folder: Path, *, monitor: str) -> None:
        self.folder, self.monitor = folder, monitor

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, Dashboard):
                logger.show_options(vars(pl_module).get("recipe", {}), monitor=self.monitor, folder=self.folder)


@rank_zero_only
def show_end(trainer: pl.Trainer, folder: Path, *, monitor: str) -> None:
    """Shows a run's samples, best value and checkpoints to its dashboards."""
    step = trainer.global_step
    show_samples(trainer.loggers, "samples", read_table(folder / "samples"), step=step)
    saver = trainer.checkpoint_callback
    score = saver.best_model_score if isinstance(saver, ModelCheckpoint) else None
    result = {} if score is None else {f"best/{monitor}": float(score)}
    files = {name: folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "best")}
    checkpoints = {name: path for name, path in files.items() if path.is_file()}
    for logger in trainer.loggers:
        if isinstance(logger, Dashboard):
            logger.show_result(result, checkpoints=checkpoints, step=step)
