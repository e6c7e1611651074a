"""Samples beside held-out music that is cut as they are: scores of dimensions, Turing test, copying, and what alarms read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from symusic import Score

from etude.evaluation.copying import NgramIndex
from etude.metrics.scores.alarms import Level, diversity
from etude.metrics.scores.dimensions import Described, closeness, describe, dimension_scores, own_distances
from etude.metrics.sets.turing import turing_test
from etude.music.score import num_notes, trim
from etude.tokens.tokenizer import Tokenizer

COPIED = 12  # notes of a passage
CUT = 0.9  # of held-out pieces come to their bars within the tokens that a sample gets


@dataclass(frozen=True)
class HeldOut:
    """Excerpts of held-out music.

    Attributes:
        num_bars: bars of an excerpt, at most.
        num_tokens: of the model's tokens that a sample gets for as many bars.
        scores: the excerpts. groups: number of the piece that each is from, int64 [n].
        described: their metrics and histograms.
        own: how far as many of them as there will be samples are from the others, see `dimensions.own_distances`.
        levels: of their repetition, key drift, copying and diversity.
    """

    num_bars: int
    num_tokens: int
    scores: list[Score]
    groups: NDArray[np.int64]
    described: Described
    own: dict[str, float]
    levels: dict[str, Level]


def hold_out(
    bodies: Sequence[NDArray], *, tokenizer: Tokenizer, num_bars: int, count: int, num_samples: int, index: NgramIndex, seed: int
) -> HeldOut:
    """Cuts at most `count` beginnings of `num_bars` bars from pieces, as the tokenizer holds them.

    Where there are fewer than `num_samples`, later bars of the same pieces make up for them.

    Args:
        bodies: base ids of the pieces, at least one; which come first is drawn by `seed`.
        num_samples: that will stand beside.
        index: n-grams of `COPIED` notes of training music.
    """
    order = np.random.default_rng(seed).permutation(len(bodies))
    pieces = [np.array(bodies[i]) for i in order.tolist()]
    starts = [tokenizer.bar_starts(piece) for piece in pieces]
    lengths = [int(start[num_bars]) if len(start) > num_bars else len(piece) for piece, start in zip(pieces, starts, strict=True)]
    merged = np.mean([len(tokenizer.compress(piece)) / max(len(piece), 1) for piece in pieces[:8]])
    scores: list[Score] = []
    groups: list[int] = []
    decoded: dict[int, Score] = {}
    for window in range(max(len(start) for start in starts) // num_bars + 1):
        wanted = count if window == 0 else min(count, num_samples)  # a sample is a beginning: others only stand in
        for number, (piece, start) in enumerate(zip(pieces, starts, strict=True)):
            if len(scores) < wanted and (window == 0 or (window + 1) * num_bars <= len(start)):
                if number not in decoded:
                    decoded[number] = tokenizer.decode(piece)
                scores.append(_cut(decoded[number], window * num_bars, num_bars))
                groups.append(number)
    kept = [i for i, score in enumerate(scores) if num_notes(score)]
    scores = [scores[i] for i in kept]
    described = describe(scores)
    levels = {
        "repetition": Level.of(described.metrics["repetition"]),
        "key drift": Level.of(described.metrics["key drift"]),
        "copying": Level.of(copied_shares(scores, index)),
        "diversity": Level(diversity(described.standardised(described.features)), 0.0),
    }
    return HeldOut(
        num_bars=num_bars,
        num_tokens=int(np.ceil(np.quantile(lengths, CUT) * merged)),
        scores=scores,
        groups=np.array([groups[i] for i in kept]),
        described=described,
        own=own_distances(described, count=num_samples, seed=seed),
        levels=levels,
    )


def _cut(score: Score, first_bar: int, num_bars: int) -> Score:
    try:
        return trim(score, first_bar=first_bar, num_bars=num_bars)
    except ValueError:  # the last bars that its ids count may hold no note, and so not be in the score
        return Score(score.ticks_per_quarter)


def copied_shares(scores: Sequence[Score], index: NgramIndex) -> NDArray[np.float64]:
    """Share of each piece's passages of `COPIED` notes that stand in training music, NaN for a shorter piece."""
    return np.array([index.compare(score).share[COPIED] for score in scores])


def compare_samples(
    samples: Sequence[Score], real: HeldOut, *, index: NgramIndex, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Scores of the samples, and the statistics for alarms.

    Returns:
        `rhythm`, `harmony`, `melody`, `structure`, `quality` (0..1, see `dimensions`), `copying` (0..1, 0 where the samples
        are too short to tell), `turing`, `turing_low`, `turing_high`; and `repetition`, `key drift`, `copying`, `diversity`.
    """
    described = describe(samples)
    values = dimension_scores(closeness(described, real.described, own=real.own))
    judged = turing_test(described.features, real.described.features, real_groups=real.groups, seed=seed)
    values |= {"turing": judged.score, "turing_low": judged.low, "turing_high": judged.high}
    copying = Level.of(copied_shares(samples, index)).mean
    found = {
        "repetition": Level.of(described.metrics["repetition"]).mean,
        "key drift": Level.of(described.metrics["key drift"]).mean,
        "copying": copying,
        "diversity": diversity(real.described.standardised(described.features)),
    }
    return values | {"copying": copying if np.isfinite(copying) else 0.0}, found


def grammar_error(
    likely_btv: NDArray, tokens_bt: NDArray, inside_bt: NDArray, counted_bt: NDArray, *, tokenizer: Tokenizer
) -> float:
    """Mean probability that a model gives to next tokens which its tokenizer's grammar forbids, 0..1; NaN without a place.

    The share of draws that would be ungrammatical, after real beginnings, were they not constrained.

    Args:
        likely_btv: probabilities of the next token at each place.
        tokens_bt: rows that begin a piece with BOS.
        inside_bt: places of that piece. counted_bt: those of them whose next token is one of the piece's body.
    """
    wrong: list[float] = []
    for row, (tokens, inside) in enumerate(zip(tokens_bt, inside_bt, strict=True)):
        decoder = tokenizer.decoder(1)
        for place in np.flatnonzero(inside).tolist():
            decoder.push(tokens[place : place + 1])
            if counted_bt[row, place]:
                wrong.append(float(likely_btv[row, place] @ ~decoder.allowed()[0]))
    return sum(wrong) / len(wrong) if wrong else float("nan")
