"""Stages: what rests, what learns how fast, when one ends, and that a run killed in any stage goes on in it."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from etude.core.checkpoints import LastCheckpoint
from etude.core.parameter_groups import rate_factor
from etude.core.phases import rate_factors
from etude.models.symbolic.transformer import Transformer
from etude.optim import optimizers
from etude.optim.schedules import constant, cosine, linear
from etude.tasks.language_model import LanguageModel
from etude.techniques.optim.stages import Stages
from etude.techniques.optim.switch_optimizer import SwitchOptimizer
from etude.tokens.satb import SatbGrid
from tests.tasks.test_style_transfer import task as style_transfer
from tests.toys import PairsData, ToyGan, same, trainer, weights

FROZEN = {
    "language_model": "model.embedding", "gan": "ab.", "restyler": "generators.0", "synthesis": "model.encoder",
    "grader": "model.stem", "classifier": "model.networks.0", "representation": "encoder.embedding",
    "few_shot": "encoder.embedding", "few_shot_generation": "model.embedding",
}  # fmt: skip


def matrix_options(kind: str, folder: Path, build: Callable[[], Any]) -> dict[str, Any]:
    first = {"name": "first", "frozen": [FROZEN[kind]], "max_steps": 3}
    data = {"data": {"bars": [1, 100]}} if kind == "language_model" else {}
    return {"stages": [first, {"name": "rest", "lr": 0.5, **data}]}


class Watch(pl.Callback):
    def __init__(self) -> None:
        self.rates: list[float] = []
        self.trained: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.trained.append(weights(pl_module))


def fit(
    folder: Path, stages: list[dict[str, Any]] | None, steps: int = 8, resume: Path | None = None, *,
    accumulate: int = 1, every: int = 2, **options: Any,
) -> Any:  # fmt: skip
    torch.manual_seed(0)
    task, watch = ToyGan(player_lr={}, **options), Watch()
    last = LastCheckpoint(path=folder / "last.ckpt", every_n_steps=100)
    techniques = [Stages(stages=stages)] if stages is not None else []
    run = trainer(
        folder, max_steps=steps, callbacks=[*techniques, watch, last], val_check_interval=every,
        accumulate_grad_batches=accumulate,
    )  # fmt: skip
    run.fit(task, PairsData(), ckpt_path=resume, weights_only=True)
    return task, watch, run


def test_frozen_parameters_rest_for_their_stage_and_learn_after(tmp_path: Path) -> None:
    _, watch, _ = fit(tmp_path, [{"frozen": ["ab", "da.0"], "max_steps": 3}, {}])
    first, third, last = watch.trained[0], watch.trained[2], watch.trained[-1]
    for name in first:
        rests = name.startswith(("ab", "da.0"))
        assert torch.equal(first[name], third[name]) == rests, name
        assert not torch.equal(third[name], last[name])


def test_a_stage_has_its_own_schedule_and_rate(tmp_path: Path) -> None:
    stages = [{"max_steps": 4}, {"lr": 0.1, "max_steps": 4}]
    _, watch, _ = fit(tmp_path, stages, scheduler=partial(cosine, warmup=0.0), optimizer=partial(torch.optim.SGD, lr=1.0))
    half = [1.0, 0.853553, 0.5, 0.146447]
    assert watch.rates == pytest.approx([*half[1:], 0, *(0.1 * x for x in half[1:]), 0], rel=1e-4, abs=1e-9)


def test_the_last_stages_schedule_is_over_with_the_run(tmp_path: Path) -> None:
    stages = [{"max_steps": 4}, {"warmup": 0.5}]
    _, watch, _ = fit(tmp_path, stages, scheduler=partial(cosine, warmup=0.0), optimizer=partial(torch.optim.SGD, lr=1.0))
    assert watch.rates[4:] == pytest.approx([2 / 3, 1.0, 0.5, 0.0], abs=1e-9)  # two steps up, two down


def test_the_run_is_over_with_its_last_stage_and_stays_so(tmp_path: Path) -> None:
    stages = [{"max_steps": 2}, {"max_steps": 3}]
    task, _, run = fit(tmp_path, stages, steps=20)
    assert run.global_step == 5
    again, _, run = fit(tmp_path, stages, steps=20, resume=tmp_path / "last.ckpt")
    assert run.global_step == 5 and same(weights(task), weights(again))


def test_a_stage_changes_between_optimizer_steps_where_gradients_are_accumulated(tmp_path: Path) -> None:
    stages = [{"patience": 1, "min_delta": 100.0}, {"lr": 0.1}]  # decided at the second validation, after batch 6
    options: dict[str, Any] = {"scheduler": None, "optimizer": partial(torch.optim.SGD, lr=1.0), "accumulate": 4, "every": 3}
    _, watch, _ = fit(tmp_path, stages, steps=3, **options)
    assert watch.rates == pytest.approx([1.0] * 8 + [0.1] * 4)


@pytest.mark.parametrize("stop", [2, 3, 4, 5, 6, 7])
def test_killed_about_a_plateau_it_does_the_same(tmp_path: Path, stop: int) -> None:
    stages = [{"frozen": ["ab"], "patience": 1, "min_delta": 100.0}, {"lr": 0.1}]
    whole, _, _ = fit(tmp_path / "whole", stages, steps=10, scheduler=partial(constant, warmup=0.0))
    fit(tmp_path / "half", stages, steps=stop, scheduler=partial(constant, warmup=0.0))
    rest, _, _ = fit(
        tmp_path / "rest", stages, steps=10, scheduler=partial(constant, warmup=0.0), resume=tmp_path / "half" / "last.ckpt"
    )
    assert same(weights(whole), weights(rest)) and rest.phases.index == 1


def test_one_stage_that_changes_nothing_is_the_plain_run(tmp_path: Path) -> None:
    assert same(weights(fit(tmp_path, [{}])[0]), weights(fit(tmp_path, None)[0]))


def test_moments_stay_with_the_parameters_that_stay(tmp_path: Path) -> None:
    task, _, run = fit(tmp_path, [{"frozen": ["ab"], "max_steps": 3}, {}])
    state = run.optimizers[0].state
    assert state[task.ba[0].weight]["step"] == 8 and state[task.ab[0].weight]["step"] == 5


def test_a_plateau_ends_a_stage_with_its_reason_and_the_last_one_ends_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stages = [
        {"name": "broad", "patience": 1, "min_delta": 100.0, "min_steps": 5},
        {"name": "own", "patience": 1, "min_delta": 100.0},
    ]
    with caplog.at_level(logging.WARNING):
        _, _, run = fit(tmp_path, stages, steps=30)
    assert "broad ends at step 6: val/cycle has not improved" in caplog.text and "own begins" in caplog.text
    assert run.global_step == 10 and "own, the last one, ends at step 10" in caplog.text


def test_loss_weights_of_a_stage_are_laid_over_the_tasks(tmp_path: Path) -> None:
    one = fit(tmp_path, [{"loss_weights": {"generator/cycle": 0.5}}])[0]
    assert same(weights(one), weights(fit(tmp_path, None, loss_weights={"generator/cycle": 0.5, "discriminator/all": 0.5})[0]))


@pytest.mark.parametrize("stop", [2, 4, 7])
def test_killed_in_any_stage_it_goes_on_in_it(tmp_path: Path, stop: int) -> None:
    stages = [{"frozen": ["ab"], "max_steps": 3}, {"lr": 0.1, "max_steps": 3}, {"max_steps": 4}]
    whole, _, _ = fit(tmp_path / "whole", stages, steps=10, scheduler=cosine)
    fit(tmp_path / "half", stages, steps=stop, scheduler=cosine)
    rest, _, _ = fit(tmp_path / "rest", stages, steps=10, scheduler=cosine, resume=tmp_path / "half" / "last.ckpt")
    assert same(weights(whole), weights(rest)) and rest.phases.index == 2


def test_layers_learn_the_less_the_nearer_they_are_to_the_input() -> None:
    model = partial(Transformer, dim=8, num_layers=3, num_heads=2)
    task = LanguageModel(model=model, tokenizer=SatbGrid(), optimizer=torch.optim.SGD)  # type: ignore[arg-type]
    task.lr_factors = rate_factors(task, 0.5, 0.8)
    found = {name: rate_factor(name, task.lr_factors) for name, _ in task.named_parameters()}
    assert found["model.blocks.2.attention.output.weight"] == pytest.approx(0.5)
    assert found["model.blocks.0.attention.output.weight"] == pytest.approx(0.5 * 0.8**2)
    assert found["model.embedding.weight"] == pytest.approx(0.5 * 0.8**3) and found["model.gain"] == 0.5


def test_each_network_of_several_has_its_own_first_block() -> None:
    task = style_transfer()
    factors = rate_factors(task, 1.0, 0.5)
    for side in (0, 1):
        found = [value for name, value in factors.items() if name.startswith(f"generators.{side}.")]
        assert max(found) == 1.0 and len(set(found)) == len(found)


def test_embeddings_rest_by_their_kind() -> None:
    model = partial(Transformer, dim=8, num_layers=1, num_heads=2)
    task = LanguageModel(model=model, tokenizer=SatbGrid(), optimizer=torch.optim.SGD)  # type: ignore[arg-type]
    task.trainer = trainer(Path(), max_steps=8)
    Stages(stages=[{"frozen": ["embeddings"]}]).setup(task.trainer, task, "fit")
    resting = {name.partition(".weight")[0] for name, p in task.named_parameters() if not p.requires_grad}
    assert "model.embedding" in resting and not any("blocks" in name for name in resting)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"nam": "x"}], r"has 'nam'; the keys are data, frozen"),
        ([{}, {}], "stage 1 never ends; give it max_steps or patience"),
        ([{"layer_decay": 0.0}], r"layer_decay of stage 1 is 0.0, must be in \(0, 1\]"),
        ([{"warmup": 1.0}], r"warmup of stage 1 is 1.0, must be in \[0, 1\)"),
        ([{"warmup": 0.1}], "needs a schedule with a warm-up; that of ToyGan has none"),
        ([{"layer_decay": 0.5}], "needs residual blocks, but ToyGan has none"),
        ([{"max_steps": 0}], "max_steps of stage 1 is 0, must be at least 1"),
        (
            [{"frozen": ["generator"]}],
            "frozen of stage 1: 'generator' begins no parameter name of ToyGan; names begin with ab.0, ab.2",
        ),
        ([{"patience": 1, "monitor": "val/nil"}], "monitor of stage 1 is 'val/nil', which nothing logs"),
        ([{"data": {"genre": "folk"}}], "ToyGan's data .PairsData. has no table"),
        ([], "choose stage=progression"),
    ],
)
def test_bad_stages_are_told(tmp_path: Path, stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, stages)


def test_killed_with_two_schedules_set_the_later_one_holds(tmp_path: Path) -> None:
    stages = [{"name": "one", "max_steps": 6}, {"name": "two", "max_steps": 12}]
    rates = []
    for resume, steps in ((None, 9), (tmp_path / "last.ckpt", 18), (None, 18)):
        torch.manual_seed(0)
        watch, last = Watch(), LastCheckpoint(path=tmp_path / "last.ckpt", every_n_steps=100)
        techniques = [Stages(stages=stages), SwitchOptimizer(at=3.5 / steps)]  # switched in stage one, before stage two begins
        run = trainer(tmp_path, max_steps=steps, callbacks=[*techniques, watch, last])
        run.fit(ToyGan(player_lr={}, scheduler=linear), PairsData(), ckpt_path=resume, weights_only=True)
        rates.append(watch.rates)
    assert rates[1] == rates[2][9:]


@pytest.mark.parametrize("optimizer", [optimizers.muon, optimizers.soap, optimizers.lookahead_adamw])
def test_counters_and_inner_moments_are_carried_over_too(tmp_path: Path, optimizer: Any) -> None:
    plain, _, _ = fit(tmp_path, None, optimizer=partial(optimizer, lr=1e-3), scheduler=None)
    same_twice = [{"name": "one", "max_steps": 4}, {"name": "two", "max_steps": 4}]
    staged, _, _ = fit(tmp_path, same_twice, optimizer=partial(optimizer, lr=1e-3), scheduler=None)
    assert same(weights(plain), weights(staged))


def test_more_may_be_better(tmp_path: Path) -> None:
    for mode in ("max", "min"):
        stages = [{"name": "one", "patience": 2, "monitor": "val/cycle", "mode": mode}, {"name": "two"}]
        technique = Stages(stages=stages)

        class Rising(ToyGan):
            def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
                self.log("val/cycle", torch.tensor(float(self.batches_trained)))

        task = Rising()
        trainer(tmp_path, max_steps=9, callbacks=[technique], val_check_interval=1).fit(task, PairsData())
        assert (task.phases.start_step == 0) == (mode == "max")
    with pytest.raises(ValueError, match=r"stages.stages.0..mode is 'more', must be min or max"):
        Stages(stages=[{"mode": "more"}])
