"""A search space: options with a range or choices each; a choice may bring options of its own."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import Trial

Label = str | int | float | bool | None  # what Optuna stores of a choice


@dataclass(frozen=True)
class Dimension:
    """One option of a search space.

    key: the option as on the command line, such as optimizer.lr, or a group such as optimizer. name: the parameter's name in the
    study. distribution: its values. texts: of choices, how each is written as an option. branches: the options that belong to one
    choice only, by that choice.
    """

    key: str
    name: str
    distribution: BaseDistribution
    texts: Mapping[Label, str] = field(default_factory=dict)
    branches: Mapping[Label, "Space"] = field(default_factory=dict)

    def option(self, value: Any) -> str:
        """Returns the option that sets this value."""
        return f"{self.key}={self.texts[value] if value in self.texts else _written(value)}"

    def values(self) -> list[Any]:
        """Returns all values, in order. Raises: ValueError if there are infinitely many."""
        found = self.distribution
        if isinstance(found, CategoricalDistribution):
            return list(found.choices)
        if isinstance(found, IntDistribution):
            return list(range(found.low, found.high + 1, found.step))
        assert isinstance(found, FloatDistribution)
        if found.step is None:
            raise ValueError(
                f"sweep=grid needs values to enumerate, but {self.key} has an interval; give choices ({self.key}=A,B) or "
                f"range(START,STOP,STEP), or take another sweep="
            )
        low, by = Decimal(str(found.low)), Decimal(str(found.step))
        return [float(low + number * by) for number in range(round((found.high - found.low) / found.step) + 1)]


Space = tuple[Dimension, ...]


def _written(value: Any) -> str:
    return repr(value) if isinstance(value, float) else "null" if value is None else str(value)


def choices(
    key: str, name: str, options: Sequence[tuple[Label, str]], branches: Mapping[Label, Space] | None = None
) -> Dimension:
    """Returns a dimension of choices, given as pairs of a label and its text. Raises: ValueError for none, or one given twice."""
    labels = [label for label, _ in options]
    if not labels:
        raise ValueError(f"{key} has no choices; give some, such as {key}=A,B")
    if len(set(labels)) < len(labels):
        raise ValueError(f"{key}={','.join(text for _, text in options)} names a choice twice; name each once")
    return Dimension(key, name, CategoricalDistribution(labels), dict(options), dict(branches or {}))


def interval(key: str, name: str, low: float, high: float, *, log: bool = False) -> Dimension:
    """Returns a dimension of all numbers from low to high, integers if both are. Raises: ValueError for an empty interval."""
    told = f"{key}={'tag(log,' if log else ''}interval({low},{high}){')' if log else ''}"
    if not low < high:
        raise ValueError(f"{told} is empty; the first number must be the lower one")
    if log and low <= 0:
        raise ValueError(f"{told}: a logarithmic interval must begin above 0")
    if isinstance(low, int) and isinstance(high, int):
        return Dimension(key, name, IntDistribution(low, high, log=log))
    return Dimension(key, name, FloatDistribution(float(low), float(high), log=log))


def steps(key: str, name: str, start: float, stop: float, step: float) -> Dimension:
    """Returns a dimension of the numbers start, start + step, ... below `stop`. Raises: ValueError if there are none."""
    told = f"{key}=range({start},{stop},{step})"
    if step <= 0 or start >= stop:
        raise ValueError(f"{told} is empty; a range needs a positive step and a start below its stop")
    low, high, by = (Decimal(str(number)) for number in (start, stop, step))  # as written: floats would miss the last value
    last = low + (math.ceil((high - low) / by) - 1) * by
    if all(isinstance(number, int) for number in (start, stop, step)):
        return Dimension(key, name, IntDistribution(int(low), int(last), step=int(by)))
    return Dimension(key, name, FloatDistribution(float(low), float(last), step=float(by)))


def suggest(space: Space, trial: Trial) -> list[str]:
    """Asks the trial for a value of each dimension that holds, and returns them as options, a choice before what it brings."""
    found = []
    for dimension in space:
        value = _suggest(dimension, trial)
        found += [dimension.option(value), *suggest(dimension.branches.get(value, ()), trial)]
    return found


def _suggest(dimension: Dimension, trial: Trial) -> Any:
    made = dimension.distribution
    if isinstance(made, CategoricalDistribution):
        return trial.suggest_categorical(dimension.name, made.choices)
    if isinstance(made, IntDistribution):
        return trial.suggest_int(dimension.name, made.low, made.high, step=made.step, log=made.log)
    assert isinstance(made, FloatDistribution)
    return trial.suggest_float(dimension.name, made.low, made.high, step=made.step, log=made.log)


def options_of(space: Space, params: Mapping[str, Any]) -> list[str]:
    """Returns the options of a finished trial from its parameters; dimensions without one are left out."""
    found = []
    for dimension in space:
        if dimension.name in params:
            value = params[dimension.name]
            found += [dimension.option(value), *options_of(dimension.branches.get(value, ()), params)]
    return found


def all_dimensions(space: Space) -> Iterator[Dimension]:
    """Yields every dimension, also those that hold under one choice only."""
    for dimension in space:
        yield dimension
        for branch in dimension.branches.values():
            yield from all_dimensions(branch)


def described(space: Space) -> dict[str, str]:
    """Returns each parameter's distribution as text, by its name, to compare a study's space with a later one."""
    return {dimension.name: distribution_to_json(dimension.distribution) for dimension in all_dimensions(space)}


def check_names(space: Space) -> None:
    """Raises: ValueError if a study could not tell two dimensions apart, or one option would be set twice in one trial."""
    names = [dimension.name for dimension in all_dimensions(space)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the search space names {twice[0]} twice; each option must be in it once")
    for options in examples(space):
        keys = [option.partition("=")[0] for option in options]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"the search space sets {twice[0]} twice in one trial ({' '.join(options)}); leave one out")


def examples(space: Space) -> list[list[str]]:
    """Returns options of trials in which every choice occurs at least once, and the ends of every range."""
    count = max((_width(dimension) for dimension in space), default=1)
    return [[option for dimension in space for option in _example(dimension, turn)] for turn in range(count)]


def _width(dimension: Dimension) -> int:
    """Returns how many examples show all that a dimension can be."""
    if not isinstance(dimension.distribution, CategoricalDistribution):
        return 2
    return sum(len(examples(dimension.branches.get(choice, ()))) for choice in dimension.distribution.choices)


def _example(dimension: Dimension, turn: int) -> list[str]:
    made = dimension.distribution
    if isinstance(made, CategoricalDistribution):
        shown = [(choice, inside) for choice in made.choices for inside in examples(dimension.branches.get(choice, ()))]
        choice, inside = shown[turn % len(shown)]
        return [dimension.option(choice), *inside]
    assert isinstance(made, FloatDistribution | IntDistribution)
    return [dimension.option((made.low, made.high)[turn % 2])]


def grid(space: Space) -> list[dict[str, Any]]:
    """Returns the parameters of every combination, in order. Raises: ValueError for an interval, which has no end of values."""
    parts = []
    for dimension in space:
        inside = []
        for value in dimension.values():
            inside += [{dimension.name: value, **rest} for rest in grid(dimension.branches.get(value, ()))]
        parts.append(inside)
    return [dict(itertools.chain.from_iterable(part.items() for part in chosen)) for chosen in itertools.product(*parts)]


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Returns what differs between two spaces from `described`, one line for each parameter."""
    told = [f"{name} is gone" for name in sorted(before.keys() - now.keys())]
    told += [f"{name} is new" for name in sorted(now.keys() - before.keys())]
    for name in sorted(before.keys() & now.keys()):
        if before[name] != now[name]:
            told.append(f"{name} was {_range(before[name])}, is {_range(now[name])}")
    return told


def _range(text: str) -> str:
    found = json.loads(text)["attributes"]
    if "choices" in found:
        return ",".join(map(str, found["choices"]))
    step = f" step {found['step']}" if found.get("step") not in (None, 1) else ""
    return f"{found['low']}..{found['high']}{' log' if found.get('log') else ''}{step}"
