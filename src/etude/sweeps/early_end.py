"""When a sweep ends before it has all its trials."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial, TrialState

from etude.sweeps.plan import Plan
from etude.sweeps.study import MISSING, REASON, feasible

SAME_FAILURES = 5  # the sweep ends if its first trials all fail for one reason


@dataclass
class EarlyEnd:
    """Says when a sweep should start no further trial.

    plan: see `Plan`. patience: finished trials in a row that improve nothing. target: a value of the first objective that is
    good enough. hours: of this command. None: no such limit. clock: in seconds.

    Raises: ValueError for a number out of its range.
    """

    plan: Plan
    patience: int | None = None
    target: float | None = None
    hours: float | None = None
    clock: Callable[[], float] = time.monotonic
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience={self.patience} must be at least 1 trial; null sets no limit")
        if self.hours is not None and self.hours <= 0:
            raise ValueError(f"hours={self.hours:g} must be above 0; null sets no limit")

    def reason(self, trials: Sequence[FrozenTrial]) -> str | None:
        """Returns why no further trial should start; None if one should."""
        if self.hours is not None and self.clock() - self.began >= 3600 * self.hours:
            return f"hours={self.hours:g} are over"
        done = sorted(
            (trial for trial in trials if trial.state.is_finished()),
            key=lambda trial: (str(trial.datetime_complete), trial.number),
        )
        goal = self.plan.goals[0]
        good = [t for t in done if t.state == TrialState.COMPLETE and feasible(t)]
        if self.target is not None:
            target = self.target
            reached = [t for t in good if not goal.better(target, t.values[0])]
            if reached:
                return f"trial {reached[0].number} has reached target={target:g}"
        if self.patience is not None and good and self._waited(done) >= self.patience:
            return f"the last patience={self.patience} trials have improved nothing"
        return None

    def _waited(self, done: Sequence[FrozenTrial]) -> int:
        """Returns how many trials have finished since one improved an objective over all trials before it."""
        best: list[float] | None = None
        waited = 0
        for trial in done:
            waited += 1
            if trial.state != TrialState.COMPLETE or not feasible(trial):
                continue
            triples = list(zip(self.plan.goals, trial.values, best or trial.values, strict=True))
            if best is None or any(goal.better(value, before) for goal, value, before in triples):
                waited = 0
            best = [value if goal.better(value, before) else before for goal, value, before in triples]
        return waited


def hopeless(trials: Sequence[FrozenTrial]) -> str | None:
    """Returns why the sweep can come to nothing: the first trials fail alike, or nothing logs an objective; None if it may."""
    done = [trial for trial in trials if trial.state.is_finished()]
    if not done or any(trial.state != TrialState.FAIL for trial in done):
        return None
    reasons = {trial.user_attrs.get(REASON, "") for trial in done}
    if any(MISSING in trial.user_attrs for trial in done):
        return str(next(t.user_attrs[REASON] for t in done if MISSING in t.user_attrs))
    if len(done) >= SAME_FAILURES and len(reasons) == 1:
        return f"the first {len(done)} trials all failed: {reasons.pop()}"
    return None
