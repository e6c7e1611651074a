"""The switch comes when it should, keeps rates in proportion and a schedule for the rest, and is resumed on either side."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_optimizer.optimizer.lion import Lion

from etude.core.checkpoints import LastCheckpoint
from etude.optim import schedules
from etude.optim.optimizers import muon
from etude.techniques.optim.stages import Stages
from etude.techniques.optim.switch_optimizer import SwitchOptimizer
from tests.techniques.test_swa import Stop
from tests.toys import PairsData, ToyGan, same, trainer, weights


def matrix_options(kind: str, folder: Path, build: Callable[[], Any]) -> dict[str, Any]:
    # a plateau from the second update on: the runs of the matrix differ in length, so that a share would differ, too
    return {"at": None, "monitor": "train/loss", "patience": 2, "min_delta": 1e6}


class Watch(pl.Callback):
    """Keeps which optimizer made each step, with which rates."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.rates: list[list[float]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.kinds.append(type(trainer.optimizers[0]).__name__)
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def fit(folder: Path, technique: SwitchOptimizer, *more: pl.Callback, resume: Path | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    gan, watch = ToyGan(**options.pop("task", {})), Watch()
    last = LastCheckpoint(path=folder / "last.ckpt", every_n_steps=1000)
    run = trainer(folder, **{"max_steps": 12, "val_check_interval": 2, **options}, callbacks=[technique, watch, last, *more])
    run.fit(gan, PairsData(), ckpt_path=resume, weights_only=True)
    return gan, watch, run


def test_at_a_share_lion_takes_over_at_a_fifth_of_the_rates(tmp_path: Path) -> None:
    gan, watch, run = fit(tmp_path, SwitchOptimizer(at=0.25))
    assert watch.kinds == ["Adam"] * 3 + ["Lion"] * 9
    assert isinstance(run.optimizers[0], Lion)
    for before, after, groups in zip(watch.rates[2], watch.rates[3], run.optimizers[0].param_groups, strict=True):
        assert after == pytest.approx(before / 5) and groups["player"] in gan.players
    assert sorted(set(watch.rates[3])) == pytest.approx([1e-4 / 5, 2e-4 / 5])  # players keep their proportion


def test_the_schedule_runs_anew_over_the_rest(tmp_path: Path) -> None:
    options = {"scheduler": partial(schedules.linear, warmup=0.0), "player_lr": {}}
    to = partial(torch.optim.SGD, lr=0.4)
    _, watch, run = fit(tmp_path, SwitchOptimizer(at=2 / 3, to=to), task=options)
    assert [rates[0] for rates in watch.rates[8:]] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert watch.rates[7][0] == pytest.approx(1e-4 * 5 / 12) and run.global_step == 12


def test_rates_of_players_follow_any_optimizer(tmp_path: Path) -> None:
    _, _, run = fit(tmp_path, SwitchOptimizer(at=0.5, to=partial(muon, lr=0.1, adamw_lr=0.01)))
    rates = {(group["player"], group["use_muon"]): group["lr"] for group in run.optimizers[0].param_groups}
    assert rates["discriminator", True] == pytest.approx(0.1) and rates["generator", True] == pytest.approx(0.2)
    assert rates["discriminator", False] == pytest.approx(0.01) and rates["generator", False] == pytest.approx(0.02)


class Validated(ToyGan):
    """Validation gives these values, one after another."""

    values = (5.0, 4.0, 4.5, 3.9, 3.0, 2.0)

    def on_validation_start(self) -> None:
        self.number = getattr(self, "number", -1) + 1

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.log("val/cycle", self.values[self.number])


def test_a_plateau_switches(tmp_path: Path) -> None:
    technique, watch = SwitchOptimizer(at=None, monitor="val/cycle", patience=2, min_delta=0.5), Watch()
    run = trainer(tmp_path, max_steps=12, val_check_interval=2, callbacks=[technique, watch])
    run.fit(Validated(), PairsData())
    assert technique.switched["step"] == 8  # 4.0 stays the best at the 3rd and 4th validation
    assert watch.kinds == ["Adam"] * 8 + ["Lion"] * 4


def test_what_is_watched_in_training_is_this_steps_loss(tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []

    class Spy(SwitchOptimizer):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
            super().on_train_batch_end(trainer, pl_module, outputs, *rest)
            seen.append((self.plateau.best, float(outputs["loss"])))

    fit(tmp_path, Spy(at=None, monitor="train/loss", patience=99, mode="min"))
    assert [best for best, _ in seen] == pytest.approx([min(loss for _, loss in seen[: n + 1]) for n in range(12)])


@pytest.mark.parametrize("stop", [3, 4, 7])
def test_resumes_on_either_side_of_the_switch(tmp_path: Path, stop: int) -> None:
    def technique() -> SwitchOptimizer:
        return SwitchOptimizer(at=0.3)

    options = {"task": {"scheduler": schedules.cosine}}
    whole, *_ = fit(tmp_path / "whole", technique(), **options)
    fit(tmp_path / "half", technique(), Stop(stop), **options)
    rest, watch, _ = fit(tmp_path / "rest", technique(), resume=tmp_path / "half" / "last.ckpt", **options)
    assert same(weights(whole), weights(rest))
    assert set(watch.kinds) == {"Adam", "Lion"} if stop < 4 else {"Lion"}


def test_without_a_target_another_family_is_refused(tmp_path: Path) -> None:
    gan = ToyGan(optimizer=partial(torch.optim.SGD, lr=0.1))
    with pytest.raises(ValueError, match=r"technique switch_optimizer .* ToyGan trains with SGD; give technique\."):
        trainer(tmp_path, max_steps=1, callbacks=[SwitchOptimizer()]).fit(gan, PairsData())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": 1.0}, r"switch_optimizer\.at is 1\.0, must be in \(0, 1\)"),
        ({"at": None}, r"switch_optimizer\.at, stage and monitor are all null"),
        ({"mode": "less"}, r"switch_optimizer\.mode is 'less', must be min or max"),
        ({"patience": 0}, r"switch_optimizer\.patience is 0, must be at least 1"),
        ({"min_delta": -1.0}, r"switch_optimizer\.min_delta is -1\.0, must be at least 0"),
    ],
)
def test_values_out_of_range_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwitchOptimizer(**options)


@pytest.mark.parametrize("monitor", ["val/nlll", "train/losss"])
def test_a_metric_that_nothing_logs_is_told(tmp_path: Path, monitor: str) -> None:
    with pytest.raises(ValueError, match=rf"switch_optimizer\.monitor is '{monitor}', which nothing logs; there are"):
        fit(tmp_path, SwitchOptimizer(at=None, monitor=monitor))


def test_a_stage_may_begin_with_another_optimizer(tmp_path: Path) -> None:
    stages = [{"name": "one", "max_steps": 3}, {"name": "two", "max_steps": 5}]

    switch = SwitchOptimizer(at=None, stage="two")
    task, watch, _ = fit(tmp_path, switch, Stages(stages=stages), max_steps=8, task={"player_lr": {}})
    assert watch.kinds == ["Adam"] * 3 + ["Lion"] * 5
    assert task.schedule_steps == 5 and switch.switched["step"] == 3
    for others, said in (([], "no stages"), ([Stages(stages=stages)], "the later stages two")):
        with pytest.raises(ValueError, match=rf"stage is 'one', but ToyGan's run has {said}; choose one of"):
            fit(tmp_path, SwitchOptimizer(at=None, stage="one"), *others, max_steps=8)
