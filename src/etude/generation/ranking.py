"""Best of n: draws several candidates for each sample and keeps the one that a metric ranks first."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from symusic import Score

from etude.core.protocols import Blends, Composes, RatesScores
from etude.data.scores.reading import read_guarded
from etude.metrics.scores.dimensions import measure_features
from etude.metrics.scores.tables import PIECE_METRICS, piece_metrics
from etude.music.score import SUFFIXES, num_notes, printable
from etude.report.reports import Report
from etude.wording import counted

Order = Literal["highest", "lowest"]
LIKELIHOOD, DISTANCE = "likelihood", "distance"
MOST_REAL = 200  # pieces of `real` that are measured, spread over the folder
BEST: dict[str, Order] = {  # which end is better, of the metrics for which that is clear
    LIKELIHOOD: "highest", DISTANCE: "lowest", "scale consistency": "highest", "out of key": "lowest", "key clarity": "highest",
    "tonic ending": "highest", "dissonance": "lowest", "parallel fifths": "lowest", "parallel octaves": "lowest",
    "empty beats": "lowest", "empty bars": "lowest", "groove consistency": "highest", "drum pattern": "highest",
}  # fmt: skip
UNITS = {
    LIKELIHOOD: "log-likelihood under the model, nats per token",
    DISTANCE: "from the music in real=, root mean square in its standard deviations",
    **{name: unit for name, (_, unit) in PIECE_METRICS.items()},
}


@dataclass(frozen=True)
class Kept:
    """What was kept of the candidates for one sample.

    Attributes:
        score: the candidate that ranks first.
        place: its number among the candidates, from 1.
        values: the metric of each candidate, in the order in which they were drawn; NaN where it is not defined.
    """

    score: Score
    place: int
    values: tuple[float, ...]

    @property
    def value(self) -> float:
        """The metric of the candidate that was kept."""
        return self.values[self.place - 1]

    @property
    def others(self) -> tuple[float, ...]:
        """The metric of the candidates that were not kept."""
        return self.values[: self.place - 1] + self.values[self.place :]


@dataclass(frozen=True)
class Ranking:
    """Ranks candidates by a metric.

    Attributes:
        metric: its name, see `UNITS`.
        order: which end ranks first.
        measure: returns the metric of each score; NaN where it is not defined, which ranks last.
    """

    metric: str
    order: Order
    measure: Callable[[Sequence[Score]], Sequence[float]]

    def best(self, candidates: Sequence[Score]) -> Kept:
        """Returns what is kept of candidates; the first of those with equal values, and where the metric is defined for none."""
        values = tuple(float(value) for value in self.measure(candidates))
        sign = -1.0 if self.order == "highest" else 1.0
        place = min(range(len(values)), key=lambda i: math.inf if math.isnan(values[i]) else sign * values[i])
        return Kept(candidates[place], place + 1, values)


def best_of_each(candidates: Iterator[Score], ranked: Ranking | None, *, count: int) -> Iterator[Kept]:
    """Yields what is kept of every `count` candidates; each as it is if nothing ranks them."""
    while group := list(islice(candidates, count)):
        yield Kept(group[0], 1, (math.nan,)) if ranked is None else ranked.best(group)


def shown(values: Sequence[float]) -> str:
    """Returns numbers in one line."""
    return " ".join(f"{value:.4g}" for value in values)


def tell_ranking(ranked: Ranking, kept: Sequence[Kept], names: Sequence[str], report: Report) -> None:
    """Tells on the terminal and in the report what was kept and what the other candidates have."""
    report.heading(f"Best of {len(kept[0].values)} by {ranked.metric}, {ranked.order} first")
    report.text(f"{ranked.metric}: {UNITS[ranked.metric]}.")
    rows = [(name, best.place, best.value, shown(best.others)) for name, best in zip(names, kept, strict=True)]
    report.table(("sample", "candidate kept", ranked.metric, "of the others, as drawn"), rows)
    for name, place, value, others in rows:
        print(f"{name}: candidate {place} kept, {ranked.metric} {value:.4g}; the others {others}", file=sys.stderr)


def ranking(options: Mapping[str, Any], task: Composes, *, labels: Mapping[str, Any]) -> Ranking | None:
    """Returns the ranking that options ask for; None where one candidate is drawn for each sample.

    Args:
        options: best_of, rank_by, rank_order, real and num_bars, as `write_samples` takes them.
        labels: what is asked of the samples; the likelihood is given it.

    Raises:
        ValueError: a metric that there is not (the message lists them), one whose better end is not clear, options that don't
            go together, or a folder without scores.
    """
    best_of, rank_by, order = (options.get(name) for name in ("best_of", "rank_by", "rank_order"))
    if best_of is None or best_of == 1:
        if given := next((name for name in ("rank_by", "rank_order", "real") if options.get(name) is not None), None):
            raise ValueError(f"{given}={options[given]} chooses among candidates; add best_of=8 for eight, or leave it out")
        return None
    if best_of < 1:
        raise ValueError(f"best_of is {best_of}, must be at least 1; 8 keeps the best of eight")
    if rank_by is None:
        raise ValueError(f"best_of={best_of} needs rank_by=METRIC; choose one of {_listed(UNITS)}")
    metric = _metric(str(rank_by))
    if order not in (None, "highest", "lowest"):
        raise ValueError(f"rank_order={order} is unknown; choose highest or lowest")
    if order is None and metric not in BEST:
        raise ValueError(
            f"rank_by={rank_by}: neither end of this metric is better by itself; add rank_order=highest or rank_order=lowest"
        )
    return Ranking(metric, order or BEST[metric], _measure(metric, options, task, labels))


def _metric(name: str) -> str:
    plain = name.replace("_", " ").strip().lower()
    if plain in UNITS:
        return plain
    near = get_close_matches(plain, UNITS, n=1)
    guess = f"did you mean {near[0].replace(' ', '_')}? " if near else ""
    raise ValueError(f"rank_by={name} is no metric; {guess}choose one of {_listed(UNITS)}")


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(name.replace(" ", "_") for name in names)


def _measure(
    metric: str, options: Mapping[str, Any], task: Composes, labels: Mapping[str, Any]
) -> Callable[[Sequence[Score]], Sequence[float]]:
    real = options.get("real")
    if real is not None and metric != DISTANCE:
        raise ValueError(f"real={real} is only for rank_by=distance; leave one of them out")
    if metric == LIKELIHOOD:
        if not isinstance(task, RatesScores) or isinstance(task, Blends):  # of a model with latents there is only a bound
            raise ValueError(f"rank_by=likelihood: {type(task).__name__} has no likelihood; choose another metric")
        rate, num_bars = task.nats_per_token, options.get("num_bars")
        return lambda scores: [-nats for nats in rate(scores, labels=labels, num_bars=num_bars)]
    if metric == DISTANCE:
        if real is None:
            raise ValueError("rank_by=distance needs music to compare with: real=FOLDER, best of pieces the model has not seen")
        return distance_from(_read(str(real)))
    return lambda scores: [piece_metrics(score)[metric] if num_notes(score) else math.nan for score in scores]


def distance_from(real: Sequence[Score]) -> Callable[[Sequence[Score]], list[float]]:
    """Returns a function that measures how far each score lies from a set of real ones.

    Root mean square over the metrics of `etude.metrics.scores.dimensions`, each in standard deviations of the real pieces from
    their mean, at most 8; NaN for a score without notes.
    """
    features = measure_features(real)

    def distance(score: Score) -> float:
        if not num_notes(score):
            return math.nan
        row = features.standardised(measure_features([score]).matrix)
        return float(np.sqrt((row**2).mean()))

    return lambda scores: [distance(score) for score in scores]


def _read(folder: str) -> list[Score]:
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"real={folder}: there is no such folder; give one of scores ({', '.join(sorted(SUFFIXES))})")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(MOST_REAL, len(paths))).round().astype(int).tolist()]
    read = sorted(read_guarded(chosen), key=lambda row: row[0])
    scores = [score for _, pieces, _ in read for _, score in pieces if num_notes(score)]
    if not scores:
        raise ValueError(f"real={folder}: none of its {counted(len(chosen), 'score file')} can be read; give a folder of scores")
    if bad := sum(not pieces for _, pieces, _ in read):
        print(f"real={printable(root)}: left out, since unreadable: {counted(bad, 'file')}", file=sys.stderr)
    return scores
