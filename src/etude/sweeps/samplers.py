"""Optuna's samplers and pruners by name, so seeded that a trial's values follow from the finished trials and its number."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, WilcoxonPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from etude.sweeps.plan import Plan

CLASSES: dict[str, Any] = {
    "tpe": TPESampler, "random": RandomSampler, "nsga2": NSGAIISampler, "cmaes": CmaEsSampler, "gp": GPSampler,
}  # fmt: skip
PRUNER_CLASSES: dict[str, Any] = {
    "none": NopPruner, "median": MedianPruner, "hyperband": HyperbandPruner, "wilcoxon": WilcoxonPruner,
}  # fmt: skip


class NumberedSampler(BaseSampler):
    """A sampler whose random numbers follow from the seed and the trial's number alone.

    A sweep that was killed and continued then draws what the uninterrupted one draws, if the same trials had finished; with
    n_jobs=1 they always have.

    build: called with a seed, returns the sampler that draws.
    """

    def __init__(self, build: Callable[[int], BaseSampler], *, seed: int) -> None:
        self._build, self._seed = build, seed
        self._sampler = build(seed)
        self._number = -1

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if trial.number != self._number:
            self._number = trial.number
            self._sampler = self._build((self._seed * 1_000_003 + trial.number) % 2**31)
        return self._sampler

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._of(trial).before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._of(trial).after_trial(study, trial, state, values)


class PointSampler(BaseSampler):
    """Gives each trial the point of its number: the grid, in order."""

    def __init__(self, points: list[dict[str, Any]]) -> None:
        self._points = points

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        return self._points[trial.number % len(self._points)][param_name]


def make_sampler(plan: Plan, points: list[dict[str, Any]]) -> BaseSampler:
    """Returns the plan's sampler. points: the grid's. Raises: ValueError for an option that the sampler does not have."""
    if plan.sampler == "grid":
        return PointSampler(points)
    kind = CLASSES[plan.sampler]
    options = dict(plan.sampler_options)
    _check("sampler", plan.sampler, kind, options)
    if plan.sampler == "tpe" and len(plan.goals) == 1:
        options = {"multivariate": True, "group": True, **options}  # dimensions that depend on one another; spaces with branches

    def build(seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            made: BaseSampler = kind(seed=seed, **options)
        return made

    return NumberedSampler(build, seed=plan.seed)


def make_pruner(plan: Plan) -> BasePruner:
    """Returns the plan's pruner. Raises: ValueError for an option that the pruner does not have."""
    kind, options = PRUNER_CLASSES[plan.pruner], dict(plan.pruner_options)
    _check("pruner_options", plan.pruner, kind, options)
    if plan.pruner == "hyperband":  # trials are compared after a ninth, a third and all of their steps
        options = {"min_resource": max(1, plan.max_steps // 9), "max_resource": plan.max_steps, "reduction_factor": 3, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made: BasePruner = kind(**options)
    return made


def _check(option: str, name: str, kind: Any, given: Mapping[str, Any]) -> None:
    known = sorted(set(inspect.signature(kind).parameters) - {"seed", "constraints_func", "args", "kwargs"})
    if unknown := sorted(given.keys() - set(known)):
        raise ValueError(f"{option}.{unknown[0]}: {name} has no such option; it has {', '.join(known) or 'none'}")
