"""What optimizers remember: carried over to a new one, and put back after a step that is left out."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch.optim import Optimizer

if TYPE_CHECKING:
    from etude.core.task import Task

COUNTERS = ("step", "counter", "k", "weight_sum", "lr_max")  # what optimizers keep in a group rather than with each weight


def carry_state(old: Optimizer, new: Optimizer) -> None:
    """Gives a new optimizer of the same kind what an old one knew of the weights that both train: moments and counters."""
    for before, after in ((old, new), (getattr(old, "optimizer", None), getattr(new, "optimizer", None))):
        if before is None or after is None:  # Lookahead has one within
            continue
        groups = {p: group for group in before.param_groups for p in group["params"]}
        for group in after.param_groups:
            after.state.update({p: before.state[p] for p in group["params"] if p in before.state})
            known = next((groups[p] for p in group["params"] if p in groups), {})
            group.update({name: known[name] for name in COUNTERS if name in known})


def leave_out(task: "Task") -> Callable[[], None]:
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
