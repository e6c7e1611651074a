"""Episodes of a batch, and the inner loops on them that tasks of meta-learning share.

A task adapts all its weights but those of its algorithm. A batch of episodes holds, beside what the task reads, the entries
`episode`, `way` and `query` [b, t] of `etude.data.scores.episodes`; one without `query` is a support or the queries of one.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from etude.core.batch import Batch
from etude.core.factories import kind_of
from etude.core.gradients import gradients_enabled
from etude.core.measuring import Measure, Measured
from etude.core.task import Task
from etude.objectives.inner_loop import InnerLoop, Loss, Slope, Weights

ALGORITHM = "algorithm."  # what the names of an algorithm's own parameters begin with


def episodes(batch: Batch) -> Iterator[tuple[Batch, Batch]]:
    """Yields support and queries of each episode, as batches without the entries `episode` and `query`."""
    episode, asked = batch["episode"].amax(1), batch["query"].amax(1)  # padding is -1
    for number in range(int(episode.max()) + 1):
        support, query = (rows_of(batch, (episode == number) & (asked == side)) for side in (0, 1))
        yield support, query


def rows_of(batch: Batch, chosen: Tensor) -> Batch:
    """Returns the rows of a batch that are chosen (bool [b]), without the entries `episode` and `query`."""
    return {name: value[chosen] for name, value in batch.items() if name not in ("episode", "query")}


def own_weights(task: Task) -> Weights:
    """Returns the weights that are trained and that an inner loop adapts."""
    return {name: p for name, p in task.named_parameters() if p.requires_grad and not name.startswith(ALGORITHM)}


def episode_loss(task: Task, loop: InnerLoop, support: Batch, query: Batch, *, term: str) -> Tensor:
    """Returns the loss of one episode by an algorithm. term: of the task on a batch without `query`."""
    learnt = {name: torch.cat([support[name], query[name]]) for name in support} if loop.on_all_pieces else support
    slope, loss_on = _slope(task, loop, learnt), _loss_on(task, term)
    return loop.episode_loss(own_weights(task), slope, loss_on(query), loss_on(learnt))


def started(task: Task, loop: InnerLoop, support: Batch, *, term: str, steps: int | None = None) -> Weights:
    """Returns the initial weights of an episode with this support; steps: as of `adapted`."""
    with gradients_enabled():
        slope, fit = _slope(task, loop, support), _loss_on(task, term)(support)
        return loop.start(own_weights(task), slope, fit, steps=steps or loop.test_steps)


def adapted(task: Task, loop: InnerLoop, support: Batch, *, term: str, steps: int | None = None) -> Weights:
    """Returns the weights after gradient descent on a support; steps: None for those of the algorithm in evaluation."""
    start = started(task, loop, support, term=term, steps=steps)
    with gradients_enabled():
        found = loop.adapted(start, _slope(task, loop, support), steps=steps or loop.test_steps)
    return {name: value.detach() for name, value in found.items()}


def differentiable_twice(algorithm: Callable[..., object]) -> dict[str, bool]:
    """Returns the options that a network needs for an algorithm, given as what makes it: plain kernels for second derivatives."""
    kind = kind_of(algorithm)
    return {"fused": False} if isinstance(kind, type) and issubclass(kind, InnerLoop) and kind.second_order else {}


def cluster_measures(algorithm: object) -> tuple[Measure, ...]:
    """Returns the measures of `cluster_shares`; none without algorithm.clusters."""
    count = algorithm.clusters if isinstance(algorithm, InnerLoop) else 1
    return tuple(Measure(f"cluster_{number}", "share of episodes") for number in range(count if count > 1 else 0))


def cluster_shares(task: Task, algorithm: object, batch: Batch, *, term: str) -> dict[str, Measured]:
    """Returns which share of the episodes starts from each of the algorithm's initial weights, in evaluation."""
    measures = cluster_measures(algorithm)
    if not measures:
        return {}
    assert isinstance(algorithm, InnerLoop)
    chosen = []
    for support, _ in episodes(batch):
        slope, fit = _slope(task, algorithm, support), _loss_on(task, term)(support)
        with gradients_enabled():
            chosen.append(int(algorithm.shares(own_weights(task), slope, fit, steps=algorithm.test_steps).argmax()))
    counts = torch.bincount(torch.tensor(chosen), minlength=len(measures)).to(task.device)
    total = counts.sum()
    return {measure.name: Measured(n / total, total) for measure, n in zip(measures, counts, strict=True)}


def _loss_on(task: Task, term: str) -> Callable[[Batch], Loss]:
    return lambda batch: lambda weights: task.losses_at(batch, parameters=weights)[term]


def _slope(task: Task, loop: InnerLoop, support: Batch) -> Slope:
    """Returns a function that gives the gradient of the support's loss at any weights."""
    again = loop.second_order and task.training

    def slope(weights: Weights) -> Mapping[str, Tensor]:
        return task.gradient_of(support, parameters=weights, create_graph=again)

    return slope
