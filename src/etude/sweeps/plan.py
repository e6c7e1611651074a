"""What a study searches for and how: kept in the study itself, so that every host and every trial reads the same."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

MEASURED = ("seconds", "parameters")  # objectives that no training logs: its time, and how many numbers it trains
SAMPLERS = ("tpe", "random", "grid", "nsga2", "cmaes", "gp")
PRUNERS = ("none", "median", "hyperband", "wilcoxon")


@dataclass(frozen=True)
class Objective:
    """A metric to minimize or maximize. mode: "min" or "max"."""

    metric: str
    mode: str

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """Returns the objective of `val/nll:min`. Raises: ValueError for anything else."""
        metric, _, mode = text.rpartition(":")
        if not metric or mode not in ("min", "max"):
            raise ValueError(f"objectives has {text!r}; an objective is METRIC:min or METRIC:max, such as val/nll:min")
        return cls(metric, mode)

    def __str__(self) -> str:
        return f"{self.metric}:{self.mode}"

    @property
    def direction(self) -> str:
        return "minimize" if self.mode == "min" else "maximize"

    def better(self, value: float, than: float) -> bool:
        """Returns whether a value is better than another; NaN never is."""
        return value < than if self.mode == "min" else value > than


@dataclass(frozen=True)
class Constraint:
    """A bound that a trial must keep, such as live/copying<=0.2."""

    metric: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Constraint":
        """Returns the constraint of `live/copying<=0.2`. Raises: ValueError for anything else."""
        found = re.fullmatch(r"\s*(\S+?)\s*(<=|>=)\s*(\S+)\s*", text)
        try:
            if found is None or not math.isfinite(bound := float(found[3])):
                raise ValueError
        except ValueError:
            raise ValueError(
                f"constraints has {text!r}; a constraint is METRIC<=NUMBER or METRIC>=NUMBER, such as 'live/copying<=0.2'"
            ) from None
        return cls(found[1], found[2], bound)

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.bound:g}"

    def excess(self, value: float) -> float:
        """Returns by how much a value breaks the bound: above 0 if it does."""
        return value - self.bound if self.sign == "<=" else self.bound - value


@dataclass(frozen=True)
class Plan:
    """A sweep's settings.

    objectives, constraints: as text, such as val/nll:min and live/copying<=0.2. objective_at: which validation's values count,
    "best" (where the first objective was best) or "last". prune_by: the metric that prunes. space: see `space.described`.
    options: what all trials have in common. sampler_options, pruner_options: for Optuna's classes. max_steps: a trial's steps.
    trainer: its settings, without those of `WHERE`. contents: of the folder or file of the data, see `Contents`.
    """

    objectives: list[str]
    constraints: list[str] = field(default_factory=list)
    objective_at: Literal["best", "last"] = "best"
    sampler: str = "tpe"
    sampler_options: dict[str, Any] = field(default_factory=dict)
    pruner: str = "none"
    pruner_options: dict[str, Any] = field(default_factory=dict)
    prune_by: str | None = None
    space: dict[str, str] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    seed: int = 0
    max_steps: int = 1000
    trainer: dict[str, Any] = field(default_factory=dict)
    contents: str = ""

    def __post_init__(self) -> None:
        if not self.objectives:
            raise ValueError("objectives=[] leaves nothing to optimise; give one, such as objectives=[val/nll:min]")
        metrics = [goal.metric for goal in self.goals]
        if twice := [metric for metric in metrics if metrics.count(metric) > 1]:
            raise ValueError(f"objectives names {twice[0]} twice; name each metric once")
        _ = self.bounds
        for option, value, known in (
            ("objective_at", self.objective_at, ("best", "last")), ("pruner", self.pruner, PRUNERS),
            ("sweep", self.sampler, SAMPLERS),
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"{option}={value} must be one of {', '.join(known)}")
        if len(self.objectives) > 1 and self.pruner != "none":
            raise ValueError(
                f"pruner={self.pruner} compares trials by one metric, but there are {len(self.objectives)} objectives; set "
                "pruner=none, or one objective and the others as constraints"
            )
        if len(self.objectives) > 1 and self.sampler == "cmaes":
            raise ValueError("sweep=cmaes takes one objective; take sweep=nsga2, tpe, gp or random for several")
        if self.pruner != "none" and self.pruning_metric in MEASURED:
            raise ValueError(f"pruner={self.pruner} can't judge by {self.pruning_metric}; name a logged metric: prune_by=val/nll")

    @property
    def goals(self) -> list[Objective]:
        return [Objective.parse(text) for text in self.objectives]

    @property
    def bounds(self) -> list[Constraint]:
        return [Constraint.parse(text) for text in self.constraints]

    @property
    def pruning_metric(self) -> str:
        return self.prune_by or self.goals[0].metric

    @property
    def metrics(self) -> list[str]:
        """The logged metrics that a trial needs, each once."""
        found = [goal.metric for goal in self.goals] + [bound.metric for bound in self.bounds]
        if self.pruner != "none":
            found.append(self.pruning_metric)
        return [metric for metric in dict.fromkeys(found) if metric not in MEASURED]

    def saved(self) -> dict[str, Any]:
        """Returns plain values for the study's attributes."""
        return asdict(self)

    @classmethod
    def loaded(cls, saved: Mapping[str, Any]) -> "Plan":
        """Returns the plan of `saved`. Raises: ValueError if a later version wrote it."""
        try:
            return cls(**saved)
        except TypeError as error:
            raise ValueError(f"the study was made by another version of Etude ({error}); give study=NEW_NAME") from error


