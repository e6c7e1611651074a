"""What a sweep leaves: the best configuration as an experiment, the table of all trials, and a few lines."""

import csv
import io
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from etude.report.files import write_atomically
from etude.sweeps.plan import Plan
from etude.sweeps.space import Space, all_dimensions
from etude.sweeps.study import REASON, VALUES, feasible, front, number, told_values


def write(study: Study, plan: Plan, space: Space, folder: Path, experiment: Callable[[FrozenTrial], str]) -> None:
    """Writes trials.csv and trials.txt, and for the best trial (for each of the front) an experiment file.

    experiment: returns the text of that file.
    """
    trials = study.get_trials(deepcopy=False)
    rows = rows_of(trials, plan, space)
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    write_atomically(folder / "trials.csv", text.getvalue())
    write_atomically(folder / "trials.txt", aligned(rows))
    best = front(study, plan)
    texts = {("best" if len(best) == 1 else f"front_{trial.number}") + ".yaml": experiment(trial) for trial in best}
    for name, content in texts.items():
        write_atomically(folder / name, content)
    for path in folder.glob("*.yaml"):  # of trials that were the best once
        if re.fullmatch(r"best|front_\d+", path.stem) and path.name not in texts:
            path.unlink(missing_ok=True)


def rows_of(trials: Iterable[FrozenTrial], plan: Plan, space: Space) -> list[dict[str, str]]:
    """Returns a row of text for each trial: state, objectives and constraints, parameters, steps, seconds, reason."""
    return [_row(trial, plan, space) for trial in trials]


def _row(trial: FrozenTrial, plan: Plan, space: Space) -> dict[str, str]:
    measured = trial.user_attrs.get(VALUES, {})
    metrics = [goal.metric for goal in plan.goals] + [bound.metric for bound in plan.bounds]
    names = [dimension.name for dimension in all_dimensions(space)]
    seconds = measured.get("seconds")
    complete = trial.state == TrialState.COMPLETE
    return {
        "trial": str(trial.number),
        "state": trial.state.name.lower() + ("" if not complete or feasible(trial) else ", breaks a constraint"),
        **{metric: number(measured[metric]) if metric in measured else "" for metric in dict.fromkeys(metrics)},
        **{name: _cell(trial.params[name]) if name in trial.params else "" for name in dict.fromkeys(names)},
        "steps": "" if trial.last_step is None else str(trial.last_step),
        "seconds": "" if seconds is None else f"{seconds:.1f}",
        "reason": str(trial.user_attrs.get(REASON, "")),
    }


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def aligned(rows: list[dict[str, str]]) -> str:
    """Returns rows as a table of text, with a heading and aligned columns."""
    if not rows:
        return ""
    names = list(rows[0])
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in names]
    lines = [names, *([row[name] for name in names] for row in rows)]
    return (
        "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
        + "\n"
    )


def told(study: Study, plan: Plan, command: Callable[[FrozenTrial], str], folder: Path) -> str:
    """Returns the last lines of a sweep: how many trials ended how, the best, and the command that repeats it."""
    trials = study.get_trials(deepcopy=False)
    counts = [(state, sum(t.state == state for t in trials)) for state in TrialState]
    lines = [", ".join(f"{count} {state.name.lower()}" for state, count in counts if count)]
    best = front(study, plan)
    kind = "best" if len(best) == 1 else "Pareto front"
    for trial in best:
        lines += [f"{kind}: trial {trial.number}, {told_values(trial, plan)}", f"  {command(trial)}"]
    return "\n".join([*lines, f"results: {folder}"])
