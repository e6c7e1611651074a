"""Opens a study or goes on with it, and says what its trials came to."""

import math
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from etude.sweeps.plan import Plan, refuse_changes
from etude.sweeps.samplers import make_pruner, make_sampler

PLAN = "etude_plan"  # the study's attribute that holds the plan
REASON = "reason"  # a trial's attribute: why it failed or was pruned
MISSING = "missing_metric"  # a trial's attribute: an objective or constraint that nothing logged
FOLDER = "folder"  # a trial's attribute: where it was begun
VALUES = "values"  # a trial's attribute: objectives, constraints and what else was measured, by name

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def open_study(storage: BaseStorage, name: str, plan: Plan, *, points: list[dict[str, Any]] | None = None) -> Study:
    """Creates the study, or goes on with the one of this name. points: of a grid.

    Raises: ValueError if the study of this name has other objectives, another space or other options, or is not Etude's.
    """
    sampler, pruner = make_sampler(plan, points or []), make_pruner(plan)
    directions: list[Any] = [goal.direction for goal in plan.goals]
    try:
        study = optuna.create_study(storage=storage, study_name=name, directions=directions, sampler=sampler, pruner=pruner)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name, sampler=sampler, pruner=pruner)
        saved = study.user_attrs.get(PLAN)
        if saved is not None:
            refuse_changes(name, Plan.loaded(saved), plan)
        elif study.get_trials(deepcopy=False):
            raise ValueError(f"study={name} was not made by Etude; give study=NEW_NAME") from None
        elif [direction.name.lower() for direction in study.directions] != directions:
            raise ValueError(f"study={name} has other objectives; give study=NEW_NAME") from None
    study.set_user_attr(PLAN, plan.saved())
    return study


def refuse_foreign(study: Study, folder: Path) -> None:
    """Raises: ValueError if a sweep's folder holds trials that this study has not begun, so are not its own."""
    there = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []
    begun = {trial.number for trial in study.get_trials(deepcopy=False) if FOLDER in trial.user_attrs}
    if foreign := [
        number for number in there if number not in begun
    ]:  # looked at before `begun`: other hosts may begin trials now
        raise foreign_folder(folder / str(foreign[0]), study.study_name)


def foreign_folder(folder: Path, name: str) -> ValueError:
    """Returns the refusal of a trial's folder that another study has made."""
    return ValueError(
        f"{folder} was not made by study={name}; give the study= and storage= that made it, another folder with "
        f"hydra.sweep.dir=, or move it away"
    )


def load_trial(storage: BaseStorage, name: str, number: int) -> tuple[Trial, Plan]:
    """Returns a running trial of a study, and the study's plan; for the process of the trial.

    Raises: ValueError if there is no such study or trial.
    """
    study_id = _study_id(storage, name)
    plan = Plan.loaded(storage.get_study_user_attrs(study_id)[PLAN])
    pruner: BasePruner = make_pruner(plan)
    sampler: BaseSampler = RandomSampler()  # the trial has its values
    study = optuna.load_study(storage=storage, study_name=name, sampler=sampler, pruner=pruner)
    try:
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
    except KeyError:
        raise ValueError(f"study={name} has no trial {number}") from None
    return Trial(study, trial_id), plan


def _study_id(storage: BaseStorage, name: str) -> int:
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        known = ", ".join(found.study_name for found in storage.get_all_studies()) or "none"
        raise ValueError(f"there is no study {name!r} in this storage; it has {known}") from None


def feasible(trial: FrozenTrial) -> bool:
    """Returns whether a trial keeps all constraints."""
    return all(excess <= 0 for excess in trial.constraints.values())


def best_trial(study: Study, plan: Plan) -> FrozenTrial | None:
    """Returns the complete trial with the best first objective among those that keep the constraints; None if there is none."""
    goal = plan.goals[0]
    found = [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if feasible(t)]
    return min(found, key=lambda t: (t.values[0] if goal.mode == "min" else -t.values[0], t.number), default=None)


def front(study: Study, plan: Plan) -> list[FrozenTrial]:
    """Returns the trials that no other one beats in every objective (the Pareto front); the best trial if there is one objective.

    Trials that break a constraint are left out.
    """
    if len(plan.goals) == 1:
        best = best_trial(study, plan)
        return [] if best is None else [best]
    signs = [1 if goal.mode == "min" else -1 for goal in plan.goals]
    found = [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if feasible(t)]
    costs = [[sign * value for sign, value in zip(signs, t.values, strict=True)] for t in found]

    def beaten(mine: list[float]) -> bool:
        return any(all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine for other in costs)

    return [trial for trial, cost in zip(found, costs, strict=True) if not beaten(cost)]


def told_values(trial: FrozenTrial, plan: Plan) -> str:
    """Returns the objectives of a trial as text, empty if it has none."""
    if not trial.values:
        return ""
    return "  ".join(f"{goal.metric} {number(value)}" for goal, value in zip(plan.goals, trial.values, strict=False))


def number(value: float) -> str:
    """Returns a number with four significant digits, whole numbers as they are."""
    if not math.isfinite(value):
        return str(value)
    return str(int(value)) if value == int(value) and abs(value) < 1e12 else f"{value:.4g}"
