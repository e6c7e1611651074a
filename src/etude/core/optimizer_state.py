"""What optimizers remember: carried over to a new one, and put back after a step that is left out."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from etude.core.any_task import AnyTask
from etude.core.protocols import Wraps

COUNTERS = ("step", "counter", "k", "weight_sum", "lr_max")  # what optimizers keep in a group rather than with each weight


def carry_state(old: Optimizer, new: Optimizer, *, grown: Mapping[nn.Parameter, nn.Parameter] | None = None) -> None:
    """Gives a new optimizer of the same kind what an old one knew of the weights that both train: moments and counters.

    grown: a weight that has become larger -> the one in whose place it stands, which is its beginning in every dimension; what
        was known of that is carried over, the rest begins with zeros.
    """
    former = grown or {}
    pairs = [(old, new)]
    if isinstance(old, Wraps) and isinstance(new, Wraps):
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
    """`value` of a weight `source` for the larger `weight`: with zeros where that is new, as it is where it has no such shape."""
    if not isinstance(value, Tensor) or value.shape != source.shape:
        return value
    larger = value.new_zeros(weight.shape)
    larger[tuple(slice(size) for size in source.shape)] = value
    return larger


def skip_next_step(task: AnyTask) -> Callable[[], None]:
    """Takes all gradients away, so that the step about to be made changes no weight and no moment.

    Returns what, called after that step, puts back the counters that optimizers keep for a group and count on regardless.
    """
    for parameter in task.parameters():
        parameter.grad = None
    groups = [group for optimizer in task.trainer.optimizers for group in optimizer.param_groups]
    counters = [{name: group[name] for name in COUNTERS if name in group} for group in groups]
    for group in groups:
        if "counter" in group:  # Lookahead's, which would go back to its slow weights a step early
            group["counter"] -= 1

    def put_back() -> None:
        for group, saved in zip(groups, counters, strict=True):
            group.update(saved)
            for name in set(COUNTERS) & group.keys() - saved.keys():  # the first step begins some
                del group[name]

    return put_back
