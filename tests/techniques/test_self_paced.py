"""Self-paced weights against closed forms, and the term against the weighted loss."""

from typing import Any

import numpy as np
import pytest
import torch

from etude.core.task import Task
from etude.losses.self_paced import hard_weights, linear_weights, superloss_weights
from etude.techniques.loss.self_paced import SelfPaced


def test_superloss_minimises_its_own_objective() -> None:
    losses, usual, strength = torch.tensor([0.6, 1.0, 1.7]), 1.0, 0.8
    found = superloss_weights(losses, usual, strength)
    grid = torch.linspace(0.05, 3, 60_000, dtype=torch.float64)
    for loss, weight in zip(losses.double(), found, strict=True):
        objective = (loss - usual) * grid + strength * grid.log() ** 2
        assert float(grid[objective.argmin()]) == pytest.approx(float(weight), abs=1e-3)
    assert found[0] > found[1] == 1 > found[2]
    assert superloss_weights(torch.tensor([-100.0]), usual, strength).item() == pytest.approx(np.e, rel=1e-3)  # where it ends


def test_hard_and_linear_weights() -> None:
    losses = torch.tensor([0.5, 1.0, 3.0])
    assert hard_weights(losses, 1.5).tolist() == [1, 1, 0]
    assert linear_weights(losses, 2.0).tolist() == [0.75, 0.5, 0]


def term(technique: SelfPaced, nll: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    task: Any = Task(optimizer=torch.optim.SGD)  # type: ignore[arg-type]
    task.log = lambda *_: None
    task.trace = {"token_nll": nll}
    batch = {"targets": torch.where(documents >= 0, 1, -100), "documents": documents}
    return technique.extra_losses(task, batch, {})["self_paced"]


def test_with_the_tasks_own_term_it_is_the_weighted_loss() -> None:
    nll = torch.tensor([[1.0, 3.0, 2.0, 6.0, 0.0]], requires_grad=True)
    documents = torch.tensor([[0, 0, 1, 1, -1]])
    found = term(SelfPaced(strength=2.0), nll, documents)
    weights = superloss_weights(torch.tensor([2.0, 4.0]), 3.0, 2.0)
    counted = nll[0, :4]
    assert torch.allclose(found + counted.mean(), (weights.repeat_interleave(2) * counted).mean())
    found.backward()
    assert torch.allclose(nll.grad[0, :4], (weights.repeat_interleave(2) - 1) / 4)  # type: ignore[index]


def test_hard_leaves_out_the_hard_piece_until_all_count() -> None:
    technique = SelfPaced(method="hard", start=0.5)
    documents = torch.tensor([[0, 1, 2, 3]])
    found = term(technique, torch.tensor([[1.0, 2.0, 3.0, 4.0]]), documents)
    assert found.item() == pytest.approx((1 + 2) / 2 - 2.5)
    technique._span = 0.0001
    technique.start = 1.0
    assert term(technique, torch.tensor([[1.0, 2.0, 3.0, 4.0]]), documents).item() == 0


@pytest.mark.parametrize(("options", "message"), [({"method": "soft"}, "superloss, linear, hard"), ({"end": 0}, r"\(0, 1\]"),
                                                  ({"strength": 0}, "must be above 0")])  # fmt: skip
def test_bad_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfPaced(**options)


@pytest.mark.parametrize("method", ["hard", "linear"])
def test_a_share_of_the_pieces_rests_while_all_losses_fall(method: str) -> None:
    technique, documents = SelfPaced(method=method, start=0.5), torch.tensor([[0, 1, 2, 3]])
    resting = []
    for step in range(40):
        nll = torch.tensor([[1.0, 2.0, 3.0, 4.0]]) * 0.9**step
        found = term(technique, nll if step != 20 else nll * torch.nan, documents)
        if step != 20:
            resting.append(found.item() / nll.mean().item())
    assert max(resting) < -0.1  # what counts is easier than the mean, in every step
