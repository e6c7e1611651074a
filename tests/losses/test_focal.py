"""The focal loss is its formula: the cross-entropy at gamma 0, and less of it where the answer is already right."""

import math

import pytest
import torch
import torch.nn.functional as F

from etude.losses.focal import focal_loss


def test_gamma_0_is_the_cross_entropy() -> None:
    logits, targets = torch.randn(50, generator=torch.Generator().manual_seed(0)), (torch.arange(50) % 2).float()
    expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    assert torch.equal(focal_loss(logits, targets, gamma=0.0), expected)


@pytest.mark.parametrize(("probability", "target"), [(0.9, 1.0), (0.9, 0.0), (0.5, 1.0)])
def test_it_is_the_formula(probability: float, target: float) -> None:
    logit = torch.tensor(math.log(probability / (1 - probability)))
    right = probability if target else 1 - probability
    assert float(focal_loss(logit, torch.tensor(target))) == pytest.approx(-((1 - right) ** 2) * math.log(right), rel=1e-4)


def test_gradients_are_finite_far_out() -> None:
    logits = torch.tensor([-200.0, 0.0, 200.0], requires_grad=True)
    focal_loss(logits, torch.tensor([1.0, 1.0, 1.0])).sum().backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all() and logits.grad[0] < -0.9
