"""Technique loss_schedule: changes the weights of loss terms over the run."""

import logging
from collections.abc import Mapping, Sequence

import pytorch_lightning as pl
from torch import Tensor

from etude.core import lightning
from etude.core.loss_names import unknown_terms
from etude.core.task import Task
from etude.core.technique import Technique

log = logging.getLogger(__name__)


class LossSchedule(Technique):
    """Multiplies the weight of terms by a factor that is a piecewise linear function of the progress of the run.

    `schedule={generator/cycle: [[0, 2], [0.5, 1]]}` starts with twice the term's weight and reaches the weight itself at half of
    the run. The factor is constant before the first and after the last point. Without a schedule, all auxiliary terms rise from
    0 over the first tenth of the run. Auxiliary are all terms of a player but the one with the largest weight among those that
    are not optional.

    When to use: auxiliary terms that help only at the beginning (high, then falling) or disturb there (0, then rising).
    Source: Kendall et al. 2018 show how much fixed weights matter; Elman 1993 for starting small.

    Args:
        schedule: term -> [[share of the run in [0, 1], factor of at least 0], ...], shares increasing; None: as described above.

    Raises:
        ValueError: the points of a schedule are not in order; in setup, there is no schedule and only one term; in training, a
            term does not exist.
    """

    def __init__(self, *, schedule: Mapping[str, Sequence[Sequence[float]]] | None = None) -> None:
        super().__init__()
        for term, points in (schedule or {}).items():
            shares = [share for share, _ in points]
            if not points or shares != sorted(set(shares)) or not all(0 <= s <= 1 and factor >= 0 for s, factor in points):
                raise ValueError(
                    f"technique.loss_schedule.schedule of {term!r} is {[list(p) for p in points]}; give [[share of the run, "
                    "factor], ...] with shares in [0, 1] that increase and factors of at least 0"
                )
        self.schedule = {term: [(float(s), float(f)) for s, f in points] for term, points in (schedule or {}).items()}
        self._has_schedule = schedule is not None
        self._total = 1
        self._seen_terms: set[str] = set()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.max_steps < 1:
            raise ValueError("technique loss_schedule needs the length of the run; set max_steps")
        assert isinstance(pl_module, Task)
        others = [
            t
            for t in lightning.callbacks_of(trainer)
            if isinstance(t, Technique) and type(t).extra_losses is not Technique.extra_losses
        ]
        if not self._has_schedule and pl_module.players.keys() == {"model"} and not others:
            raise ValueError(
                f"technique loss_schedule raises auxiliary terms, but {type(pl_module).__name__} has only one term; add a "
                "technique that adds terms, or give technique.loss_schedule.schedule"
            )
        self._total = trainer.max_steps * trainer.accumulate_grad_batches

    def scale_losses(self, task: Task, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        share = task.batches_trained / self._total
        schedule = self.schedule if self._has_schedule else self._default_schedule(task, losses)
        self._seen_terms |= schedule.keys() & losses.keys()
        if missing := unknown_terms(task, schedule.keys() - self._seen_terms - task.optional_terms, losses):
            raise ValueError(
                f"technique.loss_schedule.schedule names {missing[0]!r}, but the terms are {sorted(losses)}; rename it"
            )
        if not self._has_schedule and not schedule and task.batches_trained == 0:
            log.warning(
                "loss_schedule has only one term so far (%s); it has no effect until there is another", ", ".join(sorted(losses))
            )
        return {term: _factor_at(points, share) for term, points in schedule.items() if term in losses}

    @staticmethod
    def _default_schedule(task: Task, losses: Mapping[str, Tensor]) -> dict[str, list[tuple[float, float]]]:
        found: dict[str, list[tuple[float, float]]] = {}
        for player in {name.rpartition("/")[0] for name in losses}:
            own = [name for name in losses if name.rpartition("/")[0] == player]
            always = [name for name in own if name not in task.optional_terms] or own
            main = max(sorted(always), key=lambda name: task.loss_weights.get(name, 1.0) * (2 if name == "nll" else 1))
            found |= {name: [(0.0, 0.0), (0.1, 1.0)] for name in own if name != main}
        return found


def _factor_at(points: Sequence[tuple[float, float]], share: float) -> float:
    before = points[0]
    for point in points:
        if share < point[0]:
            if point is before:
                return point[1]
            return before[1] + (point[1] - before[1]) * (share - before[0]) / (point[0] - before[0])
        before = point
    return before[1]
