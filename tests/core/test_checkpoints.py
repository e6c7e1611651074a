"""The checkpoint that a run continues from: nothing is lost with it, above all no validation that was due."""

import csv
import os
import resource
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from etude.core.best_checkpoints import BestCheckpoint
from etude.core.checkpoint_io import AtomicCheckpointIO
from etude.core.checkpoints import LastCheckpoint
from etude.core.stopping import SIGNALS, Stopped, find_stopped, stop_on_signals
from tests.toys import PairsData, ToyGan, same, trainer, weights


class KillError(Exception):
    """What the tests stop a run with."""


class Killer(pl.Callback):
    """Stops a run after so many batches; its checkpoint is what was written until then."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.batches_trained == self.batches:
            raise KillError


class Count(pl.Callback):
    """How many validations there were, and after how many batches."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.seen.append(pl_module.batches_trained)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = list(state_dict["seen"])


def fit(
    folder: Path, every: int, *, kill: int = 1000, steps: int = 24, resume: Path | None = None, workers: int = 0, **options: Any
) -> Any:
    torch.manual_seed(0)
    task, count, last = ToyGan(), Count(), LastCheckpoint(path=folder / "last.ckpt", every_n_steps=every)
    options = {"val_check_interval": 4, "check_val_every_n_epoch": None, **options}
    run = trainer(folder, max_steps=steps, callbacks=[count, Killer(kill), last], **options)
    with suppress(KillError, SystemExit):
        run.fit(task, PairsData(workers), ckpt_path=resume, weights_only=True)
    return task, count.seen


@pytest.mark.parametrize("kill", [4, 7, 8, 16, 17])  # an epoch has 16 batches
@pytest.mark.parametrize("every", [1, 4])
def test_a_validation_that_is_due_with_the_checkpoint_is_not_lost(tmp_path: Path, every: int, kill: int) -> None:
    whole, validations = fit(tmp_path / "whole", 100)
    assert validations == [4, 8, 12, 16, 20, 24]
    fit(tmp_path / "half", every, kill=kill)
    rest, again = fit(tmp_path / "rest", 100, resume=tmp_path / "half" / "last.ckpt")
    assert again == validations and same(weights(whole), weights(rest))


def test_what_reader_processes_read_ahead_after_an_epoch_is_not_lost(tmp_path: Path) -> None:
    """The checkpoint is written after a validation at the end of an epoch; Lightning then makes two iterators of the next."""
    whole, _ = fit(tmp_path / "whole", 100)
    fit(tmp_path / "half", 16, kill=17, workers=2)
    rest, _ = fit(tmp_path / "rest", 100, resume=tmp_path / "half" / "last.ckpt", workers=2)
    assert same(weights(whole), weights(rest))


def test_a_run_that_goes_on_twice_from_the_end_of_an_epoch_counts_its_epochs(tmp_path: Path) -> None:
    options: dict[str, Any] = {"every": 16, "steps": 40, "val_check_interval": 6}
    fit(tmp_path / "whole", kill=33, **options)
    fit(tmp_path / "one", kill=17, **options)
    fit(tmp_path / "two", kill=33, resume=tmp_path / "one" / "last.ckpt", **options)
    whole, two = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "two"))
    assert whole["global_step"] == two["global_step"] == 32 and whole["epoch"] == two["epoch"]
    assert whole["loops"]["fit_loop"]["epoch_progress"] == two["loops"]["fit_loop"]["epoch_progress"]


def test_the_metrics_of_a_step_are_written_before_its_checkpoint_and_once(tmp_path: Path) -> None:
    class Dies(LastCheckpoint):
        def _save(self, trainer: pl.Trainer) -> None:
            super()._save(trainer)
            if trainer.global_step == 10:
                raise KillError

    logger = CSVLogger(tmp_path, name="", version="")
    last = Dies(path=tmp_path / "last.ckpt", every_n_steps=5)
    with pytest.raises(KillError):
        trainer(tmp_path, max_steps=20, callbacks=[last], logger=logger, log_every_n_steps=1, val_check_interval=16).fit(
            ToyGan(), PairsData()
        )
    with (tmp_path / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(10))


def test_nor_at_the_end_of_a_run_that_is_made_longer(tmp_path: Path) -> None:
    whole, validations = fit(tmp_path / "whole", 100)
    fit(tmp_path / "half", 100, steps=16)
    rest, again = fit(tmp_path / "rest", 100, resume=tmp_path / "half" / "last.ckpt")
    assert again == validations and same(weights(whole), weights(rest))


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 3}, {"limit_val_batches": 0}, {"accumulate_grad_batches": 3}])
def test_a_run_of_some_epochs_that_is_made_longer_goes_on_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    """Lightning restores no position in the data from a checkpoint that it writes after the last epoch."""
    whole, validations = fit(tmp_path / "whole", 100, steps=-1, max_epochs=3, **options)
    fit(tmp_path / "half", 100, steps=-1, max_epochs=2, **options)
    rest, again = fit(tmp_path / "rest", 100, steps=-1, max_epochs=3, resume=tmp_path / "half" / "last.ckpt", **options)
    assert again == validations and same(weights(whole), weights(rest))


