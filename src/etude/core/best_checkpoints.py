"""Callbacks that keep the best checkpoint of a run, `best.ckpt`, and its best k."""

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from etude.core import lightning
from etude.core.checkpoint_files import step_if_whole
from etude.core.kept_checkpoints import at_step, keep_copy, remove_others
from etude.durable import copy_durably

log = logging.getLogger(__name__)


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best checkpoint by `monitor`; a resumed run copies the earlier best and replaces it only by a better one."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        earlier, score = Path(state_dict["best_model_path"] or ""), state_dict["best_model_score"]
        if score is None or not earlier.name or self.dirpath is None:
            return
        if earlier.name != f"{self.filename}{self.FILE_EXTENSION}":  # another kind of file
            return
        copy = Path(self.dirpath) / earlier.name
        earlier = copy if copy.is_file() else earlier  # a run's folder may have been moved, or copied and the other gone on
        if not earlier.is_file():
            return
        if copy.resolve() != earlier.resolve():
            copy_durably(earlier, copy)
        value = torch.as_tensor(score)
        self.best_model_path = self.kth_best_model_path = str(copy)
        self.best_model_score = self.current_score = self.kth_value = value
        self.best_k_models = {str(copy): value}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.enable_validation and not any(trainer.num_val_batches):
            log.warning("there are no validation data, so there is no %s and no best.ckpt; see data.split", self.monitor)


class KeptBest(Checkpoint):
    """Keeps the `keep` best checkpoints by `monitor`, as `best_step_N.ckpt` beside `best.ckpt`.

    Its place is between `BestCheckpoint`, whose file it shares for the best one, and `LastCheckpoint`, which saves its state. A
    run that continues in another folder begins to collect anew, since the files stay with the earlier run.

    Args:
        path: best.ckpt. monitor, mode: as for `BestCheckpoint`. keep: how many, at least 2.
    """

    def __init__(self, *, path: Path, monitor: str, mode: str, keep: int) -> None:
        self.path, self.monitor, self.mode, self.keep = Path(path), monitor, mode, keep
        self.values: dict[str, float] = {}  # file name -> value

    def _is_worse(self, name: str) -> tuple[float, str]:
        value = self.values[name]
        return (value if self.mode == "min" else -value), name

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        current = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or trainer.state.fn != "fit" or current is None or bool(torch.isnan(current)):
            return
        file = at_step(self.path, trainer.global_step)
        self._rank(file, float(current))
        if file.name in self.values:
            if lightning.wrote_now(trainer, self.path):  # by BestCheckpoint
                if trainer.is_global_zero:
                    keep_copy(self.path, file)
            else:
                trainer.save_checkpoint(file)
        if trainer.is_global_zero:
            remove_others(self.path, [self.path.with_name(name) for name in self.values])

    def _rank(self, file: Path, value: float) -> None:
        self.values[file.name] = value
        ranked = sorted(self.values, key=self._is_worse)
        self.values = {name: self.values[name] for name in ranked[: self.keep]}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes in a best.ckpt that is not listed yet: a run without a last.ckpt continues from it, and it was written before."""
        best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)
        here = trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve().parent == self.path.resolve().parent
        step = step_if_whole(self.path) if here and best is not None and best.best_model_score is not None else None
        if best is None or step is None or step > trainer.global_step:  # one after the checkpoint is written again
            return
        file = at_step(self.path, step)
        if file.name not in self.values:
            self._rank(file, float(best.best_model_score))  # type: ignore[arg-type]
            if trainer.is_global_zero:
                keep_copy(self.path, file)

    def state_dict(self) -> dict[str, Any]:
        return {"values": dict(self.values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        values = state_dict["values"]
        self.values = {name: float(value) for name, value in values.items() if self.path.with_name(name).is_file()}


def kept_best(path: Path, *, monitor: str, mode: str, keep: int) -> list[KeptBest]:
    """Returns the callbacks that keep the `keep` best checkpoints: none for 1, since best.ckpt is that one.

    Raises: ValueError for a number below 1.
    """
    if keep < 1:
        raise ValueError(f"keep_best is {keep}, must be at least 1 checkpoint")
    return [KeptBest(path=path, monitor=monitor, mode=mode, keep=keep)] if keep > 1 else []
