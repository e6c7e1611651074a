"""Encoders of several tasks at once, which share nothing, something or everything.

Shapes: b rows, t tokens, d width, h tasks (heads).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from etude.models.symbolic.transformer import Transformer

SHARING = ("hard", "soft", "cross_stitch", "attention")
OWN = 0.9  # what a network keeps of itself at each cross-stitch at the start of training


class SharedEncoders(nn.Module):
    """Computes hidden states for each of several tasks.

    hard: one network for all (Caruana 1997).
    soft: a network for each; `distance` tells how far apart their weights are, which training may penalise (Duong et al. 2015).
    cross_stitch: a network for each; after every block each gets a learnt mixture of all (Misra et al. 2016, equation 1). With
        the identity as mixture they are separate networks.
    attention: one network; each task weighs the channels of every block's output by a learnt mask, and adds them up (after Liu et
        al. 2019; here one linear layer computes a mask, and nothing is pooled).

    Args:
        build: makes a network.
        tasks: names of the tasks, at least one.
        sharing: one of `SHARING`.

    Raises: ValueError for another sharing, or a network that is no Transformer.
    """

    def __init__(self, build: Callable[[], nn.Module], tasks: Sequence[str], *, sharing: str = "hard") -> None:
        super().__init__()
        if sharing not in SHARING:
            raise ValueError(f"task.sharing={sharing} is unknown; choose {', '.join(SHARING)}")
        self.sharing, self.tasks = sharing, tuple(tasks)
        networks = [build() for _ in (tasks if sharing in ("soft", "cross_stitch") else [None])]
        first = networks[0]
        if not isinstance(first, Transformer):
            raise ValueError(f"{type(first).__name__} has no blocks of hidden states to share; set model=tiny")
        for network in networks[1:]:  # from one point on
            network.load_state_dict(first.state_dict())
        self.networks = nn.ModuleList(networks)
        self.dim = first.dim
        depth, count = len(first.blocks), len(self.tasks)
        if sharing == "cross_stitch":
            others = (1 - OWN) / max(count - 1, 1)
            mixture_hh = torch.full((count, count), others).fill_diagonal_(OWN if count > 1 else 1.0)
            self.mixture = nn.Parameter(mixture_hh.repeat(depth, 1, 1))  # [blocks, h, h]
        if sharing == "attention":
            self.masks = nn.ModuleList(nn.ModuleList(nn.Linear(first.dim, first.dim) for _ in tasks) for _ in range(depth))

    def forward(self, tokens_bt: Tensor, **where: Any) -> dict[str, Tensor]:
        """Returns the hidden states of each task, [b, t, d], by name; `where` as of `Transformer.hidden`, without a cache."""
        if self.sharing == "cross_stitch":
            return self._stitched(tokens_bt, where)
        if self.sharing == "attention":
            return self._attended(tokens_bt, where)
        found = [network.hidden(tokens_bt, **where) for network in self.networks]  # type: ignore[operator]
        return {name: found[i if self.sharing == "soft" else 0] for i, name in enumerate(self.tasks)}

    def _stitched(self, tokens_bt: Tensor, where: dict[str, Any]) -> dict[str, Tensor]:
        networks: list[Any] = list(self.networks)
        begun = [network.begin(tokens_bt, **where) for network in networks]
        states = torch.stack([x for x, _, _ in begun])  # [h, b, t, d]
        for layer, mixture_hh in enumerate(self.mixture):
            outputs = [
                network.through(network.blocks[layer], x, rotary, packing)
                for network, x, (_, rotary, packing) in zip(networks, states, begun, strict=True)
            ]
            states = torch.einsum("gh,hbtd->gbtd", mixture_hh.to(outputs[0].dtype), torch.stack(outputs))
        return {name: network.end(x) for name, network, x in zip(self.tasks, networks, states, strict=True)}

    def _attended(self, tokens_bt: Tensor, where: dict[str, Any]) -> dict[str, Tensor]:
        network: Any = self.networks[0]
        x, rotary, packing = network.begin(tokens_bt, **where)
        sums: dict[str, Tensor] = {}
        for block, masks in zip(network.blocks, self.masks, strict=True):
            x = network.through(block, x, rotary, packing)
            for name, mask in zip(self.tasks, masks, strict=True):  # type: ignore[call-overload]
                masked = mask(x).sigmoid() * x
                sums[name] = sums[name] + masked if name in sums else masked
        return {name: network.end(total) for name, total in sums.items()}

    def distance(self) -> Tensor:
        """Returns the mean squared distance of the networks' weights from their mean, over all weights; 0 for one network."""
        groups = list(zip(*(network.parameters() for network in self.networks), strict=True))
        sums = [torch.stack(group).var(0, correction=0).sum() for group in groups]
        total: Tensor = torch.stack(sums).sum() / sum(group[0].numel() for group in groups)
        return total
