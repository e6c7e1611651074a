"""An interpolated count model of four-voice grids: what counting contexts is worth, without a network.

Two chains of contexts back off from long to short: one names pitches, the other distances from the voice's own last
pitch, which holds in any key. Their probabilities are mixed. Counts, back-off strengths and mixture weights come from
the training pieces alone; strengths and weights are fitted with each token's own piece taken out of the counts, so no
training piece is held back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from etude.evaluation.baselines import Floats, Grid, GridTokens, Ints
from etude.evaluation.copying import Hashes, mix

UNKNOWN = -1000  # a distance that does not exist, far from any that does
STRENGTHS = 2.0 ** np.arange(-4, 11)
Context = Callable[[GridTokens], list[Ints]]


def _relative(symbols: Ints, own: Ints) -> Ints:
    """Symbols as distances from `own`; where either is a rest or unknown, a code that keeps which."""
    own = own.reshape(own.shape + (1,) * (symbols.ndim - own.ndim))
    return np.where((symbols > 0) & (own > 0), symbols - own, UNKNOWN - symbols)


def _moves(t: GridTokens) -> list[Ints]:
    """How far each voice above moved into this frame."""
    return list(np.where((t.current >= 0) & (t.before >= 0), t.current - t.before, UNKNOWN).T)


def _moved(t: GridTokens) -> list[Ints]:
    """Whether each voice above moved into this frame."""
    return [np.where(move == UNKNOWN, 2, move != 0) for move in _moves(t)]


def _place(t: GridTokens) -> list[Ints]:
    """The voice, its place in the beat and how long its last pitch has lasted."""
    return [t.voice, t.step % 4, np.minimum(t.held, 4)]


ABSOLUTE: tuple[Context, ...] = (
    lambda t: [t.voice],
    lambda t: [t.voice, t.own],
    lambda t: [*_place(t), t.own],
    lambda t: [*_place(t), t.own, *_moved(t)],
    lambda t: [*_place(t), t.own, *_moved(t), t.earlier],
    lambda t: [*_place(t), t.own, *_moved(t), *t.current.T],
    lambda t: [*_place(t), t.own, *t.current.T, *t.before.T],
    lambda t: [t.voice, t.step % 16, t.held, t.own, t.earlier, *t.current.T, *t.before.T],
)
RELATIVE: tuple[Context, ...] = (
    lambda t: [t.voice],
    _place,
    lambda t: [*_place(t), *_moved(t)],
    lambda t: [*_place(t), *_moves(t)],
    lambda t: [*_place(t), *_moves(t), _relative(t.earlier, t.own)],
    lambda t: [*_place(t), *_moves(t), *_relative(t.current, t.own).T],
    lambda t: [*_place(t), *_relative(t.current, t.own).T, *_relative(t.before, t.own).T],
)


def _hash(columns: list[Ints]) -> Hashes:
    hashes = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        hashes = mix(hashes + np.uint64(0x9E3779B97F4A7C15) + column.astype(np.uint64))
    return hashes


@dataclass(frozen=True, eq=False)
class _Counts:
    """How often each hash was seen."""

    keys: Hashes
    seen: Ints

    @classmethod
    def of(cls, hashes: Hashes) -> "_Counts":
        return cls(*np.unique(hashes, return_counts=True))

    def __getitem__(self, hashes: Hashes) -> Ints:
        place = np.minimum(np.searchsorted(self.keys, hashes), len(self.keys) - 1)
        return np.where(self.keys[place] == hashes, self.seen[place], 0)


class _Chain:
    """One chain of contexts, from the shortest to the longest, each smoothed by the one before.

    p_0 = 1 / K,  p_k(x | c_k) = (n(c_k, x) + s_k p_{k-1}(x | c_{k-1})) / (n(c_k) + s_k): a Dirichlet prior around the
    shorter context. Source: MacKay & Peto, "A hierarchical Dirichlet language model", Natural Language Engineering 1,
    1995. In the relative chain a distance that leads out of the vocabulary keeps its mass, so p sums to at most 1: the
    model is never credited with more than it earns.
    """

    def __init__(self, contexts: tuple[Context, ...], *, relative: bool, num_symbols: int):
        self.contexts, self.relative, self.num_symbols = contexts, relative, num_symbols
        self.strength = np.full(len(contexts), 4.0)

    def _hashes(self, tokens: GridTokens) -> list[tuple[Hashes, Hashes]]:
        """(context, context with symbol) of every token, for every level."""
        symbol = _relative(tokens.symbol, tokens.own) if self.relative else tokens.symbol
        contexts = [_hash(context(tokens)) for context in self.contexts]
        return [(hashes, mix(hashes ^ mix(symbol.astype(np.uint64)))) for hashes in contexts]

    def fit(self, tokens: GridTokens) -> Floats:
        """Count, then fit the strengths; returns p of every training token without its own piece, [N]."""
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
        """p of every token, [N]."""
        found = zip(self._hashes(tokens), self.counts, strict=True)
        return self._probability([(seen[context], seen_both[both]) for (context, both), (seen, seen_both) in found])

    def _probability(self, levels: list[tuple[Ints, Ints]]) -> Floats:
        probability = np.full(len(levels[0][0]), 1.0 / self.num_symbols)
        for (seen, seen_both), strength in zip(levels, self.strength, strict=True):
            probability = (seen_both + strength * probability) / (seen + strength)
        return probability


class CountModel:
    """Mixes an absolute and a relative chain of contexts, with weights for every voice.

    Args:
        low, high: the range of MIDI pitches of the vocabulary, both included; the rest comes on top.
    """

    def __init__(self, *, low: int, high: int):
        if not 0 <= low < high <= 127:
            raise ValueError(f"low={low}, high={high} must satisfy 0 <= low < high <= 127; give MIDI pitches")
        self.low, self.high = low, high
        num_symbols = high - low + 2
        self.chains = (
            _Chain(ABSOLUTE, relative=False, num_symbols=num_symbols),
            _Chain(RELATIVE, relative=True, num_symbols=num_symbols),
        )

    def fit(self, pieces: Sequence[Grid]) -> "CountModel":
        """Count the training pieces ([T, V] each, two or more) and fit strengths and weights on them."""
        if len(pieces) < 2:
            raise ValueError(f"pieces has {len(pieces)} entries, must be 2 or more: each is judged by the others")
        tokens = GridTokens.of(pieces, low=self.low, high=self.high)
        each = np.stack([chain.fit(tokens) for chain in self.chains], axis=1)
        voices = tokens.current.shape[1]
        self.weights: NDArray[np.float64] = np.full((voices, len(self.chains)), 1 / len(self.chains))
        for _ in range(50):  # expectation maximisation of a two-part mixture settles well before
            share = self.weights[tokens.voice] * each
            share /= share.sum(axis=1, keepdims=True)
            self.weights = np.stack([share[tokens.voice == voice].mean(axis=0) for voice in range(voices)])
        return self

    def probability(self, tokens: GridTokens) -> Floats:
        """p of every token given those before it, [N]."""
        each = np.stack([chain.probability(tokens) for chain in self.chains], axis=1)
        return (self.weights[tokens.voice] * each).sum(axis=1)

    def nats(self, pieces: Sequence[Grid]) -> Floats:
        """-ln p of every piece, summed over all its tokens: float64 [pieces]."""
        tokens = GridTokens.of(pieces, low=self.low, high=self.high)
        return np.bincount(tokens.piece, -np.log(self.probability(tokens))).astype(np.float64)
