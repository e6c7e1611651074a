"""Stochastic depth: residual blocks that are left out of some batches in training."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class StochasticDepth:
    """Leaves out residual blocks at random: the last one with `probability`, earlier ones linearly less often, down to 0.

    What a block adds is divided by the probability with which it is kept in training, and not scaled later.

    Args:
        blocks: first to last; their `forward` is replaced. probability: in (0, 1).

    Source: Huang et al. 2016, equation 4.
    """

    def __init__(self, blocks: Sequence[nn.Module], probability: float) -> None:
        self.size, self.probability = len(blocks), probability
        self.left_out: set[int] = set()  # numbers of the blocks that the next batch goes around
        for number, block in enumerate(blocks):
            block.forward = self.around(block.forward, number, block)

    def draw(self, draws: torch.Generator) -> None:
        """Draws which blocks the next batch goes around."""
        chance = torch.rand(self.size, generator=draws)
        self.left_out = {i for i in range(self.size) if chance[i] < 1 - self.kept(i)}

    def kept(self, number: int) -> float:
        """Returns the probability with which a block is kept."""
        return 1 - self.probability * (number + 1) / self.size

    def around(self, forward: Any, number: int, block: nn.Module) -> Any:
        """Returns a forward function that leaves the block out where it was drawn."""

        def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not block.training:
                return forward(x, *args, **kwargs)
            return x if number in self.left_out else x + (forward(x, *args, **kwargs) - x) / self.kept(number)

        return run
