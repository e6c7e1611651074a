"""Spikes are found, skipped and undone; gradients are clipped by the formula; all of it resumes bit for bit."""

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.checkpoints import LastCheckpoint
from etude.techniques.guards.finite import Finite
from etude.techniques.guards.stability import Stability
from etude.techniques.optim.switch_optimizer import SwitchOptimizer
from tests.techniques.test_swa import Stop
from tests.toys import PairsData, ToyGan, same, trainer, weights


def matrix_options(kind: str, folder: Path, build: Callable[[], Any]) -> dict[str, Any]:
    return {"warmup": 2, "quantile": 0.5, "threshold": 1.0, "action": "rollback", "snapshot_every": 3, "patience": 2}


QUIET: dict[str, Any] = {"warmup": 4, "quantile": None, "threshold": 50.0}


class Spiky(ToyGan):
    """Its loss jumps, and its gradients with it, at some batches; is not a number at others."""

    def __init__(self, *, spikes: set[int] = frozenset(), faults: set[int] = frozenset(), **options: Any) -> None:  # type: ignore[assignment]
        super().__init__(**options)
        self.spikes, self.faults = spikes, faults
        self.states: list[dict[str, Tensor]] = []
        self.norms: list[dict[str, float]] = []

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        terms = super().losses(batch)
        if self.batches_trained in self.spikes:
            terms["generator/cycle"] = terms["generator/cycle"] * 1e3
        if self.batches_trained in self.faults:
            terms["generator/cycle"] = terms["generator/cycle"] * math.nan
        return terms

    def configure_gradient_clipping(self, *arguments: Any, **options: Any) -> None:
        super().configure_gradient_clipping(*arguments, **options)
        found = {}
        for player, modules in self.players.items():
            gradients = [p.grad for module in modules for p in module.parameters() if p.grad is not None]
            found[player] = float(torch.cat([g.flatten() for g in gradients]).norm()) if gradients else math.nan
        self.norms.append(found)

    def on_train_batch_end(self, *_: Any) -> None:
        self.states.append(weights(self))


def fit(folder: Path, *techniques: pl.Callback, resume: Path | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    task = Spiky(**options.pop("task", {}))
    last = LastCheckpoint(path=folder / "last.ckpt", every_n_steps=1000)
    run = trainer(folder, **{"max_steps": 12, **options}, callbacks=[*techniques, last])
    run.fit(task, PairsData(), ckpt_path=resume, weights_only=True)
    return task, run


def test_gradients_are_clipped_at_the_quantile_of_each_players_norms(tmp_path: Path) -> None:
    technique = Stability(warmup=4, history=6, quantile=0.5, threshold=None)
    clipped, _ = fit(tmp_path, technique)
    raw: dict[str, list[float]] = {"generator": [], "discriminator": []}
    kept: list[dict[str, list[float]]] = []

    class Spy(Stability):
        def _measure(self, task: Any) -> Any:
            loss, norms = super()._measure(task)
            for player, norm in norms.items():
                raw[player].append(norm)
            kept.append({player: list(values) for player, values in self.norms.items()})
            return loss, norms

    again, _ = fit(tmp_path / "spy", Spy(warmup=4, history=6, quantile=0.5, threshold=None))
    assert same(weights(clipped), weights(again))
    for player in raw:
        for step, norms in enumerate(again.norms):
            recent = raw[player][max(0, step - 6) : step]
            limit = float(np.quantile(recent, 0.5)) if step >= 4 else math.inf
            assert norms[player] == pytest.approx(min(raw[player][step], limit), rel=1e-5)
            assert kept[step].get(player, []) == recent


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_nothing_is_changed_while_all_is_calm(tmp_path: Path, action: Any) -> None:
    bare, _ = fit(tmp_path / "bare")
    calm, run = fit(tmp_path / "calm", Stability(**QUIET, action=action))
    assert same(weights(bare), weights(calm)) and run.callback_metrics["train/spikes"] == 0


def test_a_skipped_spike_leaves_weights_and_optimizer_as_they_were(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task, run = fit(tmp_path, Stability(**QUIET), task={"spikes": {6}})
    assert same(task.states[5], task.states[6]) and not same(task.states[6], task.states[7])
    assert all(state["step"] == 11 for state in run.optimizers[0].state.values())
    assert run.callback_metrics["train/spikes"] == 1 and run.global_step == 12
    assert "step 7: the loss of" in caplog.text and "is a spike (the recent median is" in caplog.text and "skipped" in caplog.text


def test_no_spike_is_seen_during_the_warm_up(tmp_path: Path) -> None:
    _, run = fit(tmp_path, Stability(**QUIET), task={"spikes": {2}})
    assert run.callback_metrics["train/spikes"] == 0


def test_a_rollback_restores_weights_and_optimizer_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    schedule = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 / (1 + step))

    def falling(optimizer: Any, total_steps: int) -> Any:
        return schedule(optimizer)

    technique = Stability(**QUIET, action="rollback", snapshot_every=4)
    task, run = fit(tmp_path, technique, task={"spikes": {6}, "scheduler": falling})
    # copies are taken before the 1st and 5th step, so that the 7th goes back to what the 4th left
    assert same(task.states[6], task.states[3]) and not same(task.states[6], task.states[5])
    assert all(state["step"] == 4 + 5 for state in run.optimizers[0].state.values())
    assert "back to step 4 (1 so far)" in caplog.text
    assert run.optimizers[0].param_groups[-1]["lr"] == pytest.approx(1e-4 / 13)  # the schedule goes on


def test_a_level_that_lasts_is_accepted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task, run = fit(tmp_path, Stability(**QUIET, patience=2), task={"spikes": set(range(5, 12))})
    assert same(task.states[4], task.states[6]) and not same(task.states[6], task.states[7])
    assert run.callback_metrics["train/spikes"] == 3 and "accepted from now on" in caplog.text


@pytest.mark.parametrize("clip", [None, 1.0])
def test_what_is_not_finite_is_left_out_at_once_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, clip: float | None
) -> None:
    task, _ = fit(tmp_path, Stability(), task={"faults": {1}}, gradient_clip_val=clip)
    assert same(task.states[0], task.states[1]) and all(bool(torch.isfinite(v).all()) for v in weights(task).values())
    assert "step 2: not finite, terms generator/cycle, module ba.2; skipped (1 so far)" in caplog.text


