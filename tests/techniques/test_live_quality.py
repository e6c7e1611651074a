"""Live quality: it measures what it says, keeps its budget, disturbs nothing."""

import logging
import random
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from symusic import Score

from etude.core.checkpoints import LastCheckpoint
from etude.core.task import Task
from etude.data.scores.corpora import Folder
from etude.data.scores.module import MusicDataModule
from etude.models.symbolic.transformer import Transformer
from etude.tasks.language_model import LanguageModel
from etude.techniques.guards.live_quality import LiveQuality
from etude.techniques.weights.ema import Ema
from etude.tokens.grammar import BOS
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.satb import SatbGrid
from tests.songs import song, write_songs
from tests.tasks.test_style_transfer import task as style_transfer
from tests.toys import MelsData, PairsData, ToyGan, trainer

MUSIC = {
    f"live/{name}"
    for name in (
        "rhythm", "harmony", "melody", "structure", "quality", "grammar_error", "copying", "turing", "turing_low", "turing_high",
        "alerts", "seconds", "share", "bars",
    )
}  # fmt: skip

COUNTS = ("live/seconds", "live/alerts", "live/share", "live/bars")


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("songs") / "songs", count=24)


def build(songs: Path, tokenizer: Any = SatbGrid) -> tuple[LanguageModel, MusicDataModule]:
    data = MusicDataModule(
        corpus=Folder(str(songs)), tokenizer=tokenizer, cache_dir=str(songs.parent / "cache"), max_len=512, max_eval_len=1024,
        batch_size=2, batches_per_epoch=5, prepare_workers=1, split=(0.5, 0.4, 0.1), seed=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = partial(Transformer, dim=16, num_layers=1, num_heads=2, dropout=0.1)
    return LanguageModel(model=model, tokenizer=data.tokenizer, optimizer=partial(torch.optim.AdamW, lr=1e-2), seed=1), data


def fit(
    folder: Path, task: Task, data: Any, techniques: list[pl.Callback], *, steps: int = 8, every: int = 2, **options: Any
) -> pl.Trainer:
    run = trainer(folder, max_steps=steps, callbacks=techniques, val_check_interval=every, check_val_every_n_epoch=None)
    run.fit(task, data, weights_only=True, **options)
    return run


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Ticks(pl.Callback):
    """Lets a second pass at each training batch, and notes the share after each validation."""

    def __init__(self, clock: Clock, technique: LiveQuality) -> None:
        self.clock, self.technique = clock, technique
        self.seen: list[tuple[int, int, float]] = []
        self.bars: list[int] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.now += 1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        t = self.technique
        self.seen.append((trainer.global_step, t.measurements, t.budget.share_spent))
        self.bars.append(t.bars)


def costly(task: Any, clock: Clock, seconds_a_token: float) -> None:
    """Lets time pass at each token that the task draws."""
    draw = task.sample

    def sample(*, on_step: Callable[[int], None] | None = None, **options: Any) -> list[Score]:
        def passing(number: int) -> None:
            clock.now += seconds_a_token
            if on_step is not None:
                on_step(number)

        return draw(on_step=passing, **options)

    task.sample = sample


# --- options and refusals ---


@pytest.mark.parametrize("budget", [0, -0.1, 1.5, float("nan")])
def test_a_budget_outside_its_range_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match=r"live_quality.budget is .* must be in \(0, 1\]: a budget of"):
        LiveQuality(budget=budget)


@pytest.mark.parametrize(
    "options", [{"every": 0}, {"num_samples": 3}, {"num_bars": 0}, {"num_real": 3}, {"num_shown": -1}, {"temperature": 0.0},
                {"tolerance": 0.0}]
)  # fmt: skip
def test_other_numbers_out_of_range_are_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"live_quality.{name} is"):
        LiveQuality(**options)


