"""Schedules at hand-computed steps; all are functions of the step alone, with the optimizer's rate as their peak."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from etude.optim import schedules

CHOICES: list[Callable[..., Any]] = [
    schedules.cosine, schedules.cosine_restarts, schedules.constant, schedules.linear, schedules.noam, schedules.wsd,
]  # fmt: skip


def rates(schedule: Callable[..., Any], total: int, **options: Any) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = schedule(optimizer, total_steps=total, **options).lr_lambdas[0]
    return [factor(step) for step in range(total + 1)]


@pytest.mark.parametrize("schedule", CHOICES, ids=lambda s: s.__name__)
@pytest.mark.parametrize("total", [1, 7, 1000])
def test_rates_stay_within_the_optimizers_and_begin_above_zero(schedule: Callable[..., Any], total: int) -> None:
    found = rates(schedule, total)
    assert all(0 <= rate <= 1 for rate in found) and found[0] > 0
    assert total < 1000 or max(found) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("schedule", CHOICES, ids=lambda s: s.__name__)
@pytest.mark.parametrize(("options", "message"), [({"warmup": 1.0}, r"warmup is 1\.0, must be in \[0, 1\)")])
def test_bad_values_are_told(schedule: Callable[..., Any], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rates(schedule, 10, **options)
    with pytest.raises(ValueError, match="total_steps is 0"):
        schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), total_steps=0)


@pytest.mark.parametrize("schedule", CHOICES, ids=lambda s: s.__name__)
def test_a_warm_up_may_be_a_number_of_steps(schedule: Callable[..., Any]) -> None:
    assert rates(schedule, 40, warmup=10) == pytest.approx(rates(schedule, 40, warmup=0.25))
    with pytest.raises(ValueError, match=r"warmup is 2000 steps, as long as the whole run of 300 or longer; .*scheduler\.warmup"):
        rates(schedule, 300, warmup=2000)
    with pytest.raises(ValueError, match=r"warmup is 2\.5, must be in \[0, 1\)"):
        rates(schedule, 300, warmup=2.5)


def test_linear_falls_by_equal_steps() -> None:
    assert rates(schedules.linear, 10, warmup=0.0) == pytest.approx([1 - step / 10 for step in range(11)])
    found = rates(schedules.linear, 10, warmup=0.2, final=0.5)
    assert found[:4] == pytest.approx([1 / 3, 2 / 3, 1.0, 1 - 0.5 / 8]) and found[10] == pytest.approx(0.5)


def test_constant_stays_after_its_warm_up() -> None:
    assert rates(schedules.constant, 10, warmup=0.3) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 8)


def test_noam_is_equation_3_over_its_peak() -> None:
    found, warmup = rates(schedules.noam, 100, warmup=0.2), 20
    peak = 512**-0.5 * warmup**-0.5
    for step in (1, 5, 20, 21, 80, 100):
        rate = 512**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert found[step - 1] == pytest.approx(rate / peak)
    assert found[19] == max(found) == 1.0 and found[79] == pytest.approx(0.5)


def test_cosine_restarts_is_equation_5_with_growing_cycles() -> None:
    found = rates(schedules.cosine_restarts, 70, warmup=0.0, cycles=3, t_mult=2.0)
    for start, length in ((0, 10), (10, 20), (30, 40)):
        for passed in (0, 1, length // 2, length - 1):
            assert found[start + passed] == pytest.approx(0.5 * (1 + math.cos(math.pi * passed / length)))
    assert found[70] == pytest.approx(0)
    equal = rates(schedules.cosine_restarts, 40, warmup=0.0, cycles=4, t_mult=1.0, final=0.2)
    assert equal[:10] * 4 == pytest.approx(equal[:40]) and equal[5] == pytest.approx(0.6)


def test_one_cycle_is_the_cosine() -> None:
    one = rates(schedules.cosine_restarts, 50, cycles=1, warmup=0.1)
    assert one == pytest.approx(rates(schedules.cosine, 50, warmup=0.1))


@pytest.mark.parametrize(("options", "message"), [({"cycles": 0}, "cycles is 0"), ({"t_mult": 0.5}, r"t_mult is 0\.5")])
def test_impossible_cycles_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rates(schedules.cosine_restarts, 10, **options)
