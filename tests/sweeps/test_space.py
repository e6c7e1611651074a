"""Search spaces: what is suggested, what a grid holds, what is refused and compared."""

import optuna
import pytest

from etude.sweeps.space import (
    Space,
    changes,
    check_names,
    choices,
    described,
    examples,
    grid,
    interval,
    options_of,
    steps,
    suggest,
)

LR: Space = (interval("optimizer.lr", "optimizer.lr@muon", 0.001, 0.1, log=True),)
BRANCHED: Space = (
    choices("optimizer", "optimizer", [("muon", "muon"), ("adamw", "adamw")], {"muon": LR}),
    steps("model.dim", "model.dim", 64, 193, 64),
)


def study() -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))


def test_a_choice_brings_its_own_options_and_no_other() -> None:
    found = {}
    for _ in range(20):
        options = dict(option.split("=") for option in suggest(BRANCHED, study().ask()))
        found[options["optimizer"]] = options
        assert ("optimizer.lr" in options) == (options["optimizer"] == "muon")
        assert options["model.dim"] in ("64", "128", "192")
    searching = study()
    for _ in range(20):
        trial = searching.ask()
        assert suggest(BRANCHED, trial) == options_of(BRANCHED, trial.params)
        searching.tell(trial, 0.0)


def test_values_stay_within_their_range() -> None:
    space = (interval("a", "a", 1, 3), interval("b", "b", 0.5, 0.6), steps("c", "c", 0.0, 0.3, 0.1))
    searching, seen = study(), {"a": set(), "b": set(), "c": set()}
    for _ in range(100):
        trial = searching.ask()
        for option in suggest(space, trial):
            key, value = option.split("=")
            seen[key].add(float(value))
        searching.tell(trial, 0.0)
    assert (
        seen["a"] == {1, 2, 3} and sorted(seen["c"]) == pytest.approx([0.0, 0.1, 0.2]) and all(0.5 <= b <= 0.6 for b in seen["b"])
    )


def test_a_range_leaves_its_end_out_as_hydras_does() -> None:
    assert steps("k", "k", 1, 10, 3).values() == [1, 4, 7]
    assert steps("k", "k", 0.0, 1.0, 0.25).values() == pytest.approx([0, 0.25, 0.5, 0.75])
    assert steps("k", "k", 0.1, 0.4, 0.1).values() == pytest.approx([0.1, 0.2, 0.3])


def test_a_grid_holds_every_combination_of_what_belongs_together() -> None:
    space = (
        choices("o", "o", [("m", "m"), ("a", "a")], {"m": (choices("lr", "lr@m", [(1, "1"), (2, "2")]),)}),
        choices("d", "d", [(True, "true"), (None, "null")]),
    )
    found = grid(space)
    assert len(found) == len({tuple(sorted(point.items(), key=str)) for point in found}) == 6
    assert {"o": "a", "d": None} in found and {"o": "m", "lr@m": 2, "d": True} in found
    assert options_of(space, {"o": "a", "d": None}) == ["o=a", "d=null"]
    with pytest.raises(ValueError, match=r"sweep=grid needs values to enumerate, but x has an interval"):
        grid((interval("x", "x", 0.0, 1.0),))


def test_examples_show_every_choice_and_both_ends() -> None:
    shown = {option for options in examples(BRANCHED) for option in options}
    assert shown >= {
        "optimizer=muon",
        "optimizer=adamw",
        "optimizer.lr=0.001",
        "optimizer.lr=0.1",
        "model.dim=64",
        "model.dim=192",
    }


def test_empty_and_double_ranges_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"a=interval\(2,1\) is empty"):
        interval("a", "a", 2, 1)
    with pytest.raises(ValueError, match=r"a=tag\(log,interval\(0,1\)\): a logarithmic interval must begin above 0"):
        interval("a", "a", 0, 1, log=True)
    with pytest.raises(ValueError, match=r"a=range\(3,3,1\) is empty"):
        steps("a", "a", 3, 3, 1)
    with pytest.raises(ValueError, match="a has no choices"):
        choices("a", "a", [])
    with pytest.raises(ValueError, match="a=x,x names a choice twice"):
        choices("a", "a", [("x", "x"), ("x", "x")])
    with pytest.raises(ValueError, match="names b twice"):
        check_names((interval("b", "b", 0, 1), interval("b", "b", 0, 2)))
    with pytest.raises(ValueError, match=r"sets optimizer.lr twice in one trial"):
        check_names((*BRANCHED, interval("optimizer.lr", "optimizer.lr", 0.0, 1.0)))


def test_changes_are_told_by_name() -> None:
    other = (*BRANCHED[:1], steps("model.dim", "model.dim", 64, 129, 64), interval("x", "x", 0, 1))
    assert changes(described(BRANCHED), described(BRANCHED)) == []
    assert changes(described(BRANCHED), described(other)) == [
        "x is new", "model.dim was 64..192 step 64, is 64..128 step 64",
    ]  # fmt: skip
