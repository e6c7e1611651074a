"""Bad steps leave weights and optimizer alone, are counted, explained, and end the run when they do not end."""

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.task import Task
from etude.core.technique import Technique
from etude.optim import optimizers
from etude.techniques.guards.finite import Finite
from tests.toys import PairsData, ToyGan, same, trainer, weights


class Faulty(ToyGan):
    """Goes wrong at some batches: in a loss's value, or in one gradient alone."""

    def __init__(self, *, bad_losses: set[int] = frozenset(), bad_gradients: set[int] = frozenset(), **options: Any) -> None:  # type: ignore[assignment]
        super().__init__(**options)
        self.bad_losses, self.bad_gradients = bad_losses, bad_gradients
        self.states: list[dict[str, Tensor]] = []

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        terms = super().losses(batch)
        if self.batches_trained in self.bad_losses:
            terms["generator/cycle"] = terms["generator/cycle"] * math.nan
        return terms

    def on_after_backward(self) -> None:
        if self.batches_trained - 1 in self.bad_gradients:
            self.da[2].weight.grad[0, 3] = math.inf  # type: ignore[index, union-attr]

    def on_train_batch_end(self, *_: Any) -> None:
        self.states.append(weights(self))


def fit(folder: Path, *techniques: pl.Callback, steps: int = 6, options: dict[str, Any] | None = None, **faults: set[int]) -> Any:
    torch.manual_seed(0)
    task = Faulty(**faults)
    run = trainer(folder, max_steps=steps, callbacks=techniques, **(options or {}))
    run.fit(task, PairsData())
    return task, run


def test_nothing_is_changed_while_all_is_finite(tmp_path: Path) -> None:
    bare, _ = fit(tmp_path / "bare")
    guarded, run = fit(tmp_path / "guarded", Finite())
    assert same(weights(bare), weights(guarded))
    assert run.callback_metrics["train/skipped_steps"] == 0


@pytest.mark.parametrize("fault", ["bad_losses", "bad_gradients"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_bad_step_leaves_weights_and_optimizer_as_they_were(tmp_path: Path, fault: str, clip: float | None) -> None:
    options = {"gradient_clip_val": clip}
    bare, _ = fit(tmp_path / "bare", options=options, **{fault: {2}})
    assert any(torch.isnan(value).any() or torch.isinf(value).any() for value in weights(bare).values())
    task, run = fit(tmp_path / "guarded", Finite(), options=options, **{fault: {2, 3}})
    assert same(task.states[1], task.states[2]) and same(task.states[2], task.states[3])
    assert not same(task.states[3], task.states[4])
    assert all(torch.isfinite(value).all() for value in weights(task).values())
    assert all(state["step"] == 4 for state in run.optimizers[0].state.values())
    assert run.callback_metrics["train/skipped_steps"] == 2
    assert run.global_step == 6  # a step left out counts: schedules and the end of training stay where they were


@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_warning_names_step_terms_and_module(tmp_path: Path, caplog: pytest.LogCaptureFixture, clip: float | None) -> None:
    with caplog.at_level(logging.WARNING, logger="etude.techniques.guards.finite"):
        fit(tmp_path, Finite(), options={"gradient_clip_val": clip}, bad_losses={1}, bad_gradients={3})
    first, second = [record.getMessage() for record in caplog.records]
    assert "step 2 is not finite" in first and "terms generator/cycle, module ba.2" in first
    assert "step 4 is not finite" in second and "(2 so far)" in second and "terms all finite, module da.2" in second


def test_a_bad_parameter_is_named_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = ToyGan()
    with torch.no_grad():
        task.ba[0].bias[3] = math.nan
    with pytest.raises(ValueError, match=r"module ba\.0 \(its bias itself\); that makes 2 in a row, finite\.max_skipped"):
        trainer(tmp_path, max_steps=9, callbacks=[Finite(max_skipped=2)]).fit(task, PairsData())


def test_the_run_ends_after_so_many_in_a_row_not_in_all(tmp_path: Path) -> None:
    fit(tmp_path / "apart", Finite(max_skipped=2), bad_losses={0, 2, 4})
    with pytest.raises(ValueError, match=r"3 in a row.*lower the learning rate"):
        fit(tmp_path / "together", Finite(max_skipped=3), bad_losses={1, 2, 3})


def test_one_bad_batch_of_an_accumulated_step_leaves_the_step_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task, run = fit(tmp_path, Finite(), steps=3, options={"accumulate_grad_batches": 2}, bad_losses={2})
    assert same(task.states[1], task.states[3]) and not same(task.states[3], task.states[5])
    assert "terms generator/cycle" in caplog.text and run.global_step == 3


def test_counts_survive_a_checkpoint() -> None:
    one, other = Finite(), Finite()
    one.skipped, one.in_a_row = 7, 2
    other.load_state_dict(one.state_dict())
    assert (other.skipped, other.in_a_row) == (7, 2)


def test_max_skipped_out_of_range_is_told() -> None:
    with pytest.raises(ValueError, match=r"finite\.max_skipped is 0, must be at least 1"):
        Finite(max_skipped=0)


class Wrong(Technique):
    """Brings a term that is not finite."""

    def extra_losses(self, task: Task, batch: Any, losses: Any) -> dict[str, Tensor]:
        return {"generator/wrong": losses["generator/cycle"] * math.nan}


def test_a_term_that_another_technique_brings_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path, Finite(), Wrong(), steps=1)
    assert "terms generator/wrong, module" in caplog.text


@pytest.mark.parametrize("optimizer", [optimizers.muon, optimizers.soap, optimizers.lookahead_adamw])
def test_a_step_left_out_is_as_if_it_had_never_been(tmp_path: Path, optimizer: Any) -> None:
    class Plain(Faulty):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            torch.manual_seed(0)

        def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return super().losses(first)  # every batch alike, so that two runs differ in their number of steps alone

    found, first = [], next(iter(PairsData().train_dataloader()))
    for steps, bad in ((7, set[int]()), (8, {4}), (8, {0})):  # the fifth step, at which Lookahead goes back, or the first
        torch.manual_seed(0)
        task = Plain(noise=0.0, optimizer=partial(optimizer, lr=1e-3), player_lr={}, bad_losses=bad)
        trainer(tmp_path, max_steps=steps, callbacks=[Finite()]).fit(task, PairsData())
        found.append(weights(task))
    assert all(same(found[0], other) for other in found[1:])


def test_clipping_by_value_does_not_hide_the_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}
    task, _ = fit(tmp_path, Finite(), steps=3, options=options, bad_gradients={1})
    assert "module da.2" in caplog.text and all(value.isfinite().all() for value in weights(task).values())
