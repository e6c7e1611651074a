"""The law that every paradigm must keep: n steps, a kill, and the rest from the checkpoint are bit for bit one run."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from etude.core.checkpoints import LastCheckpoint
from etude.core.task import Task
from etude.core.technique import Technique
from tests.toys import same, trainer, weights

STEPS, VALIDATE_EVERY = 12, 4
KILLS = (3, 5, 6, 7, 9)  # none on a validation, which would hide what is written too early

Make = Callable[[], tuple[Task, pl.LightningDataModule]]
Techniques = Callable[[], Sequence[Technique]]


class KillError(Exception):
    """What stops a run in the middle."""


class Killer(pl.Callback):
    """Raises before the first batch after `step` optimizer steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step and not pl_module.accumulating:
            raise KillError


def fit(
    folder: Path,
    make: Make,
    techniques: Sequence[Technique] = (),
    *,
    steps: int = STEPS,
    kill: int = 10**9,
    resume: Path | None = None,
    callbacks: Sequence[pl.Callback] = (),
    **options: Any,
) -> Task:
    """Trains a new task, up to `kill` or the end; `last.ckpt` is written at the kill."""
    task, data = make()
    last = LastCheckpoint(path=folder / "last.ckpt", every_n_steps=kill)
    options = {"val_check_interval": VALIDATE_EVERY, "check_val_every_n_epoch": None, **options}
    run = trainer(folder, max_steps=steps, callbacks=[*techniques, *callbacks, Killer(kill), last], **options)
    with suppress(KillError):
        run.fit(task, data, ckpt_path=resume, weights_only=True)
    return task


def assert_resumes(folder: Path, make: Make, techniques: Techniques = tuple, *, kill: int, **options: Any) -> None:
    """Holds the law for a task, with all its buffers, and techniques."""
    whole = fit(folder / "whole", make, techniques(), **options)
    half = fit(folder / "half", make, techniques(), kill=kill, **options)
    rest = fit(folder / "rest", make, techniques(), resume=folder / "half" / "last.ckpt", **options)
    assert half.steps_trained == kill and whole.steps_trained == rest.steps_trained == STEPS
    assert whole.batches_trained == rest.batches_trained
    assert same(weights(whole), weights(rest))
    assert not same(weights(whole), weights(half))


def assert_learns_episodes(folder: Path, model: Any, data: Any, *, by: float = 0.0) -> None:
    """Trains for 30 steps on episodes; the mean loss of six training episodes must fall by more than so many nats."""
    planner = data.planner("train", seed=0)
    batches = [data.batch(planner, planner.rows(number)) for number in range(6)]

    def nats() -> float:
        return sum(model.measure(batch)["nll"].mean.item() for batch in batches) / len(batches)

    before = nats()
    trainer(folder, max_steps=30, limit_val_batches=0).fit(model, data)
    assert nats() < before - by
