"""The average is the plain mean, is what is evaluated and saved, and leaves training alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from etude.core.checkpoints import LastCheckpoint
from etude.core.technique import Composition
from etude.techniques.weights.ema import Ema
from etude.techniques.weights.swa import Swa
from tests.techniques.test_ema import Recorder
from tests.toys import PairsData, ToyGan, same, trainer, weights


def matrix_options(kind: str, folder: Path, build: Callable[[], Any]) -> dict[str, Any]:
    return {"start": 0.0, "every": 2}  # the runs of the matrix differ in length


class Stop(pl.Callback):
    """Ends a run early without shortening it, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.step


def fit(folder: Path, *techniques: pl.Callback, resume: Path | None = None, stop: int | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    gan, recorder = ToyGan(), Recorder()
    last = LastCheckpoint(path=folder / "last.ckpt", every_n_steps=1000)
    callbacks = [*techniques, recorder, last, *([Stop(stop)] if stop else [])]
    run = trainer(folder, **{"max_steps": 12, "val_check_interval": 4, **options}, callbacks=callbacks)
    run.fit(gan, PairsData(), ckpt_path=resume, weights_only=True)
    return gan, recorder, torch.load(folder / "last.ckpt", weights_only=True)


def test_average_is_the_plain_mean_of_those_taken(tmp_path: Path) -> None:
    _, recorder, saved = fit(tmp_path, Swa(start=0.5, every=2))
    taken = [recorder.trained[step - 1] for step in (6, 8, 10, 12)]
    for name, value in saved["state_dict"].items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in taken]).mean(0))
    assert same(recorder.validated[-1], saved["state_dict"])
    assert same(recorder.validated[0], recorder.trained[3])  # before the start: the plain weights


def test_training_weights_are_those_without_it(tmp_path: Path) -> None:
    bare, *_ = fit(tmp_path / "bare")
    averaged, _, saved = fit(tmp_path / "swa", Swa(start=0.25, every=1))
    assert same(weights(bare), weights(averaged)) and not same(saved["state_dict"], weights(averaged))
    assert same(saved["callbacks"]["Swa"]["training_weights"], weights(averaged))


@pytest.mark.parametrize("stop", [3, 7])
def test_resumes_before_and_after_the_start(tmp_path: Path, stop: int) -> None:
    whole, recorder, saved = fit(tmp_path / "whole", Swa(start=0.5, every=2))
    fit(tmp_path / "half", Swa(start=0.5, every=2), stop=stop)
    resumed, after, again = fit(tmp_path / "rest", Swa(start=0.5, every=2), resume=tmp_path / "half" / "last.ckpt")
    assert same(weights(whole), weights(resumed)) and same(saved["state_dict"], again["state_dict"])
    assert same(recorder.validated[-1], after.validated[-1])


def test_updates_count_not_batches(tmp_path: Path) -> None:
    swa = Swa(start=0.5, every=1)
    fit(tmp_path, swa, max_steps=6, accumulate_grad_batches=2)
    assert swa.taken == 4  # updates 3, 4, 5 and 6


def test_goes_not_with_ema() -> None:
    with pytest.raises(ValueError, match="techniques 'ema' and 'swa' both claim the evaluation weights"):
        Composition([Swa(), Ema()])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"start": 1.0}, r"swa\.start is 1\.0, must be in \[0, 1\)"), ({"every": 0}, r"swa\.every is 0, must be at least 1")],
)
def test_values_out_of_range_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Swa(**options)


def test_a_run_without_an_end_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"swa\.start is a share of the run: set trainer\.max_steps"):
        trainer(tmp_path, max_steps=-1, max_epochs=-1, callbacks=[Swa()]).fit(ToyGan(), PairsData())
