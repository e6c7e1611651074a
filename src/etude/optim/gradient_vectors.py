"""Gradients of whole players as vectors, for projections."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from etude.core.batch import Batch
from etude.core.task import Task


@dataclass(frozen=True)
class PlayerGradient:
    """The gradient of a player that waits for the optimizer step, as one vector; only of parameters that have one.

    parameters: in the order of the vector. vector: a copy, [n].
    """

    parameters: list[nn.Parameter]
    vector: Tensor


def player_gradients(task: Task, sections: Sequence[Sequence[Batch]]) -> Iterator[tuple[PlayerGradient, list[Tensor]]]:
    """Yields for each player its gradient and, as vectors of the same weights, those on the batches of each section.

    The gradient of a section is the mean over its batches. Players without a gradient are left out.
    """
    slopes = [_mean(task, batches) for batches in sections]
    names = {id(p): name for name, p in task.named_parameters()}
    for modules in task.players.values():
        own = list({id(p): p for module in modules for p in module.parameters() if p.grad is not None}.values())
        if own:
            vector = torch.cat([p.grad.detach().flatten() for p in own if p.grad is not None])
            yield PlayerGradient(own, vector), [torch.cat([_of(each, names[id(p)], p) for p in own]) for each in slopes]


def write_gradient(own: PlayerGradient, vector: Tensor) -> None:
    """Writes a vector into `.grad` of the player's parameters."""
    at = 0
    for p in own.parameters:
        assert p.grad is not None
        p.grad.copy_(vector[at : at + p.numel()].view_as(p))
        at += p.numel()


def _mean(task: Task, batches: Sequence[Batch]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for batch in batches:
        for name, slope in task.gradient_of(batch).items():
            found[name] = found[name] + slope / len(batches) if name in found else slope / len(batches)
    return found


def _of(slopes: dict[str, Tensor], name: str, p: nn.Parameter) -> Tensor:
    return slopes[name].flatten() if name in slopes else torch.zeros_like(p).flatten()
