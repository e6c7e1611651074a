"""Shared by the training benchmarks: composing a configuration like train.py, and recording a curve over CPU time."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from etude.core.checkpoints import LastCheckpoint
from etude.core.technique import Composition
from etude.run import parts as run
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


def trained_audio(
    cfg: Any, folder: Path, *, steps: int, checks: int, clock: pl.Callback, data: Any = None, task_class: str | None = None
) -> tuple[Any, Any]:
    """Trains a task of audio as train.py does, with `checks` validations; returns it with its averaged weights, and its data.

    clock: records what the benchmark measures. data: configuration of other data than `cfg` names, which checkpoints don't tell.
    task_class: the class that is trained, if not the task's own; its weights must fit the latter.
    """
    pl.seed_everything(cfg.seed, verbose=False)
    with open_dict(cfg):
        cfg.trainer.max_steps = steps
        cfg.trainer.val_check_interval = max(1, steps // checks) if checks else None
        cfg.trainer.limit_val_batches = 1.0 if checks else 0
    datamodule = run.prepare_data(cfg.data if data is None else data, None, folder)
    trained = cfg if task_class is None else OmegaConf.merge(cfg, {"task": {"_target_": task_class}})
    task = run.build_task(trained, **datamodule.parts)
    task.recipe = OmegaConf.to_container(cfg, resolve=True)
    techniques = Composition(run.instantiate(node) for node in (cfg.get("technique") or {}).values()).techniques
    last = folder / "checkpoints" / "last.ckpt"
    trainer = run.instantiate(
        cfg.trainer, logger=False, enable_progress_bar=False, default_root_dir=str(folder),
        callbacks=[*techniques, clock, LastCheckpoint(path=last, every_n_steps=steps)],
    )  # fmt: skip
    trainer.fit(task, datamodule=datamodule)
    return run.load_task(last)[0], datamodule


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