def test_what_it_can_not_measure_is_refused(tmp_path: Path, songs: Path) -> None:
    with pytest.raises(ValueError, match=r"technique live_quality needs a task .* ToyGan does neither"):
        fit(tmp_path, ToyGan(), PairsData(), [LiveQuality()])
    task, data = build(songs)
    with pytest.raises(
        ValueError, match="technique live_quality compares samples of LanguageModel with held-out pieces, NoneType"
    ):
        trainer(tmp_path, max_steps=1, callbacks=[LiveQuality()]).fit(task, data.train_dataloader(), data.val_dataloader())


# --- what it measures ---


def test_every_metric_it_names_is_there_from_the_first_validation(tmp_path: Path, songs: Path) -> None:
    task, data = build(songs)
    technique = LiveQuality(every=1)
    run = fit(tmp_path, task, data, [technique], steps=2)
    assert technique.logged_metrics == MUSIC <= set(run.callback_metrics)
    found = {name: float(run.callback_metrics[name]) for name in MUSIC}
    assert all(np.isfinite(value) for value in found.values())
    assert all(0 <= value <= 1 for name, value in found.items() if name not in COUNTS)
    assert found["live/turing_low"] <= found["live/turing"] <= found["live/turing_high"]
    task.check_metric("live/quality", "x.monitor", "max")
    with pytest.raises(ValueError, match=r"x\.monitor is 'live/quality'; higher values are better, but its mode is min"):
        task.check_metric("live/quality", "x.monitor", "min")
    folder = tmp_path / "live" / "000002"
    assert {path.name for path in folder.iterdir()} >= {"sample_0.mid"}


def test_mels_are_measured_too(tmp_path: Path) -> None:
    technique = LiveQuality(every=1)
    run = fit(tmp_path, style_transfer(seed=1), MelsData(), [technique], steps=2)
    assert technique.logged_metrics <= set(run.callback_metrics)
    assert "live/style" in technique.logged_metrics and "live/melody" not in technique.logged_metrics
    assert all(np.isfinite(float(run.callback_metrics[name])) for name in technique.logged_metrics)
    assert [path.suffix for path in (tmp_path / "live" / "000002").iterdir()] == [".png"]


def test_a_perfect_model_scores_high_and_a_stuck_one_rings(tmp_path: Path, songs: Path, caplog: pytest.LogCaptureFixture) -> None:
    def run_with(pieces: list[Score], folder: Path) -> dict[str, float]:
        task, data = build(songs)
        samples = [task.tokenizer.decode(task.tokenizer.encode(piece)) for piece in pieces]
        object.__setattr__(task, "sample", lambda **options: samples[: options["num_samples"]])
        run = fit(folder, task, data, [LiveQuality(every=1)], steps=4)
        return {name: float(run.callback_metrics[name]) for name in MUSIC}

    with caplog.at_level(logging.WARNING, "etude.techniques.guards.live_quality"):
        good = run_with([song(seed) for seed in range(100, 116)], tmp_path / "good")
        assert not caplog.records
        stuck = run_with([song(100)] * 16, tmp_path / "stuck")
    assert good["live/quality"] > 0.85 and good["live/turing_low"] <= 0.5 and good["live/alerts"] == 0
    assert stuck["live/quality"] < good["live/quality"] - 0.1 and stuck["live/turing"] > 0.9 and stuck["live/alerts"] >= 1
    # told when it begins, not at each of the two measurements
    assert sum("collapse" in record.getMessage() for record in caplog.records) == 1


def test_a_model_that_recites_is_caught(tmp_path: Path, songs: Path) -> None:
    task, data = build(songs)
    training = [data.tokenizer.decode(np.array(data.view("train").body(i))) for i in range(8)]
    object.__setattr__(task, "sample", lambda **options: [*training, *training][: options["num_samples"]])
    technique = LiveQuality(every=1)
    run = fit(tmp_path, task, data, [technique], steps=2)
    assert float(run.callback_metrics["live/copying"]) > 0.95 and "copying" in technique.active_alarms


