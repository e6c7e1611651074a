"""The trainer's gradient clipping, for each player by itself."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def clip_players(
    players: Mapping[str, Sequence[nn.Module]], value: float | None, algorithm: str | None, *, guarded: bool
) -> dict[str, Tensor]:
    """Measures each player's gradient where it is clipped or guarded, and clips it; returns the norms before clipping.

    guarded: whether a technique looks at the gradients afterwards and may leave the step out. It wants to find what is not
    finite where it began, which clipping would spread.
    """
    norms: dict[str, Tensor] = {}
    if not value and not guarded:
        return norms
    for player, modules in players.items():
        parameters = [p for module in modules for p in module.parameters() if p.grad is not None]
        if not parameters:
            continue
        norm: Any = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        split = hasattr(norm, "full_tensor")  # trainer=fsdp
        norms[player] = norm.full_tensor() if split else norm
        if value and algorithm == "value":
            if not guarded or norm.isfinite():
                nn.utils.clip_grad_value_(parameters, value)
        elif value and split:
            nn.utils.clip_grad_norm_(parameters, value)
        elif value:
            nn.utils.clip_grads_with_norm_(parameters, value, torch.where(norm.isfinite(), norm, 0.0) if guarded else norm)
    return norms
