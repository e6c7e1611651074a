"""The last k and the best k checkpoints of a run, and what takes the place of a damaged one."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from torch import nn

from etude.core.best_checkpoints import BestCheckpoint, KeptBest, kept_best
from etude.core.checkpoint_files import fault_of, load_checkpoint
from etude.core.checkpoint_io import AtomicCheckpointIO
from etude.core.checkpoint_search import find_checkpoint
from etude.core.checkpoints import LastCheckpoint
from etude.core.emergency import WholeStep
from etude.core.kept_checkpoints import checkpoints_of
from etude.techniques.weights.ema import Ema
from etude.techniques.weights.schedule_free import ScheduleFree
from tests.core.test_checkpoints import Count, Killer, KillError
from tests.optim.test_optimizers import node
from tests.toys import PairsData, ToyGan, same, trainer, weights

CONF = Path(__file__).parents[2] / "conf"
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def steps(folder: Path, failed: str = "") -> dict[str, int]:
    found = {path.name: torch.load(path, weights_only=True)["global_step"] for path in folder.glob("*.ckpt")}
    return {name: step for name, step in found.items() if name != "exception.ckpt" or failed}


def train(folder: Path, *callbacks: pl.Callback, steps: int = 24, resume: Path | None = None, **options: Any) -> ToyGan:
    torch.manual_seed(0)
    task = ToyGan()
    options = {"val_check_interval": 4, "check_val_every_n_epoch": None, "plugins": [AtomicCheckpointIO()], **options}
    run = trainer(folder, max_steps=steps, callbacks=list(callbacks), **options)
    with suppress(KillError):
        run.fit(task, PairsData(), ckpt_path=resume, weights_only=True)
    return task


def test_the_last_k_are_kept_by_their_step_and_each_goes_on_exactly(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    last = LastCheckpoint(path=tmp_path / "run" / "last.ckpt", every_n_steps=3, keep=3)
    train(tmp_path / "run", Killer(22), last)
    assert steps(tmp_path / "run") == {"last.ckpt": 21, "last_step_000018.ckpt": 18, "last_step_000015.ckpt": 15}
    for number, name in enumerate(steps(tmp_path / "run")):
        rest = train(tmp_path / f"rest{number}", resume=tmp_path / "run" / name)
        assert same(weights(whole), weights(rest)), name


def test_a_run_that_goes_on_from_an_earlier_one_replaces_those_after_it(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    train(tmp_path, Killer(22), LastCheckpoint(path=path, every_n_steps=3, keep=3))
    path.write_bytes(path.read_bytes()[:1000])  # truncated: it must not be kept as that of step 21
    again = LastCheckpoint(path=path, every_n_steps=1, keep=3)
    train(tmp_path, again, Killer(17), resume=tmp_path / "last_step_000015.ckpt")
    assert steps(tmp_path) == {"last.ckpt": 17, "last_step_000016.ckpt": 16, "last_step_000015.ckpt": 15}


class Falling(ToyGan):
    """A GAN whose metric is that of a list, in its order."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = values

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/cycle", torch.tensor(self.values[self.batches_trained // 2 - 1]))


@pytest.mark.parametrize(
    ("mode", "expected"), [("min", {2: 1.0, 8: 1.5, 10: 1.2}), ("max", {6: 9.0, 4: 3.0, 12: 2.0})], ids=["min", "max"]
)
def test_the_best_k_are_kept_also_those_that_were_never_the_best(tmp_path: Path, mode: str, expected: dict[int, float]) -> None:
    values = [1.0, 3.0, 9.0, 1.5, 1.2, 2.0]
    best = BestCheckpoint(tmp_path, "best", monitor="val/cycle", mode=mode, enable_version_counter=False)
    kept = KeptBest(path=tmp_path / "best.ckpt", monitor="val/cycle", mode=mode, keep=3)
    run = trainer(tmp_path, max_steps=12, callbacks=[kept, best], val_check_interval=2, check_val_every_n_epoch=None)
    run.checkpoint_callbacks.sort(key=lambda each: each is kept)
    run.callbacks.sort(key=lambda each: each is kept)  # type: ignore[attr-defined]
    run.fit(Falling(values), PairsData())
    assert kept.values == {f"best_step_{step:06d}.ckpt": pytest.approx(value) for step, value in expected.items()}
    assert steps(tmp_path) == {"best.ckpt": next(iter(expected)), **{f"best_step_{step:06d}.ckpt": step for step in expected}}
    first = tmp_path / f"best_step_{next(iter(expected)):06d}.ckpt"
    assert first.samefile(tmp_path / "best.ckpt")  # one file on the disk
    elsewhere = KeptBest(path=tmp_path / "new" / "best.ckpt", monitor="val/cycle", mode=mode, keep=3)
    elsewhere.load_state_dict(kept.state_dict())
    assert elsewhere.values == {}


