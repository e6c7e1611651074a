"""Pictures of a sweep, as PNG bytes: how its trials went, what mattered, and what was traded for what."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from etude.report.plots import COLOURS, panels, png
from etude.sweeps.plan import Objective, Plan
from etude.sweeps.space import Dimension, Space, all_dimensions
from etude.sweeps.study import feasible, front

COMPLETE, PRUNED, BROKEN = COLOURS[0], "#B9BEC5", COLOURS[1]  # complete; ended early; complete, but breaks a constraint
SHOWN = 0.9  # share of the values that set the range of an axis: a few trials that diverged must not squeeze the others
MOST_SLICES = 24


def overview(study: Study, plan: Plan, importances: Sequence[Mapping[str, float]]) -> bytes:
    """Draws the objectives over the trials, and what mattered; with one objective its curves, with several the trade-off.

    importances: for each objective the shares of the parameters, empty where they can't be computed.
    """
    trials = study.get_trials(deepcopy=False)
    draws: list[Any] = [lambda axis, place=place: _history(axis, trials, plan, place) for place in range(len(plan.goals))]
    if len(plan.goals) == 1:
        if any(trial.intermediate_values for trial in trials):
            draws.append(lambda axis: _curves(axis, trials, plan))
    else:
        draws.append(lambda axis: _trade_off(axis, study, plan))
    for goal, shares in zip(plan.goals, importances, strict=True):
        if shares:
            draws.append(lambda axis, goal=goal, shares=shares: _importances(axis, goal, shares))
    columns = min(3, len(draws))
    figure, axes = panels(len(draws), columns, width=3.4, height=2.4, left=0.75, between=(0.95, 0.85), bottom=0.6, title="")
    for axis, draw in zip(axes, draws, strict=True):
        draw(axis)
    return png(figure)


def slices(study: Study, plan: Plan, space: Space, place: int = 0) -> bytes:
    """Draws one objective over each option of the space: a point for each trial, the first ones light and the last ones dark."""
    goal = plan.goals[place]
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    dimensions = [d for d in all_dimensions(space) if any(d.name in trial.params for trial in trials)][:MOST_SLICES]
    figure, axes = panels(
        len(dimensions), min(4, len(dimensions)), width=2.5, height=1.9, left=0.75, between=(0.35, 0.85), bottom=0.6, title=""
    )
    for number, (axis, dimension) in enumerate(zip(axes, dimensions, strict=True)):
        _slice(axis, [trial for trial in trials if dimension.name in trial.params], dimension, place)
        _limit(axis, [trial.values[place] for trial in trials], goal)
        axis.tick_params(labelsize=7)
        if number % 4 == 0:
            axis.set_ylabel(goal.metric, fontsize=8)
    return png(figure)


def _history(axis: Any, trials: Sequence[FrozenTrial], plan: Plan, place: int) -> None:
    goal = plan.goals[place]
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    for kept, colour, label in ((True, COMPLETE, "complete"), (False, BROKEN, "breaks a constraint")):
        if group := [trial for trial in done if feasible(trial) == kept]:
            axis.scatter([t.number for t in group], [t.values[place] for t in group], s=14, color=colour, label=label)
    best, steps = None, []
    for trial in (trial for trial in done if feasible(trial)):
        value = trial.values[place]
        best = value if best is None or goal.better(value, best) else best
        steps.append((trial.number, best))
    if steps:
        axis.step(*zip(*steps, strict=True), where="post", color="#333", lw=1, label="best so far")
    _limit(axis, [trial.values[place] for trial in done], goal)
    _title(axis, f"{goal.metric} of each trial", "trial")
    if done:
        axis.legend(fontsize=6.5, frameon=False)


def _curves(axis: Any, trials: Sequence[FrozenTrial], plan: Plan) -> None:
    """The metric that prunes over the steps; trials that were pruned are grey."""
    shown = [trial for trial in trials if trial.intermediate_values]
    values: list[float] = []
    for trial in sorted(shown, key=lambda trial: trial.state == TrialState.COMPLETE):
        points = sorted(trial.intermediate_values.items())
        complete = trial.state == TrialState.COMPLETE
        axis.plot(*zip(*points, strict=True), color=COMPLETE if complete else PRUNED, lw=0.9, alpha=0.8, marker=".", ms=3)
        values += [value for _, value in points]
    _limit(axis, values, plan.goals[0])
    pruned = sum(trial.state == TrialState.PRUNED for trial in shown)
    _title(axis, f"{plan.pruning_metric} while training ({pruned} pruned, grey)", "step")


def _trade_off(axis: Any, study: Study, plan: Plan) -> None:
    """The first two objectives, with the trials that no other one beats."""
    first, second = plan.goals[:2]
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    axis.scatter([t.values[0] for t in done], [t.values[1] for t in done], s=14, color=PRUNED)
    best = sorted((trial.values for trial in front(study, plan)), key=lambda values: values[0])
    if best:
        axis.plot([v[0] for v in best], [v[1] for v in best], color=COMPLETE, lw=1, marker="o", ms=4)
    _title(axis, "Pareto front", f"{first.metric} ({first.mode})")
    axis.set_ylabel(f"{second.metric} ({second.mode})", fontsize=8)


def _importances(axis: Any, goal: Objective, shares: Mapping[str, float]) -> None:
    names = list(shares)[:10]
    axis.barh(range(len(names)), [shares[name] for name in names], color=COLOURS[3], height=0.65)
    for place, name in enumerate(names):
        axis.text(0.02, place - 0.36, name, fontsize=7, va="bottom", transform=axis.get_yaxis_transform())
    axis.set_yticks([])
    axis.set_ylim(len(names) - 0.5, -0.8)
    _title(axis, f"what mattered for {goal.metric}", "share of the variance")


def _slice(axis: Any, trials: Sequence[FrozenTrial], dimension: Dimension, place: int) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    made = dimension.distribution
    values: list[Any] = [trial.params[dimension.name] for trial in trials]
    if isinstance(made, CategoricalDistribution):
        choices = list(made.choices)
        values = [choices.index(value) for value in values]
        axis.set_xticks(
            range(len(choices)), [str(dimension.texts.get(c, c)) for c in choices], rotation=30 if len(choices) > 3 else 0
        )
        axis.set_xlim(-0.5, len(choices) - 0.5)
    elif isinstance(made, FloatDistribution | IntDistribution) and made.log:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=12))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.scatter(
        values, [t.values[place] for t in trials], c=[t.number for t in trials], cmap="Blues", s=16, edgecolors="#666", lw=0.3
    )
    axis.set_xlabel(dimension.name, fontsize=8)


def _limit(axis: Any, values: Sequence[float], goal: Objective) -> None:
    """Leaves the worst tenth outside where it would squeeze the others."""
    found = sorted((value for value in values if math.isfinite(value)), reverse=goal.mode == "max")
    if len(found) < 5 or found[0] == found[-1]:
        return
    best, usual = found[0], found[min(len(found) - 1, math.ceil(SHOWN * len(found)) - 1)]
    if abs(found[-1] - best) > 3 * abs(usual - best) > 0:
        margin = 0.08 * (usual - best)
        axis.set_ylim(*sorted((best - margin, usual + margin)))


def _title(axis: Any, title: str, unit: str) -> None:
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlabel(unit, fontsize=8)
    axis.tick_params(labelsize=7)
