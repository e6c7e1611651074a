"""Learning to learn by gradient descent: the inner loop that MAML, first-order MAML and Reptile share.

An algorithm gets the weights and functions of weights, and knows no task.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from etude.losses.episodes import descended

Weights = dict[str, Tensor]
Slope = Callable[[Weights], Mapping[str, Tensor]]  # the gradient on the support, at these weights
Loss = Callable[[Weights], Tensor]


class InnerLoop(nn.Module):
    """Adapts weights to an episode by a few steps of gradient descent on its support.

    Args:
        dim: of the encoder's vectors, not used.
        rate: of the steps, above 0. steps: at least 1.
        test_steps: steps in evaluation, None for `steps`.
        learn_rates: learn a rate for each tensor of weights (Li et al. 2017, per tensor), from `rate` on.

    Raises: ValueError for a value out of range.
    """

    second_order = False  # whether `losses` differentiates through the gradients
    on_all_pieces = False  # whether training adapts to support and queries together
    term = "query"

    def __init__(
        self, *, dim: int, rate: float = 0.1, steps: int = 3, test_steps: int | None = None, learn_rates: bool = False
    ) -> None:
        super().__init__()
        if rate <= 0 or steps < 1 or (test_steps is not None and test_steps < 1):
            raise ValueError(
                f"algorithm.rate={rate} must be above 0, and algorithm.steps={steps} and test_steps={test_steps} at least 1"
            )
        self.rate, self.steps, self.test_steps, self.learn_rates = rate, steps, test_steps or steps, learn_rates
        self.log_rates: nn.Parameter | None = None
        self.names: tuple[str, ...] = ()

    def attach(self, names: Sequence[str]) -> None:
        """Tells the names of the weights that it will adapt."""
        self.names = tuple(names)
        if self.learn_rates:
            self.log_rates = nn.Parameter(torch.full((len(self.names),), math.log(self.rate)))

    def rates(self) -> dict[str, Tensor | float]:
        """Returns the rate of each weight."""
        if self.log_rates is None:
            return dict.fromkeys(self.names, self.rate)
        return dict(zip(self.names, self.log_rates.exp(), strict=True))

    def adapted(self, weights: Weights, slope: Slope, *, steps: int) -> Weights:
        """Returns the weights after `steps` steps, with a graph to the first ones (and through `slope`, if that has one)."""
        known = self.rates()
        rates = {name: known.get(name, self.rate) for name in weights}  # a technique may have added weights
        for _ in range(steps):
            weights = descended(weights, slope(weights), rates)
        return weights

    def losses(self, weights: Weights, slope: Slope, query_loss: Loss) -> Tensor:
        """Returns the loss of an episode: that of the queries at the adapted weights."""
        return query_loss(self.adapted(weights, slope, steps=self.steps))
