"""Early stopping: when it stops, what it leaves, and that a stopped run stays stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from etude.core.checkpoints import LastCheckpoint
from etude.techniques.guards.early_stopping import EarlyStopping
from etude.techniques.weights.ema import Ema
from tests.toys import PairsData, ToyGan, same, trainer, weights


def matrix_options(kind: str, folder: Path, build: Callable[[], Any]) -> dict[str, Any]:
    return {"min_delta": 1000.0, "patience": 100}  # the first validation stays the best


class Scripted(ToyGan):
    """Logs what it is told to, validation after validation."""

    script = (3.0, 2.0, 1.0, 1.5, 1.4, 0.5)

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.log("val/cycle", torch.tensor(self.script[min(self.batches_trained // 3 - 1, 5)]))


class Recorder(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen.append(weights(pl_module))


def fit(
    folder: Path, *callbacks: pl.Callback, task: ToyGan | None = None, resume: Path | None = None, steps: int = 24, **options: Any
) -> tuple[ToyGan, pl.Trainer]:
    torch.manual_seed(0)
    task = task or Scripted()
    run = trainer(folder, **{"max_steps": steps, "val_check_interval": 3, **options}, callbacks=list(callbacks))
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


@pytest.mark.parametrize("average", [[], [0.9]])
def test_the_last_checkpoint_has_the_best_weights_and_a_longer_run_goes_on_from_the_trained(
    tmp_path: Path, average: list[float]
) -> None:
    def run(folder: str, steps: int, resume: Path | None = None) -> tuple[ToyGan, dict[str, torch.Tensor], Recorder]:
        recorder, last = Recorder(), LastCheckpoint(path=tmp_path / folder / "last.ckpt", every_n_steps=100)
        emas = [Ema(decay=decay) for decay in average]
        task, _ = fit(tmp_path, EarlyStopping(patience=9), *emas, recorder, last, resume=resume, steps=steps)
        return task, torch.load(tmp_path / folder / "last.ckpt", weights_only=True)["state_dict"], recorder

    task, saved, recorder = run("half", 15)
    assert same(saved, recorder.seen[2]) and same(saved, weights(task))
    longer, rest = run("whole", 24), run("rest", 24, tmp_path / "half" / "last.ckpt")
    assert same(longer[1], rest[1]) and same(longer[2].seen[-1], rest[2].seen[-1])


def test_after_the_last_epoch_too_the_last_checkpoint_has_the_best_weights(tmp_path: Path) -> None:
    recorder, last = Recorder(), LastCheckpoint(path=tmp_path / "last.ckpt", every_n_steps=100)
    task, _ = fit(tmp_path, EarlyStopping(patience=9), recorder, last, max_steps=-1, max_epochs=1)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert same(saved["state_dict"], recorder.seen[2]) and same(saved["state_dict"], weights(task))
    assert not same(saved["trained_weights"], saved["state_dict"])


def test_a_small_gain_is_none(tmp_path: Path) -> None:
    _, run = fit(tmp_path, EarlyStopping(patience=2, min_delta=5.0))
    assert run.global_step == 9


def test_bad_input_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patience is 0, must be at least 1"):
        EarlyStopping(patience=0)
    with pytest.raises(ValueError, match=r"early_stopping.monitor is 'val/nil', which nothing logs; there are .*val/cycle"):
        fit(tmp_path, EarlyStopping(monitor="val/nil"))


def test_more_may_be_better(tmp_path: Path) -> None:
    technique = EarlyStopping(mode="max", patience=2)
    _, run = fit(tmp_path, technique)
    assert technique.plateau.best == 3.0 and run.global_step == 9  # 3, 2, 1
    with pytest.raises(ValueError, match=r"early_stopping.mode is 'up', must be min or max"):
        EarlyStopping(mode="up")  # type: ignore[arg-type]
