"""The trainer's gradient clipping, applied to each player separately."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def clip_players(
    players: Mapping[str, Sequence[nn.Module]], value: float | None, algorithm: str | None, *, guarded: bool
) -> dict[str, Tensor]:
    """Clips the gradient of each player; returns the norms before clipping, by player.

    Without clipping (`value` is None or 0) and not `guarded`, nothing is measured and the result is empty.

    value, algorithm: the trainer's `gradient_clip_val` and `gradient_clip_algorithm` ("value" or "norm").
    guarded: a technique examines the gradients afterwards and may skip the step. A gradient with NaN is then not clipped:
        clipping would spread the NaN to all parameters and hide where it came from.
    """
    norms: dict[str, Tensor] = {}
    if not value and not guarded:
        return norms
    for player, modules in players.items():
        parameters = [p for module in modules for p in module.parameters() if p.grad is not None]
        if not parameters:
            continue
        norm: Any = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        sharded = hasattr(norm, "full_tensor")  # trainer=fsdp
        norms[player] = norm.full_tensor() if sharded else norm
        if value and algorithm == "value":
            if not guarded or norm.isfinite():
                nn.utils.clip_grad_value_(parameters, value)
        elif value and sharded:
            nn.utils.clip_grad_norm_(parameters, value)
        elif value:
            nn.utils.clip_grads_with_norm_(parameters, value, torch.where(norm.isfinite(), norm, 0.0) if guarded else norm)
    return norms
