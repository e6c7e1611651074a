"""Factors over the run, against the points given."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from etude.core.task import Task
from etude.core.technique import Technique
from etude.techniques.loss.loss_schedule import LossSchedule, _factor_at
from tests.toys import PairsData, ToyGan, same, trainer, weights


def test_between_two_points_a_line_is_drawn_and_beyond_them_it_stays() -> None:
    points = [(0.2, 2.0), (0.6, 1.0), (0.8, 0.0)]
    found = [_factor_at(points, share) for share in (0.0, 0.2, 0.4, 0.6, 0.7, 0.9)]
    assert found == pytest.approx([2.0, 2.0, 1.5, 1.0, 0.5, 0.0])


def fit(folder: Path, *techniques: LossSchedule, **options: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    task = ToyGan(**options)
    trainer(folder, max_steps=6, callbacks=list(techniques)).fit(task, PairsData())
    return weights(task)


def test_a_constant_factor_is_another_weight(tmp_path: Path) -> None:
    one = fit(tmp_path, LossSchedule(schedule={"generator/cycle": [[0.0, 0.5]]}))
    assert same(one, fit(tmp_path, loss_weights={"generator/cycle": 5.0, "discriminator/all": 0.5}))


def test_without_a_schedule_the_heaviest_term_leads() -> None:
    names = ("generator/cycle", "generator/adversarial", "discriminator/all")
    found = LossSchedule._default_schedule(ToyGan(), {name: torch.zeros(()) for name in names})
    assert found == {"generator/adversarial": [(0.0, 0.0), (0.1, 1.0)]}


@pytest.mark.parametrize("points", [[[0.5, 1.0], [0.2, 1.0]], [[0.0, -1.0]], [[1.5, 1.0]], []])
def test_points_out_of_order_or_range_are_told(points: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"shares in .0, 1. that increase"):
        LossSchedule(schedule={"generator/cycle": points})


def test_an_unknown_term_is_told_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"names 'generator/cylce', but the terms are .*generator/cycle"):
        fit(tmp_path, LossSchedule(schedule={"generator/cylce": [[0.0, 1.0]]}))


class Lazy(ToyGan):
    """Its heaviest term comes every other batch."""

    optional_terms = frozenset({"generator/path"})

    def losses(self, batch: Any) -> dict[str, torch.Tensor]:
        terms = super().losses(batch)
        return terms if self.batches_trained % 2 else {**terms, "generator/path": 0.01 * terms["generator/cycle"]}


def test_a_term_that_comes_and_goes_never_leads(tmp_path: Path) -> None:
    task = Lazy(loss_weights={"generator/path": 100.0, "generator/cycle": 10.0})
    technique, seen = LossSchedule(), []

    class Watch(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append(dict(task._factors))

    trainer(tmp_path, max_steps=4, callbacks=[technique, Watch()]).fit(task, PairsData())
    rising = [sorted(name for name in factors if name.startswith("generator/")) for factors in seen]
    assert rising == [["generator/adversarial", "generator/path"], ["generator/adversarial"]] * 2


def test_a_term_of_no_player_is_told(tmp_path: Path) -> None:
    for name in ("gnerator/cycle", "cycle"):
        with pytest.raises(ValueError, match=rf"names '{name}', but the terms are"):
            fit(tmp_path, LossSchedule(schedule={name: [[0.0, 1.0]]}))
        with pytest.raises(ValueError, match=rf"loss_weights names \['{name}'\], but the terms are"):
            fit(tmp_path, loss_weights={name: 2.0})


def test_a_term_alone_has_nothing_to_rise_beside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Alone(ToyGan):
        players = property(lambda self: {"model": [self]})  # type: ignore[assignment]

        def losses(self, batch: Any) -> dict[str, torch.Tensor]:
            return {"nll": super().losses(batch)["generator/cycle"]}

    class Seldom(Technique):
        def extra_losses(self, task: Task, batch: Any, losses: Any) -> dict[str, torch.Tensor]:
            return {"seldom": 0.1 * losses["nll"]} if task.batches_trained % 2 else {}

    task = Alone(loss_weights={}, player_lr={})
    trainer(tmp_path, max_steps=4, callbacks=[LossSchedule(), Seldom()]).fit(task, PairsData())
    assert caplog.text.count("has only one term so far (nll); it has no effect until there is another") == 1
    assert task._factors.keys() == {"seldom"}
    with pytest.raises(ValueError, match="Alone has only one term; add a technique that adds terms"):
        trainer(tmp_path, max_steps=2, callbacks=[LossSchedule()]).fit(Alone(loss_weights={}, player_lr={}), PairsData())