def test_what_is_never_finite_again_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"step 5: not finite.*more than stability\.patience = 2 steps in a row"):
        fit(tmp_path, Stability(patience=2), task={"faults": {2, 3, 4}})


def test_beside_finite_both_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        task, run = fit(tmp_path, Stability(), Finite(), task={"faults": {1}})
    assert run.callback_metrics["train/spikes"] == run.callback_metrics["train/skipped_steps"] == 1
    assert same(task.states[0], task.states[1])


def test_one_bad_batch_of_an_accumulated_step_leaves_the_step_out(tmp_path: Path) -> None:
    task, run = fit(tmp_path, Stability(**QUIET), task={"spikes": {12}}, accumulate_grad_batches=2, max_steps=8)
    assert same(task.states[11], task.states[13]) and not same(task.states[13], task.states[15])
    assert run.callback_metrics["train/spikes"] == 1


def test_the_smooth_loss_is_the_exponential_mean(tmp_path: Path) -> None:
    technique = Stability(**QUIET, smoothing=0.8)
    _, run = fit(tmp_path, technique)
    shares = [0.8 ** (11 - step) for step in range(12)]
    mean = sum(share * loss for share, loss in zip(shares, technique.losses, strict=True)) / sum(shares)
    assert float(run.callback_metrics["train/loss_smooth"]) == pytest.approx(mean)


def test_a_switch_of_the_optimizer_takes_the_copy_away(tmp_path: Path) -> None:
    technique = Stability(**QUIET, action="rollback", snapshot_every=100)
    task, _ = fit(tmp_path, technique, SwitchOptimizer(at=0.5), task={"spikes": {9}})
    assert technique._snapshot["step"] == 6 and same(task.states[9], task.states[5])


def test_a_switch_right_after_resuming_takes_the_copy_away_too(tmp_path: Path) -> None:
    def run(name: str, *others: pl.Callback, resume: Path | None = None) -> Any:
        technique = Stability(**QUIET, action="rollback", snapshot_every=100)
        return fit(tmp_path / name, technique, SwitchOptimizer(at=0.5), *others, resume=resume, task={"faults": {6}})[0]

    whole = run("whole")
    run("half", Stop(6))
    assert same(weights(whole), weights(run("rest", resume=tmp_path / "half" / "last.ckpt")))


@pytest.mark.parametrize("action", ["skip", "rollback"])
@pytest.mark.parametrize("stop", [5, 7, 9])
def test_resumes_before_and_after_a_spike(tmp_path: Path, action: Any, stop: int) -> None:
    def technique() -> Stability:
        return Stability(warmup=4, quantile=0.5, threshold=50.0, action=action, snapshot_every=3)

    spikes = {"spikes": {6, 8}, "faults": {1}}
    whole, run = fit(tmp_path / "whole", technique(), task=spikes)
    fit(tmp_path / "half", technique(), Stop(stop), task=spikes)
    rest, again = fit(tmp_path / "rest", technique(), resume=tmp_path / "half" / "last.ckpt", task=spikes)
    assert same(weights(whole), weights(rest)) and run.callback_metrics["train/spikes"] == 3
    for name in ("train/spikes", "train/loss_smooth"):
        assert run.callback_metrics[name] == again.callback_metrics[name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action": "stop"}, r"stability\.action is 'stop', must be skip or rollback"),
        ({"threshold": 0.0}, r"stability\.threshold is 0\.0, must be above 0"),
        ({"quantile": 1.5}, r"stability\.quantile is 1\.5, must be in \(0, 1\]"),
        ({"history": 3}, r"stability\.history is 3, must be at least 4"),
        ({"warmup": 101}, r"stability\.warmup is 101, must be in \[2, history = 100\]"),
        ({"smoothing": 1.0}, r"stability\.smoothing is 1\.0, must be in \[0, 1\)"),
        ({"snapshot_every": 0}, r"stability\.snapshot_every is 0, must be at least 1"),
        ({"patience": 0}, r"stability\.patience is 0, must be at least 1"),
    ],
)
def test_values_out_of_range_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stability(**options)
