"""Shared by the training benchmarks: composing a configuration like train.py, and recording a curve over CPU time."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from etude.run import recipes

assert recipes  # it registers the resolvers that conf/ calls
ROOT = Path(__file__).parents[1]


def composed(options: list[str], folder: Path) -> Any:
    """The configuration of `python train.py OPTIONS`, whose run's folder is `folder`."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=options, return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg


class Curve(pl.Callback):
    """Records [step, CPU-seconds of training, metric] at each validation; the time of validation is not counted."""

    def __init__(self, metric: str) -> None:
        self.metric, self.points = metric, list[list[float]]()
        self.seconds = self._since = 0.0

    def on_train_start(self, *_: Any) -> None:
        self._since = time.process_time()

    def on_validation_start(self, *_: Any) -> None:
        self.seconds += time.process_time() - self._since

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        value = float(trainer.callback_metrics[self.metric])
        self.points.append([trainer.global_step, round(self.seconds, 2), round(value, 5)])
        self._since = time.process_time()
