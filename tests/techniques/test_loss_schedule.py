"""Factors over the run, against the points given."""

from pathlib import Path
from typing import Any

import pytest

from etude.techniques.loss_schedule import LossSchedule, _at
from tests.toys import PairsData, ToyGan, same, trainer, weights


def test_between_two_points_a_line_is_drawn_and_beyond_them_it_stays() -> None:
    points = [(0.2, 2.0), (0.6, 1.0), (0.8, 0.0)]
    found = [_at(points, share) for share in (0.0, 0.2, 0.4, 0.6, 0.7, 0.9)]
    assert found == pytest.approx([2.0, 2.0, 1.5, 1.0, 0.5, 0.0])


def fit(folder: Path, *techniques: LossSchedule, **options: Any) -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    task = ToyGan(**options)
    trainer(folder, max_steps=6, callbacks=list(techniques)).fit(task, PairsData())
    return weights(task)


def test_a_constant_factor_is_another_weight(tmp_path: Path) -> None:
    one = fit(tmp_path, LossSchedule(schedule={"generator/cycle": [[0.0, 0.5]]}))
    assert same(one, fit(tmp_path, loss_weights={"generator/cycle": 5.0, "discriminator/all": 0.5}))


def test_without_a_schedule_the_heaviest_term_leads() -> None:
    found = LossSchedule._rising(ToyGan(), dict.fromkeys(["generator/cycle", "generator/adversarial", "discriminator/all"]))  # type: ignore[arg-type]
    assert found == {"generator/adversarial": [(0.0, 0.0), (0.1, 1.0)]}


@pytest.mark.parametrize("points", [[[0.5, 1.0], [0.2, 1.0]], [[0.0, -1.0]], [[1.5, 1.0]], []])
def test_points_out_of_order_or_range_are_told(points: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"shares in .0, 1. that increase"):
        LossSchedule(schedule={"generator/cycle": points})


def test_an_unknown_term_is_told_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"names 'generator/cylce', but the terms are .*generator/cycle"):
        fit(tmp_path, LossSchedule(schedule={"generator/cylce": [[0.0, 1.0]]}))
