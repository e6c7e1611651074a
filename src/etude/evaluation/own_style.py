"""Before and after training on a few pieces: how likely held-out pieces are, how like them samples are, and what is copied."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from symusic import Score

from etude.evaluation.copying import NgramIndex
from etude.evaluation.live import COPY_LENGTH, Excerpts, copied_shares, cut_excerpts
from etude.evaluation.scores import Row, Scored, add_table, split_likelihood
from etude.metrics.scores.dimensions import PieceFeatures, closeness, dimension_scores, distances, measure_features
from etude.music.score import num_notes, trim
from etude.report.reports import Report
from etude.wording import counted

FOLDS = 5  # parts of the pieces, each compared with the others: how much pieces of one hand share
DRAWS = 4000  # of the permutation test
LEVEL = 0.05  # p-value below which samples copy
MIN_REAL = 4  # held-out pieces; if there are fewer, training pieces are added to compare samples with
DIMENSIONS = ("rhythm", "harmony", "melody", "structure")


def before_and_after(
    *,
    before: Scored,
    after: Scored,
    datamodule: Any,
    folder: Path,
    num_samples: int = 16,
    num_bars: int = 8,
    temperature: float = 1.0,
    top_p: float = 0.98,
    min_p: float = 0.02,
    seed: int = 0,
) -> Report:
    """Compares a model with what it was trained from; writes before_after.csv and returns the section of a report.

    The rows: nats per token of the validation and test pieces; of samples the share of notes in their key, their distance from
    held-out pieces (mean over musical metrics, in standard deviations of those pieces), their closeness to them in rhythm,
    harmony, melody and structure (0 to 1), and the share of their passages of 12 notes that occur in training pieces in any key
    or tempo. The last column has what the pieces themselves have: among held-out ones, and each against all others.

    Args:
        before, after: the same task with the weights that the run started from, and with those that it is judged by.
        datamodule: the data module of the training.
        folder: the run's folder.
        num_samples, num_bars: samples of each model, at least 2, and their length.
        temperature, top_p, min_p, seed: how to sample.
    """
    if num_samples < 2 or num_bars < 1:
        raise ValueError(f"before_after.num_samples is {num_samples}, must be at least 2, and num_bars {num_bars}, at least 1")
    tokenizer: Any = datamodule.tokenizer
    bodies = {split: _bodies(datamodule, split) for split in ("train", "val", "test")}
    held_out = [*bodies["val"], *bodies["test"]]
    held_out += bodies["train"][: max(0, MIN_REAL - len(held_out))]
    pieces = [tokenizer.decode(body) for body in bodies["train"]]
    index = NgramIndex(pieces, names=[str(number) for number in range(len(pieces))], lengths=[COPY_LENGTH])
    real = cut_excerpts(
        held_out, tokenizer=tokenizer, num_bars=num_bars, count=64, num_samples=num_samples, index=index, seed=seed
    )
    options: dict[str, Any] = {"num_bars": num_bars, "temperature": temperature, "top_p": top_p, "min_p": min_p, "seed": seed}
    drawn = {
        name: _drawn(task, num_samples, max_new_tokens=2 * real.num_tokens, **options)
        for name, task in (("before", before), ("after", after))
    }
    shared = among([tokenizer.decode(body) for split in bodies.values() for body in split], num_bars=num_bars, seed=seed)
    copied = {name: _defined(copied_shares(samples, index)) for name, samples in drawn.items()}
    rows = [*_likelihoods(before, after, datamodule), *_of_samples(drawn, real)]
    rows.append(_row("copied passages of 12 notes, share", [_mean(copied[name]) for name in drawn], _mean(shared)))
    report = Report("")
    add_table(report, "Before and after", rows, folder / "before_after.csv")
    lines = [learned(rows), told_copying(copied["after"], shared, seed=seed)]
    for line in lines:
        report.text(line)
        print(line, file=sys.stderr)
    return report


def _bodies(datamodule: Any, split: str) -> list[NDArray[Any]]:
    view = datamodule.view(split)
    return [np.array(view.body(number)) for number in range(len(view))]


def _drawn(task: Scored, count: int, *, num_bars: int, **options: Any) -> list[Score]:
    """Returns samples that have notes, cut to `num_bars`."""
    found = [score for score in task.sample(num_samples=count, num_bars=num_bars, **options) if num_notes(score)]
    return [trim(score, num_bars=num_bars) for score in found]


def _likelihoods(before: Scored, after: Scored, datamodule: Any) -> list[Row]:
    rows = []
    for split, name in (("val", "validation"), ("test", "test")):
        if len(datamodule.view(split)):
            found: list[Any] = [split_likelihood(task, datamodule, split)["nats_per_token"] for task in (before, after)]
            rows.append(_row(f"{name} pieces, nats per token", found))
    return rows


def _of_samples(drawn: Mapping[str, Sequence[Score]], real: Excerpts) -> list[Row]:
    """The rows of what is measured of the notes of samples."""
    features = {name: measure_features(samples) if samples else None for name, samples in drawn.items()}
    columns = [
        {"in key": _in_key(each), "distance": _distance(each, real.features), **_closeness(each, real)} if each else {}
        for each in features.values()
    ]
    own = {"in key": _in_key(real.features), "distance": _mean(list(_of_metrics(real.expected, real.features).values()))}
    names = {"in key": "notes in the piece's key, share", "distance": "distance from held-out pieces, deviations"}
    names |= {dimension: f"like held-out pieces: {dimension}" for dimension in DIMENSIONS}
    return [_row(title, [column.get(key) for column in columns], own.get(key)) for key, title in names.items()]


def _in_key(features: PieceFeatures) -> float | None:
    return _mean(1 - _defined(features.metrics["out of key"]))


def _of_metrics(found: Mapping[str, float], real: PieceFeatures) -> dict[str, float]:
    return {name: value for name, value in found.items() if name in real.metrics and np.isfinite(value)}


def _distance(features: PieceFeatures, real: PieceFeatures) -> float | None:
    return _mean(list(_of_metrics(distances(features, real), real).values()))


def _closeness(features: PieceFeatures, real: Excerpts) -> dict[str, float]:
    return dimension_scores(closeness(features, real.features, expected=real.expected))


def among(pieces: Sequence[Score], *, num_bars: int, seed: int = 0) -> NDArray[np.float64]:
    """Returns for each piece the share of the passages of 12 notes in its first bars that occur in other pieces.

    The pieces are divided into `FOLDS` parts, and each is searched for in the other parts. Those without 12 notes are left out.
    """
    order = np.random.default_rng(seed).permutation(len(pieces))
    parts = [order[number::FOLDS] for number in range(min(FOLDS, len(pieces)))]
    found: list[NDArray[np.float64]] = []
    for part in parts if len(parts) > 1 else []:
        others = sorted(set(order.tolist()) - set(part.tolist()))
        index = NgramIndex([pieces[i] for i in others], names=[str(i) for i in others], lengths=[COPY_LENGTH])
        found.append(copied_shares([trim(pieces[i], num_bars=num_bars) for i in part if num_notes(pieces[i])], index))
    return _defined(np.concatenate(found)) if found else np.zeros(0)


def learned(rows: Sequence[Row]) -> str:
    """Says in a sentence whether held-out pieces have become likelier; the first row is that of a split."""
    row: Any = rows[0]
    if not str(row["measure"]).endswith("nats per token"):
        return "There are no held-out pieces, so nothing tells whether the style was learned; give data.split=[0.8,0.2,0]."
    change = 1 - row["after"] / row["before"]
    if change <= 0:
        return "Held-out pieces are no likelier than before: nothing of the style was learned. Give more pieces, or another rate."
    return (
        f"Held-out pieces are likelier than before: {row['after']:.3f} instead of {row['before']:.3f} nats per token "
        f"({change:.0%} less)."
    )


def told_copying(samples: NDArray[np.float64], real: NDArray[np.float64], *, seed: int = 0) -> str:
    """Says whether samples share more with training pieces than pieces share with each other, by a permutation test.

    samples, real: the share of copied passages in each sample, and in each piece.
    """
    if len(samples) < 2 or len(real) < 2:
        few = "samples" if len(samples) < 2 else "pieces"
        return f"Copying can't be judged: {counted(min(len(samples), len(real)), few[:-1])} with 12 notes."
    p = exceeding(samples, real, seed=seed)
    shares = f"{samples.mean():.1%} of samples' passages occur in training pieces, {real.mean():.1%} of a piece's in other pieces"
    if p < LEVEL:
        return f"The model copies: {shares} (p = {p:.3f}). Train fewer steps (max_steps=), or give more pieces."
    return f"The model does not copy more than the pieces do among themselves: {shares} (p = {p:.2f})."


def exceeding(first: NDArray[np.float64], second: NDArray[np.float64], *, seed: int = 0) -> float:
    """Returns the p-value of mean(first) > mean(second) if both came from one distribution, by random permutations.

    Source: Good 2005, section 3.2; the observed division counts as one of the draws.
    """
    both, draw = np.concatenate([first, second]), np.random.default_rng(seed)
    gap = first.mean() - second.mean()
    larger = 1
    for _ in range(DRAWS - 1):
        mixed = draw.permutation(both)
        larger += bool(mixed[: len(first)].mean() - mixed[len(first) :].mean() >= gap - 1e-12)
    return larger / DRAWS


def _row(measure: str, values: Sequence[float | None], pieces: float | None = None) -> Row:
    before, after = values
    return {"measure": measure, "before": before, "after": after, "the pieces themselves": pieces}


def _defined(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[np.isfinite(values)]


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float | None:
    return float(np.mean(values)) if len(values) else None