def test_a_run_that_goes_on_elsewhere_names_its_files_by_their_own_steps(tmp_path: Path) -> None:
    def run(folder: Path, max_steps: int, resume: Path | None = None) -> None:
        best = BestCheckpoint(folder, "best", monitor="val/cycle", mode="min", enable_version_counter=False)
        kept = KeptBest(path=folder / "best.ckpt", monitor="val/cycle", mode="min", keep=2)
        last = LastCheckpoint(path=folder / "last.ckpt", every_n_steps=2)
        each = [best, kept, last]
        fit = trainer(folder, max_steps=max_steps, callbacks=each, val_check_interval=2, check_val_every_n_epoch=None)
        fit.fit(Falling([1.0, 3.0, 2.0, 9.0]), PairsData(), ckpt_path=resume, weights_only=True)

    run(tmp_path / "old", 2)
    run(tmp_path / "new", 8, resume=tmp_path / "old" / "last.ckpt")
    assert steps(tmp_path / "new") == {
        "best.ckpt": 2, "best_step_000004.ckpt": 4, "best_step_000006.ckpt": 6, "last.ckpt": 8,
    }  # fmt: skip


def test_the_best_of_a_run_that_was_killed_before_it_was_listed_stays_among_the_best(tmp_path: Path) -> None:
    def run(max_steps: int, *, listed: bool, resume: Path | None = None) -> None:
        best = BestCheckpoint(tmp_path, "best", monitor="val/cycle", mode="min", enable_version_counter=False)
        kept = KeptBest(path=tmp_path / "best.ckpt", monitor="val/cycle", mode="min", keep=2)
        each = [best, kept] if listed else [best]
        fit = trainer(tmp_path, max_steps=max_steps, callbacks=each, val_check_interval=2, check_val_every_n_epoch=None)
        fit.fit(Falling([1.0, 3.0, 2.0, 9.0]), PairsData(), ckpt_path=resume, weights_only=True)

    run(2, listed=False)
    run(8, listed=True, resume=tmp_path / "best.ckpt")
    assert steps(tmp_path) == {"best.ckpt": 2, "best_step_000002.ckpt": 2, "best_step_000006.ckpt": 6}


def test_fewer_than_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_best is 0, must be at least 1 checkpoint"):
        kept_best(tmp_path, monitor="x", mode="min", keep=0)
    with pytest.raises(ValueError, match="keep_last is 0, must be at least 1 checkpoint"):
        LastCheckpoint(path=tmp_path, every_n_steps=1, keep=0)


# --- damaged ones ---


def good(path: Path, *, weight: float = 0.0, age: int = 0) -> Path:
    recipe = {
        "task": {"_target_": "etude.tasks.language_model.LanguageModel"},
        "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True},
        "data": {"_target_": "etude.data.scores.module.MusicDataModule"},
        "name": "x",
        "max_steps": 3,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {"recipe": recipe, "batches_trained": 3}
    torch.save({"etude": own, "global_step": 3, "state_dict": {"w": torch.full((1000,), weight)}}, path)
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


def truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def with_nan(path: Path) -> None:
    good(path, weight=float("nan"), age=1)


@pytest.mark.parametrize("damage", [truncated, flipped, emptied, with_nan], ids=lambda each: each.__name__)
@pytest.mark.parametrize("how", ["last", "folder"])
def test_a_damaged_checkpoint_is_skipped_and_told_and_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, how: str
) -> None:
    run = tmp_path / "outputs" / "run"
    last, before, best = (good(run / "checkpoints" / name) for name in ("last.ckpt", "last_step_000002.ckpt", "best.ckpt"))
    ckpt = "last" if how == "last" else str(run)
    assert find_checkpoint(ckpt, str(tmp_path / "outputs")) == last
    assert capsys.readouterr().err == ""
    damage(last)
    assert find_checkpoint(ckpt, str(tmp_path / "outputs")) == before
    told = capsys.readouterr().err
    assert told.startswith(f"skipped {last}: ") and told.endswith(f"taking {before}\n") and told.count("\n") == 1
    with pytest.raises(ValueError, match=f"^{last}: .*; a good one of this run is {before}$"):
        load_checkpoint(find_checkpoint(str(last), "outputs"))  # a file is that file
    damage(before)
    assert find_checkpoint(ckpt, str(tmp_path / "outputs")) == best
    assert capsys.readouterr().err.count("skipped") == 2
    assert find_checkpoint(ckpt, str(tmp_path / "outputs"), best=True) == best
    assert capsys.readouterr().err == ""
    damage(best)
    other = good(tmp_path / "outputs" / "other" / "checkpoints" / "last.ckpt", age=9)
    found = find_checkpoint(ckpt, str(tmp_path / "outputs"))
    if how == "last":
        assert found == other and capsys.readouterr().err.count("skipped") == 3
    else:
        assert found == last
        with pytest.raises(ValueError, match=f"^{last}: ((?!good one of).)*$"):
            load_checkpoint(found)


