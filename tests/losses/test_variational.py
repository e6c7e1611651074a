"""The divergence of the standard normal from itself is 0, and of others the formula; only counted frames have errors."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from etude.losses.variational import frame_error, kl_from_normal, kl_with_free_bits, smoothed_stop


def test_the_standard_normal_has_no_divergence_from_itself() -> None:
    assert torch.equal(kl_from_normal(torch.zeros(3, 4), torch.zeros(3, 4)), torch.zeros(3, 4))


def test_the_divergence_is_that_of_torch() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(torch.zeros(5, 3), torch.ones(5, 3)))
    torch.testing.assert_close(kl_from_normal(mean, log_variance), expected)
    torch.testing.assert_close(kl_with_free_bits(mean, log_variance, 0.0), expected.mean(0).sum())


def test_free_bits_are_for_each_dimension_of_the_mean() -> None:
    mean = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    assert kl_with_free_bits(mean, torch.zeros(2, 2), 0.5).item() == pytest.approx(1.0 + 0.5)


def test_frames_that_do_not_count_have_no_error() -> None:
    found, wanted = torch.zeros(1, 2, 3), torch.tensor([[[1.0, 2.0, 9.0], [3.0, 0.0, 9.0]]])
    counted = torch.tensor([[1.0, 1.0, 0.0]])
    assert frame_error(found, wanted, counted).item() == pytest.approx(1.5)
    assert frame_error(found, wanted, torch.zeros(1, 3)).item() == 0.0


def test_huber_is_quadratic_below_its_threshold_and_parallel_to_the_error_above() -> None:
    counted = torch.ones(1, 1)
    for error, expected in ((0.3, 0.3**2 / 1.2), (0.6, 0.3), (2.0, 1.7)):
        found = frame_error(torch.full((1, 1, 1), error), torch.zeros(1, 1, 1), counted, huber=0.6)
        assert found.item() == pytest.approx(expected)


def test_smoothed_labels_are_best_met_by_the_smoothed_probability() -> None:
    stop = torch.tensor([[0.0, 1.0]])
    probabilities = torch.tensor([[0.03, 0.97]])
    best = smoothed_stop(torch.logit(probabilities), stop, 0.06)
    assert best < smoothed_stop(torch.logit(probabilities) * 1.1, stop, 0.06)
    assert best < smoothed_stop(torch.logit(probabilities) * 0.9, stop, 0.06)
    assert smoothed_stop(torch.zeros(1, 2), stop, 0.0).item() == pytest.approx(0.6931, abs=1e-4)