# what hosts may set differently: it changes where and how fast a trial runs, not what it computes. Of the trainer only WHERE may
# differ, of data.root only the path. What counts of these, of the seed and of max_steps is the plan's value, not the option
WHERE = ("accelerator", "devices", "num_nodes", "strategy")
MAY_DIFFER = ("outputs", "cache_dir", "trainer", "logger", "save_every", "data.root", "hydra", "seed", "max_steps")


def refuse_changes(name: str, before: Plan, now: Plan) -> None:
    """Raises: ValueError if a study would mix trials that can't be compared; the line names what changed."""
    from etude.sweeps.space import changes

    told = []
    for option in ("objectives", "constraints", "objective_at", "seed", "max_steps"):
        old, new = getattr(before, option), getattr(now, option)
        if old != new:
            told.append(f"{option} was {_text(old)}, is {_text(new)}")
    told += [
        f"trainer.{key} was {before.trainer.get(key)}, is {now.trainer.get(key)}"
        for key in sorted(before.trainer.keys() | now.trainer.keys())
        if before.trainer.get(key) != now.trainer.get(key)
    ]
    if before.contents != now.contents and not _is_of_earlier_version(before.contents):
        told.append("data.root has other files now")
    told += [f"the search space: {change}" for change in changes(before.space, now.space)]
    old, new = _comparable(before.options), _comparable(now.options)
    told += [f"{option} is new" for option in new if option not in old] + [
        f"{option} is gone" for option in old if option not in new
    ]
    if told:
        more = f" ({len(told)} changes)" if len(told) > 1 else ""
        raise ValueError(f"study={name} has other trials already: {told[0]}{more}; give study=NEW_NAME, or take the change back")


def _is_of_earlier_version(contents: str) -> bool:
    """Returns whether a study was begun by a version that read only the beginnings of files; it goes on with today's digest."""
    return re.fullmatch(r"[0-9a-f]{64}", contents) is not None


def _text(value: object) -> str:
    return f"[{','.join(value)}]" if isinstance(value, list) else str(value)


def _comparable(options: Iterable[str]) -> list[str]:
    found = []
    for option in options:
        key = option.partition("=")[0].lstrip("+~")
        if not any(key == part or key.startswith(f"{part}.") for part in MAY_DIFFER):
            found.append(option)
    return sorted(found)
