"""Early stopping: when it stops, what it leaves, and that a stopped run stays stopped."""

from collections.abc import Callable
from functools import partial
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


ACROSS_EPOCHS: dict[str, Any] = {"check_val_every_n_epoch": None}  # validations count steps, as in conf/trainer


class Rates(pl.Callback):
    """Records the learning rate with which each step was made."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def decaying(*, schedule: bool) -> ToyGan:
    torch.manual_seed(0)
    falling = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 - step / 100)
    scheduler = (lambda optimizer, total_steps: falling(optimizer)) if schedule else None
    return Scripted(optimizer=partial(torch.optim.SGD, lr=0.1), player_lr={}, scheduler=scheduler)


@pytest.mark.parametrize("schedule", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_on_its_plateau_decays_and_then_ends(tmp_path: Path, schedule: bool, accumulate: int) -> None:
    rates, recorder = Rates(), Recorder()
    task = decaying(schedule=schedule)
    options: dict[str, Any] = {"accumulate_grad_batches": accumulate, "val_check_interval": 3 * accumulate, **ACROSS_EPOCHS}
    if accumulate == 2:
        task.script = (3.0, 3.0, 2.0, 2.0, 1.0, 1.0, *[1.5] * 20)  # type: ignore[assignment]
    _, run = fit(tmp_path, EarlyStopping(patience=2, finish=0.4), rates, recorder, task=task, steps=40, **options)
    # the plateau is seen at step 15: 0.4 * 15 = 6 steps, two intervals
    assert run.global_step == 21 and len(rates.seen) == 21
    planned = [0.1 * (1 - step / 100) if schedule else 0.1 for step in range(21)]
    factors = [1.0] * 15 + [1 - step / 6 for step in range(6)]
    assert rates.seen == pytest.approx([rate * factor for rate, factor in zip(planned, factors, strict=True)])
    assert len(recorder.seen) == 7  # the last validation is of the last step


def test_a_decay_is_resumed_and_a_longer_run_leaves_it(tmp_path: Path) -> None:
    def run(folder: str, steps: int, resume: Path | None = None, **options: Any) -> tuple[ToyGan, pl.Trainer, list[float]]:
        rates, last = Rates(), LastCheckpoint(path=tmp_path / folder / "last.ckpt", every_n_steps=100)
        technique = EarlyStopping(**{"patience": 2, "finish": 0.4, "restore": False, **options})
        task, trained = fit(
            tmp_path, technique, rates, last, task=decaying(schedule=True), resume=resume, steps=steps, **ACROSS_EPOCHS
        )
        return task, trained, rates.seen

    whole, ended, rates = run("whole", 40)
    _, _, first = run("half", 17)
    rest, end, second = run("rest", 40, tmp_path / "half" / "last.ckpt")
    assert (
        ended.global_step == end.global_step == 21
        and first + second == pytest.approx(rates)
        and same(weights(whole), weights(rest))
    )
    _, still, none = run("again", 40, tmp_path / "rest" / "last.ckpt")
    assert still.global_step == 21 and none == []
    _, longer, more = run("longer", 24, tmp_path / "rest" / "last.ckpt", patience=9)
    assert longer.global_step == 24 and more == pytest.approx([0.1 * (1 - step / 100) for step in (21, 22, 23)])


def test_a_gain_may_have_to_be_a_share(tmp_path: Path) -> None:
    _, run = fit(tmp_path, EarlyStopping(patience=2, min_gain=0.7))  # neither 2 nor 1 is a gain of 70 % on 3
    assert run.global_step == 9
    technique = EarlyStopping(patience=3, min_gain=0.4, mode="max")
    fit(tmp_path, technique)
    assert technique.plateau.best == 3.0
    for wrong in ({"min_gain": 1.0}, {"finish": 0.0}, {"finish": 1.5}):
        with pytest.raises(ValueError, match=f"early_stopping.{next(iter(wrong))} is"):
            EarlyStopping(**wrong)  # type: ignore[arg-type]
