"""Samples while a model trains: they are there, few, shown, and training does not notice them."""

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.loggers.logger import DummyLogger
from torch import Tensor

from etude.report.media import Sample, read_table, write_table
from etude.run.during import SamplesDuring, lowered, undisturbed
from tests.report.test_media import Pages
from tests.songs import write_songs
from tests.test_run import TINY, call, fails
from tests.toys import PairsData, ToyGan, trainer, weights


def disturbing(*, task: Any, folder: Path, datamodule: Any, num_samples: int = 8) -> None:
    """Writes samples in the rudest way: it draws from every global generator and leaves the modes changed."""
    assert not any(module.training for module in task.modules()) and not torch.is_grad_enabled()
    torch.rand(7), np.random.rand(7), random.random()  # noqa: NPY002
    task.ab(torch.rand(2, 8))
    task.ab.train()
    write_table(folder / "samples", [Sample(str(number)) for number in range(num_samples)])


disturbing.few = {"num_samples": 2}  # type: ignore[attr-defined]


class Global(ToyGan):
    """Its noise comes from generators that nothing seeds before each batch."""

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        shift = float(np.random.rand()) + random.random()  # noqa: NPY002
        return super().losses({name: value + 0.01 * shift for name, value in batch.items()})


class Listening(Pages, DummyLogger):  # type: ignore[misc]
    """A logger that is a dashboard, too."""

    def __init__(self) -> None:
        DummyLogger.__init__(self)
        Pages.__init__(self)


def trained(folder: Path, *callbacks: Any, **options: Any) -> tuple[dict[str, Tensor], Any]:
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(5)
    task, run = Global(), trainer(folder, max_steps=9, callbacks=callbacks, **options)
    run.loggers = [pages := Listening()]
    run.fit(task, PairsData())
    return weights(task), pages


@pytest.mark.parametrize("accumulated", [1, 2])
def test_training_is_bit_for_bit_the_same_with_samples(tmp_path: Path, accumulated: int) -> None:
    bare, _ = trained(tmp_path, accumulate_grad_batches=accumulated)
    during = SamplesDuring(every=4, sampling=partial(disturbing), folder=tmp_path)
    sampled, pages = trained(tmp_path, during, accumulate_grad_batches=accumulated)
    assert bare.keys() == sampled.keys() and all(torch.equal(bare[name], sampled[name]) for name in bare)
    assert sorted(path.name for path in (tmp_path / "samples_during").iterdir()) == ["000004", "000008"]
    assert [name for name, _ in pages.shown] == ["samples_during/table"] * 2
    assert [len(samples) for _, samples in pages.shown] == [2, 2]


def test_samples_that_fail_are_told_and_training_goes_on_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def failing(*, task: Any, folder: Path, datamodule: Any) -> None:
        disturbing(task=task, folder=folder, datamodule=datamodule)
        raise OSError(28, "No space left\non device")

    bare, _ = trained(tmp_path)
    sampled, pages = trained(tmp_path, SamplesDuring(every=4, sampling=partial(failing), folder=tmp_path))
    assert all(torch.equal(bare[name], sampled[name]) for name in bare) and not pages.shown
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("no samples")]
    assert told == [
        f"no samples at step {step}, training goes on: OSError: [Errno 28] No space left on device" for step in (4, 8)
    ]


def test_modes_and_random_states_are_put_back_after_an_error() -> None:
    task = ToyGan()
    task.train()
    task.da.eval()
    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate()
    with pytest.raises(RuntimeError), undisturbed(task):
        torch.rand(3), random.random()
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert task.ab.training and not task.da.training


def test_options_are_lowered_and_never_raised() -> None:
    few = {"num_samples": 2, "max_new_tokens": 512}
    assert lowered({"num_samples": 4, "max_new_tokens": None, "seed": 1}, few) == few
    assert lowered({"num_samples": 1, "max_new_tokens": 100}, few) == {}


def test_a_language_model_is_sampled_while_it_trains_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    write_songs(tmp_path / "songs")
    options = [*TINY, f"data.root={tmp_path / 'songs'}", f"cache_dir={tmp_path / 'cache'}", "sampling.num_samples=3"]
    call("train", tmp_path / "with", *options, "sample_every=4")
    call("train", tmp_path / "without", *options)
    one, other = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("with", "without"))
    torch.testing.assert_close(one["state_dict"], other["state_dict"], rtol=0, atol=0)
    for mine, theirs in zip(one["optimizer_states"], other["optimizer_states"], strict=True):
        torch.testing.assert_close(mine["state"], theirs["state"], rtol=0, atol=0)
    for step in ("000004", "000008"):
        found = read_table(tmp_path / "with" / "samples_during" / step / "samples")
        assert len(found) == 2 and all(sample.score for sample in found)
    assert len(read_table(tmp_path / "with" / "samples")) == 3


def test_what_makes_no_sense_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["sample_every=0"], "error: sample_every is 0, must be at least 1 step"),
        (["sample_every=5", "~sampling"], "error: sample_every=5 needs sampling=, which this task or command has not"),
    ):
        given = [option for option in TINY if "~sampling" not in options or not option.startswith("sampling.")]
        assert fails(capsys, "train", tmp_path / "run", *given, f"data.root={tmp_path}", *options).startswith(message)