def test_a_repaired_file_is_looked_at_again(tmp_path: Path) -> None:
    path = good(tmp_path / "last.ckpt")
    truncated(path)
    assert fault_of(path) is not None
    good(path, age=5)
    assert fault_of(path) is None


def test_the_checkpoint_of_an_error_comes_before_the_last_one(tmp_path: Path) -> None:
    for name in ("last.ckpt", "exception.ckpt", "best.ckpt", "last_step_000001.ckpt"):
        good(tmp_path / name)
    found = ["exception.ckpt", "last.ckpt", "last_step_000001.ckpt", "best.ckpt"]
    assert [path.name for path in checkpoints_of(tmp_path)] == found
    assert [path.name for path in checkpoints_of(tmp_path, best=True)] == [found[3], *found[:3]]


# --- the disk is full ---


def test_too_little_space_is_told_before_anything_is_written(tmp_path: Path) -> None:
    path, writer = tmp_path / "last.ckpt", AtomicCheckpointIO()
    writer.save_checkpoint({"weights": torch.zeros(10)}, path)
    before = path.stat()
    status = os.statvfs(tmp_path)
    size = status.f_bavail * status.f_frsize + 2**30
    huge = torch.from_file(str(tmp_path / "sparse"), shared=True, size=size, dtype=torch.uint8)  # takes no space
    with pytest.raises(
        OSError, match=rf"last.ckpt can't be written: No space left .*; it needs {size / 1e6:.1f} MB, .* unchanged"
    ):
        writer.save_checkpoint({"weights": {"a": huge, "b": [huge]}}, path)
    assert names(tmp_path) == ["last.ckpt", "sparse"] and path.stat() == before
    assert torch.equal(torch.load(path)["weights"], torch.zeros(10))


# --- errors ---