@pytest.mark.parametrize("kill", [7, 9, 13])
def test_nor_while_gradients_are_accumulated(tmp_path: Path, kill: int) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "val_check_interval": 3, "steps": 8}
    whole, validations = fit(tmp_path / "whole", 100, **options)
    fit(tmp_path / "half", 1, kill=kill, **options)
    rest, again = fit(tmp_path / "rest", 100, resume=tmp_path / "half" / "last.ckpt", **options)
    assert again == validations and same(weights(whole), weights(rest))


def test_without_validation_it_is_written_all_the_same(tmp_path: Path) -> None:
    fit(tmp_path, 4, kill=5, limit_val_batches=0)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.filterwarnings("ignore:Total length of:UserWarning", "ignore:.*could not find the monitored key:UserWarning")
def test_a_run_with_nothing_to_validate_on_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture, empty: bool) -> None:
    class Data(PairsData):
        def val_dataloader(self) -> DataLoader[Any]:
            return DataLoader([], batch_size=4) if empty else super().val_dataloader()

    best = BestCheckpoint(tmp_path, "best", monitor="val/cycle")
    trainer(tmp_path, max_steps=4, callbacks=[best], val_check_interval=4).fit(ToyGan(), Data())
    told = [m for m in caplog.messages if "there are no validation data, so there is no val/cycle" in m]
    assert len(told) == empty and (tmp_path / "best.ckpt").is_file() == (not empty)


class Signal(pl.Callback):
    """Sends this process a signal at one batch of training or of a validation, or at the end of one validation."""

    def __init__(self, number: int, *, place: str, at: int) -> None:
        self.number, self.place, self.left = number, place, at

    def _count(self, place: str) -> None:
        self.left -= place == self.place
        if self.left == 0 and place == self.place:
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._count("training")

    def on_validation_batch_start(self, *arguments: Any, **options: Any) -> None:
        self._count("validation")

    def on_validation_epoch_end(self, *arguments: Any, **options: Any) -> None:
        self._count("validation's end")


