"""The average is the formula's, is what is evaluated and saved, and leaves training alone."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from etude.core.checkpoints import LastCheckpoint
from etude.techniques.weights.ema import Ema
from etude.techniques.weights.swa import Swa
from tests.toys import PairsData, ToyGan, same, trainer, weights


class Recorder(pl.Callback):
    """Keeps the weights after each step and those that validation sees."""

    def __init__(self) -> None:
        self.trained: list[dict[str, torch.Tensor]] = []
        self.validated: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.trained.append(weights(pl_module))

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.validated.append(weights(pl_module))


def fit(folder: Path, steps: int, *techniques: Ema, resume: Path | None = None, save_at: int = 7, accumulate: int = 1) -> Any:
    torch.manual_seed(0)
    gan, recorder = ToyGan(), Recorder()
    start = weights(gan)
    saver = ModelCheckpoint(folder, "last", every_n_train_steps=save_at, save_top_k=1, enable_version_counter=False)
    run = trainer(
        folder,
        max_steps=steps,
        callbacks=[*techniques, recorder, saver],
        val_check_interval=4,
        accumulate_grad_batches=accumulate,
    )
    run.fit(gan, PairsData(), ckpt_path=resume)
    return gan, recorder, start


def test_average_is_the_formula(tmp_path: Path) -> None:
    _, recorder, average = fit(tmp_path, 8, Ema(decay=0.5, every=1))
    for n, step in enumerate(recorder.trained, start=1):
        decay = min(0.5, (1 + n) / (10 + n))
        average = {name: decay * average[name] + (1 - decay) * step[name] for name in average}
    for name, value in recorder.validated[-1].items():
        torch.testing.assert_close(value, average[name])


def test_every_third_step_counts_with_the_decay_of_three(tmp_path: Path) -> None:
    _, recorder, average = fit(tmp_path, 8, Ema(decay=0.5, every=3))
    kept = 1.0
    for n, step in enumerate(recorder.trained, start=1):
        kept *= min(0.5, (1 + n) / (10 + n))
        if n % 3 == 0 or n < 3:
            average = {name: kept * average[name] + (1 - kept) * step[name] for name in average}
            kept = 1.0
    for name, value in recorder.validated[-1].items():
        torch.testing.assert_close(value, average[name])


def test_a_run_shorter_than_every_has_an_average_of_its_steps(tmp_path: Path) -> None:
    technique = Ema(decay=0.5, every=4)
    _, recorder, average = fit(tmp_path, 2, technique)
    for n, step in enumerate(recorder.trained, start=1):
        decay = min(0.5, (1 + n) / (10 + n))
        average = {name: decay * average[name] + (1 - decay) * step[name] for name in average}
    for name, value in technique._average.items():
        torch.testing.assert_close(value, average[name])


def test_every_below_one_is_told() -> None:
    with pytest.raises(ValueError, match=r"ema\.every is 0, must be 1 or more steps"):
        Ema(every=0)


def test_training_weights_are_those_without_it(tmp_path: Path) -> None:
    bare, *_ = fit(tmp_path / "bare", 8)
    averaged, recorder, _ = fit(tmp_path / "ema", 8, Ema(decay=0.9))
    assert same(weights(bare), weights(averaged))
    assert not same(recorder.validated[-1], recorder.trained[-1])


@pytest.mark.parametrize("every", [1, 4])
def test_checkpoint_holds_the_average_and_resumes_the_training_weights(tmp_path: Path, every: int) -> None:
    whole, recorder, _ = fit(tmp_path / "whole", 12, Ema(decay=0.9, every=every))
    fit(tmp_path / "half", 7, Ema(decay=0.9, every=every))
    saved = torch.load(tmp_path / "half" / "last.ckpt", weights_only=True)
    assert not same(saved["state_dict"], recorder.trained[6])
    resumed, after, _ = fit(tmp_path / "rest", 12, Ema(decay=0.9, every=every), resume=tmp_path / "half" / "last.ckpt")
    assert same(weights(whole), weights(resumed))
    assert same(recorder.validated[-1], after.validated[-1])


def test_a_tied_weight_is_averaged_once(tmp_path: Path) -> None:
    class Tied(ToyGan):
        def __init__(self) -> None:
            super().__init__()
            self.ba[0].weight = self.ab[0].weight

    gan, ema = Tied(), Ema(decay=0.9, every=1)
    trainer(tmp_path, max_steps=3, callbacks=[ema]).fit(gan, PairsData())
    before, average = weights(gan), dict(ema._average)
    assert sum("0.weight" in name and name.startswith(("ab", "ba")) for name in average) == 1
    ema._swap(gan)
    assert torch.equal(gan.ba[0].weight, gan.ab[0].weight) and not torch.equal(gan.ab[0].weight, before["ab.0.weight"])
    ema._swap(gan)
    assert same(weights(gan), before)


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0, 2.0])
def test_decay_out_of_range_is_told(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"ema\.decay is {decay}, must be in \(0, 1\)"):
        Ema(decay=decay)


def test_resume_counts_updates_not_batches(tmp_path: Path) -> None:
    whole, stopped, rest = Ema(decay=0.9), Ema(decay=0.9), Ema(decay=0.9)
    fit(tmp_path / "whole", 7, whole, save_at=3, accumulate=2)
    fit(tmp_path / "half", 3, stopped, save_at=3, accumulate=2)
    fit(tmp_path / "rest", 7, rest, resume=tmp_path / "half" / "last.ckpt", save_at=3, accumulate=2)
    assert whole.updates == rest.updates == 7
    assert same(whole._average, rest._average)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # Lightning misses the callback, as it should
def test_going_on_without_it_goes_on_from_the_trained_weights(tmp_path: Path) -> None:
    class Tied(ToyGan):
        def __init__(self) -> None:
            super().__init__()
            self.ba[0].weight = self.ab[0].weight

    class Start(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.found = weights(pl_module)

    torch.manual_seed(0)
    first, last = Tied(), LastCheckpoint(path=tmp_path / "last.ckpt", every_n_steps=4)
    trainer(tmp_path, max_steps=4, callbacks=[Ema(decay=0.9), last]).fit(first, PairsData())
    for others in ([], [Swa()]):
        start = Start()
        run = trainer(tmp_path, max_steps=5, callbacks=[start, *others])
        run.fit(Tied(), PairsData(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
        assert same(start.found, weights(first))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_validation_of_a_checkpoint_sees_the_average_with_or_without_the_technique(tmp_path: Path) -> None:
    torch.manual_seed(0)
    last = LastCheckpoint(path=tmp_path / "last.ckpt", every_n_steps=4)
    trainer(tmp_path, max_steps=4, callbacks=[Ema(decay=0.9), last]).fit(ToyGan(noise=0.0), PairsData())
    seen = []
    for techniques in ([Ema(decay=0.9)], []):
        run = trainer(tmp_path, max_steps=4, callbacks=list(techniques))
        run.validate(ToyGan(noise=0.0), PairsData(), ckpt_path=tmp_path / "last.ckpt", weights_only=True, verbose=False)
        seen.append(float(run.callback_metrics["val/cycle"]))
    assert seen[0] == seen[1]
