"""What follows the optimizer step comes before checkpoints and averages: a momentum teacher, kept weights, the count of steps."""

import copy
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.core.task import Task
from etude.core.technique import Composition, StepSlot, Technique
from etude.techniques.guards.finite import Finite
from etude.techniques.weights.ema import Ema
from tests.paradigms.harness import KILLS, STEPS, assert_resumes, fit
from tests.toys import PairsData, ToyGan, same, weights

RATE = 0.1  # at which the teacher follows


def encoder() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))


class Byol(Task):
    """Two noisy views of a vector; a predictor tells the teacher's output; the teacher follows (Grill et al. 2020)."""

    logged_metrics = ("val/norm",)

    def __init__(self, **options: Any) -> None:
        options.setdefault("optimizer", partial(torch.optim.AdamW, lr=3e-3))
        super().__init__(**options)
        self.student, self.predictor = encoder(), nn.Linear(8, 8)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.followed = 0

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        one, two = (batch["a"] + 0.3 * torch.randn_like(batch["a"]) for _ in range(2))
        with torch.no_grad():
            target = self.teacher(two)
        return {"byol": 1 - F.cosine_similarity(self.predictor(self.student(one)), target).mean()}

    def after_step(self) -> None:
        self.followed += 1
        for own, other in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            own.lerp_(other, RATE)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/norm", self.student(batch["a"]).pow(2).mean())


def byol() -> tuple[Task, pl.LightningDataModule]:
    torch.manual_seed(0)
    return Byol(seed=1), PairsData()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kill", KILLS[1:3])
def test_a_momentum_teacher_resumes(tmp_path: Path, accumulate: int, kill: int) -> None:
    assert_resumes(tmp_path, byol, kill=kill, accumulate_grad_batches=accumulate)
    assert_resumes(tmp_path, byol, lambda: [Ema(decay=0.5)], kill=kill, accumulate_grad_batches=accumulate)


@pytest.mark.parametrize(("accumulate", "batches"), [(1, 12), (2, 24), (3, 32)])  # the sixth step of 16 batches has one
def test_once_per_step_and_not_per_batch(tmp_path: Path, accumulate: int, batches: int) -> None:
    task = fit(tmp_path, byol, accumulate_grad_batches=accumulate)
    assert isinstance(task, Byol) and task.followed == task.steps_trained == task.trainer.global_step == STEPS
    assert not task.accumulating and task.batches_trained == batches


class Kept(Technique):
    """Puts the first half of every tensor back to what it was after each step; its name sorts after `ema`."""

    step_slot: ClassVar[StepSlot] = StepSlot.WEIGHTS

    @property
    def name(self) -> str:
        return "kept"

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.first = weights(pl_module)

    def after_step(self, task: Task) -> None:
        for name, parameter in task.named_parameters():
            half = parameter.view(-1)[: parameter.numel() // 2]
            half.copy_(self.first[name].view(-1)[: parameter.numel() // 2])


class Weights(pl.Callback):
    """The task's weights after every batch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.seen.append(weights(pl_module))


@pytest.mark.parametrize("first", [0, 1])
def test_weights_are_averaged_as_kept(tmp_path: Path, first: int) -> None:
    def make() -> tuple[Task, pl.LightningDataModule]:
        torch.manual_seed(0)
        return ToyGan(), PairsData()

    kept, ema, after = Kept(), Ema(decay=0.5, every=1), Weights()
    start = weights(make()[0])
    task = fit(tmp_path, make, [kept, ema] if first == 0 else [ema, kept], callbacks=[after])
    average = start
    for number, value in enumerate(after.seen, start=1):
        decay = min(0.5, (1 + number) / (10 + number))
        average = {name: average[name].lerp(value[name], 1 - decay) for name in average}
    held = ema._evaluation.values
    for name, parameter in task.named_parameters():
        size = parameter.numel() // 2
        assert torch.equal(parameter.view(-1)[:size], start[name].view(-1)[:size])
        assert torch.equal(held[name].view(-1)[:size], start[name].view(-1)[:size])  # off by 3.7e-5 while ema came first
        torch.testing.assert_close(held[name], average[name], rtol=0, atol=1e-7)


def test_the_order_is_that_of_the_slots() -> None:
    told: list[str] = []

    def acts(label: str, slot: StepSlot) -> Technique:
        class Acts(Technique):
            step_slot = slot
            name = label  # type: ignore[assignment]

            def after_step(self, task: Task) -> None:
                told.append(label)

        return Acts()

    class Told(ToyGan):
        def after_step(self) -> None:
            told.append("task")

    slots = {"a": StepSlot.PLAN, "b": StepSlot.AVERAGE, "c": StepSlot.WEIGHTS, "d": StepSlot.REPAIR, "e": StepSlot.WEIGHTS}
    Composition([acts(label, slot) for label, slot in slots.items()]).after_step(Told())
    assert told == ["d", "c", "e", "task", "b", "a"]
    told.clear()
    Composition([acts("c", StepSlot.WEIGHTS)]).after_step(Told())
    assert told == ["c", "task"]


def test_hook_and_slot_go_together() -> None:
    class NoSlot(Technique):
        def after_step(self, task: Task) -> None:
            pass

    class NoHook(Technique):
        step_slot = StepSlot.PLAN

    for kind in (NoSlot, NoHook):
        with pytest.raises(ValueError, match="that overrides after_step must declare its slot"):
            Composition([kind()])


def test_also_after_a_step_that_a_guard_leaves_out(tmp_path: Path) -> None:
    class Once(Byol):
        def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            factor = float("nan") if self.training and self.batches_trained == 2 else 1.0
            return {name: value * factor for name, value in super().losses(batch).items()}

    def make() -> tuple[Task, pl.LightningDataModule]:
        torch.manual_seed(0)
        return Once(seed=1), PairsData()

    guard = Finite()
    task = fit(tmp_path, make, [guard], steps=4)
    assert guard.skipped == 1 and isinstance(task, Once) and task.followed == task.steps_trained == 4


def test_a_checkpoint_from_before_the_count_has_the_trainers(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", byol)
    fit(tmp_path / "half", byol, kill=5)
    saved = torch.load(tmp_path / "half" / "last.ckpt", weights_only=True)
    assert saved["etude"].pop("steps_trained") == saved["global_step"] == 5
    torch.save(saved, tmp_path / "old.ckpt")
    rest = fit(tmp_path / "rest", byol, resume=tmp_path / "old.ckpt")
    assert rest.steps_trained == STEPS and same(weights(whole), weights(rest))
