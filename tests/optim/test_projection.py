"""Projections against their definitions and another solver of the same quadratic programme."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from etude.optim.projection import averaged_projection, episodic_projection


def vectors(seed: int, count: int, size: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """A gradient and memories of which some point against it."""
    draws = torch.Generator().manual_seed(seed)
    gradient = torch.randn(size, generator=draws, dtype=torch.float64)
    memories = torch.randn(count, size, generator=draws, dtype=torch.float64)
    return gradient, memories - torch.linspace(0, 1, count).double()[:, None] * gradient


@pytest.mark.parametrize("seed", range(20))
def test_no_projection_points_against_a_memory(seed: int) -> None:
    gradient, memories = vectors(seed, 1 + seed % 6)
    assert (memories @ episodic_projection(gradient, memories)).min() > -1e-12
    for memory in memories:
        found = averaged_projection(gradient, memory)
        assert found @ memory > -1e-12
        if gradient @ memory >= 0:
            assert torch.equal(found, gradient)
        far = averaged_projection(gradient, memory, margin=0.5)
        assert far @ memory >= 0.5 * gradient.norm() * memory.norm() - 1e-12


@pytest.mark.parametrize("margin", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_solution_of_the_quadratic_programme(seed: int, margin: float) -> None:
    gradient, memories = vectors(seed, 4)
    units = memories / memories.norm(dim=1, keepdim=True)
    g, m = gradient.numpy(), units.numpy()
    solved = minimize(
        lambda w: 0.5 * np.sum((g + m.T @ w) ** 2), np.full(4, margin), jac=lambda w: m @ (g + m.T @ w),
        bounds=[(margin, None)] * 4, tol=1e-15, options={"maxiter": 10_000, "ftol": 1e-18, "gtol": 1e-14},
    )  # fmt: skip
    np.testing.assert_allclose(episodic_projection(gradient, memories, margin=margin).numpy(), g + m.T @ solved.x, atol=1e-6)


def test_no_feasible_vector_is_nearer() -> None:
    gradient, memories = vectors(3, 3)
    found = episodic_projection(gradient, memories)
    draws = torch.Generator().manual_seed(0)
    for _ in range(300):
        other = found + 0.1 * torch.randn(40, generator=draws, dtype=torch.float64)
        if (memories @ other).min() >= 0:
            assert (other - gradient).norm() > (found - gradient).norm()


def test_equal_opposite_and_empty_memories_are_no_trouble() -> None:
    gradient, _ = vectors(1, 1)
    against = -gradient
    assert episodic_projection(gradient, torch.stack([against, against])).norm() < 1e-12
    assert torch.equal(episodic_projection(gradient, torch.zeros(2, 40).double()), gradient)
    assert torch.equal(episodic_projection(gradient, gradient[None]), gradient)
