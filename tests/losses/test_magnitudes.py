"""Distances of magnitudes: values by hand, and nothing where both are the same."""

import math

import pytest
import torch

from etude.losses.magnitudes import QUIET, log_magnitude_distance, root_convergence


def test_equal_magnitudes_have_no_distance() -> None:
    real = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0)) + 0.1
    assert float(log_magnitude_distance(real.log(), real)) == pytest.approx(0, abs=1e-6)
    assert float(root_convergence(real.log(), real)) == pytest.approx(0, abs=1e-6)


def test_values_by_hand() -> None:
    real = torch.tensor([[[4.0, 1.0]]])
    fake = torch.tensor([[[1.0, 1.0]]]).log()
    assert float(log_magnitude_distance(fake, real)) == pytest.approx(math.log((4 + QUIET) / (1 + QUIET)) / 2, rel=1e-5)
    assert float(root_convergence(fake, real)) == pytest.approx(1 / math.sqrt(5), rel=1e-5)  # |(2 - 1, 0)| / |(2, 1)|


def test_what_is_far_below_quiet_hardly_counts_and_gradients_are_finite_at_silence() -> None:
    real = torch.zeros(1, 2, 2)
    fake = torch.full((1, 2, 2), math.log(1e-5), requires_grad=True)
    loss = log_magnitude_distance(fake, real) + root_convergence(fake, real)
    loss.backward()
    assert float(log_magnitude_distance(fake.detach(), real)) < 0.02
    assert fake.grad is not None and bool(torch.isfinite(fake.grad).all())
