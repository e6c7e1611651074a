"""The page of a sweep tells its best trial, what mattered, and every trial."""

from pathlib import Path

import optuna
import pytest
from optuna.study import Study

from etude.sweeps.plan import Plan
from etude.sweeps.report import FEWEST, importances, write_report
from etude.sweeps.space import Space, choices, described, interval, options_of, suggest
from etude.sweeps.study import REASON, VALUES, open_study

SPACE: Space = (
    choices("kind", "kind", [("a", "a"), ("b", "b")], {"a": (interval("width", "width@a", 0.1, 10.0, log=True),)}),
    interval("x", "x", 0.0, 1.0),
    interval("n", "n", 1, 9),
)


def study(trials: int, objectives: list[str], *, constraints: list[str] | None = None) -> tuple[Study, Plan]:
    """A study in which x matters most, and n not at all; every tenth trial fails, every fifth is pruned."""
    plan = Plan(objectives=objectives, constraints=constraints or [], sampler="random", space=described(SPACE))
    made = open_study(optuna.storages.InMemoryStorage(), "toy", plan)
    for number in range(trials):
        trial = made.ask()
        options = dict(option.split("=") for option in suggest(SPACE, trial))
        value = 10 * (float(options["x"]) - 0.3) ** 2 + 0.05 * (options["kind"] == "b")
        if len(plan.goals) == 1:
            trial.report(value + 1, 1)
            trial.report(value, 2)
        if number % 10 == 9:
            trial.set_user_attr(REASON, "loss is nan")
            made.tell(trial, state=optuna.trial.TrialState.FAIL)
        elif number % 5 == 4:
            made.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            trial.set_user_attr(VALUES, {"val/nll": value, "seconds": 1 - float(options["x"])})
            if plan.bounds:
                trial.set_constraint(plan.constraints[0], float(options["x"]) - 0.5)
            made.tell(trial, [value, 1 - float(options["x"])][: len(plan.goals)])
    return made, plan


def command(trial: optuna.trial.FrozenTrial) -> str:
    return " ".join(options_of(SPACE, trial.params))


def test_what_matters_is_found() -> None:
    made, plan = study(60, ["val/nll:min"])
    found = importances(made, plan, 0)
    assert max(found, key=lambda name: found[name]) == "x" and found["x"] > 0.8 and found["n"] < 0.1
    assert sum(found.values()) == pytest.approx(1)
    assert "width@a" not in found  # holds under one choice of kind only


def test_few_trials_tell_nothing_of_importance() -> None:
    made, plan = study(FEWEST - 1, ["val/nll:min"])
    assert importances(made, plan, 0) == {}


def test_the_page_has_the_best_trial_and_all_others(tmp_path: Path) -> None:
    made, plan = study(20, ["val/nll:min"])
    page = write_report(made, plan, SPACE, tmp_path, command, "make dashboard")
    assert page is not None
    text = page.read_text()
    assert f"Trial {made.best_trial.number}: val/nll" in text and command(made.best_trial) in text
    assert "best.yaml" in text and "make dashboard" in text and "loss is nan" in text and text.count("<tr>") == 21
    assert text.count("<img") == 2 and (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "http" not in text.replace("http-equiv", "")


def test_several_objectives_give_the_front_within_the_constraint(tmp_path: Path) -> None:
    made, plan = study(40, ["val/nll:min", "seconds:min"], constraints=["seconds>=0.5"])
    page = write_report(made, plan, SPACE, tmp_path, command)
    assert page is not None
    text = page.read_text()
    assert "Pareto front" in text and text.count("<img") == 3 and "breaks a constraint" in text
    best = [trial for trial in made.best_trials]
    assert len(best) > 1 and all(f"front_{trial.number}.yaml" in text for trial in best)
    assert all(trial.params["x"] <= 0.5 for trial in best)


def test_without_a_complete_trial_there_is_no_page(tmp_path: Path) -> None:
    made, plan = study(0, ["val/nll:min"])
    assert write_report(made, plan, SPACE, tmp_path, command) is None and not list(tmp_path.iterdir())
