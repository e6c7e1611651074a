"""Certificates: the radius of a linear classifier in closed form, and bounds that hold on random points."""

import math

import pytest
import torch
from scipy.stats import binom, norm
from torch import nn

from etude.attacks.bounds import certified, interval_bounds
from etude.attacks.budget import Budget, within_snr
from etude.attacks.gradient import pgd
from etude.attacks.objectives import Fooled
from etude.attacks.smoothing import certify, check_samples, lower_bound, radius_of


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- smoothing ---


def test_the_radius_of_a_linear_classifier_is_its_distance_to_the_plane() -> None:
    direction = torch.randn(12, generator=draws())
    x = torch.randn(40, 12, generator=draws(1))
    distance = (x @ direction).abs() / direction.norm()
    for sigma in (0.25, 1.0):  # P(right) = Phi(distance / sigma), so the radius is the distance, for every sigma
        for d in distance[distance < 4 * sigma].tolist():
            assert radius_of(float(norm.cdf(d / sigma)), sigma) == pytest.approx(d, rel=1e-5)
    sigma, samples = 1.0, 4000
    found = certify(
        lambda z: torch.stack([torch.zeros(len(z)), z @ direction], 1), x, sigma=sigma, samples=samples, generator=draws(2)
    )
    said = found.radius > 0
    assert (found.radius[said] <= distance[said] * 1.0001).all()  # a lower bound; 1 of 1,000 may be above
    close = (distance > 0.3) & (distance < 2)
    assert said[close].all() and (distance - found.radius)[close].max() < 0.2
    assert torch.equal(found.classes[said], (x @ direction > 0).long()[said])
    assert (found.classes[~said] == -1).all()


def test_the_lower_bound_is_that_of_clopper_and_pearson() -> None:
    for successes, samples, alpha in ((90, 100, 0.001), (57, 60, 0.05), (1, 10, 0.01)):
        low = lower_bound(successes, samples, alpha)
        assert binom.sf(successes - 1, samples, low) == pytest.approx(alpha, rel=1e-6)
    assert lower_bound(0, 10, 0.01) == 0.0
    assert lower_bound(100, 100, 0.001) == pytest.approx(0.001 ** (1 / 100))


def test_too_few_samples_are_told() -> None:
    with pytest.raises(ValueError, match=r"samples=9 certify nothing at alpha=0\.001, even if all agree; give samples=10 or"):
        check_samples(9, 0.001)
    check_samples(10, 0.001)
    assert lower_bound(10, 10, 0.001) > 0.5 >= lower_bound(9, 9, 0.001)
    with pytest.raises(ValueError, match="alpha=2 must lie in"):
        check_samples(100, 2)
    with pytest.raises(ValueError, match="sigma=0 must be above 0"):
        certify(lambda z: z, torch.zeros(2, 3), sigma=0)


# --- interval bounds ---


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=(2, 1), padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.LeakyReLU(), nn.AvgPool2d(2, padding=1), nn.Flatten(2),
        nn.Conv1d(6, 5, 3, dilation=2), nn.Dropout(0.5), nn.Tanh(), nn.AdaptiveAvgPool1d(1),
        nn.Flatten(), nn.Linear(5, 8), nn.Softplus(), nn.Linear(8, 3),
    )  # fmt: skip
    with torch.no_grad():
        for layer in made:
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_()  # type: ignore[union-attr]
                layer.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
                layer.weight.copy_(torch.tensor([1.0, -1.0, 0.5, -2.0]))
    return made.eval().requires_grad_(False)


def test_bounds_hold_on_ten_thousand_random_points() -> None:
    network = convolutional()
    middle = torch.randn(1, 1, 8, 14, generator=draws())
    half = 0.3 * torch.rand(1, 1, 8, 14, generator=draws(1))
    lower, upper = interval_bounds(network, middle - half, middle + half)
    points = torch.rand(9_000, 1, 8, 14, generator=draws(2))
    corners = torch.randint(0, 2, (1_000, 1, 8, 14), generator=draws(3)).float()  # extreme points are the hardest
    found = torch.cat([network(middle + (2 * part - 1) * half) for part in (points, corners)])
    assert (found >= lower - 1e-5).all() and (found <= upper + 1e-5).all()
    assert (upper > lower).all()


def test_bounds_of_a_point_are_its_output_and_of_a_linear_layer_are_reached() -> None:
    network, x = convolutional(), torch.randn(3, 1, 8, 14, generator=draws())
    lower, upper = interval_bounds(network, x, x)
    torch.testing.assert_close(lower, network(x))
    torch.testing.assert_close(upper, network(x))
    layer = nn.Linear(4, 2)
    lower, upper = interval_bounds(layer, torch.zeros(1, 4), torch.ones(1, 4))
    torch.testing.assert_close(upper[0], layer.weight.clamp(min=0).sum(1) + layer.bias)
    torch.testing.assert_close(lower[0], layer.weight.clamp(max=0).sum(1) + layer.bias)


def test_what_is_certified_withstands_attacks() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(40, 12), nn.ReLU(), nn.Linear(12, 3)).requires_grad_(False)
    x = torch.randn(60, 4, 10, generator=draws())
    y = network(x).argmax(1)
    shares = []
    for snr in (50, 30, 20):
        budget = within_snr(x, snr)
        holds = certified(network, x, y, budget)
        record = Fooled(network, x, y, budget)
        pgd(record.loss(), x, budget, steps=30, generator=draws())
        assert not (holds & record.found).any()
        shares.append(float(holds.float().mean()))
    assert shares[0] > 0.9 and shares == sorted(shares, reverse=True) and shares[-1] < 0.9
    wrong = certified(network, x, (y + 1) % 3, within_snr(x, math.inf))
    assert not wrong.any()


def test_the_last_layer_is_elided() -> None:
    """Two equal logits: bounds of each overlap, but their difference is 1 for every input."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [1.0, 2.0]]))
        layer.bias.copy_(torch.tensor([1.0, 0.0]))
    budget = Budget(torch.tensor([5.0]))
    assert certified(nn.Sequential(layer), torch.zeros(1, 2), torch.tensor([0]), budget).all()
    assert not certified(nn.Sequential(layer, nn.ReLU()), torch.zeros(1, 2), torch.tensor([0]), budget).any()


def test_layers_without_bounds_are_told() -> None:
    x = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="no interval bounds are known for GELU"):
        interval_bounds(nn.Sequential(nn.Linear(4, 4), nn.GELU()), x, x)
    with pytest.raises(ValueError, match=r"Dropout has no fixed bounds in training; call \.eval\(\) first"):
        interval_bounds(nn.Sequential(nn.Dropout(0.1)), x, x)
    with pytest.raises(ValueError, match="lower is above upper"):
        interval_bounds(nn.Linear(4, 4), x + 1, x)
    with pytest.raises(ValueError, match="padding_mode=reflect"):
        interval_bounds(nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect"), x[:, None], x[:, None])
    with pytest.raises(ValueError, match="norm=l2 has no interval bounds"):
        certified(nn.Linear(4, 2), x, torch.tensor([0]), Budget(torch.tensor([1.0]), "l2"))
