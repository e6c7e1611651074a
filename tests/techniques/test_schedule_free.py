"""Validation and checkpoints have the optimizer's average, training goes on where it was, bit for bit."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

from etude.core.checkpoints import LastCheckpoint
from etude.core.technique import Composition
from etude.optim.optimizers import ScheduleFree as Optimizer
from etude.techniques.weights.ema import Ema
from etude.techniques.weights.schedule_free import ScheduleFree
from tests.techniques.test_ema import Recorder
from tests.techniques.test_swa import Stop
from tests.test_composition import Terminator
from tests.toys import PairsData, ToyGan, same, trainer, weights


class Averages(pl.Callback):
    """Keeps the optimizer's own average after each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        found = trainer.optimizers[0].evaluation_weights()  # type: ignore[attr-defined]
        self.seen.append({name: found[p] for name, p in pl_module.named_parameters()})


def fit(folder: Path, *more: pl.Callback, resume: Path | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    gan, recorder, averages = ToyGan(optimizer=partial(Optimizer, lr=1e-2), player_lr={}), Recorder(), Averages()
    last = LastCheckpoint(path=folder / "last.ckpt", every_n_steps=1000)
    callbacks = [ScheduleFree(), recorder, averages, last, *more]
    run = trainer(folder, **{"max_steps": 12, "val_check_interval": 4, **options}, callbacks=callbacks)
    run.fit(gan, PairsData(), ckpt_path=resume, weights_only=True)
    return gan, recorder, averages, torch.load(folder / "last.ckpt", weights_only=True)


def test_validates_and_saves_the_average(tmp_path: Path) -> None:
    gan, recorder, averages, saved = fit(tmp_path)
    assert same(recorder.validated[0], averages.seen[3]) and same(recorder.validated[-1], averages.seen[11])
    assert same(saved["state_dict"], averages.seen[11]) and not same(saved["state_dict"], weights(gan))
    assert same(saved["callbacks"]["ScheduleFree"]["training_weights"], weights(gan))


def test_validation_leaves_training_as_it_is(tmp_path: Path) -> None:
    often, *_ = fit(tmp_path / "often", val_check_interval=1)
    never, *_ = fit(tmp_path / "never", limit_val_batches=0)
    assert same(weights(often), weights(never))


@pytest.mark.parametrize("stop", [4, 7])
def test_resumes_bit_for_bit(tmp_path: Path, stop: int) -> None:
    whole, _, _, saved = fit(tmp_path / "whole")
    fit(tmp_path / "half", Stop(stop))
    rest, _, _, again = fit(tmp_path / "rest", resume=tmp_path / "half" / "last.ckpt")
    assert same(weights(whole), weights(rest)) and same(saved["state_dict"], again["state_dict"])


def test_a_validation_that_a_signal_ends_is_repeated(tmp_path: Path) -> None:
    whole, recorder, _, saved = fit(tmp_path / "whole")
    with pytest.raises(SystemExit):
        fit(tmp_path / "half", Terminator(8))
    rest, again, _, resaved = fit(tmp_path / "rest", resume=tmp_path / "half" / "last.ckpt")
    assert len(again.validated) == 4 and same(again.validated[0], recorder.validated[2])  # two batches each
    assert same(weights(whole), weights(rest)) and same(saved["state_dict"], resaved["state_dict"])


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"technique schedule_free evaluates .* ToyGan trains with Adam; choose optimizer="):
        trainer(tmp_path, max_steps=1, callbacks=[ScheduleFree()]).fit(ToyGan(), PairsData())


def test_goes_not_with_ema() -> None:
    with pytest.raises(ValueError, match="techniques 'ema' and 'schedule_free' both claim the evaluation weights"):
        Composition([ScheduleFree(), Ema()])


def test_the_optimizer_brings_technique_and_schedule() -> None:
    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        plain = compose("train", overrides=["optimizer=schedule_free"])
        assert list(plain.technique) == ["schedule_free"] and plain.scheduler._target_.endswith(".constant")
        mine = compose("train", overrides=["optimizer=schedule_free", "technique=[schedule_free,finite]", "scheduler=noam"])
        assert list(mine.technique) == ["schedule_free", "finite"] and mine.scheduler._target_.endswith(".noam")
        gan = compose("train", overrides=["task=style_transfer", "optimizer=schedule_free"])
        assert list(gan.technique) == ["schedule_free"]
        assert list(compose("train").technique) == ["ema"]