def batch_of(data: MusicDataModule) -> dict[str, torch.Tensor]:
    return next(batch for batch in data.val_dataloader() if (batch["tokens"][:, 0] == BOS).any())


@pytest.mark.parametrize("tokenizer", [SatbGrid, partial(MidiTokTokenizer, scheme="REMI")], ids=["satb", "remi"])
def test_grammar_error_is_the_forbidden_probability(tmp_path: Path, songs: Path, tokenizer: Any) -> None:
    task, data = build(songs, tokenizer)
    run = trainer(tmp_path, max_steps=1, callbacks=[technique := LiveQuality()])
    run._data_connector.attach_data(task, datamodule=data)
    technique.setup(run, task, "fit")
    batch, probe = batch_of(data), technique._probe
    assert probe is not None
    size = len(data.tokenizer)

    def with_logits(make: Callable[[torch.Tensor], torch.Tensor]) -> float:
        object.__setattr__(task, "logits", lambda batch: make(batch["tokens"]))
        return probe.grammar_error(batch)  # type: ignore[union-attr]

    def right(tokens: torch.Tensor) -> torch.Tensor:
        return 50.0 * torch.nn.functional.one_hot(tokens.roll(-1, 1), size).float()

    assert with_logits(right) < 1e-6  # what follows is always allowed
    assert with_logits(lambda tokens: 50.0 * torch.eye(size)[torch.full_like(tokens, BOS)]) > 0.999
    uniform = with_logits(lambda tokens: torch.zeros(*tokens.shape, size))
    assert 0 < uniform < 1
    decoder, shares = data.tokenizer.decoder(1), []
    row = batch["tokens"][0].numpy()
    for place in range(min(int((batch["documents"][0] == 0).sum()), 512)):
        decoder.push(row[place : place + 1])
        if batch["targets"][0, place] != -100:
            shares.append(1 - decoder.allowed().mean())
    if (batch["tokens"][:, 0] == BOS).sum() == 1:
        assert uniform == pytest.approx(np.mean(shares), abs=1e-6)


# --- when it measures ---


def test_the_budget_is_kept(tmp_path: Path, songs: Path) -> None:
    task, data = build(songs)
    technique, clock = LiveQuality(every=1, budget=0.1, num_shown=0), Clock()
    technique.budget.clock = clock
    costly(task, clock, 0.01)
    ticks = Ticks(clock, technique)
    fit(tmp_path, task, data, [technique, ticks], steps=120, every=4)
    seen = ticks.seen
    assert seen[0][1] == 1  # the first validation has values
    assert seen[-1][1] >= 3  # and the time is used
    for (_, before, _), (_, after, share) in pairwise(seen):
        if after > before:
            assert share <= 0.1 + 1e-9  # no later measurement leads out of the budget
    assert seen[-1][2] <= 0.1


@pytest.mark.parametrize(("cost", "bars"), [(0.0001, [4, 4]), (0.02, [1, 1]), (0.008, [1, 2])])
def test_measurements_are_as_large_as_the_run_can_pay(tmp_path: Path, songs: Path, cost: float, bars: list[int]) -> None:
    task, data = build(songs)
    technique, clock = LiveQuality(every=1, budget=0.1, num_shown=0), Clock()
    technique.budget.clock = clock
    costly(task, clock, cost)
    ticks = Ticks(clock, technique)
    fit(tmp_path, task, data, [technique, ticks], steps=40, every=4)
    assert [ticks.bars[0], ticks.bars[-1]] == bars


def test_every_measures_by_count_alone(tmp_path: Path, songs: Path) -> None:
    task, data = build(songs)
    technique = LiveQuality(every=2, num_shown=0)
    ticks = Ticks(Clock(), technique)
    fit(tmp_path, task, data, [technique, ticks], steps=10, every=2)
    assert [count for _, count, _ in ticks.seen] == [1, 1, 2, 2, 3]


