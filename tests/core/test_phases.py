"""Phases: their data change with the first batch of a phase, and a boundary is told to every technique."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional
from torchdata.stateful_dataloader import StatefulDataLoader

from etude.core.checkpoints import LastCheckpoint
from etude.core.phase_draws import batches_of, rows_of
from etude.core.phases import Phase, position
from etude.core.task import Task
from etude.core.technique import Technique
from etude.data.scores.corpora import Folder
from etude.data.scores.module import MusicDataModule
from etude.models.symbolic.transformer import Transformer
from etude.tasks.language_model import LanguageModel
from etude.techniques.guards.early_stopping import EarlyStopping
from etude.techniques.optim.stages import Stages
from etude.techniques.weights.ema import Ema
from etude.techniques.weights.swa import Swa
from etude.tokens.satb import SatbGrid
from tests.songs import write_songs
from tests.toys import PairsData, ToyGan, same, trainer, weights

FOLK, CLASSICAL = {"genre": "folk"}, {"genre": "classical"}
VALIDATED: dict[str, Any] = {"val_check_interval": 4, "check_val_every_n_epoch": None, "limit_val_batches": 1}


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("phases") / "songs", count=40)


class Heard(pl.Callback):
    """Which genres each batch holds."""

    def __init__(self) -> None:
        self.genres: list[set[str]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        column = trainer.datamodule.pieces()["genre"]
        self.genres.append(set(column[batch["piece"][batch["piece"] >= 0].numpy()]))


def fit(
    songs: Path, folder: Path, stages: list[dict[str, Any]], *, steps: int, workers: int = 0, accumulate: int = 1,
    resume: Path | None = None, **options: Any,
) -> tuple[LanguageModel, list[set[str]]]:  # fmt: skip
    torch.manual_seed(0)
    data = MusicDataModule(
        corpus=Folder(str(songs)), tokenizer=SatbGrid, cache_dir=str(songs.parent / "cache"), max_len=256, max_eval_len=512,
        batch_size=2, batches_per_epoch=7, num_workers=workers, prepare_workers=1, seed=1,
    )  # fmt: skip
    task = LanguageModel(
        model=partial(Transformer, dim=16, num_layers=1, num_heads=2, dropout=0.1), tokenizer=data.tokenizer,
        optimizer=partial(torch.optim.AdamW, lr=1e-2), seed=1,
    )  # fmt: skip
    heard, last = Heard(), LastCheckpoint(path=folder / "last.ckpt", every_n_steps=1000)
    run = trainer(
        folder, max_steps=steps, callbacks=[Stages(stages=stages), heard, last], accumulate_grad_batches=accumulate,
        **{"limit_val_batches": 0, **options},
    )  # fmt: skip
    run.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
    return task, heard.genres


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_no_batch_after_a_boundary_holds_the_pieces_of_the_phase_before(
    songs: Path, tmp_path: Path, workers: int, accumulate: int
) -> None:
    stages = [{"name": "a", "data": FOLK, "max_steps": 33}, {"name": "b", "data": CLASSICAL}]
    _, heard = fit(songs, tmp_path, stages, steps=33 + 60 // accumulate, workers=workers, accumulate=accumulate)
    first = batches_of(33, at=0, epoch=7, accumulate=accumulate)
    assert len(heard) >= first + 50 and sum(genres != {"folk"} for genres in heard[:first]) == 0
    assert sum(genres != {"classical"} for genres in heard[first:]) == 0


@pytest.mark.parametrize(("workers", "stop"), [(0, 8), (0, 11), (2, 8), (2, 10), (2, 13)])
def test_killed_about_a_boundary_it_draws_the_same(songs: Path, tmp_path: Path, workers: int, stop: int) -> None:
    stages = [{"data": FOLK, "max_steps": 10}, {"data": CLASSICAL, "max_steps": 12}, {"data": FOLK}]
    whole, heard = fit(songs, tmp_path / "whole", stages, steps=26, accumulate=2)
    _, early = fit(songs, tmp_path / "half", stages, steps=stop, accumulate=2, workers=workers)
    rest, late = fit(
        songs, tmp_path / "rest", stages, steps=26, accumulate=2, workers=workers, resume=tmp_path / "half" / "last.ckpt"
    )
    assert early + late == heard and same(weights(whole), weights(rest))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_end_that_nobody_knew_is_followed_within_seventeen_batches(songs: Path, tmp_path: Path, workers: int) -> None:
    stages = [{"data": FOLK, "patience": 1, "min_delta": 100.0}, {"data": CLASSICAL}]
    task, heard = fit(songs, tmp_path, stages, steps=40, workers=workers, **VALIDATED)
    assert task.phases.start_step == 8
    assert all(genres == {"folk"} for genres in heard[:25]) and all(genres == {"classical"} for genres in heard[25:])


def test_an_end_comes_at_the_latest_with_the_steps_of_its_phase(songs: Path, tmp_path: Path) -> None:
    stages = [
        {"data": FOLK, "patience": 1, "min_delta": 100.0, "max_steps": 12},
        {"data": CLASSICAL, "max_steps": 20},
        {"data": FOLK},
    ]
    task, heard = fit(songs, tmp_path, stages, steps=40, **VALIDATED)
    assert task.phases.index == 2 and task.phases.start_step == 28  # 8 + 20
    assert all(genres == {"folk"} for genres in [*heard[:12], *heard[28:]])
    assert all(genres == {"classical"} for genres in heard[12:28])


@pytest.mark.parametrize("accumulate", [1, 2, 3, 8])
def test_batches_of_steps_are_what_a_count_of_them_finds(accumulate: int) -> None:
    epoch, ends, step = 7, [0], 0
    for batch in range(1, 100):
        place = (batch - 1) % epoch + 1
        if place % accumulate == 0 or place == epoch:
            ends, step = [*ends, batch], step + 1
    for now in range(10):
        for steps in range(step - 10):
            found = batches_of(steps, at=ends[now] % epoch, epoch=epoch, accumulate=accumulate)
            assert found == ends[now + steps] - ends[now]


class Told(Technique):
    """Writes down what it is told of boundaries."""

    def __init__(self, name: str, lines: list[Any]) -> None:
        super().__init__()
        self._name, self.lines = name, lines

    @property
    def name(self) -> str:
        return self._name

    @property
    def state_key(self) -> str:
        return self._name

    def on_phase_end(self, task: Task) -> None:
        group = task.trainer.optimizers[0].param_groups[0]
        self.lines.append((self._name, "end", task.phase.name, task.trainer.global_step, group["lr"]))

    def on_phase_start(self, task: Task) -> None:
        group = task.trainer.optimizers[0].param_groups[0]
        self.lines.append((self._name, "start", task.phase.name, task.trainer.global_step, group["lr"]))


def test_techniques_are_told_of_a_boundary_in_their_order_between_two_steps(tmp_path: Path) -> None:
    lines: list[Any] = []
    stages = Stages(stages=[{"name": "one", "max_steps": 2}, {"name": "two", "lr": 0.5}])
    task = ToyGan(player_lr={}, optimizer=partial(torch.optim.SGD, lr=1.0))
    run = trainer(tmp_path, max_steps=3, callbacks=[Told("z", lines), stages, Told("a", lines)], accumulate_grad_batches=2)
    run.fit(task, PairsData())
    ends = [(name, "end", "one", 2, 1.0) for name in ("a", "z")]
    assert lines == ends + [(name, "start", "two", 2, 0.5) for name in ("a", "z")]
    assert (task.phases.index, task.phases.start_step, task.phase.name) == (1, 2, "two")


def test_a_checkpoint_says_in_which_phase_it_was_written(songs: Path, tmp_path: Path) -> None:
    stages = [{"name": "broad", "max_steps": 2}, {"name": "own"}]
    for steps, name in ((1, "broad"), (3, "own")):
        fit(songs, tmp_path, stages, steps=steps)
        assert position(torch.load(tmp_path / "last.ckpt", weights_only=True)["etude"]) == name
    assert position({"recipe": {}}) == ""


@pytest.mark.parametrize("stop", [6, 14])
def test_a_checkpoint_of_before_goes_on_in_its_phase(songs: Path, tmp_path: Path, stop: int) -> None:
    """Before, the technique kept the position, and a phase's pieces came lookahead + 1 batches late."""
    stages = [{"data": FOLK, "max_steps": 10, "lr": 0.1}, {"data": CLASSICAL}]
    fit(songs, tmp_path, stages, steps=stop)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del saved["etude"]["phases"]
    before = {"number": 0, "started": 0, "changes": [[0, 0]]}
    before = {"number": 1, "started": 10, "changes": [[0, 0], [27, 1]]} if stop > 10 else before
    saved["callbacks"]["Stages"] |= before
    torch.save(saved, tmp_path / "old.ckpt")
    task, heard = fit(songs, tmp_path / "on", stages, steps=50, resume=tmp_path / "old.ckpt")
    assert (task.phases.index, task.phases.start_step) == (1, 10)
    turn = 27 if stop > 10 else 23  # what may be drawn already stays, the rest is known now
    assert all(genres == {"folk"} for genres in heard[: turn - stop])
    assert all(genres == {"classical"} for genres in heard[turn - stop :])


