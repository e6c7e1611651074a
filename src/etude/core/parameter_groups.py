"""Which parameters an optimizer treats alike."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn


def parameter_groups(
    players: Mapping[str, Sequence[nn.Module]],
    names: Mapping[int, str],
    *,
    player_lr: Mapping[str, float],
    lr_factors: Mapping[str, float],
) -> list[dict[str, Any]]:
    """One or two groups a player and factor of the learning rate: matrices that decay; norms, biases and embeddings that do not.

    names: of each parameter, by its `id`. player_lr: learning rate of a player where it has one of its own. lr_factors: of the
    parameters whose names begin so, the longest beginning wins.

    Raises:
        ValueError: player_lr names a player that is not there.
    """
    if unknown := player_lr.keys() - players.keys():
        raise ValueError(f"player_lr names {sorted(unknown)}, but the players are {sorted(players)}")
    groups: list[dict[str, Any]] = []
    for player, modules in players.items():
        spared = {
            id(p)
            for module in modules
            for child in module.modules()
            if isinstance(child, nn.Embedding)
            for p in child.parameters()
        }
        unique = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
        factors = {key: rate_factor(names[key], lr_factors) for key in unique} if lr_factors else {}
        for factor in sorted(set(factors.values()) or {1.0}):
            mine = {key: p for key, p in unique.items() if factors.get(key, 1.0) == factor}
            decay = [p for key, p in mine.items() if p.ndim >= 2 and key not in spared]
            rest = [p for key, p in mine.items() if p.ndim < 2 or key in spared]
            extra: dict[str, Any] = {"lr": player_lr[player]} if player in player_lr else {}
            if factor != 1:
                extra["lr_factor"] = factor
            if decay:
                groups.append({"params": decay, "player": player, **extra})
            if rest:
                groups.append({"params": rest, "player": player, "weight_decay": 0.0, **extra})
    return groups


def rate_factor(name: str, lr_factors: Mapping[str, float]) -> float:
    """Factor of the learning rate of the parameter `name`: that of the longest beginning of it, 1 without one."""
    matching = [prefix for prefix in lr_factors if name.startswith(prefix)]
    return lr_factors[max(matching, key=len)] if matching else 1.0