def test_without_a_budget_no_clock_decides_what_is_measured(tmp_path: Path, songs: Path) -> None:
    def run_with(seconds_a_token: float) -> tuple[list[int], list[int], dict[str, float]]:
        task, data = build(songs)
        technique, clock = LiveQuality(num_shown=0), Clock()
        technique.budget.clock = clock
        costly(task, clock, seconds_a_token)
        ticks = Ticks(clock, technique)
        fit(tmp_path / str(seconds_a_token), task, data, [technique, ticks], steps=8, every=2)
        return [count for _, count, _ in ticks.seen], ticks.bars, technique.values

    slow, fast = run_with(5.0), run_with(0.0)
    assert slow == fast and slow[:2] == ([1, 1, 1, 2], [4, 4, 4, 4])


def test_values_stay_between_measurements(tmp_path: Path, songs: Path) -> None:
    class Notes(pl.Callback):
        seen: list[dict[str, float]]

        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.seen.append({n: float(v) for n, v in trainer.callback_metrics.items() if n in MUSIC})

    notes = Notes()
    notes.seen = []
    task, data = build(songs)
    fit(tmp_path, task, data, [LiveQuality(every=3, num_shown=0), notes], steps=6)
    timed = ("live/seconds", "live/share")
    still = [{n: v for n, v in found.items() if n not in timed} for found in notes.seen]
    assert still[0] == still[1] == still[2] and set(notes.seen[0]) == MUSIC


# --- what it leaves alone ---


def test_no_random_state_and_no_mode_changes(tmp_path: Path, songs: Path) -> None:
    class Guarded(LiveQuality):
        def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            before = self._state(pl_module)
            super().on_validation_epoch_end(trainer, pl_module)
            after = self._state(pl_module)
            assert before == after
            self.guarded = True

        @staticmethod
        def _state(task: pl.LightningModule) -> tuple[Any, ...]:
            modes = [module.training for module in task.modules()]
            numpy_state = np.random.get_state()  # noqa: NPY002
            weights = [value.sum().item() for value in task.state_dict().values()]
            return torch.get_rng_state().tolist(), random.getstate(), str(numpy_state), modes, weights

    task, data = build(songs)
    technique = Guarded()
    fit(tmp_path, task, data, [technique], steps=2)
    assert technique.guarded


def test_it_samples_under_the_evaluation_weights(tmp_path: Path, songs: Path) -> None:
    task, data = build(songs)
    ema, drawn = Ema(decay=0.9), []
    draw = task.sample

    def sample(**options: Any) -> list[Score]:
        drawn.append(task.model.embedding.weight.detach().clone())  # type: ignore[union-attr,operator]
        return draw(**options)

    object.__setattr__(task, "sample", sample)
    run = fit(tmp_path, task, data, [ema, LiveQuality(every=1)], steps=2)
    trained = task.model.embedding.weight  # type: ignore[union-attr]
    assert not torch.equal(drawn[-1], trained)  # type: ignore[arg-type]
    average = ema._average["model.embedding.weight"]
    assert torch.equal(drawn[-1], average) and run.global_step == 2


def test_a_resumed_run_knows_its_values_and_its_spending(tmp_path: Path, songs: Path) -> None:
    task, data = build(songs)
    first = LiveQuality(every=1, budget=0.03, num_shown=0)
    fit(tmp_path, task, data, [first, LastCheckpoint(path=tmp_path / "last.ckpt", every_n_steps=1000)], every=1, steps=2)
    task, data = build(songs)
    second = LiveQuality(every=1, budget=0.03, num_shown=0)
    second.budget.clock = Clock()  # which stands: nothing more fits
    rest = fit(tmp_path, task, data, [second], steps=6, ckpt_path=tmp_path / "last.ckpt")
    assert second.values == first.values and second.measurements == first.measurements == 1
    assert second.budget.spent == first.budget.spent > 0
    assert float(rest.callback_metrics["live/quality"]) == pytest.approx(first.values["quality"])
    assert second.running_diversity == first.running_diversity and second.active_alarms == first.active_alarms