class Labelled(pl.LightningDataModule):
    """Vectors of two classes in a fixed order."""

    def train_dataloader(self) -> Any:
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
        rows = [{"x": x[i], "y": (x[i].sum() > 0).long()} for i in range(64)]
        return StatefulDataLoader(rows, batch_size=4)

    def val_dataloader(self) -> Any:
        return self.train_dataloader()


class Classifier(Task):
    """A head for one class, to which phases add classes."""

    logged_metrics = ("val/nll",)

    def __init__(self) -> None:
        super().__init__(optimizer=partial(torch.optim.Adam, lr=1e-2), seed=3)
        self.trunk, self.head = nn.Linear(4, 8), nn.Linear(8, 1)

    def add_modules(self, *, classes: int) -> None:
        larger = nn.Linear(8, self.head.out_features + classes)
        with torch.no_grad():
            larger.weight[: self.head.out_features] = self.head.weight
            larger.bias[: self.head.out_features] = self.head.bias
        self.head = larger

    def losses(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        known = batch["y"].clamp(max=self.head.out_features - 1)
        return {"nll": functional.cross_entropy(self.head(self.trunk(batch["x"])), known)}

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.log("val/nll", self.losses(batch)["nll"])


def grown(
    folder: Path, steps: int, resume: Path | None = None, *, more: list[Technique] | None = None, **options: Any
) -> tuple[Classifier, pl.Trainer, list[Any]]:
    torch.manual_seed(0)
    task, moments = Classifier(), []

    class Moments(Technique):
        def on_phase_end(self, task: Task) -> None:
            moments.append({n: v.clone() for n, v in task.trainer.optimizers[0].state[task.head.weight].items()})

        def on_phase_start(self, task: Task) -> None:
            self.on_phase_end(task)

    stages = Stages(stages=[{"max_steps": 3}, {"modules": {"classes": 1}, "max_steps": 3}, {"modules": {"classes": 2}}])
    last = LastCheckpoint(path=folder / "last.ckpt", every_n_steps=100)
    options = {"limit_val_batches": 0, **options}
    run = trainer(folder, max_steps=steps, callbacks=[stages, Moments(), *(more or []), last], **options)
    run.fit(task, datamodule=Labelled(), ckpt_path=resume, weights_only=True)
    return task, run, moments


def test_a_head_grows_at_boundaries_and_the_optimizer_keeps_what_it_knew(tmp_path: Path) -> None:
    task, run, moments = grown(tmp_path, 9)
    assert task.head.weight.shape == (4, 8) and task.phases.added_modules == [{"classes": 1}, {"classes": 2}]
    before, after = moments[2:4]
    assert after["step"] == before["step"] == 6 and after["exp_avg"].shape == (4, 8)
    assert torch.equal(after["exp_avg"][:2], before["exp_avg"]) and before["exp_avg"].abs().sum() > 0
    assert after["exp_avg"][2:].abs().sum() == 0
    assert run.optimizers[0].state[task.trunk.weight]["step"] == 9


@pytest.mark.parametrize("stop", [2, 3, 4, 6, 8])
def test_killed_about_the_growth_of_a_head_it_does_the_same(tmp_path: Path, stop: int) -> None:
    whole, _, _ = grown(tmp_path / "whole", 9)
    grown(tmp_path / "half", stop)
    rest, _, _ = grown(tmp_path / "rest", 9, tmp_path / "half" / "last.ckpt")
    assert same(weights(whole), weights(rest))


@pytest.mark.parametrize("build", [partial(Ema, decay=0.5), partial(Swa, start=0.0, every=1)])
def test_an_average_grows_with_its_weights(tmp_path: Path, build: Any) -> None:
    whole, _, _ = grown(tmp_path / "whole", 9, more=[build()])
    grown(tmp_path / "half", 5, more=[build()])
    rest, _, _ = grown(tmp_path / "rest", 9, tmp_path / "half" / "last.ckpt", more=[build()])
    files = [torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("whole", "rest")]
    assert same(*files) and same(weights(whole), weights(rest)) and files[0]["head.weight"].shape == (4, 8)
    assert not torch.equal(files[0]["head.weight"], whole.head.weight)


def test_a_grown_task_is_rebuilt_from_its_checkpoint(tmp_path: Path) -> None:
    task, _, _ = grown(tmp_path, 5)
    saved, again = torch.load(tmp_path / "last.ckpt", weights_only=True), Classifier()
    again.phases.restore_modules(again, saved["etude"])
    again.load_state_dict(saved["state_dict"])
    assert same(weights(task), weights(again)) and again.phases.added_modules == [{"classes": 1}]


def test_modules_that_a_task_does_not_add_are_told(tmp_path: Path) -> None:
    for stages, message in (
        ([{"max_steps": 1}, {"modules": {"classes": 1}}], "modules of stage 2: ToyGan can't add modules in a phase"),
        ([{"modules": {"classes": 1}}], "modules of stage 1"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, max_steps=2, callbacks=[Stages(stages=stages)]).fit(ToyGan(player_lr={}), PairsData())


def test_early_stopping_forgets_weights_that_lack_what_a_phase_adds(tmp_path: Path) -> None:
    def fit(name: str, steps: int, resume: Path | None = None) -> tuple[Classifier, dict[str, torch.Tensor], EarlyStopping]:
        best = EarlyStopping(monitor="val/nll", patience=100, min_delta=1000.0)  # the first validation of a phase stays the best
        task, _, _ = grown(tmp_path / name, steps, resume, more=[best], limit_val_batches=2, val_check_interval=2)
        return task, torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"], best

    task, saved, best = fit("whole", 9)  # phases of 3 steps, validated at 2, 4, 6 and 8
    assert saved["head.weight"].shape == (4, 8) and same(saved, weights(task)) and best.plateau.waited == 0
    between, saved, best = fit("between", 7)  # the third phase has not been validated yet
    assert best.state_dict()["weights"] == {} and same(saved, weights(between)) and between.head.weight.shape == (4, 8)
    again = Classifier()
    again.phases.restore_modules(again, torch.load(tmp_path / "between" / "last.ckpt", weights_only=True)["etude"])
    again.load_state_dict(saved)
    rest, _, _ = fit("rest", 9, tmp_path / "between" / "last.ckpt")
    assert same(weights(task), weights(rest))


def test_a_later_phase_may_freeze_what_an_earlier_one_adds(tmp_path: Path) -> None:
    class Adapted(Classifier):
        def add_modules(self, *, classes: int) -> None:
            self.adapter = nn.Linear(classes, classes)

    def fit(prefix: str, steps: int) -> Adapted:
        stages = Stages(
            stages=[{"max_steps": 1}, {"modules": {"classes": 1}, "max_steps": 1}, {"frozen": [prefix], "name": "end"}]
        )
        task = Adapted()
        trainer(tmp_path, max_steps=steps, callbacks=[stages], limit_val_batches=0).fit(task, datamodule=Labelled())
        return task

    frozen = {name for name, parameter in fit("adapter.", 3).named_parameters() if not parameter.requires_grad}
    assert frozen == {"adapter.weight", "adapter.bias"}
    with pytest.raises(ValueError, match=r"frozen of end: 'adaptr\.' begins no parameter name of Adapted; .*adapter\.bias"):
        fit("adaptr.", 3)


def test_a_misspelt_prefix_in_a_phase_that_adds_modules_is_told_when_it_begins(tmp_path: Path) -> None:
    stages = Stages(stages=[{"max_steps": 1}, {"modules": {"classes": 1}, "frozen": ["trnk"], "name": "more"}])
    with pytest.raises(ValueError, match="frozen of more: 'trnk' begins no parameter name of Classifier"):
        trainer(tmp_path, max_steps=3, callbacks=[stages], limit_val_batches=0).fit(Classifier(), datamodule=Labelled())


@pytest.mark.parametrize(
    ("wanted", "tracks"),
    [(2, {2}), ([2], {2}), ([1, 3], {1, 2, 3}), ([1, 2, 8], {1, 2, 8}), ([8, 1, 2, 5], {1, 2, 5, 8}), ([2, 2], {2})],
)
def test_two_numbers_are_a_range_and_other_lists_are_values(wanted: Any, tracks: set[int]) -> None:
    column = np.array([1, 2, 3, 5, 8, 2])
    mask = rows_of(Phase(name="x", data={"tracks": wanted}), {"tracks": column})
    assert set(column[mask].tolist()) == tracks


def test_bad_phases_are_told() -> None:
    with pytest.raises(ValueError, match="min_steps of x is -1, must be at least 0"):
        Phase(name="x", min_steps=-1)
    assert Phase().name == "" and np.isclose(Phase().lr, 1.0)
