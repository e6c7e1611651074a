"""Masked modelling: hide some tokens and predict them from both sides.

Shapes: b rows, t tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Corrupted(NamedTuple):
    """tokens: [b, t], some replaced by others. hidden: where a mask stands instead. asked: what must be predicted."""

    tokens: Tensor
    hidden: Tensor
    asked: Tensor


class Masked(nn.Module):
    """Chooses tokens to be predicted: of those, some are hidden by a mask, some are replaced by others, and some stay.

    Args:
        dim: width of the encoder, not used. share: of the tokens, that are to be predicted, in (0, 1).
        replaced, kept: share of those that another token of the batch replaces, and that stay; the rest gets a mask.
        span: mean number of consecutive tokens that are chosen together, at least 1.

    Source: Devlin et al. 2019, section 3.1; Joshi et al. 2020 (spans).
    """

    def __init__(self, *, dim: int, share: float = 0.15, replaced: float = 0.1, kept: float = 0.1, span: float = 3.0) -> None:
        super().__init__()
        if not 0 < share < 1 or min(replaced, kept) < 0 or replaced + kept > 1 or span < 1:
            raise ValueError(
                f"objective.share={share} must lie in (0, 1), replaced={replaced} and kept={kept} in [0, 1] together, "
                f"and span={span} be at least 1"
            )
        self.share, self.replaced, self.kept, self.span = share, replaced, kept, span

    def corrupt(self, tokens_bt: Tensor, real_bt: Tensor) -> Corrupted:
        """Returns the tokens with some hidden or replaced; real_bt: which are no padding. Draws from torch's generator."""
        shape, device = tokens_bt.shape, tokens_bt.device
        begins = torch.rand(shape, device=device) < -torch.log1p(torch.tensor(-self.share, device=device)) / self.span
        asked = begins.clone()
        running = begins
        while running.any():  # a span goes on with probability 1 - 1 / span
            running = running[:, :-1] & (torch.rand(shape[0], running.shape[1] - 1, device=device) < 1 - 1 / self.span)
            if not running.shape[1]:
                break
            asked[:, shape[1] - running.shape[1] :] |= running
        asked &= real_bt
        kind = torch.rand(shape, device=device)
        others = tokens_bt.flatten()[torch.randint(tokens_bt.numel(), shape, device=device)]
        replaced = asked & (kind < self.replaced)
        hidden = asked & (kind >= self.replaced + self.kept)
        return Corrupted(torch.where(replaced, others, tokens_bt), hidden, asked)
