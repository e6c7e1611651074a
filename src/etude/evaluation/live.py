"""Compare samples during training with held-out music: quality scores, a Turing test, copying and statistics for alarms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from symusic import Score

from etude.evaluation.copying import NgramIndex
from etude.metrics.scores.alarms import ReferenceStatistic, diversity
from etude.metrics.scores.dimensions import PieceFeatures, closeness, dimension_scores, distances_within_real, measure_features
from etude.metrics.sets.turing import turing_test
from etude.music.score import num_notes, trim
from etude.tokens.tokenizer import Tokenizer

COPY_LENGTH = 12  # notes of a passage that counts as copied
LENGTH_QUANTILE = 0.9  # a sample may have as many tokens as this share of held-out pieces needs for the same number of bars


@dataclass(frozen=True)
class Excerpts:
    """Excerpts of held-out music, with which samples are compared.

    Attributes:
        num_bars: largest number of bars of an excerpt.
        num_tokens: number of the model's tokens to sample for that many bars.
        scores: the excerpts.
        groups: for each excerpt, the index of its piece, int64 [n].
        features: their metrics and histograms.
        expected: distances of a subset of the excerpts, as large as the set of samples, from the other excerpts; see
            `dimensions.distances_within_real`.
        reference: their repetition, key drift, copying and diversity.
    """

    num_bars: int
    num_tokens: int
    scores: list[Score]
    groups: NDArray[np.int64]
    features: PieceFeatures
    expected: dict[str, float]
    reference: dict[str, ReferenceStatistic]


def cut_excerpts(
    bodies: Sequence[NDArray[Any]],
    *,
    tokenizer: Tokenizer,
    num_bars: int,
    count: int,
    num_samples: int,
    index: NgramIndex,
    seed: int,
) -> Excerpts:
    """Cuts excerpts from pieces: the first `num_bars` bars of at most `count` pieces, encoded and decoded by the tokenizer.

    If there are fewer than `num_samples` pieces, later bars of the same pieces are added.

    Args:
        bodies: body ids of the pieces (before byte pairs are merged), at least one piece; `seed` shuffles them.
        num_samples: number of samples that will be compared with the excerpts.
        index: n-grams of `COPY_LENGTH` notes of training music.
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
        wanted = (
            count if window == 0 else min(count, num_samples)
        )  # samples are beginnings of pieces; later bars are used only if there are too few
        for number, (piece, start) in enumerate(zip(pieces, starts, strict=True)):
            if len(scores) < wanted and (window == 0 or (window + 1) * num_bars <= len(start)):
                if number not in decoded:
                    decoded[number] = tokenizer.decode(piece)
                scores.append(_cut(decoded[number], window * num_bars, num_bars))
                groups.append(number)
    kept = [i for i, score in enumerate(scores) if num_notes(score)]
    scores = [scores[i] for i in kept]
    features = measure_features(scores)
    reference = {
        "repetition": ReferenceStatistic.of(features.metrics["repetition"]),
        "key drift": ReferenceStatistic.of(features.metrics["key drift"]),
        "copying": ReferenceStatistic.of(copied_shares(scores, index)),
        "diversity": ReferenceStatistic(diversity(features.standardised(features.matrix)), 0.0),
    }
    return Excerpts(
        num_bars=num_bars,
        num_tokens=int(np.ceil(np.quantile(lengths, LENGTH_QUANTILE) * merged)),
        scores=scores,
        groups=np.array([groups[i] for i in kept]),
        features=features,
        expected=distances_within_real(features, count=num_samples, seed=seed),
        reference=reference,
    )


def _cut(score: Score, first_bar: int, num_bars: int) -> Score:
    try:
        return trim(score, first_bar=first_bar, num_bars=num_bars)
    except ValueError:  # the last bars of the ids may have no note, and are then not in the score
        return Score(score.ticks_per_quarter)


def copied_shares(scores: Sequence[Score], index: NgramIndex) -> NDArray[np.float64]:
    """Returns the share of each piece's passages of `COPY_LENGTH` notes that occur in training music; NaN if shorter."""
    return np.array([index.compare(score).share[COPY_LENGTH] for score in scores])


def compare_samples(
    samples: Sequence[Score], real: Excerpts, *, index: NgramIndex, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the scores of the samples, and their statistics for alarms.

    Returns:
        `rhythm`, `harmony`, `melody`, `structure`, `quality` (0..1, see `dimensions`), `copying` (0..1, 0 if the samples
        are too short), `turing`, `turing_low`, `turing_high`; and `repetition`, `key drift`, `copying`, `diversity`.
    """
    features = measure_features(samples)
    values = dimension_scores(closeness(features, real.features, expected=real.expected))
    turing = turing_test(features.matrix, real.features.matrix, real_groups=real.groups, seed=seed)
    values |= {"turing": turing.score, "turing_low": turing.low, "turing_high": turing.high}
    copying = ReferenceStatistic.of(copied_shares(samples, index)).mean
    found = {
        "repetition": ReferenceStatistic.of(features.metrics["repetition"]).mean,
        "key drift": ReferenceStatistic.of(features.metrics["key drift"]).mean,
        "copying": copying,
        "diversity": diversity(real.features.standardised(features.matrix)),
    }
    return values | {"copying": copying if np.isfinite(copying) else 0.0}, found


def grammar_error(
    probabilities_btv: NDArray[Any],
    tokens_bt: NDArray[Any],
    inside_bt: NDArray[Any],
    counted_bt: NDArray[Any],
    *,
    tokenizer: Tokenizer,
) -> float:
    """Mean probability, 0..1, that a model gives to next tokens forbidden by the grammar; NaN if no position counts.

    This is the share of tokens that would be ungrammatical if sampling after real beginnings were not constrained.

    Args:
        probabilities_btv: probabilities of the next token at each position.
        tokens_bt: rows that begin with BOS and a piece.
        inside_bt: bool, the positions of that piece.
        counted_bt: bool, the positions whose next token is a body token of the piece.
    """
    wrong: list[float] = []
    for row, (tokens, inside) in enumerate(zip(tokens_bt, inside_bt, strict=True)):
        decoder = tokenizer.decoder(1)
        for position in np.flatnonzero(inside).tolist():
            decoder.push(tokens[position : position + 1])
            if counted_bt[row, position]:
                wrong.append(float(probabilities_btv[row, position] @ ~decoder.allowed()[0]))
    return sum(wrong) / len(wrong) if wrong else float("nan")
