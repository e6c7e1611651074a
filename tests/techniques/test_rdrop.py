"""R-Drop against hand-made predictions, and what it refuses."""

import functools
import math
from typing import Any

import pytest
import torch

from etude.models.symbolic.transformer import Transformer
from etude.tasks.language_model import LanguageModel
from etude.techniques.loss.rdrop import RDrop, drops
from etude.tokens.satb import SatbGrid


class TwoPasses:
    """A task whose second pass predicts something else."""

    def __init__(self, first: torch.Tensor, second: torch.Tensor) -> None:
        self.trace, self._second = {"logits": first}, second

    def recompute_trace(self, batch: Any, trace: Any) -> dict[str, torch.Tensor]:
        return {"logits": self._second}


def terms(first: torch.Tensor, second: torch.Tensor, targets: torch.Tensor, weight: float = 1.0) -> dict[str, torch.Tensor]:
    counted = targets != -100
    nll = torch.nn.functional.cross_entropy(first[counted], targets[counted])
    task: Any = TwoPasses(first, second)
    return RDrop(weight=weight).extra_losses(task, {"targets": targets}, {"nll": nll})


def test_both_terms_of_a_hand_made_pair() -> None:
    first = torch.tensor([[[math.log(3.0), 0.0], [5.0, 1.0]]])  # 3 to 1; the second token is not counted
    second = torch.tensor([[[0.0, 0.0], [-5.0, 1.0]]])
    found = terms(first, second, torch.tensor([[0, -100]]), weight=2.0)
    one_two = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    two_one = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2.0)
    assert found["rdrop"].item() == pytest.approx(one_two + two_one, rel=1e-5)  # twice the mean of both
    assert found["rdrop_second"].item() == pytest.approx((math.log(2) - math.log(4 / 3)) / 2, rel=1e-5)


def test_equal_passes_cost_nothing_and_both_passes_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=generator)
    targets = torch.randint(0, 7, (2, 5), generator=generator)
    assert all(value.abs() < 1e-6 for value in terms(logits, logits.clone(), targets).values())
    first, second = logits.clone().requires_grad_(), (logits + 0.3 * torch.randn(2, 5, 7, generator=generator)).requires_grad_()
    found = terms(first, second, targets)
    assert found["rdrop"] > 0
    sum(found.values()).backward()  # type: ignore[union-attr]
    assert first.grad is not None and second.grad is not None and first.grad.abs().sum() > 0 < second.grad.abs().sum()


def test_networks_with_and_without_dropout() -> None:
    class Own(torch.nn.Module):
        def __init__(self, context_dropout: float) -> None:
            super().__init__()
            self.context_dropout = context_dropout

    assert drops(torch.nn.Sequential(Own(0.0), Own(0.1))) and not drops(Own(0.0))
    assert drops(torch.nn.Dropout(0.1)) and not drops(torch.nn.Sequential(torch.nn.Dropout(0.0), torch.nn.Linear(1, 1)))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"technique.rdrop.weight is 0, must be above 0"):
        RDrop(weight=0)
    technique: Any = RDrop()
    with pytest.raises(ValueError, match="needs a language model, this is a Linear"):
        technique.setup(None, torch.nn.Linear(1, 1), "fit")


def test_a_task_whose_network_drops_nothing_is_refused_although_its_data_leave_labels_out() -> None:
    model = functools.partial(Transformer, dim=16, num_layers=1, num_heads=2, dropout=0.0)
    task = LanguageModel(model=model, tokenizer=SatbGrid(), label_dropout=0.2, optimizer=torch.optim.SGD)  # type: ignore[arg-type]
    technique: Any = RDrop()
    with pytest.raises(ValueError, match=r"this network has none; set model\.dropout=0\.2"):
        technique.setup(None, task, "fit")