class Draws(ToyGan):
    """Draws random numbers in each validation, and records what it drew and how many validations ended."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.drawn: list[float] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.drawn.append(float(torch.rand(())))


def signalled(folder: Path, number: int, *, place: str, at: int, task: Any = None, data: Any = None, **options: Any) -> Any:
    """A run that a signal ends; it saves on nothing else. Returns the task and the signal that ended it."""
    torch.manual_seed(0)
    task, last = task or ToyGan(), LastCheckpoint(path=folder / "last.ckpt", every_n_steps=100)
    options = {"max_steps": 24, "val_check_interval": 4, "check_val_every_n_epoch": None, **options}
    callbacks = [Count(), Signal(number, place=place, at=at), last]
    run = trainer(folder, callbacks=callbacks, plugins=[AtomicCheckpointIO()], **options)
    with stop_on_signals(), pytest.raises(SystemExit) as end:
        run.fit(task, data or PairsData(), weights_only=True)
    return task, find_stopped(end.value)


@pytest.mark.parametrize(
    ("number", "place", "at"),
    [
        (signal.SIGTERM, "validation", 1),
        (signal.SIGTERM, "validation", 6),
        (signal.SIGTERM, "training", 4),
        (signal.SIGTERM, "training", 11),
        (signal.SIGINT, "validation", 5),
        (signal.SIGHUP, "validation", 9),
        (signal.SIGUSR1, "training", 7),
        (signal.SIGXCPU, "validation", 2),
        (signal.SIGTERM, "validation", 7),  # at the end of an epoch
        (signal.SIGTERM, "validation", 11),  # after the last step
        (signal.SIGTERM, "training", 24),
        (signal.SIGTERM, "validation's end", 3),
    ],
)
def test_a_signal_leaves_a_checkpoint_that_goes_on_bit_for_bit(tmp_path: Path, number: int, place: str, at: int) -> None:
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # the tests run under nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    whole, validations = fit(tmp_path / "whole", 100)
    _, stopped = signalled(tmp_path, number, place=place, at=at)
    assert stopped.number == number and stopped.exit_code == 128 + number
    rest, again = fit(tmp_path / "rest", 100, resume=tmp_path / "last.ckpt")
    assert again == validations and same(weights(whole), weights(rest))
    ends = [torch.load(tmp_path / folder / "last.ckpt", weights_only=True) for folder in ("whole", "rest")]
    assert ends[0]["loops"] == ends[1]["loops"] and "LastCheckpoint" not in ends[1]["callbacks"]


@pytest.mark.parametrize("limit", [2, 1])
def test_a_signal_in_a_validation_does_not_wait_for_its_end(tmp_path: Path, limit: int) -> None:
    """The state after the last step is saved after the current batch; the resumed run repeats the validation, draws included."""
    whole, rest = Draws(), Draws()
    options: dict[str, Any] = {"max_steps": 12, "val_check_interval": 4, "limit_val_batches": limit}
    trainer(tmp_path, **options).fit(whole, PairsData())
    task, _ = signalled(tmp_path, signal.SIGTERM, place="validation", at=limit + 1, task=Draws(), **options)
    assert task.drawn == whole.drawn[: limit + 1]
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 8 and saved["callbacks"]["Count"]["seen"] == [4]
    last = LastCheckpoint(path=tmp_path / "rest.ckpt", every_n_steps=100)
    run = trainer(tmp_path, callbacks=[Count(), last], **options)
    run.fit(rest, PairsData(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert rest.drawn == whole.drawn[limit:] and same(weights(whole), weights(rest))


def test_a_resumed_run_that_validates_no_more_still_trains_to_its_end(tmp_path: Path) -> None:
    whole, _ = fit(tmp_path / "whole", 100)
    signalled(tmp_path, signal.SIGTERM, place="validation", at=5)
    rest, _ = fit(tmp_path / "rest", 100, resume=tmp_path / "last.ckpt", limit_val_batches=0)
    assert same(weights(whole), weights(rest))


@pytest.mark.parametrize(("place", "at"), [("training", 9), ("validation", 5)])
def test_a_signal_while_gradients_are_accumulated_waits_for_the_step(tmp_path: Path, place: str, at: int) -> None:
    """Their sum is not saved: a checkpoint of batch 9 would continue without it."""
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "val_check_interval": 3}
    whole, validations = fit(tmp_path / "whole", 100, steps=8, **options)
    task, _ = signalled(tmp_path, signal.SIGTERM, place=place, at=at, max_steps=8, **options)
    assert task.batches_trained == 10
    rest, again = fit(tmp_path / "rest", 100, steps=8, resume=tmp_path / "last.ckpt", **options)
    assert again == validations and same(weights(whole), weights(rest))


def test_after_the_run_a_signal_ends_the_program_again(tmp_path: Path) -> None:
    with stop_on_signals():
        fit(tmp_path, 100, steps=4)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            with pytest.raises(Stopped):
                os.kill(os.getpid(), number)


def test_a_run_that_fails_leaves_the_handlers_that_it_found(tmp_path: Path) -> None:
    """Otherwise each failed run of a notebook stays in memory, and a process that it forks may not end by SIGTERM."""

    class Fails(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == 2:
                raise ValueError("no more")

    before = {number: signal.getsignal(number) for number in SIGNALS}
    with pytest.raises(ValueError, match="no more"):
        last = LastCheckpoint(path=tmp_path / "last.ckpt", every_n_steps=100)
        trainer(tmp_path, max_steps=4, callbacks=[last, Fails()], plugins=[AtomicCheckpointIO()]).fit(Draws(), PairsData())
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stop_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_checkpoint_that_finds_no_room_leaves_the_earlier_one_and_says_what_it_needs(tmp_path: Path) -> None:
    path, writer = tmp_path / "best.ckpt", AtomicCheckpointIO()
    writer.save_checkpoint({"weights": torch.zeros(10)}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # bytes; what a full disk does to a file of 4 MB
    try:
        with pytest.raises(OSError, match=r"best.ckpt can't be written: File too large; it needs 4.0 MB, .* are free") as error:
            writer.save_checkpoint({"weights": torch.ones(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(str(error.value).splitlines()) == 1
    assert torch.equal(torch.load(path)["weights"], torch.zeros(10)) and [file.name for file in tmp_path.iterdir()] == [
        "best.ckpt"
    ]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning")
def test_no_checkpoint_passes_through_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    best = BestCheckpoint(tmp_path / "checkpoints", "best", monitor="val/cycle")
    last = LastCheckpoint(path=tmp_path / "checkpoints" / "last.ckpt", every_n_steps=2)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".last.ckpt.17.part").write_bytes(b"of a killed run")
    options: dict[str, Any] = {"callbacks": [best, last], "val_check_interval": 4, "plugins": [AtomicCheckpointIO()]}
    trainer(tmp_path, max_steps=4, **options).fit(ToyGan(), PairsData())
    assert sorted(file.name for file in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_copied_run_keeps_its_own_best(tmp_path: Path) -> None:
    """Its state names the file of the run that it was copied from, which may have gone on since."""
    other, own = tmp_path / "a" / "best.ckpt", tmp_path / "b" / "best.ckpt"
    for path, text in ((other, b"newer"), (own, b"own")):
        path.parent.mkdir()
        path.write_bytes(text)
    state = {"best_model_path": str(other), "best_model_score": torch.tensor(1.0)}
    best = BestCheckpoint(own.parent, "best", monitor="val/cycle")
    best.load_state_dict(state)
    assert own.read_bytes() == b"own" and best.best_model_path == str(own)
    new = tmp_path / "c" / "best.ckpt"
    BestCheckpoint(new.parent, "best", monitor="val/cycle").load_state_dict(state)
    assert new.read_bytes() == b"newer"
