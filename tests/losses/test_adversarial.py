"""Values by hand, one tensor equal to one scale, R1 against a quadratic."""

import math
from typing import Any, get_args

import pytest
import torch

from etude.losses.adversarial import Kind, discriminator_loss, generator_loss, r1_penalty

KINDS = get_args(Kind)


@pytest.mark.parametrize(
    ("kind", "generator", "discriminator"),
    [
        ("lsgan", (0.5 - 1) ** 2, (2 - 1) ** 2 + 0.5**2),
        ("hinge", -0.5, 0 + 1.5),
        ("non_saturating", math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(-2)) + math.log(1 + math.exp(0.5))),
    ],
)
def test_values_by_hand(kind: Any, generator: float, discriminator: float) -> None:
    real, fake = torch.full((2, 1, 3, 4), 2.0), torch.full((2, 1, 3, 4), 0.5)
    assert generator_loss(fake, kind).item() == pytest.approx(generator)
    assert discriminator_loss(real, fake, kind).item() == pytest.approx(discriminator)


@pytest.mark.parametrize("kind", KINDS)
def test_scales_weigh_alike_whatever_their_patches(kind: Any) -> None:
    large, small = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 2, 2)
    both = generator_loss([large, small], kind)
    torch.testing.assert_close(both, (generator_loss(large, kind) + generator_loss(small, kind)) / 2)
    told = discriminator_loss([large, small], [small, large], kind)
    torch.testing.assert_close(told, (discriminator_loss(large, small, kind) + discriminator_loss(small, large, kind)) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_players_pull_apart(kind: Any) -> None:
    fake = torch.zeros(3, requires_grad=True)
    (up,) = torch.autograd.grad(generator_loss(fake, kind), fake)
    (down,) = torch.autograd.grad(discriminator_loss(torch.zeros(3), fake + 0.5, kind), fake)
    assert (up < 0).all() and (down > 0).all()  # descending raises the logit for one, lowers it for the other


def test_the_non_saturating_discriminator_is_binary_cross_entropy() -> None:
    real, fake = torch.randn(2, 5), torch.randn(2, 5)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    expected = bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))
    torch.testing.assert_close(discriminator_loss(real, fake, "non_saturating"), expected)


def test_r1_of_a_quadratic_is_known_and_differentiable() -> None:
    # D(x) = a |x|^2: the gradient is 2 a x, its square 4 a^2 |x|^2, and d/da of that 8 a |x|^2
    real, a = torch.randn(3, 2, 4), torch.tensor(0.7, requires_grad=True)
    seen = real.clone().requires_grad_()
    penalty = r1_penalty(a * seen.square(), seen)
    square = real.square().sum() / 3
    torch.testing.assert_close(penalty, 4 * a**2 * square)
    torch.testing.assert_close(torch.autograd.grad(penalty, a)[0], 8 * a.detach() * square)


def test_r1_sums_the_scales() -> None:
    seen = torch.randn(2, 3, requires_grad=True)
    torch.testing.assert_close(r1_penalty([seen, 2 * seen], seen), torch.tensor(27.0))  # gradient 3 in each of 3 places


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(ValueError, match=r"kind is 'wgan'; choose one of lsgan"):
        generator_loss(torch.zeros(1), "wgan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 scales and fake_logits 1"):
        discriminator_loss([torch.zeros(1)] * 2, torch.zeros(1), "hinge")
    with pytest.raises(ValueError, match="no scale"):
        generator_loss([], "hinge")
    with pytest.raises(ValueError, match="requires_grad_"):
        r1_penalty(torch.zeros(1), torch.zeros(1))