class WithNorm(ToyGan):
    """A GAN with a buffer that the forward pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    @property
    def players(self) -> dict[str, Any]:
        return {"generator": [self.ab, self.ba, self.norm], "discriminator": [self.da, self.db]}

    def losses(self, batch: Any) -> dict[str, torch.Tensor]:
        return super().losses({**batch, "a": self.norm(batch["a"])})


class Fail(pl.Callback):
    """Raises an error in a hook, when so many batches have been trained."""

    def __init__(self, hook: str, batches: int) -> None:
        def fail(trainer: pl.Trainer, task: Any, *arguments: Any, **options: Any) -> None:
            if task.batches_trained >= batches and trainer.state.fn == "fit" and not trainer.sanity_checking:
                raise KillError

        setattr(self, hook, fail)


def failed(folder: Path, hook: str, *, at: int = 7, every: int = 100, **options: Any) -> Path:
    """The folder of a run that an error ended."""
    torch.manual_seed(0)
    last = LastCheckpoint(path=folder / "checkpoints" / "last.ckpt", every_n_steps=every)
    run = trainer(folder, max_steps=24, callbacks=[Fail(hook, at), last], plugins=[AtomicCheckpointIO()], **VALIDATED, **options)
    with pytest.raises(KillError):
        run.fit(WithNorm(), PairsData())
    return folder / "checkpoints"


VALIDATED: dict[str, Any] = {"val_check_interval": 4, "check_val_every_n_epoch": None}


def uninterrupted(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    task = WithNorm()
    trainer(folder, max_steps=24, **VALIDATED, **options).fit(task, PairsData())
    return weights(task)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("at", [6, 9])
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_before_backward", "on_after_backward", "on_before_optimizer_step"])
def test_an_error_leaves_the_last_whole_step_which_goes_on_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hook: str, at: int, accumulate: int
) -> None:
    options = {"accumulate_grad_batches": accumulate}
    folder = failed(tmp_path, hook, at=at, **options)
    assert names(folder) == ["exception.ckpt"] and "exception.ckpt holds the last whole step" in capsys.readouterr().err
    torch.manual_seed(1)
    rest = WithNorm()
    last = LastCheckpoint(path=folder / "last.ckpt", every_n_steps=1)
    run = trainer(tmp_path, max_steps=24, callbacks=[last], **VALIDATED, **options)
    run.fit(rest, PairsData(), ckpt_path=folder / "exception.ckpt", weights_only=True)
    assert same(weights(rest), uninterrupted(tmp_path / "whole", **options))
    assert names(folder) == ["last.ckpt"]  # of a later step


def test_an_error_in_a_step_that_was_saved_needs_no_other_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert names(failed(tmp_path, "on_train_batch_start", every=1)) == ["last.ckpt"]
    assert "last.ckpt holds the last whole step" in capsys.readouterr().err


@pytest.mark.parametrize("hook", ["on_validation_batch_start", "on_validation_batch_end", "on_validation_end"])
@pytest.mark.parametrize("at", [6, 11])
def test_an_error_in_a_validation_leaves_the_step_before_it_and_the_validation_is_repeated(
    tmp_path: Path, hook: str, at: int
) -> None:
    def fit(folder: Path, *callbacks: pl.Callback, resume: Path | None = None) -> tuple[Any, list[int], Any]:
        torch.manual_seed(0)
        task, count = WithNorm(), Count()
        best = BestCheckpoint(folder / "checkpoints", "best", monitor="val/cycle", enable_version_counter=False)
        last = LastCheckpoint(path=folder / "checkpoints" / "last.ckpt", every_n_steps=3)
        techniques = [Ema(decay=0.5)]
        options = {**VALIDATED, "plugins": [AtomicCheckpointIO()], "callbacks": [*callbacks, count, best, last, *techniques]}
        with suppress(KillError):
            trainer(folder, max_steps=20, **options).fit(task, PairsData(), ckpt_path=resume, weights_only=True)
        return task, count.seen, best.best_model_score

    whole, validations, score = fit(tmp_path / "whole")
    fit(tmp_path / "run", Fail(hook, at))
    folder = tmp_path / "run" / "checkpoints"
    assert steps(folder, "exception.ckpt")["exception.ckpt"] == 4 * (at // 4 + 1)
    rest, again, best = fit(tmp_path / "run", resume=folder / "exception.ckpt")
    assert same(weights(whole), weights(rest)) and validations == again and score == best
    kept = [torch.load(each / "checkpoints" / "best.ckpt", weights_only=True) for each in (tmp_path / "whole", tmp_path / "run")]
    assert kept[0]["global_step"] == kept[1]["global_step"] and same(kept[0]["state_dict"], kept[1]["state_dict"])


@pytest.mark.parametrize(("hook", "why"), [("on_train_batch_end", "the step had begun to change the weights")])
def test_where_the_last_whole_step_is_lost_the_earlier_checkpoint_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hook: str, why: str
) -> None:
    folder = failed(tmp_path, hook, at=9, every=3)
    told = capsys.readouterr().err
    assert names(folder) == ["last.ckpt"] and f"{why}; {folder / 'last.ckpt'} of step" in told


@pytest.mark.parametrize("path", sorted((CONF / "optimizer").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_step_of_every_optimizer_is_noticed(tmp_path: Path, path: Path) -> None:
    """Otherwise an error inside its step could go unnoticed."""
    seen: list[str | None] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *arguments: Any) -> None:
            seen.append(whole.fault())
            whole.remember(trainer, pl_module)
            seen.append(whole.fault())

    if path.stem == "sophia":
        pytest.skip("needs logits; it is tried with the language model")
    techniques = [ScheduleFree()] if path.stem == "schedule_free" else []
    task, whole = ToyGan(optimizer=instantiate(node(path.stem), _convert_="all"), player_lr={}), WholeStep()
    trainer(tmp_path, max_steps=3, callbacks=[Watch(), *techniques], limit_val_batches=0).fit(task, PairsData())
    assert seen[1:] == [None, "the step had begun to change the weights"] * 2 + [None]


def test_bad_weights_are_not_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Spoil(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            with torch.no_grad():
                if pl_module.batches_trained == 5:
                    next(pl_module.parameters()).fill_(float("nan"))
            if pl_module.batches_trained == 7:
                raise KillError

    last = LastCheckpoint(path=tmp_path / "run" / "checkpoints" / "last.ckpt", every_n_steps=3)
    run = trainer(tmp_path, max_steps=24, callbacks=[Spoil(), last], plugins=[AtomicCheckpointIO()])
    with pytest.raises(KillError):
        run.fit(ToyGan(), PairsData())
    # step 6 was written as any other; the file of the error would be worse than none
    assert names(last.path.parent) == ["last.ckpt"] and "since the weights are not finite" in capsys.readouterr().err


def test_nothing_is_remembered_of_a_changed_weight(tmp_path: Path) -> None:
    seen: list[str | None] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *arguments: Any) -> None:
            whole = WholeStep()
            whole.remember(trainer, pl_module)
            seen.append(whole.fault())
            with torch.no_grad():
                next(iter(trainer.optimizers[0].state.values()))["exp_avg"].mul_(1)
            seen.append(whole.fault())

    trainer(tmp_path, max_steps=1, callbacks=[Watch()]).fit(ToyGan(), PairsData())
    assert seen == [None, "the step had begun to change the weights"]
