"""Objectives of episodes: inner loops are the formulas, prototypes of one shot are neighbours, attention sums over pieces."""

from collections.abc import Mapping

import torch
from torch import Tensor

from etude.losses.episodes import attention_logits, half_squared_distance, negative_squared_distances, prototypes
from etude.objectives.inner_loop import InnerLoop
from etude.objectives.maml import Fomaml, Maml
from etude.objectives.matching import Matching
from etude.objectives.prototypical import Prototypical
from etude.objectives.reptile import Reptile


def quadratic() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(4, 4, generator=generator).double()
    return root @ root.T + torch.eye(4).double(), *torch.randn(2, 4, generator=generator).double()


def meta_gradient(loop: InnerLoop) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradient of an episode with support loss t'Ht/2 - c't and query loss sum t^3, theta, and the slope."""
    hessian, c, start = quadratic()
    theta = start.clone().requires_grad_()

    def slope(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        t = weights["t"]
        (found,) = torch.autograd.grad(0.5 * t @ hessian @ t - c @ t, t, create_graph=loop.second_order)
        return {"t": found}

    loop.attach({"t": torch.zeros(4).double()})
    (found,) = torch.autograd.grad(loop.losses({"t": theta}, slope, lambda weights: (weights["t"] ** 3).sum()), theta)
    return found, theta.detach(), hessian @ theta.detach() - c


def test_mamls_gradient_is_that_of_the_quadratic() -> None:
    found, theta, slope = meta_gradient(Maml(dim=1, rate=0.05, steps=1))
    expected = (torch.eye(4).double() - 0.05 * quadratic()[0]) @ (3 * (theta - 0.05 * slope) ** 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_the_first_order_gradient_is_the_one_at_the_adapted_point() -> None:
    found, theta, slope = meta_gradient(Fomaml(dim=1, rate=0.05, steps=1))
    torch.testing.assert_close(found, 3 * (theta - 0.05 * slope) ** 2, rtol=0, atol=1e-9)


def test_one_step_of_reptile_is_the_gradient_and_several_go_to_the_adapted_weights() -> None:
    found, _, slope = meta_gradient(Reptile(dim=1, rate=0.05, steps=1))
    torch.testing.assert_close(found, slope, rtol=0, atol=1e-9)
    found, theta, _ = meta_gradient(Reptile(dim=1, rate=0.05, steps=3))
    hessian, c, _ = quadratic()
    adapted = theta
    for _ in range(3):
        adapted = adapted - 0.05 * (hessian @ adapted - c)
    torch.testing.assert_close(found, (theta - adapted) / 0.15, rtol=0, atol=1e-9)


def test_learnt_rates_get_a_gradient() -> None:
    loop = Maml(dim=1, rate=0.05, steps=1, learn_rates=True)
    loop.attach({"t": torch.zeros(4).double()})
    hessian, c, start = quadratic()
    theta = {"t": start.clone().requires_grad_()}
    slope = {"t": hessian @ start - c}
    loss = loop.losses(theta, lambda _: slope, lambda weights: (weights["t"] ** 3).sum())
    assert loop.log_rates is not None
    (found,) = torch.autograd.grad(loss, loop.log_rates)
    expected = -(0.05 * slope["t"] * 3 * (start - 0.05 * slope["t"]) ** 2).sum()
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-5, atol=1e-6)


def test_prototypes_are_means_and_with_one_shot_nearest_neighbours() -> None:
    torch.manual_seed(0)
    support, query, way = torch.randn(6, 5), torch.randn(7, 5), torch.tensor([2, 0, 1, 1, 0, 2])
    torch.testing.assert_close(prototypes(support, way, ways=3)[1], (support[2] + support[3]) / 2)
    one, order = support[:4], torch.tensor([3, 1, 0, 2])
    for distance, expected in (
        ("euclidean", torch.cdist(query, one).argmin(1)),
        ("cosine", torch.cosine_similarity(query[:, None], one[None], dim=-1).argmax(1)),
    ):
        logits = Prototypical(dim=5, distance=distance).logits(one, order, query, ways=4)
        assert torch.equal(logits.argmax(1), order[expected])
    torch.testing.assert_close(-negative_squared_distances(query, one), torch.cdist(query, one) ** 2)


def test_attention_to_ways_is_the_sum_of_the_attention_to_their_pieces() -> None:
    torch.manual_seed(0)
    similarity, way = torch.randn(4, 6), torch.tensor([0, 2, 1, 2, 0, 0])
    attention = similarity.softmax(-1)
    expected = torch.stack([attention[:, way == n].sum(1) for n in range(3)], dim=1)
    torch.testing.assert_close(attention_logits(similarity, way, ways=3).softmax(-1), expected)


def test_full_context_depends_on_the_whole_support_and_can_be_left_out() -> None:
    torch.manual_seed(0)
    support, query = torch.randn(4, 6), torch.randn(3, 6)
    full, plain = Matching(dim=6), Matching(dim=6, full_context=False)
    changed = support.clone()
    changed[0] += 1
    assert not torch.allclose(full.in_context(support, query)[1], full.in_context(changed, query)[1])
    assert plain.in_context(support, query)[1] is query and not list(plain.parameters())


def test_half_a_squared_distance_holds_the_other_end_fixed() -> None:
    one, other = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    half_squared_distance({"w": one}, {"w": other}).backward()
    torch.testing.assert_close(one.grad, (one - other).detach())
    assert other.grad is None
