"""Handles optimizer state: carries it over to a new optimizer, and restores it after a skipped step."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from etude.core.any_task import AnyTask
from etude.core.protocols import WrapsOptimizer

COUNTERS = ("step", "counter", "k", "weight_sum", "lr_max")  # state that optimizers keep for a group, not for a parameter


def carry_state(old: Optimizer, new: Optimizer, *, grown: Mapping[nn.Parameter, nn.Parameter] | None = None) -> None:
    """Copies the state of the parameters that both optimizers train (moments, counters) to a new optimizer of the same class.

    grown: enlarged parameter -> the smaller parameter that it replaces, whose values are its first entries in every dimension.
        The state of those entries is copied; the state of the new entries is zero.
    """
    former = grown or {}
    pairs = [(old, new)]
    if isinstance(old, WrapsOptimizer) and isinstance(new, WrapsOptimizer):
        pairs.append((old.optimizer, new.optimizer))
    for before, after in pairs:
        groups = {p: group for group in before.param_groups for p in group["params"]}
        for group in after.param_groups:
            for p in group["params"]:
                source = former.get(p, p)
                if source in before.state:
                    state = before.state[source]
                    after.state[p] = state if source is p else {k: _padded(v, source, p) for k, v in state.items()}
            known = next((groups[former.get(p, p)] for p in group["params"] if former.get(p, p) in groups), {})
            group.update({name: known[name] for name in COUNTERS if name in known})


def _padded(value: Any, source: Tensor, weight: Tensor) -> Any:
    """Pads a state tensor of `source` with zeros to the shape of the larger `weight`; state of another shape stays as it is."""
    if not isinstance(value, Tensor) or value.shape != source.shape:
        return value
    larger = value.new_zeros(weight.shape)
    larger[tuple(slice(size) for size in source.shape)] = value
    return larger


def skip_next_step(task: AnyTask) -> Callable[[], None]:
    """Removes all gradients, so that the next optimizer step changes no weight and no moment.

    Returns a function to call after that step: it restores the group counters, which optimizers increase in any case.
    """
    for parameter in task.parameters():
        parameter.grad = None
    groups = [group for optimizer in task.trainer.optimizers for group in optimizer.param_groups]
    counters = [{name: group[name] for name in COUNTERS if name in group} for group in groups]
    for group in groups:
        if "counter" in group:  # of Lookahead, which would otherwise synchronize its slow weights a step early
            group["counter"] -= 1

    def restore_counters() -> None:
        for group, saved in zip(groups, counters, strict=True):
            group.update(saved)
            for name in set(COUNTERS) & group.keys() - saved.keys():  # the first step creates some
                del group[name]

    return restore_counters
