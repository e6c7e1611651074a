"""Exp3.S by hand, rewards for progress, and admission in proportion."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from etude.core.task import Task
from etude.techniques.data.bandit import Bandit, exp3s, probabilities
from tests.techniques.test_curriculum import Data


def matrix_options(kind: str, folder: Path, build: Callable[[], Any]) -> dict[str, Any]:
    return {"every": 1, "num_arms": 4, "explore": 0.01, "rate": 5.0}


def ready(**options: Any) -> tuple[Bandit, Data]:
    data, technique = Data(), Bandit(**options)
    technique.setup(SimpleNamespace(datamodule=data), SimpleNamespace(tokenizer=None, logits=len, traces_tokens=True), "fit")  # type: ignore[arg-type]
    return technique, data


def test_an_update_is_exp3s() -> None:
    found = exp3s([0.0, 0.0], [1.0, -1.0], rate=0.5, share=0.1)
    up, down = np.exp(0.5), np.exp(-0.5)
    expected = np.log([0.9 * up + 0.1 * down, 0.9 * down + 0.1 * up])
    assert np.allclose(found, expected - expected.max())
    assert probabilities([0.0, np.log(3)], explore=0.2) == pytest.approx([0.8 * 0.25 + 0.1, 0.8 * 0.75 + 0.1])


def test_an_arm_is_drawn_as_often_as_its_probability_says_whatever_its_size() -> None:
    technique, data = ready(arms="genre")
    technique._arm, technique._pieces = np.array([0] * 30 + [1] * 10), np.array([0.75, 0.25])
    technique.changes = [[0, [0.4, 0.6]]]
    chance = data.rule(np.arange(40), 0)
    assert chance.max() == 1 and chance[:30].sum() / chance.sum() == pytest.approx(0.4)


silent = SimpleNamespace(
    global_step=1, log_every_n_steps=50, val_check_batch=0, is_last_batch=False, world_size=1
)  # fmt: skip


def test_the_arm_whose_loss_falls_is_preferred_and_only_after_what_is_drawn() -> None:
    technique, data = ready(arms="genre", every=1)
    task: Any = Task(optimizer=torch.optim.SGD)  # type: ignore[arg-type]
    task.log = lambda *_: None
    batch = {"piece": torch.tensor([[0, 1, 25, 26, -1]]), "targets": torch.zeros(1, 5, dtype=torch.long)}
    for step in range(12):
        task.trace = {"token_nll": torch.tensor([[3.0 - 0.1 * step] * 2 + [2.0 + 0.01 * (step % 2)] * 2 + [9.0]])}
        technique.extra_losses(task, batch, {})
        task.batches_trained = step + 1
        technique.on_train_batch_end(silent, task, None, None, 0)  # type: ignore[arg-type]
    assert probabilities(technique.weights, explore=0.2)[0] > 0.6
    assert data.rule(np.arange(40), 40)[0] == 1 > data.rule(np.arange(40), 40)[30]
    assert technique.changes[-1][0] == 12 + data.lookahead
    copy, _ = ready(arms="genre", every=1)
    copy.load_state_dict(technique.state_dict())
    assert (copy.rule(np.arange(40), 30) == technique.rule(np.arange(40), 30)).all()


@pytest.mark.parametrize(("options", "message"), [({"arms": "key"}, "difficulty or genre"), ({"explore": 0}, r"in \(0, 1\]"),
                                                  ({"num_arms": 1}, "at least 2")])  # fmt: skip
def test_bad_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bandit(**options)


def test_a_loss_that_is_not_finite_is_forgotten() -> None:
    technique, data = ready(arms="genre", every=1)
    task: Any = Task(optimizer=torch.optim.SGD)  # type: ignore[arg-type]
    task.log = lambda *_: None
    batch = {"piece": torch.tensor([[0, 25]]), "targets": torch.zeros(1, 2, dtype=torch.long)}
    for step, loss in enumerate((3.0, torch.nan, 2.0, 1.5)):
        task.trace = {"token_nll": torch.tensor([[loss, 2.0]])}
        technique.extra_losses(task, batch, {})
        task.batches_trained = step + 1
        technique.on_train_batch_end(silent, task, None, None, 0)  # type: ignore[arg-type]
    assert np.isfinite(technique.weights).all() and np.isfinite(technique.rewards).all()
    assert data.rule(np.arange(40), 40).max() == 1
