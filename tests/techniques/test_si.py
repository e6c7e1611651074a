"""Synaptic intelligence: the path integral on a quadratic, importance, refusals."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from etude.techniques.continual.si import Si
from tests.continual import EACH, Mean, Points, two_phases
from tests.test_composition import Matrix, build
from tests.test_composition import fit as fit_matrix


def matrix_options(kind: str, folder: Path, build: Callable[[], tuple[Any, Any]]) -> dict[str, Any]:
    return {"every": 3}


def test_the_path_integral_on_a_quadratic_is_what_the_loss_has_fallen(tmp_path: Path) -> None:
    first, rate, steps = Points().x[:EACH], 1e-3, 400
    found: dict[str, torch.Tensor] = {}

    class Kept(Si):
        def _consolidate(self, task: Any) -> None:
            found.update({"integral": self.integral["w"].clone(), "end": task.w.detach().clone()})
            super()._consolidate(task)

    technique = Kept(strength=1e-9, damping=0.01)
    two_phases(tmp_path, technique, steps=steps, task=Mean(optimizer=partial(torch.optim.SGD, lr=rate)))
    mean = first.mean(0)
    by_hand = torch.zeros(4, dtype=torch.float64)
    w = torch.zeros(4, dtype=torch.float64)
    for _ in range(steps):
        slope = w - mean
        by_hand += rate * slope**2
        w = w - rate * slope
    torch.testing.assert_close(found["integral"], by_hand, rtol=1e-9, atol=0)
    fallen = (mean**2 - (w - mean) ** 2) / 2  # the loss of each weight, before and after
    torch.testing.assert_close(found["integral"], fallen, rtol=2 * rate, atol=0)  # exact for infinitely small steps
    expected = found["integral"] / (found["end"] ** 2 + 0.01)
    torch.testing.assert_close(technique.importance["w"], expected, rtol=1e-9, atol=0)


def test_the_second_phase_ends_where_the_penalty_balances_the_loss(tmp_path: Path) -> None:
    technique = Si(strength=0.7, damping=0.01)
    task = two_phases(tmp_path, technique, steps=300)
    mean, pull = Points().x[EACH:].mean(0), 2 * 0.7 * technique.importance["w"]
    torch.testing.assert_close(task.w.detach(), (mean + pull * technique.centre["w"]) / (1 + pull), rtol=0, atol=1e-9)
    assert (technique.importance["w"] > 0).all()


def test_the_penalty_itself_is_not_in_the_integral(tmp_path: Path) -> None:
    integrals = {}
    for strength in (1e-9, 5.0):
        technique = Si(strength=strength)
        task = two_phases(tmp_path, technique, steps=20)
        mean = Points().x[EACH:].mean(0)
        start, end = technique.start["w"], task.w.detach()
        fallen = ((start - mean) ** 2 - (end - mean) ** 2) / 2
        integrals[strength] = technique.integral["w"], fallen
    for integral, fallen in integrals.values():  # of the loss alone, up to the size of the steps
        torch.testing.assert_close(integral, fallen, rtol=0.1, atol=0.01)


def test_a_skipped_step_adds_nothing() -> None:
    technique, task = Si(every=100), Mean()
    technique._begin(task)
    technique._before = {"w": (task.w.detach().clone(), torch.full((4,), torch.nan, dtype=torch.float64))}
    with torch.no_grad():
        technique.after_step(task)
    assert not technique.integral["w"].any()


@pytest.mark.parametrize("option", ["strength", "damping"])
def test_bad_options_are_told(option: str) -> None:
    with pytest.raises(ValueError, match=rf"technique\.si\.{option} is -1\.0, must be above 0"):
        Si(**{option: -1.0})


def test_a_single_phase_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"technique si holds on .* single phase; choose stage=genres"):
        fit_matrix(tmp_path / "one", lambda: build("language_model", Matrix(tmp_path).songs), [Si()])
