"""Early stopping: when it stops, what it leaves, and that a stopped run stays stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from etude.core.checkpoints import LastCheckpoint
from etude.techniques.early_stopping import EarlyStopping
from etude.techniques.ema import Ema
from tests.toys import PairsData, ToyGan, same, trainer, weights


def matrix_options(kind: str, folder: Path, build: Callable[[], Any]) -> dict[str, Any]:
    return {"min_delta": 1000.0, "patience": 100}  # the first validation stays the best


class Scripted(ToyGan):
    """Logs what it is told to, validation after validation."""

    script = (3.0, 2.0, 1.0, 1.5, 1.4, 0.5)

    def __init__(self) -> None:
        super().__init__()
        self.validations = 0

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        if batch_idx == 0:
            self.log("val/cycle", torch.tensor(self.script[min(self.validations, 5)]))
            self.validations += 1


class Recorder(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen.append(weights(pl_module))


def fit(
    folder: Path, *callbacks: pl.Callback, task: ToyGan | None = None, resume: Path | None = None
) -> tuple[ToyGan, pl.Trainer]:
    torch.manual_seed(0)
    task = task or Scripted()
    run = trainer(folder, max_steps=24, callbacks=list(callbacks), val_check_interval=3)
    run.fit(task, PairsData(), ckpt_path=resume, weights_only=True)
    return task, run


def test_it_stops_after_its_patience_and_puts_the_best_weights_back(tmp_path: Path) -> None:
    recorder = Recorder()
    task, run = fit(tmp_path, EarlyStopping(patience=2), recorder)
    assert run.global_step == 15 and len(recorder.seen) == 5
    assert same(weights(task), recorder.seen[2])


def test_the_weights_put_back_are_those_that_were_validated(tmp_path: Path) -> None:
    recorder = Recorder()
    task, _ = fit(tmp_path, EarlyStopping(patience=2), Ema(decay=0.9), recorder)
    assert same(weights(task), recorder.seen[2])


def test_a_run_that_stopped_stays_stopped(tmp_path: Path) -> None:
    last = LastCheckpoint(path=tmp_path / "last.ckpt", every_n_steps=100)
    task, _ = fit(tmp_path, EarlyStopping(patience=2), last)
    again, run = fit(tmp_path, EarlyStopping(patience=2), resume=tmp_path / "last.ckpt")
    assert run.global_step == 15 and same(weights(task), weights(again))


def test_a_small_gain_is_none(tmp_path: Path) -> None:
    _, run = fit(tmp_path, EarlyStopping(patience=2, min_delta=5.0))
    assert run.global_step == 9


def test_bad_input_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patience is 0, must be at least 1"):
        EarlyStopping(patience=0)
    with pytest.raises(ValueError, match=r"early_stopping.monitor is 'val/nil', which nothing logs; there are .*val/cycle"):
        fit(tmp_path, EarlyStopping(monitor="val/nil"))
