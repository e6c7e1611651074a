"""Builds the parameter groups of an optimizer."""

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
    """Returns the parameter groups: separate ones for each player and learning-rate factor.

    Matrices have weight decay; norms, biases and embeddings are in a group of their own without it.

    names: the name of each parameter, by its `id`. player_lr: learning rates of players that have their own. lr_factors: prefix
    of parameter names -> factor of their learning rates; the longest matching prefix counts.

    Raises:
        ValueError: player_lr names a player that does not exist.
    """
    if unknown := player_lr.keys() - players.keys():
        raise ValueError(f"player_lr names {sorted(unknown)}, but the players are {sorted(players)}")
    groups: list[dict[str, Any]] = []
    for player, modules in players.items():
        embeddings = {
            id(p)
            for module in modules
            for child in module.modules()
            if isinstance(child, nn.Embedding)
            for p in child.parameters()
        }
        unique = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
        factors = {key: rate_factor(names[key], lr_factors) for key in unique} if lr_factors else {}
        for factor in sorted(set(factors.values()) or {1.0}):
            chosen = {key: p for key, p in unique.items() if factors.get(key, 1.0) == factor}
            decay = [p for key, p in chosen.items() if p.ndim >= 2 and key not in embeddings]
            no_decay = [p for key, p in chosen.items() if p.ndim < 2 or key in embeddings]
            extra: dict[str, Any] = {"lr": player_lr[player]} if player in player_lr else {}
            if factor != 1:
                extra["lr_factor"] = factor
            if decay:
                groups.append({"params": decay, "player": player, **extra})
            if no_decay:
                groups.append({"params": no_decay, "player": player, "weight_decay": 0.0, **extra})
    return groups


def rate_factor(name: str, lr_factors: Mapping[str, float]) -> float:
    """Returns the learning-rate factor of the parameter `name`: that of the longest matching prefix, else 1."""
    matching = [prefix for prefix in lr_factors if name.startswith(prefix)]
    return lr_factors[max(matching, key=len)] if matching else 1.0
