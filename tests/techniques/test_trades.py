"""TRADES: without a budget it is plain training, with one it raises the divergence that it then adds."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from etude.attacks.budget import within_snr
from etude.core.continuous import ContinuousInput, predictions
from etude.losses.divergence import mean_kl
from etude.techniques.robust.trades import Trades
from tests.robust import first_batch, pair
from tests.test_composition import fit
from tests.toys import same


def matrix_options(kind: str, folder: Path, build: Any) -> dict[str, Any]:
    return {"snr_db": 10.0, "steps": 2}  # so that eight steps show it


@pytest.mark.parametrize("kind", ["classifier", "grader"])
def test_a_budget_of_nothing_is_plain_training_bit_for_bit(tmp_path: Path, kind: str) -> None:
    off = fit(tmp_path / "off", lambda: pair(kind, tmp_path), [])
    none = fit(tmp_path / "none", lambda: pair(kind, tmp_path), [Trades(snr_db=math.inf, steps=1)])
    assert same(off["trained"], none["trained"])
    on = fit(tmp_path / "on", lambda: pair(kind, tmp_path), [Trades(snr_db=10, steps=1)])
    assert not same(off["trained"], on["trained"])


@pytest.mark.parametrize("kind", ["classifier", "grader"])
def test_the_change_moves_predictions_more_than_chance(tmp_path: Path, kind: str) -> None:
    task, data = pair(kind, tmp_path)
    batch, technique = first_batch(data), Trades(snr_db=15, weight=2.0)
    found = technique.extra_losses(task, batch, {})["trades"]
    given = ContinuousInput(task, batch)
    budget = within_snr(given.values, 15, counted=given.counted)
    corner = budget.random(given.values).sign() * budget.like(given.values)
    chance = mean_kl(predictions(task, batch), predictions(task, given.replaced(given.values + corner)))
    assert found > 2 * chance > 0
    assert technique.scale_losses(task, {"trades": found}) == {"trades": 2.0}
    gradients = torch.autograd.grad(found, [p for p in task.parameters() if p.requires_grad], allow_unused=True)
    assert any(g is not None and bool(g.any()) for g in gradients)


def test_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    def run(folder: str, **options: Any) -> dict[str, Any]:
        return fit(tmp_path / folder, lambda: pair("classifier", tmp_path), [Trades(snr_db=10, steps=2)], **options)

    whole = run("whole")
    run("half", kill_at=3)
    rest = run("rest", resume=tmp_path / "half" / "last.ckpt")
    assert same(whole["trained"], rest["trained"]) and same(whole["saved"], rest["saved"])


def test_bad_options_are_told() -> None:
    for options, told in (
        ({"snr_db": -3.0}, r"snr_db=-3\.0 must be at least 0 dB"),
        ({"norm": "l0"}, r"norm is 'l0'; choose linf or l2"),
        ({"weight": 0.0}, r"weight is 0\.0, must be above 0"),
        ({"steps": 0}, r"steps is 0, must be at least 1"),
        ({"step_size": -1.0}, r"step_size -1\.0, above 0 or null"),
    ):
        given: dict[str, Any] = dict(options)
        with pytest.raises(ValueError, match=rf"technique\.trades\..*{told}"):
            Trades(**given)
