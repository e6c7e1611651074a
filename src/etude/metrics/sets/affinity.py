"""Which tasks are best trained together, by how much a step for one lowers the loss of another.

Shapes: h tasks.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

MOST = 9  # tasks: 21,147 ways to group them


def partitions(items: Sequence[int]) -> Iterator[list[list[int]]]:
    """Yields every way to put the items into groups."""
    if not items:
        yield []
        return
    first, *rest = items
    for groups in partitions(rest):
        yield [[first], *groups]
        for place, group in enumerate(groups):
            yield [*groups[:place], [first, *group], *groups[place + 1 :]]


def worth(groups: Sequence[Sequence[int]], affinity_hh: ArrayLike) -> float:
    """Returns the sum over tasks of the mean affinity of the others of its group to it; 0 for one that is alone.

    affinity_hh: [source, target], how much source helps target; NaN counts as 0. Source: Fifty et al. 2021, section 3.2.
    """
    table = np.nan_to_num(np.asarray(affinity_hh, np.float64))
    total = 0.0
    for group in groups:
        for target in group if len(group) > 1 else ():
            total += float(np.mean([table[source, target] for source in group if source != target]))
    return total


def best_groups(affinity_hh: ArrayLike, *, num_groups: int | None = None) -> list[list[int]]:
    """Returns the groups that are worth most, each sorted, in the order of their first task.

    Of equally good ones it returns those with the fewest groups. A task is alone if all others harm it more than it helps them.

    Args:
        affinity_hh: see `worth`. num_groups: how many; None for the number that is worth most.

    Raises: ValueError for more than `MOST` tasks, or a number of groups that is not possible.

    Source: Fifty et al. 2021, section 3.2. Deviations: every task is in one group, and none has a budget; a task that is alone is
        worth 0, so that no group is made in which the others do harm.
    """
    count = len(np.asarray(affinity_hh))
    if count > MOST:
        raise ValueError(f"{count} tasks can be grouped in too many ways to try; at most {MOST}")
    if num_groups is not None and not 1 <= num_groups <= count:
        raise ValueError(f"num_groups={num_groups} must be from 1 to {count}, the number of tasks")
    best, most = [[i] for i in range(count)], -math.inf
    for groups in partitions(range(count)):
        if num_groups is not None and len(groups) != num_groups:
            continue
        value = worth(groups, affinity_hh)
        if value > most + 1e-12 or (abs(value - most) <= 1e-12 and len(groups) < len(best)):
            best, most = groups, value
    return sorted(sorted(group) for group in best)
