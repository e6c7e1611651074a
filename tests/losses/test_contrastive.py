"""Losses of self-supervised learning against their definitions, example by example."""

import math

import pytest
import torch

from etude.losses.contrastive import effective_rank, info_nce, nt_xent, regression, sinkhorn, swapped_prediction


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_nt_xent_is_its_definition(temperature: float) -> None:
    one, two = vectors(5, 7), vectors(5, 7, seed=1)
    both, total = [*one, *two], 0.0
    for i in range(10):
        similar = [math.exp(cosine(both[i], both[k]) / temperature) if k != i else 0.0 for k in range(10)]
        total -= math.log(similar[(i + 5) % 10] / sum(similar))
    assert float(nt_xent(one, two, temperature=temperature)) == pytest.approx(total / 10, abs=1e-6)
    torch.testing.assert_close(nt_xent(one, two), nt_xent(two, one))
    torch.testing.assert_close(nt_xent(one, two), nt_xent(3 * one, two))


def test_info_nce_is_its_definition_and_keys_are_constants() -> None:
    query, key, queue = vectors(4, 6).requires_grad_(), vectors(4, 6, seed=1).requires_grad_(), vectors(9, 6, seed=2)
    loss = info_nce(query, key, queue, temperature=0.5)
    total = 0.0
    for q, k in zip(query.detach(), key.detach(), strict=True):
        others = sum(math.exp(cosine(q, other) / 0.5) for other in queue)
        own = math.exp(cosine(q, k) / 0.5)
        total -= math.log(own / (own + others))
    assert float(loss.detach()) == pytest.approx(total / 4, abs=1e-6)
    loss.backward()
    assert query.grad is not None and key.grad is None


def test_the_regression_is_the_squared_distance_of_unit_vectors() -> None:
    one, two = vectors(6, 5), vectors(6, 5, seed=1)
    unit = [x / x.norm(dim=1, keepdim=True) for x in (one, two)]
    torch.testing.assert_close(regression(one, two), (unit[0] - unit[1]).square().sum(1).mean())
    assert float(regression(one, 2 * one)) == pytest.approx(0, abs=1e-6)


def test_sinkhorn_uses_all_prototypes_equally() -> None:
    scores = vectors(40, 5).tanh()
    found = sinkhorn(scores, iterations=200)
    torch.testing.assert_close(found.sum(1), torch.ones(40))
    torch.testing.assert_close(found.sum(0), torch.full((5,), 8.0), atol=1e-3, rtol=0)
    constant = sinkhorn(torch.zeros(8, 4))
    torch.testing.assert_close(constant, torch.full((8, 4), 0.25))


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_sinkhorn_is_its_definition(iterations: int) -> None:
    """Plain products in double precision, as in the listing of Caron et al. 2020, appendix A."""
    scores = vectors(40, 6).tanh()
    matrix = (scores.double() / 0.05).exp().T
    matrix = matrix / matrix.sum()
    for _ in range(iterations):
        matrix = matrix / matrix.sum(1, keepdim=True) / 6
        matrix = matrix / matrix.sum(0, keepdim=True) / 40
    expected = (matrix * 40).T
    assert float((sinkhorn(scores, iterations=iterations).double() - expected).abs().max()) < 1e-6


def test_the_swapped_prediction_is_a_cross_entropy() -> None:
    scores, assigned = vectors(6, 3), torch.eye(3)[[0, 1, 2, 0, 1, 2]]
    expected = torch.nn.functional.cross_entropy(scores / 0.1, assigned.argmax(1))
    torch.testing.assert_close(swapped_prediction(scores, assigned), expected)


def test_the_rank_counts_the_dimensions_that_are_used() -> None:
    line = torch.linspace(-1, 1, 50)[:, None] * vectors(1, 8)
    assert float(effective_rank(line)) == pytest.approx(1, abs=1e-4)
    ball = torch.linalg.qr(vectors(50, 8) - vectors(50, 8).mean(0)).Q
    assert float(effective_rank(ball)) == pytest.approx(8, abs=0.05)
