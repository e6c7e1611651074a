"""An n-gram baseline without a network: an interpolated count model of four-voice grids.

Two back-off models each interpolate contexts from short to long. The contexts of the first consist of pitches; those of
the second of distances from the voice's previous pitch, which do not depend on the key. Their probabilities are mixed.
Counts, smoothing strengths and mixture weights are estimated on the training pieces alone. Strengths and weights are
fitted by leaving each token's own piece out of the counts, so no training piece has to be held out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from etude.evaluation.baselines import Floats, Grid, GridTokens, Ints
from etude.evaluation.copying import Hashes, mix

UNKNOWN = -1000  # stands for a distance that is not defined; far from any real distance
STRENGTHS = 2.0 ** np.arange(-4, 11)
Context = Callable[[GridTokens], list[Ints]]


def _relative(symbols: Ints, own: Ints) -> Ints:
    """Symbols as distances from `own`; where either is a rest or unknown, a code that says which symbol it was."""
    own = own.reshape(own.shape + (1,) * (symbols.ndim - own.ndim))
    return np.where((symbols > 0) & (own > 0), symbols - own, UNKNOWN - symbols)


def _moves(t: GridTokens) -> list[Ints]:
    """For each voice above: its interval from the previous to this frame, UNKNOWN for the other voices."""
    return list(np.where((t.current >= 0) & (t.before >= 0), t.current - t.before, UNKNOWN).T)


def _moved(t: GridTokens) -> list[Ints]:
    """For each voice above: 1 if its pitch changed in this frame, else 0; 2 for the other voices."""
    return [np.where(move == UNKNOWN, 2, move != 0) for move in _moves(t)]


def _position(t: GridTokens) -> list[Ints]:
    """The voice, the position in the beat and the duration so far of the voice's previous symbol, at most 4."""
    return [t.voice, t.step % 4, np.minimum(t.duration, 4)]


ABSOLUTE: tuple[Context, ...] = (
    lambda t: [t.voice],
    lambda t: [t.voice, t.own],
    lambda t: [*_position(t), t.own],
    lambda t: [*_position(t), t.own, *_moved(t)],
    lambda t: [*_position(t), t.own, *_moved(t), t.two_before],
    lambda t: [*_position(t), t.own, *_moved(t), *t.current.T],
    lambda t: [*_position(t), t.own, *t.current.T, *t.before.T],
    lambda t: [t.voice, t.step % 16, t.duration, t.own, t.two_before, *t.current.T, *t.before.T],
)
RELATIVE: tuple[Context, ...] = (
    lambda t: [t.voice],
    _position,
    lambda t: [*_position(t), *_moved(t)],
    lambda t: [*_position(t), *_moves(t)],
    lambda t: [*_position(t), *_moves(t), _relative(t.two_before, t.own)],
    lambda t: [*_position(t), *_moves(t), *_relative(t.current, t.own).T],
    lambda t: [*_position(t), *_relative(t.current, t.own).T, *_relative(t.before, t.own).T],
)


def _hash(columns: list[Ints]) -> Hashes:
    hashes = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        hashes = mix(hashes + np.uint64(0x9E3779B97F4A7C15) + column.astype(np.uint64))
    return hashes


@dataclass(frozen=True, eq=False)
class _Counts:
    """The number of occurrences of each hash."""

    keys: Hashes
    seen: Ints

    @classmethod
    def of(cls, hashes: Hashes) -> "_Counts":
        return cls(*np.unique(hashes, return_counts=True))

    def __getitem__(self, hashes: Hashes) -> Ints:
        place = np.minimum(np.searchsorted(self.keys, hashes), len(self.keys) - 1)
        return np.where(self.keys[place] == hashes, self.seen[place], 0)


