"""Encoders of several tasks at once, which share nothing, something or everything.

Shapes: b rows, t places in time (tokens or frames), d width, h tasks (heads).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

SHARING = ("hard", "soft", "cross_stitch", "attention")
OWN = 0.9  # what a network keeps of itself at each cross-stitch at the start of training


@runtime_checkable
class Encoder(Protocol):
    """A network of blocks that several tasks can share, such as a `Transformer` or a `MelEncoder`."""

    dim: int
    blocks: nn.ModuleList

    def hidden(self, *inputs: Any, **where: Any) -> Tensor:
        """Returns the hidden states [b, t, d]: `begin`, then `through` for each block, then `end`."""
        ...

    def begin(self, *inputs: Any, **where: Any) -> tuple[Any, ...]:
        """Returns what the first block gets, [b, t, d], and what all blocks get beside it."""
        ...

    def through(self, block: nn.Module, x_btd: Tensor, *beside: Any) -> Tensor:
        """Returns the output of one of `blocks`, [b, t, d]."""
        ...

    def end(self, x_btd: Tensor) -> Tensor:
        """Returns the hidden states of the last block's output."""
        ...


class SharedEncoders(nn.Module):
    """Computes hidden states for each of several tasks.

    hard: one network for all (Caruana 1997), or one for each group of tasks.
    soft: a network for each; `distance` tells how far apart their weights are, which training may penalise (Duong et al. 2015).
    cross_stitch: a network for each; after every block each gets a learnt mixture of all (Misra et al. 2016, equation 1). With
        the identity as mixture they are separate networks.
    attention: one network; each task weighs the channels of every block's output by a learnt mask, and adds them up (after Liu et
        al. 2019; here one linear layer computes a mask, and nothing is pooled).

    Args:
        build: makes a network.
        groups: names of the tasks, at least one, in groups; one group for tasks that are trained together. Several groups
            share nothing with each other, each task is in one of them, and sharing is hard.
        sharing: one of `SHARING`.

    Raises: ValueError for another sharing, several groups with another sharing than hard, or a network without blocks.
    """

    def __init__(self, build: Callable[[], nn.Module], groups: Sequence[Sequence[str]], *, sharing: str = "hard") -> None:
        super().__init__()
        if sharing not in SHARING:
            raise ValueError(f"sharing={sharing} is unknown; choose {', '.join(SHARING)}")
        if len(groups) > 1 and sharing != "hard":
            raise ValueError(
                f"sharing={sharing} is for heads that are trained together, and these are in {len(groups)} groups that share "
                "nothing; set sharing=hard, or give heads=[...] without groups"
            )
        self.sharing, self.tasks = sharing, tuple(name for group in groups for name in group)
        apart = sharing in ("soft", "cross_stitch")
        networks = [build() for _ in (self.tasks if apart else groups)]
        first = networks[0]
        if not isinstance(first, Encoder):
            raise ValueError(f"{type(first).__name__} has no blocks of hidden states to share; set model=tiny")
        for network in networks[1:]:  # from one point on
            network.load_state_dict(first.state_dict())
        self.networks = nn.ModuleList(networks)
        # the number of each task's network
        self.places = list(range(len(self.tasks))) if apart else [i for i, group in enumerate(groups) for _ in group]
        self.dim = first.dim
        depth, count = len(first.blocks), len(self.tasks)
        if sharing == "cross_stitch":
            others = (1 - OWN) / max(count - 1, 1)
            mixture_hh = torch.full((count, count), others).fill_diagonal_(OWN if count > 1 else 1.0)
            self.mixture = nn.Parameter(mixture_hh.repeat(depth, 1, 1), requires_grad=count > 1)  # [blocks, h, h]
        if sharing == "attention":
            self.masks = nn.ModuleList(nn.ModuleList(nn.Linear(first.dim, first.dim) for _ in self.tasks) for _ in range(depth))

    def forward(self, *inputs: Any, **where: Any) -> dict[str, Tensor]:
        """Returns the hidden states of each task, [b, t, d], by name; arguments as of the network's `hidden`, without a cache."""
        if self.sharing == "cross_stitch":
            return self._stitched(inputs, where)
        if self.sharing == "attention":
            return self._attended(inputs, where)
        found = [network.hidden(*inputs, **where) for network in self.networks]  # type: ignore[operator]
        return {name: found[place] for name, place in zip(self.tasks, self.places, strict=True)}

    def _stitched(self, inputs: tuple[Any, ...], where: dict[str, Any]) -> dict[str, Tensor]:
        networks: list[Any] = list(self.networks)
        begun = [network.begin(*inputs, **where) for network in networks]
        states = torch.stack([x for x, *_ in begun])  # [h, b, t, d]
        for layer, mixture_hh in enumerate(self.mixture):
            outputs = [
                network.through(network.blocks[layer], x, *beside)
                for network, x, (_, *beside) in zip(networks, states, begun, strict=True)
            ]
            states = torch.einsum("gh,hbtd->gbtd", mixture_hh.to(outputs[0].dtype), torch.stack(outputs))
        return {name: network.end(x) for name, network, x in zip(self.tasks, networks, states, strict=True)}

    def _attended(self, inputs: tuple[Any, ...], where: dict[str, Any]) -> dict[str, Tensor]:
        network: Any = self.networks[0]
        x, *beside = network.begin(*inputs, **where)
        sums: dict[str, Tensor] = {}
        for block, masks in zip(network.blocks, self.masks, strict=True):
            x = network.through(block, x, *beside)
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
