"""The page of a sweep: the best configuration, what mattered, every trial. One file that needs no network."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from etude.report.files import write_atomically
from etude.report.reports import Report
from etude.sweeps import plots
from etude.sweeps.plan import Plan
from etude.sweeps.space import Space
from etude.sweeps.study import front, told_values
from etude.sweeps.summary import rows_of

FEWEST = 8  # complete trials below which a share of the variance says nothing


def write_report(
    study: Study, plan: Plan, space: Space, folder: Path, command: Callable[[FrozenTrial], str], dashboard: str = ""
) -> Path | None:
    """Writes report.html and sweep.png to the sweep's folder, and returns the page's path; None before a trial is complete.

    command: returns the command that repeats a trial. dashboard: the command that opens the study in optuna-dashboard.
    """
    trials = study.get_trials(deepcopy=False)
    if not any(trial.state == TrialState.COMPLETE for trial in trials):
        return None
    shares = [importances(study, plan, place) for place in range(len(plan.goals))]
    picture = plots.overview(study, plan, shares)
    write_atomically(folder / "sweep.png", picture)
    report = Report(f"Sweep {study.study_name}").facts(_facts(study, plan, trials, dashboard))
    best = front(study, plan)
    report.heading("Best trial" if len(best) == 1 else "Pareto front")
    for trial in best:
        name = "best.yaml" if len(best) == 1 else f"front_{trial.number}.yaml"
        report.text(f"Trial {trial.number}: {told_values(trial, plan)}").code(command(trial)).links(
            [(name, f"{name}, for conf/experiment")]
        )
    report.heading("Course").image(picture, alt=_described(study, plan, shares))
    for place, goal in enumerate(plan.goals):
        report.heading(f"{goal.metric} over each option").image(
            plots.slices(study, plan, space, place), alt=f"{goal.metric} of each complete trial over each option of the space"
        )
    rows = rows_of(trials, plan, space)
    report.heading("All trials").table(list(rows[0]), [list(row.values()) for row in rows])
    return report.write(folder / "report.html")


def importances(study: Study, plan: Plan, place: int) -> Mapping[str, float]:
    """Returns the share of the variance of one objective that each option explains, largest first; they add up to 1.

    Options that hold under one choice of another are left out. Empty with fewer than `FEWEST` complete trials, or where the
    objective is the same in all.

    Source: Hutter, Hoos and Leyton-Brown 2014 (functional ANOVA), as Optuna computes it.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < FEWEST or len({trial.values[place] for trial in done}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found: dict[str, float] = get_param_importances(
            study, evaluator=FanovaImportanceEvaluator(seed=0), target=lambda trial: trial.values[place]
        )
    return found


def _facts(study: Study, plan: Plan, trials: list[FrozenTrial], dashboard: str) -> list[tuple[str, object]]:
    counts = [(state.name.lower(), sum(trial.state == state for trial in trials)) for state in TrialState]
    steps = sum(trial.last_step or 0 for trial in trials)
    facts = [
        ("objectives", ", ".join(plan.objectives)), ("constraints", ", ".join(plan.constraints)),
        ("trials", ", ".join(f"{count} {name}" for name, count in counts if count)), ("sampler", plan.sampler),
        ("pruner", plan.pruner), ("steps trained", f"{steps:,}" if steps else ""), ("dashboard", dashboard),
    ]  # fmt: skip
    return [(name, value) for name, value in facts if value]


def _described(study: Study, plan: Plan, shares: list[Mapping[str, float]]) -> str:
    """Returns the pictures in words."""
    told = [f"best trial {trial.number}: {told_values(trial, plan)}" for trial in front(study, plan)]
    for goal, found in zip(plan.goals, shares, strict=True):
        if found:
            told.append(f"{goal.metric} depends on " + ", ".join(f"{name} {share:.2f}" for name, share in found.items()))
    return "; ".join(told)