class _BackOffModel:
    """A back-off model: contexts from the shortest to the longest, each smoothed by the previous one.

    p_0 = 1 / K,  p_k(x | c_k) = (n(c_k, x) + s_k p_{k-1}(x | c_{k-1})) / (n(c_k) + s_k): a Dirichlet prior centred
    on the shorter context. Source: MacKay & Peto, "A hierarchical Dirichlet language model", Natural Language Engineering 1,
    1995. In the relative model, distances that lead out of the vocabulary keep their probability, so p sums to at most 1
    and the likelihood is never overestimated.
    """

    def __init__(self, contexts: tuple[Context, ...], *, relative: bool, num_symbols: int):
        self.contexts, self.relative, self.num_symbols = contexts, relative, num_symbols
        self.strength = np.full(len(contexts), 4.0)

    def _hashes(self, tokens: GridTokens) -> list[tuple[Hashes, Hashes]]:
        """Hashes of (context, context with symbol) of every token, for every context length."""
        symbol = _relative(tokens.symbol, tokens.own) if self.relative else tokens.symbol
        contexts = [_hash(context(tokens)) for context in self.contexts]
        return [(hashes, mix(hashes ^ mix(symbol.astype(np.uint64)))) for hashes in contexts]

    def fit(self, tokens: GridTokens) -> Floats:
        """Counts, then fits the strengths. Returns p of every training token, estimated without its own piece, [N]."""
        hashes = self._hashes(tokens)
        self.counts = [(_Counts.of(context), _Counts.of(both)) for context, both in hashes]
        piece = mix(tokens.piece.astype(np.uint64))
        levels = []
        for (context, both), (counts, both_counts) in zip(hashes, self.counts, strict=True):
            in_piece = [mix(h ^ piece) for h in (context, both)]
            own = [_Counts.of(h)[h] for h in in_piece]
            levels.append((counts[context] - own[0], both_counts[both] - own[1]))
        for _ in range(2):
            for level in range(len(levels)):
                losses = []
                for strength in STRENGTHS:
                    self.strength[level] = strength
                    losses.append(-np.log(self._probability(levels)).sum())
                self.strength[level] = STRENGTHS[int(np.argmin(losses))]
        return self._probability(levels)

    def probability(self, tokens: GridTokens) -> Floats:
        """Returns p of every token, [N]."""
        found = zip(self._hashes(tokens), self.counts, strict=True)
        return self._probability([(seen[context], seen_both[both]) for (context, both), (seen, seen_both) in found])

    def _probability(self, levels: list[tuple[Ints, Ints]]) -> Floats:
        probability = np.full(len(levels[0][0]), 1.0 / self.num_symbols)
        for (seen, seen_both), strength in zip(levels, self.strength, strict=True):
            probability = (seen_both + strength * probability) / (seen + strength)
        return probability


class CountModel:
    """A mixture of a back-off model over pitches and one over distances, with mixture weights for each voice.

    Args:
        low, high: the range of MIDI pitches of the vocabulary, both included; the vocabulary also has the rest.
    """

    def __init__(self, *, low: int, high: int):
        if not 0 <= low < high <= 127:
            raise ValueError(f"low={low}, high={high} must satisfy 0 <= low < high <= 127; give MIDI pitches")
        self.low, self.high = low, high
        num_symbols = high - low + 2
        self.models = (
            _BackOffModel(ABSOLUTE, relative=False, num_symbols=num_symbols),
            _BackOffModel(RELATIVE, relative=True, num_symbols=num_symbols),
        )

    def fit(self, pieces: Sequence[Grid]) -> "CountModel":
        """Fits the counts, strengths and weights on the training pieces ([T, V] each, two or more)."""
        if len(pieces) < 2:
            raise ValueError(
                f"pieces has {len(pieces)} entries, must be 2 or more, since the weights are fitted by leaving one piece out"
            )
        tokens = GridTokens.of(pieces, low=self.low, high=self.high)
        each = np.stack([model.fit(tokens) for model in self.models], axis=1)
        voices = tokens.current.shape[1]
        self.weights: NDArray[np.float64] = np.full((voices, len(self.models)), 1 / len(self.models))
        for _ in range(50):  # expectation maximisation of a mixture of two converges in fewer steps
            share = self.weights[tokens.voice] * each
            share /= share.sum(axis=1, keepdims=True)
            self.weights = np.stack([share[tokens.voice == voice].mean(axis=0) for voice in range(voices)])
        return self

    def probability(self, tokens: GridTokens) -> Floats:
        """Returns p of every token given the tokens before it, [N]."""
        each = np.stack([model.probability(tokens) for model in self.models], axis=1)
        mixed: Floats = (self.weights[tokens.voice] * each).sum(axis=1)
        return mixed

    def nats(self, pieces: Sequence[Grid]) -> Floats:
        """Returns -ln p of every piece, summed over all its tokens: float64 [pieces]."""
        tokens = GridTokens.of(pieces, low=self.low, high=self.high)
        return np.bincount(tokens.piece, -np.log(self.probability(tokens))).astype(np.float64)
