"""Rules of balance: their fixed points by hand, torchjd's own where it has them, and terms that come and go."""

import math

import pytest
import torch
from torch import Tensor
from torchjd.scalarization import DWA, UW

from etude.losses.balancing import dynamic_average, gradient_norms, running_scale, uncertainty

NAN = math.nan
DWA_START = [[0.0, 0.0, NAN, NAN]] * 2


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_running_scale_makes_weights_the_shares_of_the_loss() -> None:
    state, weights = torch.zeros(3, 2, dtype=torch.float64), values(1, 2, 0.5)
    for _ in range(5):
        state, factors = running_scale(state, values(4, 0.1, -20), weights, decay=0.9, limit=1e6)
    terms = weights * factors * values(4, 0.1, 20)
    torch.testing.assert_close(terms / terms.sum(), weights / weights.sum())
    torch.testing.assert_close(terms.sum(), (weights * values(4, 0.1, 20)).sum())  # the loss keeps its size


def test_running_scale_follows_the_mean() -> None:
    state = torch.zeros(1, 2, dtype=torch.float64)
    state, _ = running_scale(state, values(2), values(1), decay=0.5, limit=9)
    state, _ = running_scale(state, values(5), values(1), decay=0.5, limit=9)
    torch.testing.assert_close(state[0, 0] / state[0, 1], torch.tensor((0.25 * 2 + 0.5 * 5) / 0.75, dtype=torch.float64))


def test_a_term_that_is_away_or_not_finite_keeps_its_state() -> None:
    gone = values(3, NAN)
    state = torch.tensor([[1.0, 0.5], [2.0, 0.5]], dtype=torch.float64)
    after, factors = running_scale(state, gone, values(1, 1), decay=0.9, limit=9)
    assert torch.equal(after[1], state[1]) and torch.isfinite(factors).all() and not torch.equal(after[0], state[0])
    after, _ = uncertainty(state[:, :1], values(3, math.inf), rate=0.1, limit=9)
    assert after[1, 0] == 2.0
    after, factors = dynamic_average(values(0, 0, 1, 2).repeat(2, 1), gone, temperature=2, ends_period=True, limit=9)
    assert after[1].tolist() == [0, 0, 1, 2] and after[0].tolist() == [0, 0, 3, 1]


def test_limits_hold() -> None:
    _, factors = running_scale(torch.zeros(2, 2), torch.tensor([1.0, 1e-9]), torch.ones(2), decay=0.9, limit=10)
    assert factors[1] == 10
    state = torch.zeros(1, 1)
    for _ in range(1000):
        state, factors = uncertainty(state, torch.zeros(1), rate=0.1, limit=10)
    torch.testing.assert_close(factors, torch.tensor([10.0]))


def test_uncertainty_is_torchjds_trained_by_gradient_descent() -> None:
    reference, state, draws = UW(2).double(), torch.zeros(2, 1, dtype=torch.float64), torch.Generator().manual_seed(0)
    descent = torch.optim.SGD(reference.parameters(), lr=0.1)
    for _ in range(50):
        losses = torch.rand(2, generator=draws, dtype=torch.float64) + 0.2
        expected = 2 * reference(losses)  # the factors 1/2 of the paper left out
        descent.zero_grad()
        expected.backward()
        before = state[:, 0]
        state, factors = uncertainty(state, losses, rate=0.1, limit=1e6)
        torch.testing.assert_close((factors * losses + before).sum(), expected.detach())
        descent.step()
        torch.testing.assert_close(state[:, 0], reference.log_var.detach())


def test_uncertainty_rests_at_the_closed_form() -> None:
    state = torch.zeros(3, 1, dtype=torch.float64)
    for _ in range(3000):
        state, factors = uncertainty(state, values(0.05, 1, 30), rate=0.05, limit=1e6)
    torch.testing.assert_close(factors, 1 / values(0.05, 1, 30))


def test_dynamic_average_is_torchjds() -> None:
    reference, state, draws = DWA(temperature=1.5), torch.tensor(DWA_START), torch.Generator().manual_seed(0)
    for batch in range(12):
        losses = torch.rand(2, generator=draws) + 0.5
        expected = reference(losses)
        ends = batch % 3 == 2
        state, factors = dynamic_average(state, losses, temperature=1.5, ends_period=ends, limit=9)
        torch.testing.assert_close((factors * losses).sum(), expected)
        if ends:
            reference.step()
    assert not torch.equal(factors, torch.ones(2))


def test_gradient_norms_meet_where_all_terms_fall_alike() -> None:
    state = torch.tensor([[1.0, NAN]] * 3, dtype=torch.float64)
    for _ in range(2000):
        state, factors = gradient_norms(state, values(1, 1, 1), values(1, 2, 8), alpha=1.5, rate=0.002, limit=100)
    torch.testing.assert_close(factors * values(1, 2, 8), (factors * values(1, 2, 8)).mean().expand(3), rtol=0.05, atol=0)
    torch.testing.assert_close(factors.sum(), torch.tensor(3.0, dtype=torch.float64))


def test_gradient_norms_take_the_papers_step() -> None:
    """By autograd: sum |f_i g_i - mean_j(f_j g_j) r_i^alpha| with the target held fixed, in units of the mean norm."""
    first, losses, norms = values(2, 1), values(1, 0.9), values(3, 0.5)
    factors = values(0.7, 1.3).requires_grad_()
    unit = (factors * norms).mean().detach()
    rates = (losses / first) / (losses / first).mean()
    (factors * norms / unit - rates**1.5).abs().sum().backward()
    assert factors.grad is not None
    moved = factors.detach() - 0.1 * factors.grad.clamp(-1, 1)
    expected = moved * 2 / moved.sum()
    state = torch.stack([values(0.7, 1.3), first], dim=1)
    _, found = gradient_norms(state, losses, norms, alpha=1.5, rate=0.1, limit=100)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("lagging", [0, 1])
def test_a_term_that_lags_behind_is_favoured(lagging: int) -> None:
    state = torch.tensor([[1.0, 1.0]] * 2, dtype=torch.float64)
    losses = values(0.9, 0.1) if lagging == 0 else values(0.1, 0.9)
    for _ in range(50):
        state, factors = gradient_norms(state, losses, values(1, 1), alpha=1.0, rate=0.01, limit=100)
    assert factors.argmax() == lagging
