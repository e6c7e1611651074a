"""What a study searches for: objectives, constraints, and what may not change."""

from dataclasses import replace

import pytest

from etude.sweeps.plan import Constraint, Objective, Plan, refuse_changes

PLAN = Plan(
    ["val/nll:min"], options=["model.dim=64", "trainer=cpu"], space={"x": '{"name": "a", "attributes": {"low": 0, "high": 1}}'}
)


def test_objectives_and_constraints_are_read() -> None:
    assert Objective.parse("quality/overlap:max") == Objective("quality/overlap", "max")
    assert Objective("a", "max").better(2, 1) and not Objective("a", "min").better(float("nan"), 1)
    assert Constraint.parse("live/copying <= 0.2").excess(0.5) == pytest.approx(0.3)
    assert Constraint.parse("live/quality>=0.7").excess(0.5) == pytest.approx(0.2)
    assert str(Constraint.parse("a<=1")) == "a<=1"


@pytest.mark.parametrize("text", ["val/nll", ":min", "val/nll:low", ""])
def test_what_is_no_objective_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"METRIC:min or METRIC:max"):
        Plan([text])


@pytest.mark.parametrize("text", ["copying", "copying<0.2", "copying<=a", "<=1", "copying<=nan"])
def test_what_is_no_constraint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"METRIC<=NUMBER or METRIC>=NUMBER"):
        Plan(["a:min"], constraints=[text])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"objectives": []}, "nothing to optimise"), ({"objectives": ["a:min", "a:max"]}, "names a twice"),
        ({"pruner": "best"}, "pruner=best must be one of"), ({"sampler": "luck"}, "sweep=luck must be one of"),
        ({"objectives": ["a:min", "b:min"], "pruner": "median"}, "there are 2 objectives"),
        ({"objectives": ["a:min", "b:min"], "sampler": "cmaes"}, "takes one objective"),
        ({"objectives": ["seconds:min"], "pruner": "median"}, "can't judge by seconds"),
        ({"objective_at": "first"}, "objective_at=first must be one of"),
    ],
)  # fmt: skip
def test_plans_that_cannot_work_are_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(PLAN, **options)


def test_a_study_goes_on_only_with_comparable_trials() -> None:
    refuse_changes("s", PLAN, replace(PLAN, pruner="median", sampler="random", options=["trainer=gpu", "model.dim=64"]))
    for change, told in (
        ({"objectives": ["val/nll:max"]}, r"objectives was \[val/nll:min\], is \[val/nll:max\]"),
        ({"constraints": ["a<=1"]}, "constraints was"), ({"options": ["model.dim=128"]}, "model.dim=128 is new"),
        ({"space": {}}, "the search space: x is gone"), ({"objective_at": "last"}, "objective_at was best, is last"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"study=s has other trials already: {told}.*study=NEW_NAME"):
            refuse_changes("s", PLAN, replace(PLAN, **change))


def test_a_study_from_when_only_beginnings_were_read_goes_on_and_then_knows_all() -> None:
    earlier = replace(PLAN, contents="a" * 64)
    refuse_changes("s", earlier, replace(PLAN, contents="all:1"))
    with pytest.raises(ValueError, match=r"data\.root has other files now"):
        refuse_changes("s", replace(PLAN, contents="all:1"), replace(PLAN, contents="all:2"))


def test_a_plan_is_kept_as_plain_values() -> None:
    assert Plan.loaded(PLAN.saved()) == PLAN
    with pytest.raises(ValueError, match="another version"):
        Plan.loaded({**PLAN.saved(), "later": 1})
