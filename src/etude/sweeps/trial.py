"""A trial in its own process: reports a metric while it trains, prunes, and tells the study how it ended."""

import contextlib
import math
import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from etude.core.busy import Busy
from etude.core.ranks import rank
from etude.core.stopping import SIGNALS, Stopped
from etude.sweeps.leases import AGAIN, LeaseLost, Leases
from etude.sweeps.plan import MEASURED, Plan
from etude.sweeps.storage import one_line, open_storage
from etude.sweeps.study import MISSING, REASON, VALUES, load_trial, number


class RunningTrial:
    """Follows the metrics of one trial, also over several trainings one after another (`stage=` with phases).

    first_step: optimizer steps of earlier trainings, so that the reported steps grow. seconds: time spent in training.
    values: the metrics at the validation that counts, by name. seen: the names of all metrics that were logged.
    """

    def __init__(self, trial: Trial, plan: Plan) -> None:
        self.trial, self.plan = trial, plan
        self.first_step = 0
        self.seconds = 0.0
        self.parameters = 0
        self.pruned = False
        self.values: dict[str, float] = {}
        self.seen: set[str] = set()

    def check(self, task: Any) -> None:
        """Refuses metrics that nothing will log, before training. Raises: ValueError that names those that are logged."""
        for goal in self.plan.goals:
            if goal.metric not in MEASURED:
                self._check(task, goal.metric, "objectives", goal.mode)
        for bound in self.plan.bounds:
            if bound.metric not in MEASURED:
                self._check(task, bound.metric, "constraints", "max")
        if self.plan.pruner != "none":
            self._check(task, self.plan.pruning_metric, "prune_by", self.plan.goals[0].mode)

    def _check(self, task: Any, metric: str, option: str, mode: str) -> None:
        try:
            task.check_metric(metric, option, mode)
        except ValueError:
            self.trial.set_user_attr(MISSING, metric)
            raise

    def raise_if_pruned(self) -> None:
        """Raises: TrialPruned if the pruner has ended the training; what follows a training is left out then."""
        if self.pruned:
            raise optuna.TrialPruned(f"pruned by {self.plan.pruner}")

    def reports(self, metric: float, step: int) -> bool:
        """Reports the metric that prunes; returns whether the trial should end. A trial that goes on reports no step twice."""
        if step in self.trial.storage.get_trial(self.trial._trial_id).intermediate_values:
            return False
        self.trial.report(metric, step)
        return self.trial.should_prune()

    def take(self, metrics: Mapping[str, float]) -> None:
        """Keeps the metrics of a validation if it is the one that counts."""
        self.seen |= metrics.keys()
        wanted = {metric: metrics[metric] for metric in self.plan.metrics if metric in metrics}
        leading = next((goal for goal in self.plan.goals if goal.metric not in MEASURED), None)
        if (
            self.plan.objective_at == "last"
            or leading is None
            or leading.metric not in self.values
            or (leading.metric in wanted and leading.better(wanted[leading.metric], self.values[leading.metric]))
        ):
            self.values |= wanted

    def finish(self) -> None:
        """Tells the study the objectives. Raises: ValueError if one was not logged or is not finite."""
        found = {**self.values, "seconds": self.seconds, "parameters": float(self.parameters)}
        self.trial.set_user_attr(VALUES, found)
        wanted = [goal.metric for goal in self.plan.goals] + [bound.metric for bound in self.plan.bounds]
        if missing := [metric for metric in wanted if metric not in found]:
            self.trial.set_user_attr(MISSING, missing[0])
            logged = ", ".join(sorted(self.seen | set(MEASURED)))
            early = missing[0].startswith("val/") and not any(name.startswith("val/") for name in self.seen)
            why = (
                "; the trial ended before a validation: give more max_steps or a lower trainer.val_check_interval"
                if early
                else ""
            )
            raise ValueError(f"nothing logged {missing[0]!r}, which the sweep needs; there are {logged}{why}")
        for metric in wanted:
            if not math.isfinite(found[metric]):
                raise ValueError(f"{metric} is {found[metric]}")
        for bound in self.plan.bounds:
            self.trial.set_constraint(str(bound), bound.excess(found[bound.metric]))
        self.trial.study.tell(self.trial, [found[goal.metric] for goal in self.plan.goals])


@contextlib.contextmanager
def running_trial(node: Mapping[str, Any]) -> Iterator[RunningTrial]:
    """Within this context the trial that `node` names runs; at its end the study is told COMPLETE, PRUNED or FAIL with a reason.

    A signal tells nothing, nor does a folder in use: the trial is still to be done, and the sweep puts it back.

    node: study, storage, number; where a launcher has started the trial, also the token of its lease, which the trial then holds
    itself.

    Raises: what ended the trial, except for pruning; ValueError if there is no such trial; LeaseLost if it is another host's.
    """
    with one_line(node["storage"]):
        trial, plan = load_trial(open_storage(node["storage"]), node["study"], node["number"])
        state = trial.storage.get_trial(trial._trial_id).state
    if state != TrialState.RUNNING:
        raise ValueError(f"trial={node['number']} of study {node['study']} is {state.name.lower()}; only a sweep starts trials")
    running = RunningTrial(trial, plan)
    try:
        with _own_lease(trial, node):
            yield running
        if rank() == 0:
            running.finish()
    except optuna.TrialPruned as pruned:
        if rank() == 0:
            trial.set_user_attr(VALUES, {**running.values, "seconds": running.seconds, "parameters": float(running.parameters)})
            told = running.plan.pruning_metric
            trial.set_user_attr(REASON, f"{pruned}: {told} {number(running.values.get(told, math.nan))}")
            trial.study.tell(trial, state=TrialState.PRUNED)
    except LeaseLost:  # nothing is told of a trial that runs elsewhere
        raise
    except Busy as busy:
        trial.set_user_attr(AGAIN, reason(busy))
        raise
    except Exception as error:
        if rank() == 0:
            trial.set_user_attr(REASON, reason(error))
            trial.study.tell(trial, state=TrialState.FAIL)
        raise


@contextlib.contextmanager
def _own_lease(trial: Trial, node: Mapping[str, Any]) -> Iterator[None]:
    """Within this context the trial holds its own lease, if a launcher has started it; the sweep can ask it to end."""
    if node.get("token") is None or rank() != 0:
        yield
        return
    leases = Leases(trial.study, trial.storage, seconds=node["lease_seconds"])
    leases.adopt(trial, node["token"])

    def look() -> None:
        if leases.must_end(trial.number):
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with leases.beating(then=look):
            yield
    except (Stopped, SystemExit) as end:  # a launcher may not tell how a job has ended
        code = end.exit_code if isinstance(end, Stopped) else end.code
        if isinstance(code, int) and code - 128 in SIGNALS and leases.holds(trial.number):
            trial.set_user_attr(AGAIN, f"ended by {signal.Signals(code - 128).name}")
        raise


def reason(error: BaseException) -> str:
    """Returns in one line why a trial failed."""
    text = " ".join(str(error).split())[:500]
    kind = type(error).__name__
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "can't allocate memory" in text:
        return f"out of memory: {text}".rstrip(": ")
    return text if isinstance(error, ValueError) and text else f"{kind}: {text}".rstrip(": ")
