"""Which names can't be loss terms of a task, for options that name terms."""

from collections.abc import Iterable

from etude.core.any_task import AnyTask


def unknown_terms(task: AnyTask, names: Iterable[str], losses: Iterable[str]) -> list[str]:
    """Returns those of `names` that can't be loss terms of the task; sorted.

    names: names that are not in `losses`. losses: the names of this batch's terms. A player may have no terms on some batches,
    so a name with the prefix of a player without terms is accepted. So is, after the first batch, a name without a prefix: a
    technique may add its term later.
    """
    players_here = {name.rpartition("/")[0].partition("/")[0] for name in losses}
    unknown = []
    for name in names:
        player = name.partition("/")[0] if "/" in name else ""
        may_come_later = not player and task.batches_trained > 0
        if player in players_here or (player not in task.players and not may_come_later):
            unknown.append(name)
    return sorted(unknown)
