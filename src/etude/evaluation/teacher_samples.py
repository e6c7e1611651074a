"""Pieces that a trained language model draws, kept if they are close to real music, for another model to learn from."""

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from symusic import Score
from torch import Tensor

from etude.core.protocols import Samples, TokenViews
from etude.metrics.scores.dimensions import PieceFeatures, measure_features, quality_of_pieces
from etude.music.score import num_notes
from etude.tokens.rows import packed_rows

log = logging.getLogger(__name__)
AT_ONCE = 16  # samples that are drawn together
NUM_REAL = 64  # training pieces at most that samples are compared with
MARGIN = 64  # a sample that has fewer tokens than allowed by this many has ended by itself
Batch = dict[str, Any]


@dataclass
class TeacherSamples:
    """The samples that were kept.

    bodies: ids of each, int64 [n], without BOS and EOS. ended: whether each ends where its piece does; the others were cut at
        their last bar. drawn: how many were drawn. quality: the mean of those that were kept.
    """

    bodies: list[Tensor] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    drawn: int = 0
    quality: float = math.nan

    @property
    def kept(self) -> float:
        """The share of the samples that were kept."""
        return len(self.bodies) / max(1, self.drawn)

    def put_into(self, batch: Batch, tokenizer: Any, share: float, draws: torch.Generator) -> Batch:
        """Returns the batch of packed rows with a share of its rows replaced by rows of samples in random order.

        Samples have neither a piece nor labels: -1. They carry no controls, as a piece whose controls were dropped.
        """
        rows, length = batch["tokens"].shape
        number = int(share * rows + float(torch.rand((), generator=draws)))
        if not number:
            return batch
        chosen = torch.randperm(rows, generator=draws)[:number]
        order = torch.randperm(len(self.bodies), generator=draws).tolist()
        bodies, ended = [self.bodies[i] for i in order], [self.ended[i] for i in order]
        made = packed_rows(tokenizer, bodies, rows=number, length=length, ended=ended)
        found: Batch = {}
        for name, value in batch.items():
            found[name] = value.clone()
            given = made[name] if name in made else torch.full((number, length), -1)
            found[name][chosen.to(value.device)] = given.to(value)
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"bodies": self.bodies, "ended": self.ended, "drawn": self.drawn, "quality": self.quality}


def draw_samples(
    teacher: Samples, data: TokenViews, *, count: int, most_tokens: int, threshold: float, seed: int
) -> TeacherSamples:
    """Draws samples without a request and keeps those whose quality reaches a threshold; tells the progress.

    The quality of a sample is that of `quality_of_pieces`, against the beginnings of up to 64 training pieces of as many tokens.

    Args:
        count: samples to draw. most_tokens: of each, at most. threshold: in [0, 1]. seed: of the draws.

    Raises:
        ValueError: no sample is good enough.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    tokenizer = teacher.tokenizer
    real = measure_features(_beginnings(data, tokenizer, most_tokens, seed))
    found, best = TeacherSamples(), 0.0
    qualities: list[float] = []
    columns = (
        TextColumn("samples of the teacher, {task.fields[kept]} kept"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=count, kept=0)
        while found.drawn < count:
            number = min(AT_ONCE, count - found.drawn)
            scores = teacher.sample(num_samples=number, max_new_tokens=most_tokens, seed=seed + found.drawn)
            found.drawn += number
            for body, ended, quality in _rated(scores, tokenizer, real, most_tokens):
                best = max(best, quality)
                if quality >= threshold:
                    found.bodies.append(torch.from_numpy(body))
                    found.ended.append(ended)
                    qualities.append(quality)
            progress.update(bar, completed=found.drawn, kept=len(found.bodies))
    if not found.bodies:
        raise ValueError(
            f"none of {count} samples of the teacher has the quality {threshold}, the best has {best:.2f}; set a lower "
            "threshold, or a teacher that was trained longer"
        )
    found.quality = float(np.mean(qualities))
    log.info(f"{len(found.bodies)} of {count} samples of the teacher are kept; their mean quality is {found.quality:.2f}")
    return found


def _beginnings(data: TokenViews, tokenizer: Any, most_tokens: int, seed: int) -> list[Score]:
    """The first `most_tokens` tokens of training pieces, as the model reads them, up to a bar line."""
    view = data.view("train")
    order = np.random.default_rng(seed).permutation(len(view))[:NUM_REAL].tolist()
    bodies = (tokenizer.compress(np.asarray(view.body(i), np.int32)) for i in order)
    scores = [tokenizer.decode(_whole_bars(body, tokenizer, most_tokens)) for body in bodies]
    return [score for score in scores if num_notes(score)]


def _whole_bars(body: np.ndarray, tokenizer: Any, most_tokens: int) -> np.ndarray:
    if len(body) <= most_tokens:
        return body
    starts = tokenizer.bar_starts(body)
    inside = starts[(starts > 0) & (starts <= most_tokens)]
    return body[: inside[-1] if len(inside) else most_tokens]


def _rated(
    scores: Sequence[Score], tokenizer: Any, real: PieceFeatures, most_tokens: int
) -> list[tuple[np.ndarray, bool, float]]:
    """Body, whether it has ended, and quality of each sample that the tokenizer can write."""
    bodies: list[tuple[np.ndarray, bool]] = []
    for score in scores:
        with suppress(ValueError):  # a sample without notes
            body = np.asarray(tokenizer.compress(tokenizer.encode(score)), np.int64)
            ended = len(body) < most_tokens - MARGIN
            starts = tokenizer.bar_starts(body)
            bodies.append((body if ended or len(starts) < 2 else body[: starts[-1]], ended))
    if not bodies:
        return []
    features = measure_features([tokenizer.decode(body) for body, _ in bodies])
    return [(body, ended, float(q)) for (body, ended), q in zip(bodies, quality_of_pieces(features, real), strict=True)]
