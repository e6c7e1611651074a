"""What techniques of quadratic penalties share: the penalty by player, and Fisher information of single examples."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from etude.core.batch import Batch
from etude.core.random_state import random_state, set_random_state
from etude.core.task import Task


def players_of(task: Task) -> dict[str, dict[str, Tensor]]:
    """Returns the trained parameters of each player by name; those of several names are under their first."""
    names = {id(p): name for name, p in task.named_parameters()}
    return {
        player: {names[id(p)]: p for module in modules for p in module.parameters() if p.requires_grad}
        for player, modules in task.players.items()
    }


def term_of(player: str, name: str, task: Task) -> str:
    """Returns the name of a term of a player: `player/name`, or the name alone if the task has one player."""
    return name if len(task.players) == 1 else f"{player}/{name}"


def quadratic(task: Task, name: str, importance: Mapping[str, Tensor], centre: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns sum_i importance_i * (weight_i - centre_i)^2 for each player, as loss terms.

    Of a weight that has grown since, the entries that were there then count.
    """
    found = {}
    for player, weights in players_of(task).items():
        sums = [
            (importance[key] * (like(weight, centre[key]) - centre[key]).square()).sum()
            for key, weight in weights.items()
            if key in importance
        ]
        if sums:
            found[term_of(player, name, task)] = torch.stack(sums).sum()
    return found


def holds_any(task: Task, importance: Mapping[str, Tensor]) -> bool:
    """Returns whether `quadratic` holds any weight that is trained now; a network that grows may have frozen all of them."""
    return any(name in importance for weights in players_of(task).values() for name in weights)


def like(weight: Tensor, smaller: Tensor) -> Tensor:
    """Returns the first entries of a weight in every dimension, in the shape of what it was before it grew."""
    return weight if weight.shape == smaller.shape else weight[tuple(slice(size) for size in smaller.shape)]


@contextmanager
def evaluation_draws(task: Task, seed: int) -> Iterator[None]:
    """Within this context the task is in evaluation mode and draws depend on the seed alone; then both are as before."""
    modes, states = {module: module.training for module in task.modules()}, random_state(task.device)
    task.eval()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(task.device, states)
        for module, training in modes.items():
            module.training = training


def fisher_diagonal(task: Task, examples: Iterable[Batch], *, seed: int = 0) -> dict[str, Tensor]:
    """Returns the mean over examples of the squared gradient of the loss of each, by the name of the parameter.

    It is the diagonal of the empirical Fisher information, with the targets of the data. Each example is differentiated by
    itself: the square of the gradient of a batch of 64 would be about 85 times too small. Without dropout.

    Args:
        examples: batches of one example each, at least one.
        seed: of the draws of tasks whose losses draw.

    Source: Kirkpatrick et al. 2017, equation 3; Kunstner et al. 2019 on what distinguishes it from the Fisher information.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    for example in examples:
        with evaluation_draws(task, seed + count):
            for name, slope in task.gradient_of(example).items():
                sums[name] = sums[name] + slope.square() if name in sums else slope.square()
        count += 1
    if not count:
        raise ValueError("there is no example to compute the Fisher information of; let the phase train on some pieces")
    return {name: value / count for name, value in sums.items()}
